"""Counted substructures, against networkx and against themselves under renumbering."""

from __future__ import annotations

import networkx
import numpy as np
import pytest

from vglm.encoder.graph_features import FAMILIES, count, substructures
from vglm.encoder.graph_rings import fused_systems, rings
from vglm.encoder.graph_structure import MAX_EDGES, MAX_NODES, Structure
from vglm.errors import GraphError
from vglm.graph.graph import Graph


def random_graph(seed: int, nodes: int = 12, chance: float = 0.2) -> tuple[Graph, networkx.Graph]:
    """The same graph twice; node ids sort as their numbers."""
    shape = networkx.gnp_random_graph(nodes, chance, seed=seed)
    random = np.random.default_rng(seed)
    kinds = random.choice(["A", "B", "C"], nodes)
    relations = random.choice(["single", "double"], shape.number_of_edges())
    graph = Graph.from_dict(
        {
            "nodes": [{"id": f"{i:03d}", "type": str(kinds[i])} for i in shape],
            "edges": [
                {"source": f"{a:03d}", "relation": str(r), "target": f"{b:03d}"}
                for (a, b), r in zip(shape.edges, relations, strict=True)
            ],
        }
    )
    return graph, shape


def renumbered(graph: Graph, seed: int) -> Graph:
    """The same graph under other ids, every edge turned round at random."""
    random = np.random.default_rng(seed)
    names = {
        node.id: f"n{place:03d}"
        for place, node in zip(random.permutation(graph.num_nodes), graph.nodes(), strict=True)
    }
    edges = []
    for edge in graph.edges():
        ends = [names[edge.source], names[edge.target]]
        if random.random() < 0.5:
            ends.reverse()
        edges.append({"source": ends[0], "relation": edge.relation, "target": ends[1]})
    nodes = [{"id": names[node.id], "type": node.type} for node in graph.nodes()]
    return Graph.from_dict({"nodes": nodes, "edges": edges})


@pytest.mark.parametrize("seed", range(8))
def test_rings_and_distances_are_those_of_networkx(seed: int) -> None:
    graph, shape = random_graph(seed, chance=0.25)
    structure = Structure.of(graph)
    expected = {frozenset(ring) for ring in networkx.chordless_cycles(shape, length_bound=8) if len(ring) > 2}
    found = [frozenset(ring) for ring in structure.rings]
    assert len(found) == len(set(found))
    assert set(found) == expected
    lengths = dict(networkx.all_pairs_shortest_path_length(shape))
    for a in shape:
        for b in shape:
            assert structure.distances[a, b] == lengths[a].get(b, -1)


def test_ring_search_is_bounded() -> None:
    everyone = [set(range(40)) - {i} for i in range(40)]
    assert 0 < len(rings(everyone, budget=1000)) <= 1000
    grid = networkx.convert_node_labels_to_integers(networkx.grid_2d_graph(4, 4))
    assert len(rings([set(grid[i]) for i in grid], longest=4)) == 9


def test_fused_systems() -> None:
    assert fused_systems([[0, 1, 2], [1, 2, 3], [3, 4, 5], [6, 7, 8], [8, 9, 7]]) == [[0, 1], [2], [3, 4]]
    assert fused_systems([]) == []


@pytest.mark.parametrize("seed", range(6))
def test_counts_do_not_depend_on_numbering_or_on_direction(seed: int) -> None:
    graph, shape = random_graph(seed)
    counts, again = count(graph), count(renumbered(graph, seed))
    for family in FAMILIES:
        assert counts[family].keys() == again[family].keys()
        for name, value in counts[family].items():
            assert again[family][name] == pytest.approx(value, abs=1e-9), (family, name)
    assert counts["whole"]["triangles"] == pytest.approx(sum(networkx.triangles(shape).values()) / 3)
    assert counts["whole"]["clustering"] == pytest.approx(networkx.average_clustering(shape))
    assert count(graph, directed=True)["around"] != counts["around"]


def test_colours_of_a_molecule_are_legible() -> None:
    graph = Graph.from_triples([("a", "single", "b"), ("b", "double", "c")])
    around = [
        (name, nodes) for family, name, nodes in substructures(Structure.of(graph)) if family == "around"
    ]
    assert around == [
        (" with single ", (0, 1)),
        (" with double , single ", (0, 1, 2)),
        (" with double ", (1, 2)),
    ]
    square = Graph.from_dict(
        {
            "nodes": [{"id": str(i), "type": "C"} for i in range(4)],
            "edges": [{"source": str(i), "relation": "single", "target": str((i + 1) % 4)} for i in range(4)],
        }
    )
    counts = count(square)
    assert counts["rings"] == {"ring C C C C": 1}
    assert counts["ring types"] == {"C in rings of 4": 4}
    assert counts["walks"] == {"C single C single C": 4}
    assert counts["distances"] == {"C and C 1 apart": 4, "C and C 2 apart": 2}
    assert counts["ring systems"] == {"1 fused rings": 1}


def test_long_names_are_cut_and_stay_different() -> None:
    spokes = [("hub", "a relation with quite a long name", f"leaf{i}") for i in range(8)]
    names = set(count(Graph.from_triples(spokes))["far"])
    assert all(len(name) <= 80 for name in names)
    assert len(names) == 2


def test_numeric_attributes() -> None:
    nodes = [
        {"id": "a", "type": "H", "attributes": {"length": 3, "name": "x", "whole": True}},
        {"id": "b", "type": "H", "attributes": {"length": 5.0}},
        {"id": "c", "type": "S"},
    ]
    whole = count(Graph.from_dict({"nodes": nodes, "edges": []}))["whole"]
    assert (whole["sum of length"], whole["mean of length"], whole["greatest length of H"]) == (8, 4, 5)
    assert not any("of S" in name and "length" in name for name in whole)
    assert not any("whole" in name for name in whole)


def test_graphs_that_cannot_be_counted_are_refused() -> None:
    with pytest.raises(GraphError, match="has 1 to 2,000 nodes, this one has 0"):
        count(Graph.from_dict({"nodes": [], "edges": []}))
    many = [{"id": str(i)} for i in range(MAX_NODES + 1)]
    with pytest.raises(GraphError, match="this one has 2,001"):
        count(Graph.from_dict({"nodes": many, "edges": []}))
    pairs = [(i // 200, i % 200) for i in range(MAX_EDGES + 1)]
    edges = [{"source": f"{a}", "relation": "r", "target": f"{b}"} for a, b in pairs]
    with pytest.raises(GraphError, match="this one has 20,001"):
        count(Graph.from_dict({"nodes": [{"id": str(i)} for i in range(200)], "edges": edges}))
    alone = count(
        Graph.from_dict({"nodes": [{"id": "x"}], "edges": [{"source": "x", "relation": "r", "target": "x"}]})
    )
    assert alone["whole"]["links"] == 0
    assert all(np.isfinite(list(alone["whole"].values())))


def test_parallel_edges_are_one_link() -> None:
    nodes = [{"id": name} for name in "abc"]
    edges = [{"source": "a", "relation": "r", "target": "b"}, {"source": "b", "relation": "r", "target": "c"}]
    again = [{**edges[0], "attributes": {"year": year}} for year in range(5)]
    one = count(Graph.from_dict({"nodes": nodes, "edges": edges}))
    more = count(Graph.from_dict({"nodes": nodes, "edges": edges + again}))
    assert all(more[family] == one[family] for family in FAMILIES if family != "whole")
    assert more["whole"]["links"] == one["whole"]["links"]
