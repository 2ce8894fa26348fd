"""Node-link JSON as text, TSV and CSV triples, and sets for knowledge-graph completion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph.strategies import graphs, texts
from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits


@settings(max_examples=200, deadline=None)
@given(graph=graphs())
def test_json_round_trip(graph: Graph) -> None:
    text = graph.to_json()
    assert Graph.from_json(text) == graph
    assert Graph.from_json(text.encode()).to_json() == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[texts.filter(bool)] * 3), max_size=20))
def test_triples_round_trip(triples: list[tuple[str, str, str]]) -> None:
    graph = Graph.from_triples(triples)
    assert graph.to_triples() == sorted(set(triples))
    assert Graph.from_triples(reversed(triples)) == graph
    assert Graph.from_triples(iter(graph.to_triples())) == graph


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON, line 1, column 2: is not JSON"),
        ('{"nodes": [],\n"edges": [}', "JSON, line 2, column 11"),
        ("[" * 100_000, "JSON: the JSON is nested too deep"),
        ('{"a":' * 100_000, "JSON: the JSON is nested too deep"),
        ('{"nodes": [{"id": NaN}]}', "NaN is not a JSON number"),
        ('{"nodes": [{"id": 1e999}]}', r"nodes\[0\]\.id: expected a string, found inf"),
        (f'{{"nodes": [{{"id": {"9" * 5000}}}]}}', "JSON: is not JSON: Exceeds the limit"),
        ('{"nodes": [{"id": "\\ud800"}]}', r"nodes\[0\]\.id: not valid Unicode"),
        ("[]", "expected an object with nodes and edges, found a list"),
        ('{"@context": {}, "@graph": []}', "give format='jsonld'"),
        (b'{"nodes": "\xff"}', r"JSON: is not UTF-8 text \(byte 11\)"),
        ('{"nodes": [{"id": "a"}, {"id": "a"}]}', r"nodes\[1\]\.id: the id 'a' is used twice"),
        ('{"nodes": [], "edges": [], "links": []}', "both edges and links"),
    ],
)
def test_json_that_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Graph.from_json(text)


@pytest.mark.parametrize(
    ("triples", "message"),
    [
        (
            [("a", "b", "c"), ("a", "b")],
            r"triples\[1\]: expected \(source, relation, target\), found a tuple",
        ),
        (["abc"], r"triples\[0\]: expected .* found 'abc'"),
        ([("a", "", "c")], r"triples\[0\]\.relation: is empty"),
        ([("a", "b", "c"), ("a", "b", "")], r"triples\[1\]\.target: is empty"),
        ([("a", 5, "c")], r"triples\[0\]\.relation: expected a string, found 5"),
        ([("a", "b", None)], r"triples\[0\]\.target: expected a string, found None"),
        ([("a" * 10_000_000, "b", "c")], r"source: 10,000,000 characters, the limit is 1,000"),
        ([("\ud800", "b", "c")], r"triples\[0\]\.source: not valid Unicode"),
    ],
)
def test_triples_that_are_refused(triples: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Graph.from_triples(triples)


def load(tmp_path: Path, text: str | bytes, name: str = "graph.tsv", **options: Any) -> Graph:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Graph.load(path, **options)


def test_headers_and_columns(tmp_path: Path) -> None:
    plain = [("a", "treats", "b")]
    assert load(tmp_path, "a\ttreats\tb\n").to_triples() == plain
    assert load(tmp_path, "\ufeffa\ttreats\tb\r\n\r\n").to_triples() == plain
    assert load(tmp_path, "object\tsubject\tpredicate\nb\ta\ttreats\n").to_triples() == plain
    assert load(tmp_path, "head\ttail\na\tb\n").to_triples() == [("a", "related to", "b")]
    assert load(tmp_path, "b\ttreats\ta\n", columns=("target", "relation", "source")).to_triples() == plain
    named = ("source", "relation", "target")
    assert load(tmp_path, "\t".join(named) + "\n", header=False).to_triples() == [named]
    graph = load(tmp_path, "source,relation,target,score\na,treats,b,0.5\na,treats,c,\n", "graph.csv")
    assert [edge.attributes for edge in graph.edges()] == [{"score": "0.5"}, {}]
    quoted = load(tmp_path, 'a,"treats, or\r\nhelps with","say ""b"""\r\n', "graph.csv")
    assert quoted.to_triples() == [("a", "treats, or\r\nhelps with", 'say "b"')]


def test_names_and_texts_come_from_other_files(tmp_path: Path) -> None:
    nodes, texts_file, relations = tmp_path / "n.tsv", tmp_path / "t.tsv", tmp_path / "r.csv"
    nodes.write_text("id\tname\tkind\tmass\na\tAspirin\tdrug\t180\nz\tZinc\t\t\n")
    relations.write_text('rel1,"treats, mostly"\n')
    graph = load(tmp_path, "a\trel1\tb\n", nodes=nodes, relations=relations)
    assert graph.to_triples() == [("a", "treats, mostly", "b")]
    aspirin = graph.node("a")
    assert (aspirin.name, aspirin.type, aspirin.attributes) == ("Aspirin", "drug", {"mass": "180"})
    assert graph.name_of("b") == "b"
    assert graph.name_of("z") == "Zinc"
    nodes.write_text("a\tAspirin\n")
    texts_file.write_text("a\tA drug.\n")
    assert load(tmp_path, "a\trel1\tb\n", nodes=nodes, texts=texts_file).node("a").text == "A drug."


def test_completion_sets(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("a\tr1\tb\n")
    (tmp_path / "test.tsv").write_text("b\tr1\ta\n")
    (tmp_path / "entity2text.txt").write_text("a\taspirin, a drug for pain\nb\tpain\n")
    (tmp_path / "relation2text.txt").write_text("r1\ttreats\n")
    graph = Graph.load(tmp_path)
    assert graph.to_triples() == [("a", "treats", "b")]
    assert (graph.node("a").name, graph.node("a").text) == ("aspirin", "a drug for pain")
    assert Graph.load(tmp_path, split="test").to_triples() == [("b", "treats", "a")]
    (tmp_path / "entity2textlong.txt").write_text("b\tIt hurts.\n")
    assert Graph.load(tmp_path).node("b").text == "It hurts."
    assert Graph.load(tmp_path).node("a").name == "aspirin, a drug for pain"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("a\tr\tb\na\tr\n", "g.tsv", "g.tsv, line 2: expected 3 columns, found 2"),
        ("a\tr\tb\n\n\na\tr\tb\tc\n", "g.tsv", "g.tsv, line 4: expected 3 columns, found 4"),
        ("a\tr\n", "g.tsv", "g.tsv, line 1: expected 3 columns, found 2"),
        ("a\tr\tb\n\tr\tb\n", "g.tsv", r"g.tsv, line 2\.source: is empty"),
        ("a\tr\tb\na\t\tb\n", "g.tsv", r"g.tsv, line 2\.relation: is empty"),
        ("source\tx\ty\na\tb\tc\td\n", "g.tsv", "line 2: expected 3 columns, found 4"),
        ("source\ttarget\tx\tx\na\tb\tc\td\n", "g.tsv", "g.tsv: two columns have the same name"),
        (b"a\tr\tb\n\xff\tr\tb\n", "g.tsv", "g.tsv, line 2: is not UTF-8 text"),
        ("a\tr\t" + "b" * 5_000 + "\n", "g.tsv", r"line 1\.target: 5,000 characters, the limit is 1,000"),
        ('a,r,b\n"a,r,b\n', "g.csv", "g.csv, line [23]: is not CSV: unexpected end of data"),
        ('a,r,b\na,"r"x,b\n', "g.csv", "g.csv, line 2: is not CSV"),
        (f"a,r,{'b' * 200_000}\n", "g.csv", "g.csv, line 1: is not CSV: field larger than field limit"),
        ("a,r,b\na,r\n", "g.csv", "g.csv, line 2: expected 3 columns, found 2"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str | bytes, name: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        load(tmp_path, text, name)


def test_unknown_columns_options_and_side_files(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="expected one column 'target', found 'source', 'x', 'y'"):
        load(tmp_path, "a\tb\tc\n", columns=("source", "x", "y"))
    with pytest.raises(GraphError, match="no option 'colums'; it has nodes, texts"):
        load(tmp_path, "a\tb\tc\n", colums=())
    with pytest.raises(GraphError, match=r"absent.tsv: cannot be read: No such file"):
        load(tmp_path, "a\tb\tc\n", nodes=tmp_path / "absent.tsv")
    with pytest.raises(GraphError, match="give the names too"):
        load(tmp_path, "a\tb\tc\n", texts=tmp_path / "absent.tsv")
    side = tmp_path / "side.tsv"
    side.write_text("a\tx\na\ty\n")
    with pytest.raises(GraphError, match=r"side.tsv, line 2.id: the id 'a' is used twice"):
        load(tmp_path, "a\tb\tc\n", nodes=side)
    with pytest.raises(GraphError, match=r"side.tsv, line 2: 'a' is given twice"):
        load(tmp_path, "a\tb\tc\n", relations=side)
    side.write_text("id\tname\tname\na\tb\tc\n")
    with pytest.raises(GraphError, match=r"side.tsv, line 1: two columns are named 'name'"):
        load(tmp_path, "a\tb\tc\n", nodes=side)


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="line 2: longer than 67,108,864 bytes"):
        load(tmp_path, b"a\tb\tc\n" + b"x" * (65 << 20))
    with pytest.raises(GraphError, match="more than 2 nodes"):
        load(tmp_path, "a\tb\tc\nd\te\tf\n", limits=Limits(nodes=2))
