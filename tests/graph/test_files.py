"""`Graph.load` and `Graph.save`: extensions, compression, options, and files that are not what they say."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.graph.strategies import graphs, parallel_free, xml_texts
from vglm.errors import GraphError
from vglm.graph.formats.files import FORMATS
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits

SMALL: dict[str, Any] = {
    "nodes": [{"id": "a", "name": "Aspirin", "type": "drug"}, {"id": "b", "name": "Pain"}],
    "edges": [{"source": "a", "relation": "treats", "target": "b"}],
}
RICH = Graph.from_dict(
    {
        "nodes": [
            {
                "id": "http://x/a",
                "name": 'A\\sp"irin',
                "type": "drug",
                "text": "l1\nl2",
                "aliases": ["é"],
                "w": [1, None],
            },
            {"id": "b & c", "name": "<Pain>", "n": 5, "f": 0.5, "t": True},
        ],
        "edges": [
            {"source": "http://x/a", "relation": "treats", "target": "b & c", "score": 0.5},
            {"source": "b & c", "relation": "treats", "target": "b & c"},
        ],
    }
)
OBO = '[Term]\nid: a\nname: A\ndef: "x" []\nsynonym: "y" EXACT []\nis_a: b ! B\n\n[Term]\nid: b\n[Typedef]\nid: r\n'
SEEDS = {name: RICH.to_json() for name in ("json",)} | {
    "tsv": "source\trelation\ttarget\tx\na\tb\tc\t1\n",
    "csv": 'source,relation,target\na,"b ""x""",c\n',
    "turtle": RICH.to_rdf("turtle"),
    "ntriples": RICH.to_rdf("ntriples"),
    "jsonld": RICH.to_rdf("jsonld"),
    "graphml": RICH.to_graphml(),
    "obo": OBO,
}
WHOLE = ["json", "turtle", "ntriples", "jsonld", "graphml"]  # formats that keep everything


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("format", WHOLE)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=graphs(xml_texts))
def test_saved_graphs_load_as_equal_graphs(
    tmp_path: Path, format: str, compressed: bool, graph: Graph
) -> None:
    path = tmp_path / f"graph{FORMATS[format].extensions[0]}{'.gz' if compressed else ''}"
    graph.save(path)
    assert Graph.load(path) == graph
    assert Graph.load(path, format) == graph
    first = path.read_bytes()
    assert (first[:2] == b"\x1f\x8b") == compressed
    Graph.load(path).save(path)
    assert path.read_bytes() == first  # the same bytes for equal graphs


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=graphs())
def test_csv_keeps_the_triples_of_any_graph(tmp_path: Path, graph: Graph) -> None:
    path = tmp_path / "graph.csv"
    graph.save(path)
    assert parallel_free(Graph.load(path)) == parallel_free(graph)


def test_tsv_keeps_triples_and_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "graph.tsv"
    graph = Graph.from_dict(SMALL)
    graph.save(path)
    assert path.read_text() == "source\trelation\ttarget\na\ttreats\tb\n"
    assert Graph.load(path).to_triples() == graph.to_triples()
    with pytest.raises(GraphError, match=r"tab or a line break: 'a\\tb"):
        Graph.from_triples([("a\tb", "r", "c")]).save(path)
    assert path.read_text().count("\n") == 2  # untouched


@pytest.mark.parametrize("name", ["graph", "graph.xyz", "graph.gz", ".json", "graph.JSON.zip"])
def test_an_unknown_extension_says_which_are_known(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("{}")
    for act in (lambda: Graph.load(path), lambda: Graph.from_dict(SMALL).save(path)):
        with pytest.raises(GraphError, match=r"is not known .*\.graphml.*give a format: json, tsv"):
            act()


def test_a_format_wins_over_the_extension(tmp_path: Path) -> None:
    path = tmp_path / "graph.dat"
    Graph.from_dict(SMALL).save(path, "turtle")
    assert Graph.load(path, format="turtle") == Graph.from_dict(SMALL)
    with pytest.raises(GraphError, match="'yaml' is not one of json"):
        Graph.load(path, "yaml")
    with pytest.raises(GraphError, match="obo is read only; graphs are written as json, tsv"):
        Graph.from_dict(SMALL).save(tmp_path / "graph.obo")


def test_options_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "graph.nt"
    label = "<http://a> <http://www.w3.org/2000/01/rdf-schema#label>"
    path.write_text(f'{label} "x"@en .\n{label} "y"@de .\n')
    assert Graph.load(path, language="de").name_of("http://a") == "y"
    with pytest.raises(GraphError, match="no option 'lang'; it has language, base"):
        Graph.load(path, lang="de")
    with pytest.raises(GraphError, match="no option 'x'; it has none"):
        Graph.load(path, "json", x=1)


@pytest.mark.parametrize("format", sorted(SEEDS))
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, format: str) -> None:
    plain, marked = tmp_path / "graph", tmp_path / "marked"
    plain.write_bytes(SEEDS[format].encode())
    marked.write_bytes(b"\xef\xbb\xbf" + SEEDS[format].encode())
    assert Graph.load(marked, format) == Graph.load(plain, format)


def test_empty_graphs_are_kept(tmp_path: Path) -> None:
    empty = Graph.from_dict({"nodes": []})
    for format in (name for name, known in FORMATS.items() if known.writer):
        empty.save(tmp_path / "graph", format)
        assert Graph.load(tmp_path / "graph", format) == empty


@pytest.mark.parametrize("read", [Graph.from_json, Graph.from_rdf, Graph.from_graphml, Graph.from_obo])
def test_other_objects_than_texts_are_refused(read: Any) -> None:
    for given_object in (None, 5, ["x"]):
        with pytest.raises(GraphError, match="expected text or bytes, found"):
            read(given_object)


def test_progress_counts_the_bytes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "graph.json.gz"
    Graph.from_dict(SMALL).save(path)
    seen: list[int] = []
    Graph.load(path, progress=seen.append)
    assert sum(seen) == path.stat().st_size


def read_or_refuse(path: Path, format: str) -> Graph | str:
    """The graph, or the message of the error."""
    try:
        return Graph.load(path, format)
    except GraphError as error:
        return str(error)


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_truncated_files_are_refused_or_are_shorter_graphs(tmp_path: Path, format: str) -> None:
    path = tmp_path / "graph"
    if FORMATS[format].writer:
        Graph.from_dict(SMALL).save(path, format)
    else:
        path.write_text('[Term]\nid: a\nname: A\ndef: "x" []\nis_a: b ! B\n\n[Term]\nid: b\n')
    data = path.read_bytes()
    for size in range(len(data.rstrip())):
        path.write_bytes(data[:size])
        found = read_or_refuse(path, format)
        if isinstance(found, str):
            assert "graph" in found
        else:
            assert found.num_edges <= 1
            assert format not in ("json", "graphml", "jsonld"), size  # they have an end that is missed


@pytest.mark.parametrize("format", sorted(FORMATS))
@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe\x00", b"a\xffb\tc\td\n", b"\x00" * 100, b"[]", b"null", b"<a/>"]
)
def test_bytes_of_other_kinds_are_refused(tmp_path: Path, format: str, data: bytes) -> None:
    path = tmp_path / "graph"
    path.write_bytes(data)
    found = read_or_refuse(path, format)
    if isinstance(found, str):
        assert "graph" in found
        assert len(found) < 500
    else:
        assert found.num_nodes == 0
        assert not data or (format, data) in [("jsonld", b"[]"), ("jsonld", b"null"), ("turtle", b"[]")]


edits = st.lists(
    st.tuples(
        st.integers(0, 3000),
        st.integers(0, 40),
        st.binary(max_size=4) | st.sampled_from([b"<", b'"', b"{", b"\t"]),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("format", sorted(FORMATS))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=edits)
def test_damaged_files_are_read_or_refused(
    tmp_path: Path, format: str, edits: list[tuple[int, int, bytes]]
) -> None:
    data = bytearray(SEEDS[format].encode())
    for place, length, put in edits:
        start = place % (len(data) + 1)
        data[start : start + length] = put or data[: place % 50]
    path = tmp_path / "graph"
    path.write_bytes(data)
    found = read_or_refuse(path, format)
    if isinstance(found, Graph):
        assert Graph.from_dict(found.to_dict()) == found


def test_compressed_files_that_are_cut_or_explode(tmp_path: Path) -> None:
    path = tmp_path / "graph.tsv.gz"
    path.write_bytes(gzip.compress(b"a\tb\tc\n" * 100_000)[:-20])
    with pytest.raises(GraphError, match=r"graph.tsv.gz: cannot be read: .*end-of-stream"):
        Graph.load(path)
    path.write_bytes(gzip.compress((b"a\tb\t" + b"c" * 900 + b"\n") * 100_000))
    with pytest.raises(GraphError, match="decompresses to more than 200 times its size"):
        Graph.load(path)


def test_limits_of_size(tmp_path: Path) -> None:
    path = tmp_path / "graph.tsv"
    path.write_text("a\tb\tc\n" * 1000)
    with pytest.raises(GraphError, match="more than 100 bytes"):
        Graph.load(path, limits=Limits(bytes=100))
    with pytest.raises(GraphError, match="more than 10 edges"):
        Graph.load(path, limits=Limits(edges=10))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"absent.json: cannot be read: No such file"):
        Graph.load(tmp_path / "absent.json")
    with pytest.raises(GraphError, match=r"has neither train\.tsv nor train\.txt"):
        Graph.load(tmp_path)
    with pytest.raises(GraphError, match="cannot be written"):
        Graph.from_dict(SMALL).save(tmp_path / "no" / "folder" / "graph.json")
    with pytest.raises(GraphError, match="cannot be"):
        Graph.load("nul\0.json")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "graph.json"
    Graph.from_dict(SMALL).save(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GraphError, match="No space left"):
        Graph.from_triples([("x", "y", "z")]).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
