"""Walks against their definitions: power iteration, and networkx."""

from __future__ import annotations

import math
from itertools import pairwise

import networkx as nx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vglm import _native
from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.graph.walks import Scope, Walks, walks

NODES = 12
Triples = list[tuple[int, str, int]]
triples = st.lists(
    st.tuples(st.integers(0, NODES - 1), st.sampled_from("rst"), st.integers(0, NODES - 1)), max_size=40
)


def made(edges: Triples) -> Graph:
    nodes = [{"id": f"{i:02}", "type": "even" if i % 2 == 0 else "odd"} for i in range(NODES)]
    links = [{"source": f"{s:02}", "relation": r, "target": f"{t:02}"} for s, r, t in edges]
    return Graph.from_dict({"nodes": nodes, "edges": links})


def allowed(scope: Scope, graph: Graph, edge: int, end: int, always: tuple[int, ...] = ()) -> bool:
    columns = graph.columns
    relation_fits = scope.relations is None or bool(scope.relations[columns.relations[edge]])
    type_fits = scope.types is None or end in always or bool(scope.types[columns.node_types[end]])
    return relation_fits and type_fits


def undirected(graph: Graph, scope: Scope, always: tuple[int, ...] = ()) -> nx.MultiDiGraph:
    """An arc for each direction in which an edge may be walked."""
    plain = nx.MultiDiGraph()
    plain.add_nodes_from(range(graph.num_nodes))
    for edge in range(graph.num_edges):
        source, target = int(graph.columns.sources[edge]), int(graph.columns.targets[edge])
        for start, end in ((source, target), (target, source)):
            if source != target and allowed(scope, graph, edge, end, always):
                plain.add_edge(start, end, relation=int(graph.columns.relations[edge]))
    return plain


def power_iteration(
    plain: nx.MultiDiGraph, seeds: list[int], weights: npt.NDArray[np.float64], restart: float
) -> npt.NDArray[np.float64]:
    """Where a walk ends that stops with probability `restart` at each node, and for good where it cannot go on."""
    step = np.zeros((NODES, NODES))
    for start, end in plain.edges():
        step[start, end] += 1 / plain.out_degree(start)
    moving = np.zeros(NODES)
    moving[seeds] = weights
    ended = np.zeros(NODES)
    stuck = np.array([plain.out_degree(node) == 0 for node in range(NODES)])
    for _ in range(600):
        ended += np.where(stuck, moving, restart * moving)
        moving = np.where(stuck, 0, (1 - restart) * moving) @ step
    return ended


scopes = st.builds(
    lambda r, t: (r, t),
    st.none() | st.sets(st.sampled_from("rst")),
    st.none() | st.sets(st.sampled_from(["even", "odd"])),
)


def scope_of(graph: Graph, names: tuple[set[str] | None, set[str] | None]) -> Scope:
    relations, types = names
    if relations is not None:
        relations &= set(graph.columns.relation_names)
    return walks(graph).scope(types, relations)


@given(
    triples,
    st.sets(st.integers(0, NODES - 1), min_size=1, max_size=3),
    st.sampled_from([0.1, 0.2, 0.7]),
    scopes,
)
@settings(deadline=None)
def test_pagerank_against_power_iteration(
    edges: Triples, seeds: set[int], restart: float, names: tuple[set[str] | None, set[str] | None]
) -> None:
    graph = made(edges)
    scope, epsilon = scope_of(graph, names), 1e-4
    start = np.array(sorted(seeds), np.int32)
    weights = np.arange(1, len(start) + 1) / (len(start) * (len(start) + 1) / 2)
    walked = Walks(graph).pagerank(start, weights, scope=scope, epsilon=epsilon, restart=restart)
    plain = undirected(graph, scope)
    exact = power_iteration(plain, start.tolist(), weights, restart)
    scores = np.zeros(NODES)
    scores[walked.nodes] = walked.scores
    assert walked.complete
    assert (scores <= exact + 1e-12).all()
    loops = (graph.columns.sources == graph.columns.targets).any()
    if scope.types is None and scope.relations is None and not loops:
        degrees = np.maximum([plain.out_degree(node) for node in range(NODES)], 1)
        assert (exact - scores <= epsilon * degrees + 1e-12).all()
    precise = Walks(graph).pagerank(start, weights, scope=scope, epsilon=1e-13, restart=restart)
    scores[precise.nodes] = precise.scores
    assert np.allclose(scores, exact, atol=1e-9)


@given(triples, st.sets(st.integers(0, NODES - 1), max_size=3), st.integers(0, 4), scopes)
@settings(deadline=None)
def test_neighborhoods_against_networkx(
    edges: Triples, seeds: set[int], hops: int, names: tuple[set[str] | None, set[str] | None]
) -> None:
    graph = made(edges)
    scope = scope_of(graph, names)
    start = np.array(sorted(seeds), np.int32)
    walked = walks(graph).neighborhood(start, hops, 1000, scope)
    plain = undirected(graph, scope)
    expected: dict[int, int] = {}
    for seed in seeds:
        for node, distance in nx.single_source_shortest_path_length(plain, seed, cutoff=hops).items():
            expected[node] = min(distance, expected.get(node, distance))
    assert dict(zip(walked.nodes.tolist(), walked.hops.tolist(), strict=True)) == expected
    assert walked.complete
    ranked = walks(graph).pagerank(
        start, np.full(len(start), 1 / max(len(start), 1)), max_hops=hops, scope=scope
    )
    assert set(ranked.nodes.tolist()) <= set(expected)
    assert all(
        expected[n] <= h <= hops for n, h in zip(ranked.nodes.tolist(), ranked.hops.tolist(), strict=True)
    )


def path_cost(graph: Graph, plain: nx.MultiDiGraph, path: list[int]) -> float:
    counts = np.bincount(graph.columns.relations, minlength=len(graph.columns.relation_names))
    relation_cost = np.log1p(counts) / np.log1p(max(graph.num_edges, 1))
    degrees = np.bincount(graph.columns.sources, minlength=NODES) + np.bincount(
        graph.columns.targets, minlength=NODES
    )
    steps = sum(
        min(relation_cost[data["relation"]] for data in plain.get_edge_data(a, b).values())
        for a, b in pairwise(path)
    )
    return float(steps + sum(math.log1p(degrees[node]) for node in path[1:-1]))


@given(triples, st.integers(0, NODES - 1), st.integers(0, NODES - 1), st.integers(0, 6), scopes)
@settings(deadline=None, max_examples=200)
def test_shortest_paths_against_networkx(
    edges: Triples, source: int, target: int, longest: int, names: tuple[set[str] | None, set[str] | None]
) -> None:
    graph = made(edges)
    scope = scope_of(graph, names)
    found = walks(graph).shortest_paths(source, target, longest, 100, scope)
    assert found.complete
    plain = undirected(graph, scope, (source, target))
    every = list(nx.all_shortest_paths(plain, source, target)) if nx.has_path(plain, source, target) else []
    if not every or len(every[0]) - 1 > longest:
        assert found.paths == ()
        return
    paths = [path.tolist() for path, _ in found.paths]
    assert all(path in every for path in paths)
    assert [cost for _, cost in found.paths] == sorted(cost for _, cost in found.paths)
    for path, cost in found.paths:
        assert cost == pytest.approx(path_cost(graph, plain, path.tolist()))
    best = min(path_cost(graph, plain, path) for path in every)
    assert found.paths[0][1] == pytest.approx(best)
    if len(every[0]) == 3:  # one path over each middle node
        assert sorted(paths) == sorted(map(list, {tuple(path) for path in every}))


@given(triples, st.sets(st.integers(0, NODES - 1)), st.none() | st.sets(st.sampled_from("rst")))
@settings(deadline=None)
def test_edges_among(edges: Triples, nodes: set[int], relations: set[str] | None) -> None:
    graph = made(edges)
    scope = scope_of(graph, (relations, None))
    chosen = np.array(sorted(nodes), np.int32)
    found, total = walks(graph).edges_among(chosen, scope=scope)
    columns = graph.columns
    expected = [
        e
        for e in range(graph.num_edges)
        if {int(columns.sources[e]), int(columns.targets[e])} <= nodes and allowed(scope, graph, e, 0, (0,))
    ]
    assert (found.tolist(), total) == (expected, len(expected))
    first, total = walks(graph).edges_among(chosen, 2, scope)
    assert (first.tolist(), total) == (expected[:2], len(expected))


@pytest.fixture(scope="module")
def hub() -> Graph:
    """A hub of 100,000 edges in two relations, some of whose neighbours know each other."""
    spokes = [("hub", "r", f"{i:06}") for i in range(99_000)]
    rare = [(f"{i:06}", "s", "hub") for i in range(98_000, 99_000)]
    ring = [(f"{i:06}", "t", f"{i + 1:06}") for i in range(0, 10, 2)]
    return Graph.from_triples([*spokes, *rare, *ring, ("hub", "self", "hub")])


def test_a_hub_is_bounded(hub: Graph) -> None:
    center, seed = hub.index_of("hub"), np.array([hub.index_of("000000")], np.int32)
    near = walks(hub).neighborhood(seed, 2, 10_000, degree_cap=100)
    assert len(near.nodes) == 99  # the hub, and as many of each relation; two places went to its self-loop
    assert near.complete
    assert near.passed_over == 100_002 - 100
    passed = walks(hub).pagerank(seed, np.ones(1), max_hops=4, degree_cap=100).passed_over
    assert passed == 100_002 - 100  # once, however often a walk comes through the hub
    ranked = walks(hub).pagerank(np.array([center], np.int32), np.ones(1))
    assert len(ranked.nodes) == 1_023  # a seed of very many edges still has neighbours
    (path, _), *_ = walks(hub).shortest_paths(hub.index_of("098000"), hub.index_of("000500"), 4, 1).paths
    assert path.tolist() == [hub.index_of("098000"), center, hub.index_of("000500")]


def test_edges_of_a_hub_are_found_by_search(hub: Graph) -> None:
    names = ["000000", "000001", "000002", "098999", "hub"]
    chosen = np.sort([hub.index_of(name) for name in names])
    found, total = walks(hub).edges_among(chosen.astype(np.int32))
    triples = [(e.source, e.relation, e.target) for e in map(hub.edge_at, found.tolist())]
    assert total == len(triples) == 7
    assert triples == sorted(triples)
    assert triples[-1] == ("hub", "self", "hub")
    assert ("hub", "r", "098999") in triples


def test_work_is_bounded(hub: Graph) -> None:
    seed = np.array([hub.index_of("000000")], np.int32)
    assert not walks(hub).neighborhood(seed, 9, 10**9, degree_cap=30, max_work=50).complete
    assert not walks(hub).pagerank(seed, np.ones(1), epsilon=1e-12, degree_cap=30, max_work=50).complete
    far = hub.index_of("098000")
    assert not walks(hub).shortest_paths(int(seed[0]), far, 9, degree_cap=30, max_work=1).complete


def test_nodes_are_bounded(hub: Graph) -> None:
    near = walks(hub).neighborhood(np.array([hub.index_of("hub")], np.int32), 3, 20)
    assert len(near.nodes) == 20
    assert not near.complete


def test_names_that_the_graph_lacks(hub: Graph) -> None:
    with pytest.raises(
        GraphError, match=r"relations: the graph has no relation 'x'; it has 'r', 's', 'self', 't'"
    ):
        walks(hub).scope(None, ["x"])
    with pytest.raises(GraphError, match=r"types: the graph has no node type 'x'; it has ''"):
        walks(hub).scope(["x"], None)
    with pytest.raises(GraphError, match=r"relations: expected a list of names, found 'r'"):
        walks(hub).scope(None, "r")


def test_one_for_each_graph() -> None:
    first, second = made([(0, "r", 1)]), made([(0, "r", 1)])
    assert walks(first) is walks(first)
    assert walks(first) is not walks(second)


def arrays() -> dict[str, npt.NDArray[np.int32] | npt.NDArray[np.int64] | int]:
    return {
        "out_start": np.array([0, 1, 1], np.int64),
        "in_start": np.array([0, 0, 1], np.int64),
        "source": np.array([0], np.int32),
        "target": np.array([1], np.int32),
        "relation": np.array([0], np.int32),
        "in_edge": np.array([0], np.int32),
        "node_type": np.array([0, 0], np.int32),
        "num_relations": 1,
        "num_types": 1,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("out_start", [0, 2, 1]),
        ("out_start", [0, 1]),
        ("in_start", [1, 1, 1]),
        ("source", [2]),
        ("target", [-1]),
        ("target", [1, 1]),
        ("relation", [1]),
        ("in_edge", [1]),
        ("node_type", [0, 1]),
    ],
)
def test_native_arrays_are_checked(name: str, value: list[int]) -> None:
    good = arrays()
    _native.GraphWalk(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="GraphWalk"):
        _native.GraphWalk(**{**good, name: np.array(value, good[name].dtype)})  # type: ignore[union-attr, arg-type]


def test_native_calls_are_checked() -> None:
    walk = _native.GraphWalk(**arrays())  # type: ignore[arg-type]
    bad, good, one = np.array([2], np.int32), np.array([0], np.int32), np.ones(1)
    mask = np.ones(2, np.uint8)
    for call in (
        lambda: walk.pagerank(bad, one, 0.2, 0.1, -1, 9, 9),
        lambda: walk.pagerank(good, np.ones(2), 0.2, 0.1, -1, 9, 9),
        lambda: walk.pagerank(good, np.array([np.nan]), 0.2, 0.1, -1, 9, 9),
        lambda: walk.pagerank(good, one, 0.0, 0.1, -1, 9, 9),
        lambda: walk.pagerank(good, one, 0.2, 0.0, -1, 9, 9),
        lambda: walk.pagerank(good, one, 0.2, 0.1, -1, 0, 9),
        lambda: walk.neighborhood(good, 1, 9, 9, 9, mask),
        lambda: walk.neighborhood(bad, 1, 9, 9, 9),
        lambda: walk.shortest_paths(0, 2, 4, 1, one, 9, 9),
        lambda: walk.shortest_paths(0, 1, 4, 1, np.ones(2), 9, 9),
        lambda: walk.edges_among(np.array([1, 0], np.int32), 9),
    ):
        with pytest.raises(ValueError, match="GraphWalk"):
            call()
