"""The shape of graphs, against a naive search, and how it is said."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from vglm.graph.graph import Graph
from vglm.graph.structure import distance, facts, structure


def random_graph(seed: int) -> tuple[Graph, dict[str, set[str]]]:
    rng = random.Random(seed)
    count = rng.randint(1, 14)
    ids = [f"n{i}" for i in range(count)]
    pairs = [(rng.choice(ids), rng.choice(ids)) for _ in range(rng.randint(0, 2 * count))]
    edges = [{"source": a, "relation": rng.choice("xy"), "target": b} for a, b in pairs]
    near: dict[str, set[str]] = {i: set() for i in ids}
    for a, b in pairs:
        near[a].add(b)
        near[b].add(a)
    return Graph.from_dict({"nodes": [{"id": i} for i in ids], "edges": edges}), near


def steps_to(near: dict[str, set[str]], start: str) -> dict[str, int]:
    found, front = {start: 0}, [start]
    while front:
        front = [b for a in front for b in near[a] if b not in found and not found.update({b: found[a] + 1})]
    return found


@pytest.mark.parametrize("seed", range(60))
def test_parts_cycles_and_distances_are_those_of_a_naive_search(seed: int) -> None:
    graph, near = random_graph(seed)
    shape = structure(graph)
    reached = {i: steps_to(near, i) for i in near}
    for a in near:
        for b in near:
            i, j = graph.index_of(a), graph.index_of(b)
            assert (shape.part[i] == shape.part[j]) == (b in reached[a])
            assert distance(graph, i, j) == reached[a].get(b, -1)
    parts = {frozenset(found) for found in reached.values()}
    assert shape.num_parts == len(parts)
    pairs = {frozenset((a, b)) for a in near for b in near[a]}
    assert shape.has_cycle == (len(pairs) > len(near) - len(parts))


def test_a_long_path_is_one_part() -> None:
    ids = [str(i) for i in range(3_000)]
    edges = [{"source": a, "relation": "r", "target": b} for a, b in pairwise(ids)]
    graph = Graph.from_dict({"nodes": [{"id": i} for i in ids], "edges": edges})
    assert structure(graph).num_parts == 1
    assert not structure(graph).has_cycle


def test_no_nodes() -> None:
    graph = Graph.from_dict({"nodes": [], "edges": []})
    assert facts(graph) == "Facts: 0 nodes, 0 edges, 0 parts, no cycle."


def test_facts_of_named_nodes() -> None:
    nodes = [{"id": i, "name": f"node {i}"} for i in "abcd"]
    edges = [{"source": "a", "relation": "r", "target": "b"}, {"source": "b", "relation": "r", "target": "c"}]
    graph = Graph.from_dict({"nodes": nodes, "edges": edges})
    said = facts(graph, [graph.index_of(i) for i in "acd"])
    assert said == (
        "Facts: 4 nodes, 2 edges, 2 parts, no cycle. node a and node c are connected, 2 steps apart. "
        "node a and node d are not connected. node c and node d are not connected."
    )


def test_a_name_stays_in_its_line() -> None:
    graph = Graph.from_dict({"nodes": [{"id": "a", "name": "x\ny"}, {"id": "b"}], "edges": []})
    assert "\n" not in facts(graph, [0, 1])
