"""Walks in a graph, within bounded work: personalised PageRank, neighbourhoods, shortest paths.

Edges are walked in both directions. A node of more than `DEGREE_CAP` edges is walked along the first ones of
each (direction, relation) only, in equal shares; how many edges were passed over is counted. Results depend on
the graph's content alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vglm import _native
from vglm.errors import GraphError
from vglm.graph.derived import once_per_graph
from vglm.graph.graph import Graph, Ints
from vglm.graph.limits import shown

DEGREE_CAP = 1024
MAX_WORK = 1_000_000  # edges that one walk may look at: some 10 ms
RESTART = 0.2
EPSILON = 1e-5
_PARALLEL = 1_000
Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a walk may use: masks over the graph's relations and node types, uint8; None allows all of them.

    Nodes where a walk starts or ends are allowed whatever their type.
    """

    relations: Mask | None = None
    types: Mask | None = None


@dataclass(frozen=True, slots=True)
class Walked:
    """The nodes that a walk met, ascending: indices int32[n], hops from the nearest seed int32[n], scores
    float64[n].

    `passed_over` counts edges of nodes above the degree cap that were not followed; `complete` is false if a bound
    ended the walk.
    """

    nodes: Ints
    hops: Ints
    scores: npt.NDArray[np.float64]
    passed_over: int
    complete: bool


@dataclass(frozen=True, slots=True)
class FoundPaths:
    """Paths between two nodes as node indices int32[length + 1], the cheapest first, with their costs."""

    paths: tuple[tuple[Ints, float], ...]
    complete: bool


EVERYTHING = Scope()


class Walks:
    """Walks in one graph; `walks(graph)` keeps one for each graph, because making it sorts the edges."""

    def __init__(self, graph: Graph) -> None:
        self._columns = columns = graph.columns
        nodes, relations = graph.num_nodes, len(columns.relation_names)
        counts = np.bincount(columns.relations, minlength=relations)
        self._relation_cost = np.log1p(counts) / np.log1p(max(graph.num_edges, 1))
        own = (_starts(columns.sources, nodes), _starts(columns.targets, nodes), _by_target(graph))
        self.nbytes = sum(array.nbytes for array in own)  # beside the graph's columns, which are not copied
        self._native = _native.GraphWalk(
            own[0],
            own[1],
            _contiguous(columns.sources),
            _contiguous(columns.targets),
            _contiguous(columns.relations),
            own[2],
            _contiguous(columns.node_types),
            relations,
            len(columns.type_names),
        )

    def scope(self, types: Collection[str] | None, relations: Collection[str] | None) -> Scope:
        """The scope of some node types and relations (None: all); GraphError for one that the graph lacks."""
        columns = self._columns
        return Scope(
            _mask(relations, columns.relation_names, "relations", "relation"),
            _mask(types, columns.type_names, "types", "node type"),
        )

    def pagerank(
        self,
        seeds: Ints,
        weights: npt.NDArray[np.float64],
        max_hops: int = -1,
        scope: Scope = EVERYTHING,
        epsilon: float = EPSILON,
        restart: float = RESTART,
        degree_cap: int = DEGREE_CAP,
        max_work: int = MAX_WORK,
    ) -> Walked:
        """Personalised PageRank by forward push; `seeds` ascending, `weights` float64[len(seeds)] summing to 1.

        Scores are never above the exact ones, and (without caps, hop limit, masks and self-loops) below them by
        at most `epsilon` times the node's degree. `max_hops` (-1: none) away from the seeds a walk ends.
        """
        found = self._native.pagerank(
            seeds, weights, restart, epsilon, max_hops, degree_cap, max_work, scope.relations, scope.types
        )
        return _walked(found)

    def neighborhood(
        self,
        seeds: Ints,
        hops: int,
        max_nodes: int,
        scope: Scope = EVERYTHING,
        degree_cap: int = DEGREE_CAP,
        max_work: int = MAX_WORK,
    ) -> Walked:
        """The nodes at most `hops` away from the seeds, nearest first until there are `max_nodes`; scores 0."""
        found = self._native.neighborhood(
            seeds, hops, max_nodes, degree_cap, max_work, scope.relations, scope.types
        )
        return _walked(found)

    def shortest_paths(
        self,
        source: int,
        target: int,
        max_length: int,
        count: int = 1,
        scope: Scope = EVERYTHING,
        degree_cap: int = DEGREE_CAP,
        max_work: int = MAX_WORK,
    ) -> FoundPaths:
        """The best `count` of the shortest paths with at most `max_length` edges, each over another middle node.

        A path costs ln(1 + degree) for each node between its ends, and for each edge
        ln(1 + edges of the relation) / ln(1 + edges): what is specific is better evidence.
        """
        paths, complete = self._native.shortest_paths(
            source,
            target,
            max_length,
            count,
            self._relation_cost,
            degree_cap,
            max_work,
            scope.relations,
            scope.types,
        )
        return FoundPaths(tuple(paths), complete)

    def edges_among(
        self, nodes: Ints, max_edges: int = 1_000_000, scope: Scope = EVERYTHING
    ) -> tuple[Ints, int]:
        """The edges between two of `nodes` (ascending): the first `max_edges` ascending, and how many there are."""
        return self._native.edges_among(nodes, max_edges, scope.relations)

    def edge_between(self, one: int, other: int, scope: Scope = EVERYTHING) -> int:
        """The edge between two different nodes, in either direction, of the rarest relation; the first of several.

        -1 if there is none. Of more than a thousand parallel edges the first thousand are looked at.
        """
        ends = np.array(sorted((one, other)), np.int32)
        found, _ = self.edges_among(ends, _PARALLEL, scope)
        columns = self._columns
        found = found[columns.sources[found] != columns.targets[found]]
        if not len(found):
            return -1
        return int(found[np.argmin(self._relation_cost[columns.relations[found]])])


walks = once_per_graph(Walks)


def _mask(chosen: Collection[str] | None, names: Sequence[str], where: str, what: str) -> Mask | None:
    if chosen is None:
        return None
    if isinstance(chosen, str):
        raise GraphError(f"{where}: expected a list of names, found {shown(chosen)}")
    mask = np.zeros(len(names), np.uint8)
    for name in chosen:
        if name not in names:
            known = ", ".join(shown(known) for known in names[:10]) or "none"
            raise GraphError(f"{where}: the graph has no {what} {shown(name)}; it has {known}")
        mask[names.index(name)] = 1
    return mask


def _walked(found: tuple[Ints, Ints, npt.NDArray[np.float64], int, int, bool]) -> Walked:
    nodes, hops, scores, _, passed_over, complete = found
    return Walked(nodes, hops, scores, passed_over, complete)


def _by_target(graph: Graph) -> Ints:
    """The edges by (target, relation, source), int32[E]; they are by (source, relation, target) already.

    Where target, relation and number of an edge fit into 63 bits together, as nearly always, a sort of these is ten
    times quicker than one that returns indices.
    """
    columns = graph.columns
    keys = columns.targets.astype(np.int64)
    keys *= max(len(columns.relation_names), 1)
    keys += columns.relations
    bits = graph.num_edges.bit_length()
    if graph.num_nodes * max(len(columns.relation_names), 1) >= 1 << (63 - bits):
        return np.argsort(keys, kind="stable").astype(np.int32)
    keys <<= bits
    keys += np.arange(len(keys))
    keys.sort()
    keys &= (1 << bits) - 1
    return keys.astype(np.int32)


def _starts(rows: Ints, num_rows: int) -> npt.NDArray[np.int64]:
    starts = np.zeros(num_rows + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=num_rows), out=starts[1:])
    return starts


def _contiguous(array: Ints) -> Ints:
    return np.ascontiguousarray(array, np.int32)
