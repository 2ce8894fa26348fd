"""What an answer over a graph says of the graph: whom it names, what it rests on, what it was given to read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vglm.graph.graph import Edge, Graph


@dataclass(frozen=True, slots=True)
class Named:
    """An entity of the graph; `score` is None where nothing was scored."""

    id: str
    name: str
    type: str = ""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class GraphOutput:
    """The graph's side of an answer.

    Attributes:
        mode: "spans" or "sequential": how the graph was read.
        answer: the entities that the answer names, under a constraint; an ambiguous name stands for all it may mean.
        evidence: paths of edges from the question's entities to those of the answer, and walks that the answer took.
        citations: ids of the nodes that answer and evidence name, each once.
        mentions: ids of the nodes that the answer names in [brackets], each once, under the constraint "mentions".
        candidates: entities with their scores, the best first, where candidates were ranked.
        json: the value, under a `json` constraint.
        complete: False when the answer was cut off before its form was complete.
        entities: what the question names in the graph, where it was looked for.
        num_nodes, num_edges: of the graph that was read.
        num_tokens, num_cached_tokens: the tokens of the graph in the prompt, and those whose KV was found in the cache.
        left_out: why something was left out of the graph that was read, or that it was empty; "" for nothing.
    """

    mode: str
    answer: tuple[Named, ...] = ()
    evidence: tuple[tuple[Edge, ...], ...] = ()
    citations: tuple[str, ...] = ()
    candidates: tuple[Named, ...] = ()
    json: Any = None
    complete: bool = True
    entities: tuple[Named, ...] = ()
    num_nodes: int = 0
    num_edges: int = 0
    num_tokens: int = 0
    num_cached_tokens: int = 0
    left_out: str = ""
    left_out_nodes: int = 0
    graph: Graph | None = field(default=None, repr=False)
    mentions: tuple[str, ...] = ()
