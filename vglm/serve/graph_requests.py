"""Requests with a graph: how a body's graph becomes part of prompts, and what answers say of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vglm.decode.graph_outputs import GraphOutput, Named
from vglm.errors import RequestError
from vglm.graph.graph import Edge, Graph
from vglm.serve.graph_errors import graph_errors
from vglm.serve.schemas.graphs import GraphFields, StoredGraph
from vglm.serve.streams import Increment, Stream
from vglm.serve.structured import structured_outputs

if TYPE_CHECKING:
    from vglm.serve.serving import Serving
    from vglm.serve.tools import ToolUse
    from vglm.tasks.asking import Asked, GraphSource

MAX_CANDIDATES = 32  # that an answer lists of the nodes that were retrieved
ENGINE_NAMES = {"context": "graph", "first_position": "graph"}
Ask = Callable[["GraphSource", Any, str], "list[Asked]"]


def check_graph_fields(body: GraphFields, tools: ToolUse | None = None) -> None:
    """Raises RequestError when the fields of a body exclude each other."""
    if body.constraint is None:
        return
    if body.graph is None:
        raise RequestError("a constraint is over a graph; give one as graph", "constraint")
    if (other := structured_outputs(body, tools)) is not None:
        raise RequestError(
            f"constraint and {other[0]} each say what the answer must look like; give one of them",
            "constraint",
        )


async def ask(serving: Serving, body: GraphFields, ask: Ask) -> list[Asked]:
    """What `ask` makes of the body's graph, constraint and mode, in another thread. Raises RequestError and ApiError."""
    return await serving.graphs.run(_ask, serving, body, ask)


def _ask(serving: Serving, body: GraphFields, ask: Ask) -> list[Asked]:
    with graph_errors("graph"):
        source = _source(serving, body.graph)
        return ask(source, body.constraint, body.graph_mode or "auto")


def _source(serving: Serving, given: Mapping[str, Any] | StoredGraph | None) -> GraphSource:
    from vglm.tasks.asking import GraphQuery

    if isinstance(given, StoredGraph):
        graph = serving.graphs.store.get(given.id, given.version)
        entities = None if given.entities is None else tuple(given.entities)
        return GraphQuery(graph, entities, given.hops, given.budget, given.method)
    return inline_graph(serving, given)


def inline_graph(serving: Serving, given: Any) -> Graph:
    """The graph of a body. Raises GraphError, and RequestError for one that no prompt can hold."""
    graph = Graph.from_dict(given)
    pool = serving.llm.engine.pool
    most = pool.num_blocks * pool.block_size
    if graph.num_nodes + graph.num_edges > most:  # each takes a token at least
        raise RequestError(
            f"the graph has {graph.num_nodes:,} nodes and {graph.num_edges:,} edges, more than the {most:,} tokens that fit "
            "into the KV cache; store it (/v1/graphs) and ask for the part that a question needs",
            "graph",
        )
    return graph


def constraints_of(asked: Sequence[Asked]) -> dict[str, Any]:
    """What `Serving.generation` has to know of them besides the prompts."""
    constraints = [one.decoder for one in asked]
    return {"constraints": constraints} if any(constraints) else {}


class GraphAnswers:
    """What the choices of one HTTP request say of their graphs."""

    def __init__(
        self, serving: Serving, stream: Stream, asked: Sequence[Asked], n: int, whole: bool | None
    ) -> None:
        """Of prompt i the choices are i * n and on; `whole`: answers have the graph that was read."""
        self._serving = serving
        self._stream = stream
        self._asked = asked
        self._n = n
        self._whole = bool(whole)
        self._texts: dict[int, list[str]] = defaultdict(list)
        self._found: dict[int, dict[str, Any]] = {}

    async def read(self, increments: Sequence[Increment]) -> None:
        """Take note of new text, and read what has ended, in another thread."""
        for increment in increments:
            self._texts[increment.index].append(increment.text)
        ended = [increment.index for increment in increments if increment.finish_reason is not None]
        if ended:
            self._found |= await self._serving.graphs.run(self._read, ended)

    def _read(self, ended: Sequence[int]) -> dict[int, dict[str, Any]]:
        found = {}
        for index in ended:
            request = self._stream.requests[index // self._n]
            sequence = request.sequences[index % self._n]
            output = self._asked[index // self._n].output(request, sequence, "".join(self._texts.pop(index)))
            found[index] = graph_answer(output, self._whole)
        return found

    def fields(self, index: int) -> dict[str, Any]:
        """The field that a choice has when it has ended."""
        return {"graph": self._found[index]} if index in self._found else {}


def graph_answer(output: GraphOutput, whole: bool = False) -> dict[str, Any]:
    """A graph's output as `schemas.graphs.GraphAnswer` has it."""
    answer: dict[str, Any] = {
        "mode": output.mode,
        "answer": [named_entity(named) for named in output.answer],
        "candidates": [named_entity(named) for named in output.candidates[:MAX_CANDIDATES]],
        "evidence": [cited_path(path) for path in output.evidence],
        "citations": list(output.citations),
        "entities": [named_entity(named) for named in output.entities],
        "complete": output.complete,
        "retrieved": {
            "nodes": output.num_nodes,
            "edges": output.num_edges,
            "tokens": output.num_tokens,
            "left_out": output.left_out,
            "left_out_nodes": output.left_out_nodes,
        },
        "cached_tokens": output.num_cached_tokens,
    }
    if output.json is not None:
        answer["value"] = output.json
    if whole and output.graph is not None:
        answer["graph"] = output.graph.to_dict()
    return answer


def named_entity(named: Named) -> dict[str, Any]:
    """An entity as answers have it."""
    fields: dict[str, Any] = {"id": named.id, "name": named.name, "type": named.type}
    return fields if named.score is None else {**fields, "score": named.score}


def cited_path(path: Sequence[Edge]) -> list[dict[str, str]]:
    """Edges as answers have them."""
    return [{"source": edge.source, "relation": edge.relation, "target": edge.target} for edge in path]
