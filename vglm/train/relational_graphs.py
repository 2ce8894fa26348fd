"""Graphs to train the relational encoder on: triples as numbers, questions about them, and variations of a graph.

An encoder that has seen one graph only would learn how dense that graph is, how many relations it has and how fine they are.
`varied` changes just that: parts of the graph, fewer edges, relations that are split, merged or made symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xxhash

from vglm.encoder.relational_structure import RelationalStructure
from vglm.graph.graph import Graph

Longs = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_CONTRACT = 0.5  # how often a variation has communities for nodes, where the graph is large enough
_SPREADING = 12  # rounds in which communities grow before the rest is given out at random
_MOST_CONCLUSIONS = 20  # of a rule, for each first edge
_MOST_RELATIONS = 64  # after splitting: interactions are computed anew for each variation


@dataclass(frozen=True, eq=False)
class TrainingGraph:
    """Triples int64[E, 3] of (source, relation, target) numbers, without duplicates; relations are 0..R - 1."""

    num_nodes: int
    num_relations: int
    triples: Longs

    @classmethod
    def of_graph(cls, graph: Graph) -> TrainingGraph:
        """All edges of a graph."""
        columns = graph.columns
        triples = np.stack([columns.sources, columns.relations, columns.targets], axis=1).astype(np.int64)
        return cls(graph.num_nodes, len(columns.relation_names), np.unique(triples, axis=0))

    @property
    def digest(self) -> str:
        """Of the content, hexadecimal: equal for equal graphs."""
        found = xxhash.xxh3_128(f"{self.num_nodes}:{self.num_relations}:".encode())
        found.update(np.ascontiguousarray(self.triples).tobytes())
        return found.hexdigest()

    @cached_property
    def structure(self) -> RelationalStructure:
        source, relation, target = self.triples.astype(np.int32).T
        return RelationalStructure.of_triples(self.num_nodes, self.num_relations, source, relation, target)

    @cached_property
    def queries(self) -> Longs:
        """Both questions about each triple, int64[2 E, 3] of (head, relation 0..2 R - 1, answer)."""
        source, relation, target = self.triples.T
        backwards = np.stack([target, relation + self.num_relations, source], axis=1)
        return np.concatenate([self.triples, backwards])

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Longs, RelationalStructure, Flags]:
        """Questions int64[size, 3], the structure without their edges, and other right answers bool[size, N]."""
        asked = self.queries[rng.integers(len(self.queries), size=size)]
        head, relation, answer = asked.T
        structure = self.structure
        inverse = structure.inverse(relation.astype(np.int32))
        dropped = np.concatenate([self._keys(answer, head, relation), self._keys(head, answer, inverse)])
        remaining = structure.without(np.isin(self._edge_keys, dropped))
        others = np.zeros((size, self.num_nodes), bool)
        for row, h in enumerate(head.tolist()):
            # The answers of (h, r, ?) are where edges of r's inverse come from that lead to h.
            begin, end = structure.start[h : h + 2]
            asked_for = structure.relation[begin:end] == inverse[row]
            others[row, structure.source[begin:end][asked_for]] = True
        others[np.arange(size), answer] = False
        return asked, remaining, others

    @cached_property
    def _edge_keys(self) -> Longs:
        structure = self.structure
        return self._keys(structure.target, structure.source, structure.relation)

    def _keys(
        self,
        target: npt.NDArray[np.integer],
        source: npt.NDArray[np.integer],
        relation: npt.NDArray[np.integer],
    ) -> Longs:
        pairs = target.astype(np.int64) * self.num_nodes + source
        keys: Longs = pairs * (2 * self.num_relations) + relation
        return keys


def varied(
    graph: TrainingGraph, rng: np.random.Generator, sizes: tuple[int, int] = (100, 2000)
) -> TrainingGraph:
    """A random variation of a graph: a part of `sizes` nodes, and its edges and relations changed."""
    low, high = sizes
    size = int(np.exp(rng.uniform(np.log(low), np.log(high))))
    if graph.num_nodes > 2 * size and rng.random() < _CONTRACT:
        part = int(size * np.exp(rng.uniform(np.log(2.0), np.log(40.0))))
        if part < graph.num_nodes:
            graph = part_of(graph, rng, part)
        graph = contracted(graph, rng, size)
    elif size < graph.num_nodes:
        graph = part_of(graph, rng, size)
    if not len(graph.triples):
        return graph
    if rng.random() < 0.5:
        graph = ruled(graph, rng)
    if rng.random() < 0.3:
        kept = max(30, int(len(graph.triples) * np.exp(rng.uniform(np.log(0.05), 0.0))))
        graph = _renumbered(rng.permutation(graph.triples)[:kept])
    if rng.random() < 0.4:
        graph = merged(graph, rng)
    if rng.random() < 0.5:
        graph = split(graph, rng)
    if rng.random() < 0.3:
        graph = symmetric(graph, rng)
    return graph


def part_of(graph: TrainingGraph, rng: np.random.Generator, size: int) -> TrainingGraph:
    """The edges among at most `size` nodes around a random one, nearest first."""
    structure = graph.structure
    first = int(graph.triples[rng.integers(len(graph.triples)), 0])
    found, seen = [first], {first}
    for node in found:  # grows meanwhile
        begin, end = structure.start[node : node + 2]
        for near in rng.permutation(structure.source[begin:end])[:50].tolist():
            if near not in seen and len(found) < size:
                seen.add(near)
                found.append(near)
        if len(found) >= size:
            break
    numbers = np.full(graph.num_nodes, -1)
    numbers[found] = np.arange(len(found))
    ends = numbers[graph.triples[:, [0, 2]]]
    kept = (ends >= 0).all(axis=1)
    return _renumbered(np.stack([ends[kept, 0], graph.triples[kept, 1], ends[kept, 1]], axis=1))


def contracted(graph: TrainingGraph, rng: np.random.Generator, size: int) -> TrainingGraph:
    """Communities in the place of their nodes, at most `size`: a denser graph, of classes rather than of things."""
    community = _communities(graph, rng, size)
    source, relation, target = graph.triples.T
    triples = np.stack([community[source], relation, community[target]], axis=1)
    return _renumbered(triples[triples[:, 0] != triples[:, 2]])


def merged(graph: TrainingGraph, rng: np.random.Generator) -> TrainingGraph:
    """Relations put together at random, some of them backwards."""
    count = int(rng.integers(1, graph.num_relations + 1))
    group = rng.integers(count, size=graph.num_relations)
    backwards = rng.random(graph.num_relations) < 0.3
    source, relation, target = graph.triples.T
    turned = backwards[relation]
    triples = [np.where(turned, target, source), group[relation], np.where(turned, source, target)]
    return _renumbered(np.stack(triples, axis=1))


def split(graph: TrainingGraph, rng: np.random.Generator) -> TrainingGraph:
    """Relations told apart by the communities of their ends, as if they were named after types of nodes."""
    count = int(rng.integers(2, 7))
    community = _communities(graph, rng, count)
    by_source, by_target = [(True, True), (True, False), (False, True)][rng.integers(3)]
    source, relation, target = graph.triples.T
    code = relation * count * count + community[source] * count * by_source + community[target] * by_target
    distinct, code = np.unique(code, return_inverse=True)
    if len(distinct) > _MOST_RELATIONS:
        code = rng.integers(_MOST_RELATIONS, size=len(distinct))[code]
    return _renumbered(np.stack([source, code, target], axis=1))


def ruled(graph: TrainingGraph, rng: np.random.Generator) -> TrainingGraph:
    """With edges that follow from others: up to three rules "x a y and y b z make x c z", where c is often b.

    The latter is how classes inherit what is said of the classes above them.
    """
    triples = graph.triples
    for _ in range(int(rng.integers(1, 4))):
        a, b, c = rng.integers(graph.num_relations, size=3).tolist()
        if rng.random() < 0.7:
            c = b
        first = triples[triples[:, 1] == a][:, [0, 2]]
        if rng.random() < 0.5:
            first = first[:, ::-1]
        second = triples[triples[:, 1] == b][:, [0, 2]]
        second = second[np.argsort(second[:, 0], kind="stable")]
        low = np.searchsorted(second[:, 0], first[:, 1], "left")
        counts = np.minimum(np.searchsorted(second[:, 0], first[:, 1], "right") - low, _MOST_CONCLUSIONS)
        source = np.repeat(first[:, 0], counts)
        offset = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
        target = second[np.repeat(low, counts) + offset, 1]
        made = np.stack([source, np.full(len(source), c), target], axis=1)
        most = min(len(made), len(graph.triples))  # one rule does not drown the rest
        made = rng.permutation(made)[: int(most * rng.uniform(0.5, 1.0))]
        triples = np.concatenate([triples, made[made[:, 0] != made[:, 2]]])
    return _renumbered(triples)


def symmetric(graph: TrainingGraph, rng: np.random.Generator) -> TrainingGraph:
    """Some relations' edges, or most of them, turned both ways."""
    chosen = rng.random(graph.num_relations) < rng.uniform(0.0, 0.6)
    also = chosen[graph.triples[:, 1]] & (rng.random(len(graph.triples)) < rng.uniform(0.5, 1.0))
    return _renumbered(np.concatenate([graph.triples, graph.triples[also][:, ::-1]]))


def _communities(graph: TrainingGraph, rng: np.random.Generator, count: int) -> Longs:
    """A number of each node, int64[N]: of the nearest of `count` random nodes, roughly."""
    structure = graph.structure
    community = np.full(graph.num_nodes, -1)
    chosen = rng.permutation(graph.num_nodes)[:count]
    community[chosen] = np.arange(len(chosen))
    for _ in range(_SPREADING):
        edges = np.flatnonzero((community[structure.source] >= 0) & (community[structure.target] < 0))
        if not len(edges):
            break
        edges = rng.permutation(edges)
        community[structure.target[edges]] = community[structure.source[edges]]
    left = community < 0
    community[left] = rng.integers(len(chosen), size=int(left.sum()))
    return community


def _renumbered(triples: Longs) -> TrainingGraph:
    """The graph of these triples, each once, with the nodes and relations that occur in them."""
    nodes, ends = np.unique(triples[:, [0, 2]], return_inverse=True)
    relations, numbers = np.unique(triples[:, 1], return_inverse=True)
    ends = ends.reshape(-1, 2)
    triples = np.unique(np.stack([ends[:, 0], numbers, ends[:, 1]], axis=1), axis=0)
    return TrainingGraph(len(nodes), len(relations), triples)
