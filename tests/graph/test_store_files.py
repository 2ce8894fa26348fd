"""Files that are no store, or no longer one: refused in one sentence, and left as they are."""

from __future__ import annotations

import os
import random
import sqlite3
from pathlib import Path

import pytest

from vglm.errors import StoreError, UnknownGraphError
from vglm.graph.graph import Graph
from vglm.graph.store import GraphStore
from vglm.graph.store_schema import SCHEMA_VERSION

GRAPH = Graph.from_triples([(f"node {i}", "r", f"node {i + 1}") for i in range(5_000)])


def refused(path: Path, says: str) -> None:
    """Opening raises, says why, and leaves the file and its folder alone."""
    before = path.read_bytes() if os.path.isfile(path) else None
    beside = sorted(path.parent.iterdir()) if os.path.isdir(path.parent) else None
    with pytest.raises(StoreError, match=says) as error:
        GraphStore(path)
    assert str(path) in str(error.value)
    if before is not None:
        assert path.read_bytes() == before
    if beside is not None:
        assert sorted(path.parent.iterdir()) == beside


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one graph of two versions, closed."""
    path = tmp_path / "graphs.db"
    with GraphStore(path) as store:
        store.create("g", GRAPH)
        store.patch("g", upsert_nodes=[{"id": "node 0", "text": "changed"}])
    return path


@pytest.mark.parametrize(
    "content", [b"hello\n", b"x" * 10_000, b"SQLite format 3", bytes(5000), b"\xff" * 100]
)
def test_files_that_are_no_database(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    refused(file, "not a graph store; it has not been changed")


def test_an_empty_file(tmp_path: Path) -> None:
    file = tmp_path / "empty"
    file.touch()
    refused(file, "an empty file")


def test_another_programs_database(tmp_path: Path) -> None:
    file = tmp_path / "cookies.db"
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE graphs (id INTEGER)")
        db.execute("PRAGMA user_version = 1")
    db.close()
    refused(file, "another program's database")


def test_a_folder_and_a_path_through_a_file(tmp_path: Path) -> None:
    refused(tmp_path, "is not a file")
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "graphs.db", "cannot be opened")
    refused(tmp_path / ("x" * 300), "cannot be opened")
    with pytest.raises(StoreError, match="no file name"):
        GraphStore("a\0b")


def test_a_missing_store_is_not_made_for_a_reader(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no graph store yet"):
        GraphStore(tmp_path / "none" / "graphs.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "nowhere")
    refused(link, "is not a file")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match=r"denied|cannot be"):
            GraphStore(tmp_path / "graphs.db")
    finally:
        tmp_path.chmod(0o700)


def test_a_newer_format(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    refused(path, "a newer vGLM")


def test_the_file_is_durable_and_shared(path: Path) -> None:
    with GraphStore(path) as store, store._file.writing() as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert db.execute("PRAGMA foreign_keys").fetchone() == (1,)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_a_file_that_was_cut_short(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(StoreError, match="damaged"):  # noqa: SIM117
        with GraphStore(path) as store:
            store.check_integrity()
    assert len(path.read_bytes()) > 0


def test_random_damage_is_found_or_harmless(path: Path) -> None:
    """Bytes are overwritten anywhere; what is read then is right, or an error, and never something else."""
    data = path.read_bytes()
    with GraphStore(path) as store:
        expected = [store.get("g", version) for version in (1, 2)]
    generator = random.Random(3)
    errors = 0
    for _ in range(150):
        broken = bytearray(data)
        for _ in range(generator.choice([1, 4, 64])):
            broken[generator.randrange(len(broken))] = generator.randrange(256)
        path.write_bytes(broken)
        for leftover in (Path(f"{path}-wal"), Path(f"{path}-shm")):
            leftover.unlink(missing_ok=True)
        try:
            with GraphStore(path, create=False) as store:
                found = [store.get("g", version) for version in (1, 2)]
        except (StoreError, UnknownGraphError):
            errors += 1
        else:
            assert found == expected
    assert errors > 50


def test_a_wrong_checksum_is_named(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE pieces SET data = zeroblob(length(data)) WHERE part = 'graph.targets'")
    db.close()
    with GraphStore(path) as store:
        with pytest.raises(StoreError, match=r"checksum of graph\.targets in version 1 is wrong"):
            store.get("g")
        with pytest.raises(StoreError, match="restore a copy"):
            store.patch("g", upsert_nodes=[{"id": "x"}])
        with pytest.raises(StoreError, match="checksum"):
            store.check_integrity()
        store.create("other", GRAPH)
        assert store.get("other") == GRAPH


def test_the_integrity_check_reads_old_versions_too(path: Path) -> None:
    with GraphStore(path) as store:
        store.replace("g", GRAPH)
        store.patch("g", upsert_nodes=[{"id": "y"}])
        store.check_integrity()
    with sqlite3.connect(path) as db:
        assert db.execute("UPDATE versions SET digest = x'00' WHERE version = 2").rowcount == 1
    db.close()
    with GraphStore(path) as store:
        assert store.get("g").num_nodes == GRAPH.num_nodes + 1
        with pytest.raises(StoreError, match="the checksum of version 2 is wrong"):
            store.check_integrity()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE versions SET digest = x'00' WHERE version = 2",
        "UPDATE versions SET change = x'5b5d' WHERE version = 2",
        "UPDATE versions SET edges = 7 WHERE version = 2",
        "DELETE FROM versions WHERE version = 2",
        "DELETE FROM bases",
        "UPDATE bases SET meta = '{}'",
        "UPDATE bases SET meta = 'x'",
        "UPDATE bases SET meta = replace(meta, '<i4', '|O8')",
        "UPDATE bases SET meta = replace(meta, 'graph.targets', 'graph.nothing')",
        "UPDATE bases SET meta = replace(meta, '\"r\"', '')",
        "DELETE FROM pieces WHERE part = 'graph.ids.data'",
        "DELETE FROM pieces WHERE part = 'graph.texts.offsets'",
    ],
)
def test_rows_that_contradict_each_other(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA foreign_keys = ON")
        assert db.execute(statement).rowcount > 0
    db.close()
    with GraphStore(path) as store:
        with pytest.raises(StoreError, match="damaged"):
            store.get("g")
        with pytest.raises(StoreError, match="damaged"):
            store.check_integrity()


def test_a_writer_that_never_ends_is_not_waited_for_forever(path: Path) -> None:
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with GraphStore(path, timeout=0.2) as store:
        assert store.get("g").num_edges == GRAPH.num_edges  # readers do not wait
        with pytest.raises(StoreError, match="another process has been writing"):
            store.patch("g", upsert_nodes=[{"id": "x"}])
        blocker.execute("ROLLBACK")
        assert store.patch("g", upsert_nodes=[{"id": "x"}]) == 3
        assert "x" in store.get("g")
    blocker.close()
