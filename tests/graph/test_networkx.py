"""Graphs of networkx in and out."""

from __future__ import annotations

import datetime
import subprocess
import sys

import networkx
import numpy as np
import pytest
from hypothesis import given, settings

from tests.graph.strategies import graphs
from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits


@settings(max_examples=200, deadline=None)
@given(graph=graphs())
def test_round_trip(graph: Graph) -> None:
    made = graph.to_networkx()
    assert (made.number_of_nodes(), made.number_of_edges()) == (graph.num_nodes, graph.num_edges)
    again = Graph.from_networkx(made)
    assert again.to_dict() == graph.to_dict()
    assert again == graph


@settings(max_examples=50, deadline=None)
@given(graph=graphs())
def test_its_node_link_json_reads_as_the_same_graph(graph: Graph) -> None:
    data = networkx.node_link_data(graph.to_networkx(), edges="edges")
    for edge in data["edges"]:
        del edge["key"]  # the number of a parallel edge, written over an attribute of this name
    if not any("key" in edge.attributes for edge in graph.edges()):
        assert Graph.from_dict(data) == graph


def test_fields_and_relations() -> None:
    made = networkx.MultiDiGraph()
    made.add_node(
        1,
        name="Marfan syndrome",
        type="disease",
        aliases=("MFS",),
        year=np.int64(1896),
        when=datetime.date(2020, 1, 2),
    )
    made.add_edge(1, "p7", key="has phenotype", weight=np.float32(0.5), vector=np.arange(3))
    made.add_edge(1, "p7", relation="may have")
    made.add_edge("p7", 1)
    graph = Graph.from_networkx(made)
    assert graph.node("1").aliases == ("MFS",)
    assert graph.node("1").attributes == {"year": 1896, "when": "2020-01-02"}
    assert [(edge.source, edge.relation, edge.attributes) for edge in graph.edges()] == [
        ("1", "has phenotype", {"weight": 0.5, "vector": [0, 1, 2]}),
        ("1", "may have", {}),
        ("p7", "related to", {}),
    ]
    labelled = networkx.DiGraph([("a", "b", {"label": "treats", "relation": 3, "source": "book"})])
    edge = next(Graph.from_networkx(labelled, relation="label").edges())
    assert (edge.relation, edge.attributes) == ("treats", {"relation": 3, "source": "book"})


def test_undirected_edges_do_not_depend_on_the_order_they_were_added_in() -> None:
    one, other = networkx.Graph(), networkx.Graph()
    one.add_edges_from([("a", "b"), ("c", "b")])
    other.add_edges_from([("b", "c"), ("b", "a")])
    assert Graph.from_networkx(one) == Graph.from_networkx(other)
    assert Graph.from_networkx(one).to_triples() == [("a", "related to", "b"), ("b", "related to", "c")]


def test_generated_graphs() -> None:
    graph = Graph.from_networkx(networkx.karate_club_graph())
    assert (graph.num_nodes, graph.num_edges) == (34, 78)
    assert graph.node("0").attributes == {"club": "Mr. Hi"}
    assert networkx.to_dict_of_dicts(networkx.Graph(graph.to_networkx())).keys() == {
        str(i) for i in range(34)
    }


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"nodes": []}, "expected a graph of networkx, found a dict"),
        (
            networkx.grid_2d_graph(2, 2),
            r"node a tuple: a node must be .* use networkx.relabel_nodes\(graph, str\)",
        ),
        (networkx.Graph([("a", 1.5)]), r"node 1.5: a node must be a string or an integer"),
        (networkx.Graph([("1", 1)]), r"node 1.id: the id '1' is used twice"),
        (networkx.Graph([("", "a")]), "node ''.id: is empty"),
        (
            networkx.Graph([("a", "b", {"relation": 5})]),
            r"edge 'a' -> 'b'.relation: expected a string, found 5",
        ),
        (networkx.Graph([("a", "b", {"f": object()})]), r"'b'.attributes: cannot be written as JSON"),
        (networkx.Graph([("a", "b", {"f": float("nan")})]), "cannot be written as JSON"),
        (
            networkx.Graph([("a", "b", {"attributes": 1, "source": 2})]),
            "attributes: expected an object, found 1",
        ),
        (networkx.Graph([("a", "b", {5: 1})]), "the key 5 is not a string"),
    ],
)
def test_errors_name_the_item(made: object, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Graph.from_networkx(made)


def test_values_that_hold_themselves_end() -> None:
    cycle: list[object] = []
    cycle.extend([cycle, cycle])
    with pytest.raises(GraphError, match=r"more than 200,000 values|nested more than"):
        Graph.from_networkx(networkx.Graph([("a", "b", {"x": cycle})]))
    with pytest.raises(GraphError, match="more than 10 edges"):
        Graph.from_networkx(networkx.complete_graph(10), limits=Limits(edges=10))


def test_networkx_is_imported_for_writing_only() -> None:
    code = (
        "import sys, vglm; g = vglm.Graph.from_triples([('a', 'b', 'c')]); assert 'networkx' not in sys.modules\n"
        "sys.modules['networkx'] = None\n"
        "try: g.to_networkx()\nexcept vglm.errors.GraphError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "to_networkx needs networkx: pip install networkx"
