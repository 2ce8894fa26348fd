"""Makes the graph's side of an answer: whom it names, what it rests on, what it was given to read."""

from __future__ import annotations

from vglm.decode.graph_outputs import GraphOutput, Named
from vglm.decode.grounded import Grounded, WalkedEdge
from vglm.engine.request import Request
from vglm.graph.graph import Edge, Graph
from vglm.graph.paths import evidence
from vglm.graph.retrieval import Retrieved
from vglm.tasks.graph_prompt import GraphPrompt

MAX_PATHS = 3  # of evidence for each entity of an answer
MAX_SOURCES = 32  # entities of a question from which paths are looked for
EMPTY = "the graph has no nodes, so a free text rests on nothing"


def named(graph: Graph, node_id: str, score: float | None = None) -> Named:
    """A node of a graph."""
    node = graph.node(node_id)
    return Named(node.id, node.name, node.type, score)


def graph_output(
    graph: Graph,
    prompt: GraphPrompt,
    request: Request,
    grounded: Grounded | None = None,
    retrieved: Retrieved | None = None,
    entities: tuple[str, ...] = (),
) -> GraphOutput:
    """The output of a finished request that has read `graph`; `entities` are the ids that the question names."""
    answer, walks = (grounded.answer, grounded.walks) if grounded is not None else ((), ())
    mentioned = tuple(i for place in (grounded.mentions if grounded else ()) for i in place.entity.ids)
    cited = grounded.edges if grounded is not None else ()
    paths = [_edges(walk) for walk in walks if walk] + [_edges((edge,)) for edge in cited]
    if not paths:
        paths = _paths(graph, entities, (*answer, *mentioned))
    ends = (end for path in paths for edge in path for end in (edge.source, edge.target))
    scores = retrieved.scores if retrieved is not None else {}
    return GraphOutput(
        mode=prompt.mode,
        answer=tuple(named(graph, node) for node in answer),
        evidence=tuple(paths),
        citations=tuple(dict.fromkeys((*answer, *mentioned, *ends))),
        candidates=tuple(named(graph, node, score) for node, score in scores.items() if node in graph),
        json=grounded.json if grounded is not None else None,
        complete=grounded.complete if grounded is not None else True,
        # of what the question names, the budget may have left something out
        entities=tuple(named(graph, node) for node in entities if node in graph),
        num_nodes=graph.num_nodes,
        num_edges=graph.num_edges,
        num_tokens=prompt.num_graph_tokens,
        num_cached_tokens=_cached(prompt, request),
        left_out=retrieved.left_out.why if retrieved is not None else "" if graph.num_nodes else EMPTY,
        left_out_nodes=retrieved.left_out.nodes if retrieved is not None else 0,
        graph=graph,
        mentions=tuple(dict.fromkeys(mentioned)),
    )


def _cached(prompt: GraphPrompt, request: Request) -> int:
    """Tokens of the graph that came from the cache: those of spans, without the words before them."""
    if prompt.mode == "sequential":
        return min(request.num_cached_tokens, prompt.num_graph_tokens)
    return max(0, request.num_cached_context_tokens - len(prompt.span_specs[0].tokens))


def _edges(walk: tuple[WalkedEdge, ...]) -> tuple[Edge, ...]:
    return tuple(step.edge for step in walk)


def _paths(graph: Graph, sources: tuple[str, ...], answers: tuple[str, ...]) -> list[tuple[Edge, ...]]:
    found: list[tuple[Edge, ...]] = []
    starts = [source for source in sources if source in graph][:MAX_SOURCES]
    for answer in dict.fromkeys(answers):
        if starts and answer not in starts:
            paths = evidence(graph, starts, answer, max_paths=MAX_PATHS)
            found += [tuple(graph.edge_at(edge) for edge in path) for path in paths]
    return found
