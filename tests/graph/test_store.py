"""`GraphStore` as its users know it: names, versions, patches, snapshots, history, memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vglm.errors import ConflictError, GraphError, StoreError, UnknownGraphError
from vglm.graph.graph import Edge, Graph, Node
from vglm.graph.store import GraphStore
from vglm.graph.store_cache import MAX_HEADS
from vglm.graph.store_file import default_store_path

MOVIES = Graph.from_dict(
    {
        "nodes": [
            {"id": "m1", "name": "Alien", "type": "film", "text": "In space.", "aliases": ["Nostromo"]},
            {"id": "p1", "name": "Sigourney Weaver", "type": "person", "attributes": {"born": 1949}},
            {"id": "p2", "name": "Ridley Scott", "type": "person"},
        ],
        "edges": [
            {"source": "p1", "relation": "plays in", "target": "m1", "attributes": {"role": "Ripley"}},
            {"source": "p1", "relation": "plays in", "target": "m1", "attributes": {"role": "voice"}},
            {"source": "p2", "relation": "directs", "target": "m1"},
        ],
    }
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GraphStore]:
    with GraphStore(tmp_path / "folder" / "graphs.db") as opened:
        yield opened
        opened.check_integrity()


def many(count: int) -> Graph:
    """A graph whose columns take some megabytes."""
    return Graph.from_triples([(f"node {i}", f"r{i % 7}", f"node {i * 31 % count}") for i in range(count)])


def test_a_graph_comes_back_as_it_was(store: GraphStore) -> None:
    assert store.create("movies", MOVIES) == 1
    assert store.get("movies") == MOVIES
    with GraphStore(store.path) as other:
        assert other.get("movies") == MOVIES
        assert other.names() == ["movies"]
        assert "movies" in other
        assert "films" not in other
        about = other.info("movies")
        assert (about.version, about.nodes, about.edges) == (1, 3, 3)
        assert about.bytes > 0


def test_an_empty_graph_and_a_large_one(store: GraphStore) -> None:
    empty, large = Graph.from_dict({"nodes": []}), many(300_000)
    written: list[int] = []
    store.create("empty", empty)
    store.create("large", large, written=written.append)
    assert sum(written) == store.info("large").bytes
    with GraphStore(store.path) as other:
        assert other.get("empty") == empty
        assert other.get("large") == large
        assert store.patch("empty", upsert_nodes=[{"id": "a"}]) == 2
        assert other.get("empty").num_nodes == 1


def test_patches_make_versions_that_all_stay(store: GraphStore) -> None:
    store.create("movies", MOVIES)
    assert (
        store.patch(
            "movies",
            upsert_nodes=[Node("p3", "John Hurt", "person")],
            upsert_edges=[Edge("p3", "plays in", "m1")],
        )
        == 2
    )
    assert store.patch("movies", delete_nodes=["p1"]) == 3
    assert (
        store.patch("movies", upsert_nodes=[{"id": "m1", "name": "Alien", "type": "film", "year": 1979}]) == 4
    )
    assert [(v.number, v.kind, v.nodes, v.edges) for v in store.versions("movies")] == [
        (4, "patch", 3, 2),
        (3, "patch", 3, 2),
        (2, "patch", 4, 4),
        (1, "create", 3, 3),
    ]
    assert len(store.versions("movies", limit=2)) == 2
    assert store.get("movies", 1) == MOVIES
    assert store.get("movies", 2).name_of("p3") == "John Hurt"
    assert "p1" not in store.get("movies", 3)
    assert store.get("movies", 3).node("m1").text == "In space."
    assert store.get("movies").node("m1").attributes == {"year": 1979}
    assert store.read("movies").version == store.version("movies") == 4


def test_parallel_edges_are_deleted_one_by_one_or_together(store: GraphStore) -> None:
    store.create("movies", MOVIES)
    edge = {"source": "p1", "relation": "plays in", "target": "m1"}
    store.patch("movies", delete_edges=[edge | {"role": "voice"}])
    assert store.get("movies").num_edges == 2
    store.patch("movies", upsert_edges=[edge, edge | {"role": "voice"}])
    assert store.get("movies").num_edges == 4
    store.patch("movies", delete_edges=[edge | {"attributes": {}}])
    assert store.get("movies").num_edges == 3
    store.patch("movies", delete_edges=[("p1", "plays in", "m1")])
    assert store.get("movies").num_edges == 1


def test_a_patch_that_changes_nothing_makes_no_version(store: GraphStore) -> None:
    store.create("movies", MOVIES)
    assert store.patch("movies") == 1
    assert store.patch("movies", upsert_nodes=list(MOVIES.nodes()), upsert_edges=list(MOVIES.edges())) == 1
    assert store.get("movies") is store.get("movies", 1)


def test_a_refused_patch_changes_nothing(store: GraphStore) -> None:
    store.create("movies", MOVIES)
    with pytest.raises(
        GraphError, match=r"upsert_edges\[1\].target: no node has the id 'p9'.*'p2' -\['knows'\]-> 'p9'"
    ):
        store.patch(
            "movies",
            upsert_nodes=[{"id": "p3"}],
            upsert_edges=[("p3", "knows", "p2"), ("p2", "knows", "p9")],
            delete_nodes=["p1"],
        )
    assert store.version("movies") == 1
    assert store.get("movies") == MOVIES
    assert store.patch("movies", upsert_nodes=[{"id": "p3"}]) == 2


def test_writers_that_expect_another_version_are_refused(store: GraphStore) -> None:
    store.create("movies", MOVIES)
    assert store.patch("movies", upsert_nodes=[{"id": "x"}], expected_version=1) == 2
    for write in (
        lambda: store.patch("movies", upsert_nodes=[{"id": "y"}], expected_version=1),
        lambda: store.replace("movies", MOVIES, expected_version=1),
        lambda: store.delete("movies", expected_version=1),
    ):
        with pytest.raises(ConflictError, match="version 2 and not 1") as error:
            write()
        assert error.value.current == 2
    assert store.version("movies") == 2
    assert store.patch("movies", delete_nodes=["x"], expected_version=2) == 3
    assert store.get("movies") == MOVIES


def test_a_name_can_be_taken_once(store: GraphStore) -> None:
    store.create("movies", MOVIES)
    with pytest.raises(ConflictError, match="a graph named 'movies' already"):
        store.create("movies", MOVIES)
    assert store.replace("movies", many(10)) == 2
    assert store.get("movies") == many(10)
    assert store.get("movies", 1) == MOVIES
    assert store.patch("movies", upsert_nodes=[{"id": "x"}]) == 3


def test_a_deleted_graph_is_gone_and_its_successor_is_another(store: GraphStore) -> None:
    store.create("movies", MOVIES)
    store.snapshot("movies", "first")
    with GraphStore(store.path) as other:
        read = other.get("movies")
        store.delete("movies")
        for get in (other.get, other.version, store.get, store.snapshots, store.versions, store.delete):
            with pytest.raises(UnknownGraphError, match="'movies'"):
                get("movies")
        assert read == MOVIES
        store.create("movies", many(10))
        assert other.get("movies") == many(10)
        assert other.patch("movies", upsert_nodes=[{"id": "x"}]) == 2
        assert store.snapshots("movies") == []


def test_deleting_returns_space(tmp_path: Path) -> None:
    path = tmp_path / "graphs.db"
    with GraphStore(path) as store:
        store.create("kept", MOVIES)
        store.create("a", many(100_000))
    before = path.stat().st_size
    with GraphStore(path) as store:
        store.delete("a")
        assert store.get("kept") == MOVIES
    assert path.stat().st_size < before / 10


def test_snapshots_name_versions(store: GraphStore) -> None:
    store.create("movies", MOVIES)
    assert store.snapshot("movies", "first") == 1
    store.patch("movies", delete_nodes=["p1"])
    assert store.snapshot("movies", "second") == 2
    assert store.snapshot("movies", "also first", version=1) == 1
    assert store.snapshot("movies", "first", version="also first") == 1
    assert store.get("movies", "first") == MOVIES
    assert [(s.label, s.version) for s in store.snapshots("movies")] == [
        ("also first", 1),
        ("first", 1),
        ("second", 2),
    ]
    with pytest.raises(ConflictError, match="'first' is version 1; delete it first"):
        store.snapshot("movies", "first")
    store.delete_snapshot("movies", "first")
    with pytest.raises(UnknownGraphError, match="no snapshot 'first'"):
        store.get("movies", "first")
    assert store.snapshot("movies", "first") == 2


@pytest.mark.parametrize("version", [0, -1, 2, 10**30, True, 1.0, [1]])
def test_versions_that_are_none(store: GraphStore, version: Any) -> None:
    store.create("movies", MOVIES)
    with pytest.raises(GraphError, match="version"):
        store.get("movies", version)


def test_pruning_keeps_the_newest_and_what_snapshots_need(store: GraphStore) -> None:
    store.create("g", Graph.from_dict({"nodes": [{"id": "n0"}]}))
    graphs = {1: store.get("g")}
    for i in range(1, 10):
        store.patch("g", upsert_nodes=[{"id": f"n{i}"}], upsert_edges=[(f"n{i - 1}", "next", f"n{i}")])
        graphs[i + 1] = store.get("g")
    store.snapshot("g", "kept", 4)
    assert store.prune("g", keep=2) == 3
    with GraphStore(store.path) as other:
        for opened in (store, other):
            with pytest.raises(UnknownGraphError, match="no version 3"):
                opened.get("g", 3)
            assert all(opened.get("g", version) == graphs[version] for version in range(4, 11))
            assert opened.get("g", "kept") == graphs[4]
        store.delete_snapshot("g", "kept")
        assert store.prune("g", keep=2) == 5
        assert store.prune("g", keep=2) == 0
        assert store.prune("g", keep=100) == 0
        assert store.patch("g", delete_nodes=["n3"]) == 11
        assert [version.number for version in other.versions("g")] == [11, 10, 9]
        assert other.get("g", 9) == graphs[9]
        assert "n3" not in other.get("g")
    with pytest.raises(GraphError, match="keep"):
        store.prune("g", keep=0)


def test_a_patch_writes_what_changes_and_not_the_graph(store: GraphStore) -> None:
    store.create("large", many(300_000))
    whole = store.info("large").bytes
    store.patch("large", upsert_nodes=[{"id": "node 7", "text": "changed"}])
    assert store.info("large").bytes - whole < 200
    for i in range(20):
        store.patch("large", upsert_edges=[("node 1", f"new {i}", "node 2")])
    assert store.info("large").bytes - whole < 4000
    wal = Path(f"{store.path}-wal")
    before = store.path.stat().st_size + wal.stat().st_size
    store.patch("large", delete_nodes=["node 9"])
    assert store.path.stat().st_size + wal.stat().st_size - before < whole / 20


def test_long_logs_are_folded_into_a_new_copy(tmp_path: Path) -> None:
    with GraphStore(tmp_path / "g.db", compact_after=10_000) as store:
        store.create("g", Graph.from_dict({"nodes": [{"id": "counter", "text": "1"}]}))
        for i in range(2, 60):
            assert store.patch("g", upsert_nodes=[{"id": "counter", "text": str(i)}]) == i
        with store._file.reading() as db:
            bases = [row[0] for row in db.execute("SELECT version FROM bases ORDER BY version")]
        assert 3 <= len(bases) <= 10
        with GraphStore(store.path, cache_bytes=0) as other:
            assert [other.get("g", i).node("counter").text for i in range(1, 60)] == [
                str(i) for i in range(1, 60)
            ]
        store.check_integrity()


def test_one_version_is_one_object_while_it_is_cached(store: GraphStore) -> None:
    store.create("movies", MOVIES)
    assert store.get("movies") is MOVIES
    store.patch("movies", delete_nodes=["p1"])
    assert store.get("movies") is store.get("movies", 2)
    assert store.get("movies", 1) is MOVIES


def test_memory_is_bounded(tmp_path: Path) -> None:
    graph = many(2_000)
    with GraphStore(tmp_path / "g.db", cache_bytes=3 * graph.nbytes) as store:
        store.create("g", graph)
        for i in range(20):
            store.patch("g", upsert_nodes=[{"id": f"new {i}"}])
            last = weakref.ref(store.get("g"))
            assert store._cache.nbytes <= 3 * graph.nbytes
        assert 1 <= len(store._cache) <= 3
        assert store.get("g", 1) == graph
        for version in (5, 9, 12, 3):
            assert store.get("g", version).num_nodes == graph.num_nodes + version - 1
        gc.collect()
        assert last() is None
        assert store.version("g") == 21
        assert store.get("g").num_nodes == graph.num_nodes + 20


def test_writing_to_many_graphs_keeps_few_in_memory(tmp_path: Path) -> None:
    with GraphStore(tmp_path / "g.db", cache_bytes=10_000) as store:
        for i in range(MAX_HEADS + 20):
            store.create(f"g{i}", many(50))
        for i in range(MAX_HEADS + 20):
            assert store.patch(f"g{i}", upsert_nodes=[{"id": "new"}]) == 2
        heads = store._cache._heads.values()
        assert len(heads) <= MAX_HEADS
        assert sum(head.overlay is not None for head in heads) <= 10_000 // many(50).nbytes + 1
        assert all(store.patch(f"g{i}", delete_nodes=["new"]) == 3 for i in range(5))
        assert store.get("g0") == many(50)


@pytest.mark.parametrize(
    "name",
    ["hpo", "WN18RR", "my graph", "été", "中文", "हिन्दी", "a.b_c-d:e@f+g", "0", "_x", "x" * 200, "e\u0301"],
)
def test_names_in_any_script(store: GraphStore, name: str) -> None:
    store.create(name, MOVIES)
    assert name in store
    assert store.get(name) == MOVIES
    assert len(store.names()) == 1


def test_composed_and_decomposed_names_are_one(store: GraphStore) -> None:
    store.create("\u00e9", MOVIES)
    with pytest.raises(ConflictError):
        store.create("e\u0301", MOVIES)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a/b",
        "..",
        "../../etc/passwd",
        ".hidden",
        "-rf",
        "a\0b",
        "a\nb",
        "\x1b[31mred",
        "a\u202eb",
        "\ud800",
        "a%2fb",
        "a?b",
        "'; DROP TABLE graphs; --",
        "x" * 201,
        "x" * 10_000_000,
        " a",
        "a ",
        None,
        5,
        b"bytes",
        ["a"],
    ],
    ids=lambda value: repr(value)[:20],
)
def test_hostile_names_are_refused_shortly(store: GraphStore, name: Any) -> None:
    for use in (lambda: store.create(name, MOVIES), lambda: store.get(name), lambda: store.delete(name)):
        with pytest.raises(GraphError) as error:
            use()
        assert len(str(error.value)) < 300
        assert str(error.value).isprintable()
    assert name not in store
    assert store.names() == []


@pytest.mark.parametrize("label", ["", "7", "٣", "a/b", "x" * 300, None])
def test_labels_that_are_refused(store: GraphStore, label: Any) -> None:
    store.create("g", MOVIES)
    with pytest.raises(GraphError):
        store.snapshot("g", label)
    assert store.snapshots("g") == []


def test_hostile_content_is_only_text(store: GraphStore) -> None:
    store.create("g", MOVIES)
    texts = ["<|im_start|>system", "'; DROP TABLE graphs; --", "\0", "x" * 1_000_000, "%s%n", "\u202e"]
    store.patch(
        "g", upsert_nodes=[{"id": f"n{i}", "name": "n", "text": text} for i, text in enumerate(texts)]
    )
    with GraphStore(store.path) as other:
        assert [other.get("g").node(f"n{i}").text for i in range(len(texts))] == texts
    with pytest.raises(GraphError, match="limit"):
        store.patch("g", upsert_nodes=[{"id": "x" * 10_000_000}])


def test_export_writes_any_version(store: GraphStore, tmp_path: Path) -> None:
    store.create("movies", MOVIES)
    store.patch("movies", delete_nodes=["p1"])
    assert store.export("movies", tmp_path / "now.json") == 2
    assert store.export("movies", tmp_path / "old.json.gz", version=1) == 1
    assert Graph.load(tmp_path / "old.json.gz") == MOVIES
    assert Graph.load(tmp_path / "now.json") == store.get("movies")
    with pytest.raises(GraphError, match="cannot be written"):
        store.export("movies", tmp_path / "none" / "x.json")


def test_only_graphs_are_stored(store: GraphStore) -> None:
    with pytest.raises(GraphError, match="expected a Graph"):
        store.create("g", {"nodes": []})  # type: ignore[arg-type]
    assert store.names() == []


def test_a_closed_store_says_so(store: GraphStore) -> None:
    store.create("g", MOVIES)
    other = GraphStore(store.path)
    graph = other.get("g")
    other.close()
    other.close()
    with pytest.raises(StoreError, match="closed"):
        other.get("g")
    assert graph == MOVIES


def test_the_default_path_is_where_data_belongs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VGLM_GRAPH_STORE", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert default_store_path() == tmp_path / ".local" / "share" / "vglm" / "graphs.db"
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    assert default_store_path() == tmp_path / ".local" / "share" / "vglm" / "graphs.db"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_store_path() == tmp_path / "data" / "vglm" / "graphs.db"
    monkeypatch.setenv("VGLM_GRAPH_STORE", "~/mine.db")
    assert default_store_path() == tmp_path / "mine.db"
    with GraphStore() as store:
        assert store.path.is_file()
