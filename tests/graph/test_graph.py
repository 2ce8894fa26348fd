from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vglm.errors import GraphError
from vglm.graph.closure import ancestor_closure
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits
from vglm.graph.spans import node_spans, sequential_text

MARFAN: dict[str, Any] = {
    "nodes": [
        {
            "id": "d1",
            "name": "Marfan syndrome",
            "type": "disease",
            "text": "A disease.",
            "aliases": ["MFS", "Marfan"],
        },
        {
            "id": "p7",
            "name": "Ectopia lentis",
            "type": "phenotype",
            "attributes": {"b": [1, {"c": None}], "a": 0.5},
        },
        {"id": "p1", "name": "Abnormal lens"},
    ],
    "edges": [
        {
            "source": "d1",
            "relation": "has phenotype",
            "target": "p7",
            "attributes": {"frequency_label": "3/5"},
        },
        {"source": "p7", "relation": "is a", "target": "p1"},
    ],
}

names = st.text(st.characters(codec="utf-8"), max_size=12)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def node_link(draw: st.DrawFn) -> dict[str, Any]:
    ids = draw(st.lists(names.filter(bool), min_size=1, max_size=6, unique=True))
    nodes = [
        {
            "id": node_id,
            "name": draw(names),
            "type": draw(st.sampled_from(["", "disease", "phenotype"])),
            "text": draw(names),
            "aliases": draw(st.lists(names, max_size=3)),
            "attributes": draw(st.dictionaries(names, values, max_size=2)),
        }
        for node_id in ids
    ]
    edge = st.fixed_dictionaries(
        {
            "source": st.sampled_from(ids),
            "relation": st.sampled_from(["is a", "treats", "\n"]),
            "target": st.sampled_from(ids),
            "attributes": st.dictionaries(names, values, max_size=2),
        }
    )
    return {"nodes": nodes, "edges": draw(st.lists(edge, max_size=8))}


@given(node_link())
def test_round_trip(data: dict[str, Any]) -> None:
    graph = Graph.from_dict(data)
    again = Graph.from_dict(json.loads(json.dumps(graph.to_dict())))
    assert again == graph
    assert again.to_dict() == graph.to_dict()
    assert {n["id"]: n["attributes"] for n in data["nodes"]} == {n.id: n.attributes for n in graph.nodes()}
    assert {(e["source"], e["relation"], e["target"]) for e in data["edges"]} == {
        (e.source, e.relation, e.target) for e in graph.edges()
    }


@given(node_link(), st.randoms(use_true_random=False))
def test_order_of_input_changes_nothing(data: dict[str, Any], shuffle: random.Random) -> None:
    graph = Graph.from_dict(data)
    shuffle.shuffle(data["nodes"])
    shuffle.shuffle(data["edges"])
    other = Graph.from_dict({"links": data["edges"], "nodes": data["nodes"]})
    assert other.fingerprint == graph.fingerprint
    assert sequential_text(other) == sequential_text(graph)
    assert node_spans(other) == node_spans(graph)


@given(node_link(), st.data())
def test_subgraph_equals_the_graph_of_its_parts(data: dict[str, Any], draw: st.DataObject) -> None:
    kept = draw.draw(st.sets(st.sampled_from([n["id"] for n in data["nodes"]])))
    parts = {
        "nodes": [n for n in data["nodes"] if n["id"] in kept],
        "edges": [e for e in data["edges"] if e["source"] in kept and e["target"] in kept],
    }
    graph = Graph.from_dict(data)
    assert graph.subgraph(kept) == Graph.from_dict(parts)
    edges = range(graph.num_edges)
    assert graph.edge_subgraph(edges, nodes=[n["id"] for n in data["nodes"]]) == graph


def test_reading() -> None:
    graph = Graph.from_dict(MARFAN)
    assert (graph.num_nodes, graph.num_edges) == (3, 2)
    node = graph.node("d1")
    assert (node.name, node.type, node.text, node.aliases) == (
        "Marfan syndrome",
        "disease",
        "A disease.",
        ("MFS", "Marfan"),
    )
    assert graph.node("p7").attributes == {"a": 0.5, "b": [1, {"c": None}]}
    assert [n.id for n in graph.neighbors("p7")] == ["p1"]
    assert [n.id for n in graph.neighbors("p7", "in")] == ["d1"]
    assert [n.id for n in graph.neighbors("p7", "both")] == ["d1", "p1"]
    assert [n.id for n in graph.neighbors("p7", "both", limit=1)] == ["d1"]
    assert graph.neighbors("p7", relation="has phenotype") == []
    assert graph.edges_of("d1")[0].attributes == {"frequency_label": "3/5"}
    assert "p7" in graph
    assert "p8" not in graph
    with pytest.raises(GraphError, match="no node with the id 'p8'"):
        graph.node("p8")


def test_parallel_edges_stay_and_exact_duplicates_collapse() -> None:
    edge = {"source": "a", "relation": "r", "target": "a"}
    data = {"nodes": [{"id": "a"}], "edges": [edge, edge, {**edge, "weight": 1}, {**edge, "weight": 2}]}
    graph = Graph.from_dict(data)
    assert [e.attributes for e in graph.edges()] == [{}, {"weight": 1}, {"weight": 2}]
    assert len(graph.edges_of("a", "both")) == 3


def test_networkx_links_and_integer_ids() -> None:
    graph = Graph.from_dict(
        {"nodes": [{"id": 2}, {"id": 10, "color": "red"}], "links": [{"source": 2, "target": 10}]}
    )
    assert graph.to_dict() == {
        "nodes": [{"id": "10", "name": "10", "attributes": {"color": "red"}}, {"id": "2", "name": "2"}],
        "edges": [{"source": "2", "relation": "related to", "target": "10"}],
    }


def test_triples() -> None:
    triples = [("b", "r", "a"), ("a", "r", "c"), ("b", "r", "a")]
    graph = Graph.from_triples(triples)
    assert [(e.source, e.relation, e.target) for e in graph.edges()] == [("a", "r", "c"), ("b", "r", "a")]
    assert Graph.from_triples(reversed(triples)) == graph


CYCLE: list[float | list[Any]] = [1.0]
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "graph: expected an object"),
        ({"nodes": {}}, "nodes: expected a list, found a dict"),
        ({"nodes": [[]]}, r"nodes\[0\]: expected an object"),
        ({"nodes": [{}]}, r"nodes\[0\]\.id: is missing"),
        ({"nodes": [{"id": ""}]}, r"nodes\[0\]\.id: is empty"),
        ({"nodes": [{"id": True}]}, r"nodes\[0\]\.id: expected a string, found True"),
        ({"nodes": [{"id": 10**5000}]}, r"nodes\[0\]\.id: the number is too large"),
        ({"nodes": [{"id": "a"}, {"id": "a"}]}, r"nodes\[1\]\.id: the id 'a' is used twice"),
        ({"nodes": [{"id": 1}, {"id": "1"}]}, r"nodes\[1\]\.id: the id '1' is used twice"),
        ({"nodes": [{"id": "a", "name": 3}]}, r"nodes\[0\]\.name: expected a string, found 3"),
        (
            {"nodes": [{"id": "a", "name": "x" * 10**7}]},
            r"nodes\[0\]\.name: 10,000,000 characters, the limit",
        ),
        ({"nodes": [{"id": "x" * 10**7}]}, r"nodes\[0\]\.id: 10,000,000 characters"),
        ({"nodes": [{"id": "a", "text": "\ud800"}]}, r"nodes\[0\]\.text: not valid Unicode at character 0"),
        ({"nodes": [{"id": "a", "aliases": "b"}]}, r"nodes\[0\]\.aliases: expected a list"),
        ({"nodes": [{"id": "a", "aliases": [1]}]}, r"nodes\[0\]\.aliases\[0\]: expected a string"),
        ({"nodes": [{"id": "a", "attributes": 1}]}, r"nodes\[0\]\.attributes: expected an object"),
        (
            {"nodes": [{"id": "a", "attributes": {"x": float("nan")}}]},
            r"nodes\[0\]\.attributes: cannot be written",
        ),
        (
            {"nodes": [{"id": "a", "attributes": {1: 2}}]},
            r"nodes\[0\]\.attributes: the key 1 is not a string",
        ),
        ({"nodes": [{"id": "a", "attributes": {"x": CYCLE}}]}, r"nodes\[0\]\.attributes: nested more than"),
        ({"nodes": [{"id": "a", "attributes": {"x": {1}}}]}, r"nodes\[0\]\.attributes: cannot be written"),
        ({"nodes": [{"id": "a", "x": 1, "attributes": {"x": 2}}]}, r"nodes\[0\]\.'x': given beside"),
        ({"nodes": [{"id": "a"}], "edges": [{"source": "a"}]}, r"edges\[0\]\.target: is missing"),
        (
            {"nodes": [{"id": "a"}], "links": [{"source": "a", "target": "b"}]},
            r"links\[0\]\.target: no node has the id 'b'",
        ),
        (
            {"nodes": [{"id": "a"}], "edges": [{"source": "a", "target": "a", "relation": ""}]},
            r"edges\[0\]\.relation: is empty",
        ),
        ({"nodes": [], "edges": [], "links": []}, "both edges and links"),
    ],
)
def test_bad_input_names_the_item_and_the_field(data: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        Graph.from_dict(data)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "triple", ["abc", ("a", "r"), ("a", "r", "b", "c"), ("a", "", "b"), ("a", "r", None), None]
)
def test_bad_triples(triple: Any) -> None:
    with pytest.raises(GraphError, match=r"triples\[1\]"):
        Graph.from_triples([("a", "r", "b"), triple])


def test_limits_of_counts() -> None:
    data = {
        "nodes": [{"id": str(i)} for i in range(4)],
        "edges": [{"source": "0", "target": str(i)} for i in range(4)],
    }
    Graph.from_dict(data, Limits(nodes=4, edges=4))
    with pytest.raises(GraphError, match=r"nodes\[3\]: more than 3 nodes"):
        Graph.from_dict(data, Limits(nodes=3))
    with pytest.raises(GraphError, match="more than 3 edges"):
        Graph.from_dict(data, Limits(edges=3))


def test_ancestors_with_cycles_and_self_loops() -> None:
    graph = Graph.from_triples(
        [
            ("a", "is a", "b"),
            ("b", "is a", "c"),
            ("c", "is a", "b"),
            ("c", "is a", "c"),
            ("d", "is a", "d"),
            ("a", "x", "e"),
        ]
    )
    expected = {"a": "bc", "b": "c", "c": "b", "d": "", "e": ""}
    assert {i: "".join(graph.ancestors(i)) for i in expected} == expected
    starts, nodes = ancestor_closure(graph, "is a")
    closure = {
        graph.id_of(i): "".join(graph.id_of(int(n)) for n in nodes[starts[i] : starts[i + 1]])
        for i in range(5)
    }
    assert closure == {"a": "abc", "b": "bc", "c": "bc", "d": "d", "e": "e"}


def test_closure_is_bounded() -> None:
    chain = Graph.from_triples([(f"{i:06}", "is a", f"{i + 1:06}") for i in range(100_000)])
    started = time.perf_counter()
    with pytest.raises(GraphError, match="more than 100,000 pairs"):
        ancestor_closure(chain, "is a", max_pairs=100_000)
    assert time.perf_counter() - started < 10
    assert len(chain.ancestors("000000")) == 100_000


def test_node_of_a_million_degree() -> None:
    graph = Graph.from_triples([("hub", "r", str(i)) for i in range(100_000)])
    started = time.perf_counter()
    assert len(graph.neighbors("hub", limit=10)) == 10
    assert len(graph.neighbors("7", "in")) == 1
    assert time.perf_counter() - started < 1
