"""RDF in and out: what becomes of labels, types, literals and statements, and texts that are made to do harm."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from tests.graph.strategies import graphs
from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits

PREFIXES = """
@prefix : <http://example.org/> .
@prefix rdf: <http://www.w3.org/1999/02/22-rdf-syntax-ns#> .
@prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
@prefix owl: <http://www.w3.org/2002/07/owl#> .
@prefix xsd: <http://www.w3.org/2001/XMLSchema#> .
"""
EXAMPLE = "http://example.org/"


def turtle(text: str, **options: Any) -> Graph:
    return Graph.from_rdf(PREFIXES + text, **options)


def edges(graph: Graph) -> list[tuple[str, str, str]]:
    return [(s.removeprefix(EXAMPLE), r, t.removeprefix(EXAMPLE)) for s, r, t in graph.to_triples()]


@pytest.mark.parametrize("format", ["turtle", "ntriples", "jsonld"])
@settings(max_examples=150, deadline=None)
@given(graph=graphs())
def test_round_trip(format: str, graph: Graph) -> None:
    text = graph.to_rdf(format)
    again = Graph.from_rdf(text, format)
    assert again.to_dict() == graph.to_dict()
    assert again == graph
    assert again.to_rdf(format) == text
    if format == "ntriples":  # whose plain lines are not read by the parser of Turtle
        assert Graph.from_rdf(text, "turtle") == graph


def test_names_types_texts_and_attributes() -> None:
    graph = turtle("""
        :marfan a :Disease, owl:Class ; rdfs:label "Marfan syndrome"@en, "Marfan-Syndrom"@de ;
            skos:altLabel "MFS", "Marfan" ; skos:definition "A disorder." ; rdfs:comment "Seen early." ;
            :prevalence 0.0002 ; :genes 1 ; :rare true ; :code "154700", "Q87.4" ; :seen "1896-01-01"^^xsd:date ;
            :treats :nothing .
        :Disease rdfs:label "disease" .
    """)
    node = graph.node(EXAMPLE + "marfan")
    assert (node.name, node.type, node.text) == ("Marfan syndrome", "disease", "A disorder.")
    assert node.aliases == ("MFS", "Marfan", "Marfan-Syndrom")
    assert node.attributes == {
        "comment": "Seen early.",
        "prevalence": 0.0002,
        "genes": 1,
        "rare": True,
        "code": ["154700", "Q87.4"],
        "seen": "1896-01-01",
        "types": ["disease", "Class"],
    }
    assert turtle(':a rdfs:label "x"@en, "y"@de .', language="de").name_of(EXAMPLE + "a") == "y"
    assert graph.name_of(EXAMPLE + "nothing") == "nothing"


def test_relations_are_called_by_their_labels() -> None:
    graph = turtle("""
        :treats a owl:ObjectProperty ; rdfs:label "treats well"@en ; rdfs:domain :Drug .
        :causes rdfs:label "leads to" .
        :a :treats :b ; :causes :c ; <http://one/part> :d ; <http://two/part> :e ; <urn:x:y> :f .
    """)
    assert edges(graph) == [
        ("a", "http://one/part", "d"),
        ("a", "http://two/part", "e"),
        ("a", "leads to", "c"),
        ("a", "treats well", "b"),
        ("a", "y", "f"),
    ]
    assert EXAMPLE + "treats" not in graph
    assert EXAMPLE + "causes" not in graph


@pytest.mark.parametrize(
    "text",
    [
        ":a :treats :b . [] a rdf:Statement ; rdf:subject :a ; rdf:predicate :treats ; rdf:object :b ; :p 0.5 .",
        ":a :treats :b {| :p 0.5 |} .",
        ":a :treats :b ~ _:r . _:r :p 0.5 .",
        "<< :a :treats :b >> :p 0.5 . :a :treats :b .",
    ],
)
def test_statements_about_an_edge_are_its_attributes(text: str) -> None:
    graph = turtle(text)
    assert graph.num_nodes == 2
    assert [(edge.relation, edge.attributes) for edge in graph.edges()] == [("treats", {"p": 0.5})]


def test_statements_that_are_more_than_that_stay_nodes() -> None:
    statement = "_:s a rdf:Statement ; rdf:subject :a ; rdf:predicate :treats ; rdf:object :b ; :p 0.5 ."
    not_asserted = turtle(statement)
    assert not_asserted.num_edges == 3
    linked = turtle(f"{statement} :a :treats :b . :book :says _:s .")
    assert ("a", "treats", "b") in edges(linked)
    assert ("book", "says", "_:1") in edges(linked)
    incomplete = turtle(":a :treats :b . _:s a rdf:Statement ; rdf:subject :a .")
    assert ("_:1", "subject", "a") in edges(incomplete)


def test_ids_of_relative_iris_and_blank_nodes() -> None:
    graph = turtle('<d1> :treats <p%207> . <> :about <d1> . [] :near <d1> . <d1> rdfs:label "Marfan" .')
    assert edges(graph) == [("<>", "about", "d1"), ("_:1", "near", "d1"), ("d1", "treats", "p%207")]
    assert graph.name_of("d1") == "Marfan"
    based = turtle("<d1> :treats <p7> .", base="http://my.org/")
    assert based.to_triples() == [("http://my.org/d1", "treats", "http://my.org/p7")]
    lines = ["_:x <http://r> _:y .", "_:y <http://r> _:z ."]
    assert Graph.from_rdf("\n".join(lines), "ntriples") == Graph.from_rdf("\n".join(lines[::-1]), "ntriples")


LINES = """
# plain lines, and what makes a line not plain
<http://x/a> <http://x/r> <http://x/b> .
<http://x/a>\t<http://x/r>  <http://x/c>.
   <http://x/a> <http://x/r> <http://x/d> .   # comment
<http://x/\\u0061> <http://x/r> <http://x/e> .
<http://x/a> <http://www.w3.org/2000/01/rdf-schema#label> "Aspirin"@en .
<http://x/a> <http://www.w3.org/2000/01/rdf-schema#label> "Azetylsalizylsäure"@de-AT .
<http://x/b> <http://www.w3.org/2000/01/rdf-schema#label> "say \\"b\\" . <http://x/no> <http://x/no> <http://x/no> ." .
<http://x/b> <http://x/p> "<http://x/a> <http://x/r> <http://x/b> ." .
<http://x/b> <http://x/n> "5"^^<http://www.w3.org/2001/XMLSchema#integer> .
<http://x/b> <http://www.w3.org/1999/02/22-rdf-syntax-ns#type> <http://x/Pain> .
<http://x/b> <http://x/p> "" .
<urn:x:é> <http://x/r> <http://x/日本> .
"""


@pytest.mark.parametrize("text", [LINES, LINES.replace("\n", "\r\n"), LINES.rstrip()])
def test_plain_lines_are_read_as_the_parser_reads_them(text: str) -> None:
    graph = Graph.from_rdf(text, "ntriples")
    assert graph == Graph.from_rdf(text, "turtle")
    assert graph.num_edges == 5
    assert graph.node("http://x/b").attributes["p"] == ["", "<http://x/a> <http://x/r> <http://x/b> ."]
    assert graph.node("http://x/a").aliases == ("Azetylsalizylsäure",)


def test_json_ld_contexts_are_inside_the_file_only() -> None:
    graph = Graph.from_rdf(
        """{"@context": {"name": "http://schema.org/name", "treats": {"@id": "http://x/treats", "@type": "@id"}},
            "@id": "a", "@type": "http://x/Drug", "name": "Aspirin", "treats": ["b", "c"]}""",
        "jsonld",
    )
    assert graph.node("a").name == "Aspirin"
    assert graph.node("a").type == "Drug"
    assert graph.to_triples() == [("a", "treats", "b"), ("a", "treats", "c")]
    with pytest.raises(GraphError, match="nothing is fetched: write the context into the file"):
        Graph.from_rdf('{"@context": "https://schema.org", "@id": "a", "name": "x"}', "jsonld")


@pytest.mark.parametrize(
    ("format", "text", "message"),
    [
        (
            "ntriples",
            "<http://a> <http://b> <http://c> .\n<http://a> <b> <http://c> .",
            r"line 2: .b. is no absolute IRI",
        ),
        ("ntriples", '<http://a> <http://b> "x', "line 1.*end of file"),
        ("turtle", "@prefix : <http://x/> .\n:a :b :c .\n:a x:b :c .", "line 3.*prefix"),
        ("turtle", ":a :b :c .", "line 1"),
        ("turtle", '<a> <b> "\\uD800" .', "line 1.*not a valid unicode"),
        ("jsonld", '{"@id": "a",\n"http://x": }', "line 2"),
        ("jsonld", '{"@id": "a", "http://x": NaN}', "NaN is not a JSON number"),
        ("rdfxml", "<a/>", "'rdfxml' is not one of turtle, ntriples, jsonld"),
    ],
)
def test_errors_name_the_line(format: str, text: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Graph.from_rdf(text, format)


def test_invalid_utf8_is_refused() -> None:
    for format in ("turtle", "ntriples"):
        with pytest.raises(GraphError, match=r"line 2.*UTF-8"):
            Graph.from_rdf(b'<http://a> <http://b> "x" .\n<http://a> <http://b> "\xff" .', format)
    with pytest.raises(GraphError, match="not valid Unicode"):
        Graph.from_rdf('<http://a> <http://b> "\ud800" .')


NESTED_TERMS = "<a> <b> " + "<<( <a> <b> " * 30_000 + "<c>" + " )>>" * 30_000 + " ."
MANY_TERMS = ",".join(f'"t{i}": "http://t/{i}"' for i in range(6_000))
OBJECTS = ",".join('{"@context": {"x": "http://x"}, "x": "1"}' for _ in range(6_000))
SCOPED = '"k": {"@id": "http://k", "@context": {"x": "http://x"}}'
CHAIN = ",".join(f'"t{i}": "t{i + 1}:x"' for i in range(6_000))


@pytest.mark.parametrize(
    ("format", "text", "message"),
    [
        ("turtle", NESTED_TERMS, "triple terms"),
        ("ntriples", NESTED_TERMS, "triple terms"),
        ("turtle", "<a> <b> <<( <a> <b> <c> )>> .", "triple terms .* statements about an edge only"),
        ("turtle", f"<{'a' * 1_000_000}> <b> <c> .", "an IRI of more than 16,000 bytes"),
        ("turtle", "@base <http://x/> .\n" + "@base <aaaa/> .\n" * 50_000, "bases that are relative"),
        ("turtle", "".join(f"@prefix p{i}: <a> .\n" for i in range(6_000)), "more than 5,000 prefixes"),
        (
            "turtle",
            f"@prefix p: <http://x/{'a' * 15_000}> .\n" + "".join(f"p:{i} p:a p:b .\n" for i in range(9_000)),
            "50 times as long",
        ),
        (
            "turtle",
            f"@prefix p: <http://x/{'a' * 15_000}> .\n"
            + "".join(f"<a> <b> '{i}'^^p:a .\n" for i in range(9_000)),
            "50 times as long",
        ),
        ("jsonld", '{"@id": "a", "http://k": ' * 50_000 + "1" + "}" * 50_000, "nested too deep"),
        ("jsonld", '{"http://k": ' + "[" * 150 + "1" + "]" * 150 + "}", "nested more than 100 levels deep"),
        ("jsonld", f'{{"@context": {{{MANY_TERMS}}}, "@graph": [{OBJECTS}]}}', "contexts are too many"),
        (
            "jsonld",
            f'{{"@context": {{{MANY_TERMS}, {SCOPED}}}, "@graph": [{OBJECTS}]}}',
            "contexts are too many",
        ),
        ("jsonld", f'{{"@context": {{{CHAIN}}}, "t0": "1"}}', "contexts are too many"),
        (
            "jsonld",
            f'{{"@context": {{"@vocab": "http://{"a" * 200_000}", {MANY_TERMS}}}}}',
            "contexts are too many",
        ),
        (
            "jsonld",
            f'{{"@context": [{",".join([chr(123) + MANY_TERMS + chr(125)] * 60)}]}}',
            "contexts are too many",
        ),
    ],
    ids=lambda value: value if len(value) < 60 else "",
)
def test_texts_that_are_made_to_do_harm(format: str, text: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Graph.from_rdf(text, format)


@pytest.mark.parametrize(
    "text",
    [
        "<a> <b> " + "(" * 20_000 + ")" * 20_000 + " .",
        "<a> <b> " + "[<c> " * 20_000 + "<d>" + "]" * 20_000 + " .",
        "<< " * 20_000 + "<a> <b> <c>" + " >> <b> <c>" * 20_000 + " .",
    ],
    ids=["lists", "blank nodes", "reifiers"],
)
def test_deep_nests_that_the_parser_takes_in_its_stride(text: str) -> None:
    assert Graph.from_rdf(text).num_edges >= 20_000


def test_texts_in_which_directives_are_only_mentioned() -> None:
    """Looking for directives takes time in proportion to the text, whatever it is."""
    for piece in ("prefix.", "prefix ", "base<a", "base  ", "<", "<a", "<<("[:2]):
        text = piece * (900_000 // len(piece))
        graph = Graph.from_rdf(f'<a> <http://www.w3.org/2000/01/rdf-schema#comment> "{text}" .')
        assert graph.node("a").text == text


def test_long_values_are_limited() -> None:
    with pytest.raises(GraphError, match=r"'a'.attributes: .* the limit is 1,000,000"):
        Graph.from_rdf(f'<a> <b> "{"x" * 2_000_000}" .')
    with pytest.raises(GraphError, match=r"id: 2,\d+ characters, the limit is 1,000"):
        Graph.from_rdf(f"<{'a' * 2_000}> <b> <c> .")
    with pytest.raises(GraphError, match="more than 3 triples"):
        Graph.from_rdf("<a> <b> <c>, <d>, <e>, <f> .", limits=Limits(nodes=2, edges=1))
    assert (
        Graph.from_rdf(f'<a> <b> "{"9" * 5_000}"^^<http://www.w3.org/2001/XMLSchema#integer> .').num_nodes
        == 1
    )
