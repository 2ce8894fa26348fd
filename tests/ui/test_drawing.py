"""The drawing without a browser: places, what is chosen, what stands out, and that text stays text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vglm import Graph
from vglm.graph.graph import Edge
from vglm.serve.ui import library
from vglm.serve.ui.drawing import MAX_NODES, Highlights, Look, draw
from vglm.serve.ui.layout import place

LOOK = Look(frame=(640.0, 560.0))


def example() -> Graph:
    return Graph.from_dict(json.loads(library.EXAMPLE.read_text()))


def star(leaves: int) -> Graph:
    nodes = [{"id": f"n{i}", "name": f"node {i}", "type": f"kind {i % 9}"} for i in range(leaves + 1)]
    edges = [{"source": "n0", "relation": "has", "target": f"n{i}"} for i in range(1, leaves + 1)]
    return Graph.from_dict({"nodes": nodes, "edges": edges})


def drawn_nodes(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["node"]: item for item in options["series"][0]["data"] if "node" in item}


def test_places_are_the_same_each_time_apart_and_inside() -> None:
    graph = example()
    first, again = (draw(graph, Highlights(), LOOK) for _ in range(2))
    assert first.options == again.options
    points = list(first.places.values())
    assert len(points) == graph.num_nodes
    assert all(0 < x < 640 and 0 < y < 560 for x, y in points)
    closest = min(abs(a[0] - b[0]) + abs(a[1] - b[1]) for i, a in enumerate(points) for b in points[:i])
    assert closest > 10, "two nodes are drawn on each other"


def test_names_do_not_lie_on_each_other() -> None:
    names = [f"n{i}" for i in range(30)]
    edges = [("n0", name) for name in names[1:]]
    widths = [120.0] * len(names)

    def clashes(places: dict[str, tuple[float, float]]) -> int:
        points = list(places.values())
        pairs = ((a, b) for i, a in enumerate(points) for b in points[:i])
        return sum(abs(a[0] - b[0]) < 110 and abs(a[1] - b[1]) < 28 for a, b in pairs)

    assert clashes(place(names, edges, (640.0, 560.0), widths=widths)) == 0
    assert clashes(place(names, edges, (640.0, 560.0))) > 0, "it takes something to keep them apart"


def test_what_is_drawn_stays_where_it_is_when_a_node_comes() -> None:
    nodes = [f"n{i}" for i in range(12)]
    edges = [(nodes[i], nodes[i + 1]) for i in range(11)]
    before = place(nodes, edges, (640.0, 560.0))
    after = place([*nodes, "new"], [*edges, ("new", "n3")], (640.0, 560.0), before)
    assert {node: after[node] for node in nodes} == before
    assert after["new"] not in before.values()


@pytest.mark.parametrize("nodes", [[], ["a"], ["a", "b"]])
def test_tiny_graphs_have_places(nodes: list[str]) -> None:
    found = place(nodes, [("a", "a")] if nodes else [], (300.0, 300.0))
    assert sorted(found) == nodes
    assert all(0 <= x <= 300 and 0 <= y <= 300 for x, y in found.values())


def test_evidence_stands_out_and_is_drawn_first() -> None:
    graph = star(200)
    path = [Edge("n0", "has", "n150")]
    drawn = draw(graph, Highlights([path], asked=["n0"], answer=["n150"]), LOOK)
    assert len(drawn.nodes) == MAX_NODES
    assert drawn.left_out == graph.num_nodes - MAX_NODES
    assert drawn.nodes[:2] == ("n150", "n0")
    nodes = drawn_nodes(drawn.options)
    assert nodes["n150"]["symbolSize"] > nodes["n0"]["symbolSize"] > nodes["n1"]["symbolSize"]
    links = drawn.options["series"][0]["links"]
    marked = [link for link in links if link["lineStyle"]["color"] == LOOK.accent]
    assert [(link["source"], link["target"]) for link in marked] == [("node:n0", "node:n150")]
    assert marked[0]["label"]["show"]
    assert sum(link["label"]["show"] for link in links) == 1, (
        "with so many edges only the evidence is labelled"
    )


def test_types_beyond_the_colours_share_one() -> None:
    drawn = draw(star(30), Highlights(), LOOK)
    names, colours = zip(*drawn.legend, strict=True)
    assert names[-1] == "other types"
    assert len(set(colours)) == len(colours) == 8


def test_parallel_edges_and_loops_do_not_hide_each_other() -> None:
    edges = [{"source": "a", "relation": r, "target": t} for r, t in (("x", "b"), ("y", "b"), ("z", "a"))]
    graph = Graph.from_dict({"nodes": [{"id": "a"}, {"id": "b"}], "edges": edges})
    links = draw(graph, Highlights(), LOOK).options["series"][0]["links"]
    curves = [(link["source"], link["target"], link["lineStyle"]["curveness"]) for link in links]
    assert len(set(curves)) == 3
    assert next(curve for source, target, curve in curves if source == target) > 0


def test_text_of_the_graph_is_no_template_and_no_html() -> None:
    name, kind = "{a} {b|x} <img src=x onerror=alert(1)>", "<b>{c}</b>"
    graph = Graph.from_dict(
        {"nodes": [{"id": "a", "name": name, "type": kind, "text": "{d} __proto__\n" * 1000}], "edges": []}
    )
    drawn = draw(graph, Highlights(), LOOK)
    assert drawn.options["tooltip"]["renderMode"] == "richText", "HTML tooltips would run what is in names"
    node = drawn_nodes(drawn.options)["a"]
    for text in (node["label"]["formatter"], node["tooltip"]["formatter"]):
        assert not any(f"{{{letter}}}" in text for letter in "abcd")
        assert "{b|" not in text
        assert "__proto__" not in text, "which would change the prototype of all objects in the browser"
        assert len(text) < 600


def test_the_longest_names_cost_little() -> None:
    graph = Graph.from_dict(
        {"nodes": [{"id": "a", "name": "x" * 10_000, "text": "y" * 100_000}], "edges": []}
    )
    assert len(json.dumps(draw(graph, Highlights(), LOOK).options)) < 4000


def test_the_example_is_a_whole_graph() -> None:
    graph = example()
    assert (graph.num_nodes, graph.num_edges) == (47, 82)
    assert set(graph.columns.type_names) == {"disease", "phenotype"}
    assert all(graph.edges_of(graph.id_of(i), "both") for i in range(graph.num_nodes))
