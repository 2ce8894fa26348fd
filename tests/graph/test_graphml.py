"""GraphML in and out: what other programs write, errors with their lines, and XML that is made to do harm."""

from __future__ import annotations

import io
from typing import Any

import networkx
import pytest
from hypothesis import given, settings

from tests.graph.strategies import graphs, texts, xml_texts
from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits

HEAD = '<graphml xmlns="http://graphml.graphdrawing.org/xmlns" xmlns:y="http://www.yworks.com/xml/graphml">\n'


def graphml(body: str, keys: str = "") -> Graph:
    return Graph.from_graphml(f'{HEAD}{keys}<graph edgedefault="directed">\n{body}\n</graph></graphml>')


@settings(max_examples=200, deadline=None)
@given(graph=graphs(xml_texts))
def test_round_trip(graph: Graph) -> None:
    again = Graph.from_graphml(graph.to_graphml())
    assert again.to_dict() == graph.to_dict()
    assert again == graph


@settings(max_examples=100, deadline=None)
@given(graph=graphs(texts))
def test_any_graph_is_written_right_or_not_at_all(graph: Graph) -> None:
    try:
        text = graph.to_graphml()
    except GraphError as error:
        found = str(error)
    else:
        found = ""
        assert Graph.from_graphml(text) == graph
    assert not found or "GraphML cannot hold the character U+" in found


def test_networkx_reads_what_is_written() -> None:
    graph = Graph.from_dict(
        {
            "nodes": [
                {"id": "a", "name": "Aspirin", "type": "drug", "mass": 180.2, "n": 3, "old": True, "l": [1]}
            ],
            "edges": [{"source": "a", "relation": "is", "target": "a", "weight": 0.5}],
        }
    )
    read = networkx.parse_graphml(graph.to_graphml())
    assert dict(read.nodes(data=True)) == {
        "a": {"name": "Aspirin", "type": "drug", "mass": 180.2, "n": 3, "old": True, "l": "[1]"}
    }
    assert list(read.edges(data=True)) == [("a", "a", {"relation": "is", "weight": 0.5})]


def test_what_networkx_writes() -> None:
    made = networkx.MultiDiGraph()
    made.add_node("d1", name="Marfan syndrome", type="disease", score=0.5, seen=1896, rare=True)
    made.add_edge("d1", "p7", relation="has phenotype", weight=2)
    made.add_edge("d1", "p7", relation="may have")
    file = io.BytesIO()
    networkx.write_graphml(made, file)
    graph = Graph.from_graphml(file.getvalue())
    node = graph.node("d1")
    assert (node.name, node.type) == ("Marfan syndrome", "disease")
    assert node.attributes == {"score": 0.5, "seen": 1896, "rare": True}
    assert [(edge.relation, edge.attributes) for edge in graph.edges()] == [
        ("has phenotype", {"weight": 2}),
        ("may have", {}),
    ]


def test_what_neo4j_writes() -> None:
    graph = Graph.from_graphml(
        f"""{HEAD}<key id="labels" for="node" attr.name="labels"/><key id="name" for="node" attr.name="name"/>
        <key id="label" for="edge" attr.name="label"/>
        <graph edgedefault="directed">
        <node id="n0" labels=":Person:Actor"><data key="labels">:Person:Actor</data><data key="name">Keanu</data></node>
        <node id="n1" labels=":Movie"><data key="labels">:Movie</data></node>
        <edge id="e0" source="n0" target="n1" label="ACTED_IN"><data key="label">ACTED_IN</data></edge>
        </graph></graphml>"""
    )
    assert (graph.node("n0").name, graph.node("n0").type) == ("Keanu", "Person")
    assert graph.node("n0").attributes == {"labels": ["Person", "Actor"]}
    assert graph.node("n1").type == "Movie"
    assert graph.to_triples() == [("n0", "ACTED_IN", "n1")]


def test_types_that_begin_with_a_colon_are_kept() -> None:
    graph = Graph.from_dict({"nodes": [{"id": "a", "type": ":"}, {"id": "b", "type": ":x:y"}]})
    assert Graph.from_graphml(graph.to_graphml()) == graph


def test_what_yed_draws() -> None:
    keys = '<key for="node" id="d6" yfiles.type="nodegraphics"/><key for="edge" id="d9" yfiles.type="edgegraphics"/>'
    graph = graphml(
        """<node id="n0"><data key="d6"><y:ShapeNode><y:Fill color="#FF"/>
           <y:NodeLabel x="1">Heart <y:LabelModel/></y:NodeLabel></y:ShapeNode></data></node>
           <node id="g0"><data key="d6"><y:GroupNode><y:NodeLabel>Group</y:NodeLabel></y:GroupNode></data>
           <graph id="g0:"><node id="g0::n0"/></graph></node>
           <edge source="n0" target="g0::n0"><data key="d9"><y:PolyLineEdge><y:EdgeLabel>beats</y:EdgeLabel>
           </y:PolyLineEdge></data></edge>""",
        keys,
    )
    assert {node.id: (node.name, node.attributes) for node in graph.nodes()} == {
        "n0": ("Heart", {}),
        "g0": ("Group", {}),
        "g0::n0": ("g0::n0", {}),
    }
    assert graph.to_triples() == [("n0", "beats", "g0::n0")]


def test_defaults_and_types() -> None:
    keys = """<key id="c" for="node" attr.name="color" attr.type="string"><default>yellow</default></key>
              <key id="w" for="all" attr.name="weight" attr.type="double"/>
              <key id="n" for="edge" attr.name="count" attr.type="long"><default>1</default></key>"""
    graph = graphml(
        """<node id="a"><data key="c">green</data></node><node id="b"><data key="w">NaN</data></node>
           <edge source="a" target="b"><data key="w">1e3</data></edge>
           <edge source="b" target="a"><data key="n"> 5 </data><data key="w">Infinity</data></edge>""",
        keys,
    )
    assert graph.node("a").attributes == {"color": "green"}
    assert graph.node("b").attributes == {"color": "yellow"}
    assert [edge.attributes for edge in graph.edges()] == [
        {"count": 1, "weight": 1000.0},
        {"count": 5, "weight": "Infinity"},
    ]
    assert {edge.relation for edge in graph.edges()} == {"related to"}


KEYS = '<key id="w" for="all" attr.name="weight" attr.type="int"/>\n<key id="b" attr.name="ok" attr.type="boolean"/>\n'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<node/>", r"line 5\.id: is missing"),
        ('<node id="a"/>\n<node id="a"/>', r"line 6\.id: the id 'a' is used twice"),
        ('<node id=""/>', r"line 5\.id: is empty"),
        ('<node id="a"/><edge source="a"/>', r"line 5\.target: is missing"),
        ('<node id="a"/>\n<edge source="a" target="b"/>', r"line 6\.target: no node has the id 'b'"),
        ('<node id="a">\n<data key="x">1</data></node>', r"line 6: data: no key has the id 'x'"),
        ('<node id="a">\n<data>1</data></node>', r"line 6: data: no key has the id ''"),
        (
            '<node id="a"><data key="w">1</data><data key="w">1</data></node>',
            r"line 5: data: 'weight' is given twice",
        ),
        ('<node id="a"><data key="w">one</data></node>', r"line 5\.weight: expected int, found 'one'"),
        (f'<node id="a"><data key="w">{"9" * 5000}</data></node>', r"line 5\.weight: expected int"),
        ('<node id="a"><data key="b">si</data></node>', r"line 5\.ok: expected boolean, found 'si'"),
        ('<hyperedge><endpoint node="a"/></hyperedge>', "line 5: a hyperedge"),
        ('<key for="node"/>', r"line 5: key.id: is missing"),
        ('<key id="w"/>', "line 5: the key 'w' is declared twice"),
        ('<key id="v" for="me"/>', r"line 5: key.for: expected one of node, .* found 'me'"),
        ('<node id="a">', "line 6, column 3: is not XML: mismatched tag"),
        ('<node id="a" id="b"/>', "line 5.*duplicate attribute"),
        ("&nbsp;", "line 5.*undefined entity"),
        ("<node id='a\x01'/>", "line 5.*invalid token"),
        ("<z:node/>", "line 5.*unbound prefix"),
        (f'<node id="{"a" * 2000}"/>', "line 5.id: 2,000 characters, the limit is 1,000"),
    ],
)
def test_errors_name_line_and_field(body: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        graphml(body, KEYS)


LAUGHS = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(30))
GRAPH = '<graph><node id="a"/></graph></graphml>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f'<!DOCTYPE graphml [<!ENTITY l0 "lol">{LAUGHS}]>\n{HEAD}<desc>&l30;</desc>{GRAPH}',
            "declarations of its own",
        ),
        (
            f'<!DOCTYPE graphml [<!ENTITY x SYSTEM "file:///etc/passwd">]>\n{HEAD}<desc>&x;</desc>{GRAPH}',
            "declarations",
        ),
        (
            f'<!DOCTYPE graphml [<!ATTLIST node big CDATA "{"x" * 10_000}">]>\n{HEAD}{GRAPH}',
            "declarations of its own",
        ),
        (
            f'<!DOCTYPE graphml SYSTEM "http://x/y.dtd">\n{HEAD}<desc>&x;</desc>{GRAPH}',
            "the entity 'x' is not read",
        ),
        (HEAD + "<desc>" * 100_000, "elements nested more than 64 deep"),
        (f"{HEAD}<!--{'x' * (20 << 20)}-->{GRAPH}", "markup of more than 4,194,304 bytes"),
        (f'{HEAD}<graph><node id="{"x" * (20 << 20)}"/></graph></graphml>', "markup of more than"),
        (
            f'{HEAD}<key id="k"/><graph><node id="a"><data key="k">{"x" * 3_000_000}',
            "1,000,000 characters of text",
        ),
        (
            f'{HEAD}<key id="k"><default>{"x" * 900_000}</default></key><graph>' + '<node id="{}"/>' * 1000,
            "defaults",
        ),
        (HEAD + "".join(f'<key id="k{i}"/>' for i in range(20_000)) + GRAPH, "more than 10,000 keys"),
        (f'<?xml version="1.0" encoding="utf-7"?>{HEAD}{GRAPH}', "encoding"),
        (f'<?xml version="1.0" encoding="nonsense"?>{HEAD}{GRAPH}', "encoding"),
        ("<svg/>", "expected <graphml>, found 'svg'"),
    ],
    ids=lambda value: value if len(value) < 60 else "",
)
def test_xml_that_is_made_to_do_harm(text: str, message: str) -> None:
    if "{}" in text:
        text = text.format(*range(1000))
    with pytest.raises(GraphError, match=message):
        Graph.from_graphml(text)


def test_a_plain_doctype_and_other_encodings_are_read() -> None:
    text = (
        f'<!DOCTYPE graphml SYSTEM "http://graphml.graphdrawing.org/dtds/1.0rc/graphml.dtd">\n{HEAD}{GRAPH}'
    )
    assert Graph.from_graphml(text).num_nodes == 1
    latin = f'<?xml version="1.0" encoding="ISO-8859-1"?>{HEAD}<graph><node id="é"/></graph></graphml>'
    assert "é" in Graph.from_graphml(latin.encode("latin-1"))
    assert "é" in Graph.from_graphml(latin.replace("ISO-8859-1", "UTF-16").encode("utf-16"))
    with pytest.raises(GraphError, match=r"line 2.*invalid token"):
        Graph.from_graphml(HEAD.encode() + b'<graph><node id="\xff"/></graph></graphml>')


def test_long_files_of_short_items_are_read() -> None:
    nodes = "".join(f'<node id="n{i}"/><!-- {"x" * 100} -->\n' for i in range(20_000))
    text: Any = f"{HEAD}<graph>{nodes}</graph></graphml>"
    assert len(text) > 2 * (1 << 20)
    assert Graph.from_graphml(text).num_nodes == 20_000
    with pytest.raises(GraphError, match="more than 100 nodes"):
        Graph.from_graphml(text, Limits(nodes=100))
