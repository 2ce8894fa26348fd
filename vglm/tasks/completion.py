"""Link prediction: which entity stands at the open end of a triple, (head, relation, ?) or (?, relation, tail)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from vglm.decode.graph_outputs import Named
from vglm.engine.trie import MAX_CANDIDATES
from vglm.errors import GraphError, RequestError
from vglm.graph.closest import known_nodes
from vglm.graph.graph import Graph, Ints
from vglm.graph.limits import shown
from vglm.graph.linking import linker
from vglm.graph.records import Records
from vglm.tasks.asking import Asking, GraphQuery
from vglm.tasks.ranking import RankingTask, ranking_task

_SHOWN_RELATIONS = 10
QUESTION = "Complete the triple ({head}, {relation}, {tail}) of the graph. Answer with the name that belongs in place of ?."


@dataclass(frozen=True, slots=True)
class OpenEnd:
    """A triple with an open end: the `node` that is given (an index), and the `nodes` that may stand at the other end.

    `outwards`: the given node is the head, and a tail is looked for. `known` are the ends of edges that the graph has.
    """

    node: int
    relation: str
    outwards: bool
    nodes: Ints
    known: Ints


def open_end(
    graph: Graph,
    *,
    relation: str,
    head: str | None = None,
    tail: str | None = None,
    filtered: bool = False,
    candidates: Collection[str] | None = None,
    types: Collection[str] = (),
) -> OpenEnd:
    """What may stand at the open end of a triple; `head` or `tail` is the id of the end that is given.

    Candidates are the nodes with these ids, or all nodes of `types`, or by default those of the types that nodes at
    this end of the relation have in the graph; the given node itself is none by default. `filtered` leaves out those whose
    edge the graph has already (the filtered setting of Bordes et al., 2013).

    Raises GraphError and RequestError that name the argument at fault.
    """
    if (head is None) == (tail is None):
        raise RequestError("give either a head or a tail, and the other is looked for", "head")
    side, given = ("head", head) if tail is None else ("tail", tail)
    node = given_node(graph, given, side)
    code = _relation(graph, relation)
    known = _known(graph, node, code, side == "head")
    nodes = _candidates(graph, code, side == "head", candidates, types, node)
    if filtered:
        nodes = nodes[~np.isin(nodes, known)]
    if not len(nodes):
        raise GraphError("candidates: none is left" + (" that has no such edge already" if filtered else ""))
    return OpenEnd(node, relation, side == "head", nodes, known)


def completion_task(
    asking: Asking,
    graph: Graph,
    end: OpenEnd,
    *,
    top: int = 10,
    temperature: float = 1.0,
    hops: int = 2,
    budget: int = 1024,
    graph_mode: str = "auto",
) -> RankingTask:
    """What may stand at the open end of a triple, by the language model, which reads what is near the given node: `hops` and
    `budget` as in `retrieve`. Raises GraphError and RequestError that name the argument at fault.
    """
    nodes = end.nodes
    if len(nodes) > MAX_CANDIDATES:
        raise GraphError(
            f"candidates: {len(nodes):,} nodes may stand there, but at most {MAX_CANDIDATES:,} can be ranked; "
            "name candidates, or types"
        )
    records = Records(graph, shared_names=linker(graph).shared_names)
    name = records.short_name(end.node)
    triple = (name, "?") if end.outwards else ("?", name)
    question = QUESTION.format(head=triple[0], relation=end.relation, tail=triple[1])
    source = GraphQuery(graph, (graph.id_of(end.node),), hops, budget)
    asked = asking.question(question, source, mode=graph_mode, named=False)
    named = [named_node(graph, index) for index in nodes.tolist()]
    texts = [records.name(index) for index in nodes.tolist()]
    ids = frozenset(graph.id_of(index) for index in end.known.tolist())
    return ranking_task(asking, asked, named, texts, top, temperature, ids)


def given_node(graph: Graph, given: object, where: str) -> int:
    """The index of a node that a caller names. Raises GraphError that calls it `where`, with the closest ids."""
    if not isinstance(given, str):
        raise GraphError(f"{where}: expected the id of a node, found {shown(given)}")
    try:
        return int(known_nodes(graph, [given], where)[0])
    except GraphError as error:
        raise GraphError(str(error).replace(f"{where}[0]", where, 1)) from error


def _relation(graph: Graph, relation: object) -> int:
    code = graph.relation_code(relation) if isinstance(relation, str) else -1
    if code < 0:
        names = graph.columns.relation_names
        some = ", ".join(shown(name) for name in names[:_SHOWN_RELATIONS])
        more = f" and {len(names) - _SHOWN_RELATIONS} more" if len(names) > _SHOWN_RELATIONS else ""
        raise GraphError(
            f"relation: the graph has no relation {shown(relation)}; it has {some or 'none'}{more}"
        )
    return code


def _known(graph: Graph, node: int, code: int, outwards: bool) -> Ints:
    """The other ends of the edges that the graph has, int32 [n]."""
    edges = graph.edge_indices(node, "out" if outwards else "in")
    edges = edges[graph.columns.relations[edges] == code]
    ends: Ints = np.unique((graph.columns.targets if outwards else graph.columns.sources)[edges])
    return ends


def _candidates(
    graph: Graph,
    code: int,
    tails: bool,
    candidates: Collection[str] | None,
    types: Collection[str],
    node: int,
) -> Ints:
    """The nodes that may stand at the open end, int32 [n], ascending."""
    columns = graph.columns
    if candidates is not None:
        return _named_candidates(graph, candidates)
    if isinstance(types, str):
        raise GraphError(f"types: expected a list of node types, found {shown(types)}")
    if types:
        codes = [_type(graph, kind, f"types[{place}]") for place, kind in enumerate(types)]
    else:
        ends = (columns.targets if tails else columns.sources)[columns.relations == code]
        codes = np.unique(columns.node_types[ends]).tolist()
    fitting = np.flatnonzero(np.isin(columns.node_types, codes)).astype(np.int32)
    others: Ints = fitting[fitting != node]
    return others


def _named_candidates(graph: Graph, candidates: Collection[str]) -> Ints:
    ids = list(candidates) if not isinstance(candidates, str) else []
    if not ids or not all(isinstance(node_id, str) for node_id in ids):
        raise GraphError("candidates: expected a list of node ids")
    try:
        return np.unique(graph.indices_of(ids))
    except GraphError as error:
        raise GraphError(f"candidates: {error}") from error


def _type(graph: Graph, kind: str, where: str) -> int:
    names = graph.columns.type_names
    if kind not in names:
        raise GraphError(f"{where}: the graph has no nodes of the type {shown(kind)}")
    return names.index(kind)


def named_node(graph: Graph, index: int) -> Named:
    """A node as answers name it."""
    columns = graph.columns
    return Named(columns.ids[index], columns.names[index], columns.type_names[columns.node_types[index]])
