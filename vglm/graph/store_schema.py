"""What a graph store's tables hold, and every statement on them.

A graph's version is a base (all its columns, in pieces) or a change of the version before it. To read one, take
the newest base at or before it and replay the changes from there on; so a patch writes what it changes and no more.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from typing import Any

import xxhash

from vglm.graph.changes import Change

APPLICATION_ID = 0x76474C4D  # "vGLM"
SCHEMA_VERSION = 1
SCHEMA = (
    "CREATE TABLE graphs (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, version INTEGER NOT NULL)",
    # `change` is NULL where the version came as a base; `cost` is that of replaying all changes since the last base
    "CREATE TABLE versions (graph INTEGER NOT NULL REFERENCES graphs ON DELETE CASCADE, version INTEGER NOT NULL,"
    " kind TEXT NOT NULL, created REAL NOT NULL, nodes INTEGER NOT NULL, edges INTEGER NOT NULL,"
    " cost INTEGER NOT NULL, change BLOB, digest BLOB, PRIMARY KEY (graph, version))",
    "CREATE TABLE bases (graph INTEGER NOT NULL REFERENCES graphs ON DELETE CASCADE, version INTEGER NOT NULL,"
    " bytes INTEGER NOT NULL, meta TEXT NOT NULL, PRIMARY KEY (graph, version))",
    "CREATE TABLE pieces (graph INTEGER NOT NULL, version INTEGER NOT NULL, part TEXT NOT NULL,"
    " number INTEGER NOT NULL, digest BLOB NOT NULL, data BLOB NOT NULL,"
    " PRIMARY KEY (graph, version, part, number),"
    " FOREIGN KEY (graph, version) REFERENCES bases ON DELETE CASCADE)",
    "CREATE TABLE snapshots (graph INTEGER NOT NULL REFERENCES graphs ON DELETE CASCADE, label TEXT NOT NULL,"
    " version INTEGER NOT NULL, created REAL NOT NULL, PRIMARY KEY (graph, label))",
)
_CHANGE_COST = 1024  # bytes that a change counts for beside its own: a row to fetch and to replay
_VERSION = (int, str, float, int, int)
_SNAPSHOT = (str, int, float)


class Damaged(Exception):
    """The rows contradict themselves; the argument says how. Never leaves the store, which adds the file's name."""


@dataclass(frozen=True, slots=True)
class Found:
    """A row of `graphs`; `id` is never used again, not even for a graph of the same name."""

    id: int
    name: str
    version: int


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a graph: how it came to be ("create", "replace" or "patch"), when (Unix seconds), its size."""

    number: int
    kind: str
    created: float
    nodes: int
    edges: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version that has a name."""

    label: str
    version: int
    created: float


# ---- graphs


def find(db: sqlite3.Connection, name: str) -> Found | None:
    row = db.execute("SELECT id, name, version FROM graphs WHERE name = ?", (name,)).fetchone()
    return Found(*typed(row, int, str, int)) if row else None


def all_graphs(db: sqlite3.Connection) -> list[Found]:
    """By name."""
    rows = db.execute("SELECT id, name, version FROM graphs ORDER BY name")
    return [Found(*typed(row, int, str, int)) for row in rows]


def add_graph(db: sqlite3.Connection, name: str) -> Found:
    """A row for a graph whose version 1 follows in the same transaction."""
    added = db.execute("INSERT INTO graphs (name, version) VALUES (?, 0)", (name,)).lastrowid
    assert added is not None
    return Found(added, name, 0)


def delete_graph(db: sqlite3.Connection, graph: int) -> None:
    db.execute("DELETE FROM graphs WHERE id = ?", (graph,))


def stored_bytes(db: sqlite3.Connection, graph: int) -> int:
    """Bytes of all bases and changes of a graph."""
    row = db.execute(
        "SELECT (SELECT coalesce(sum(bytes), 0) FROM bases WHERE graph = :graph)"
        " + (SELECT coalesce(sum(length(change)), 0) FROM versions WHERE graph = :graph)",
        {"graph": graph},
    ).fetchone()
    return int(row[0])


# ---- versions


def add_version(db: sqlite3.Connection, graph: int, version: Version, change: Change | None) -> None:
    """A new current version; without a `change` it is a base, which `write_base` writes."""
    data = digest = None
    cost = 0
    if change is not None:
        data = change.encode()
        digest = digest_of(data)
        cost = replay_cost(db, graph, version.number - 1) + len(data) + _CHANGE_COST
    about = (version.number, version.kind, version.created, version.nodes, version.edges)
    db.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (graph, *about, cost, data, digest))
    db.execute("UPDATE graphs SET version = ? WHERE id = ?", (version.number, graph))


def versions(db: sqlite3.Connection, graph: int, limit: int = -1) -> list[Version]:
    """The newest first; `limit` of them."""
    rows = db.execute(
        "SELECT version, kind, created, nodes, edges FROM versions WHERE graph = ? ORDER BY version DESC LIMIT ?",
        (graph, limit),
    )
    return [Version(*typed(row, *_VERSION)) for row in rows]


def version_of(db: sqlite3.Connection, graph: int, number: int) -> Version | None:
    row = db.execute(
        "SELECT version, kind, created, nodes, edges FROM versions WHERE graph = ? AND version = ?",
        (graph, number),
    ).fetchone()
    return Version(*typed(row, *_VERSION)) if row else None


def changes(db: sqlite3.Connection, graph: int, after: int, upto: int) -> list[Change] | None:
    """The changes of the versions after..upto in order; None where one of these is no change but a base."""
    rows = db.execute(
        "SELECT version, change, digest FROM versions WHERE graph = ? AND version > ? AND version <= ?"
        " ORDER BY version",
        (graph, after, upto),
    ).fetchall()
    if [row[0] for row in rows] != list(range(after + 1, upto + 1)) or any(row[1] is None for row in rows):
        return None
    return [_change(*typed(row, int, bytes, bytes)) for row in rows]


def replay_cost(db: sqlite3.Connection, graph: int, version: int) -> int:
    """What replaying the changes from the last base to a version costs, in bytes."""
    row = db.execute("SELECT cost FROM versions WHERE graph = ? AND version = ?", (graph, version)).fetchone()
    return typed(row, int)[0] if row else 0


def forget_versions_before(db: sqlite3.Connection, graph: int, first: int) -> int:
    """Drops the versions before `first`, which has a base; returns how many there were."""
    count = db.execute("DELETE FROM versions WHERE graph = ? AND version < ?", (graph, first)).rowcount
    db.execute("DELETE FROM bases WHERE graph = ? AND version < ?", (graph, first))
    return count


# ---- bases


def base_versions(db: sqlite3.Connection, graph: int) -> list[int]:
    """The versions that have a base, ascending."""
    rows = db.execute("SELECT version FROM bases WHERE graph = ? ORDER BY version", (graph,))
    return [typed(row, int)[0] for row in rows]


def newest_base(db: sqlite3.Connection, graph: int, upto: int) -> tuple[int, int] | None:
    """(version, bytes) of the newest base at or before a version."""
    row = db.execute(
        "SELECT version, bytes FROM bases WHERE graph = ? AND version <= ? ORDER BY version DESC LIMIT 1",
        (graph, upto),
    ).fetchone()
    if row is None:
        return None
    base, size = typed(row, int, int)
    return base, size


# ---- snapshots


def snapshots(db: sqlite3.Connection, graph: int) -> list[Snapshot]:
    """By label."""
    rows = db.execute(
        "SELECT label, version, created FROM snapshots WHERE graph = ? ORDER BY label", (graph,)
    )
    return [Snapshot(*typed(row, *_SNAPSHOT)) for row in rows]


def snapshot(db: sqlite3.Connection, graph: int, label: str) -> Snapshot | None:
    row = db.execute(
        "SELECT label, version, created FROM snapshots WHERE graph = ? AND label = ?", (graph, label)
    ).fetchone()
    return Snapshot(*typed(row, *_SNAPSHOT)) if row else None


def add_snapshot(db: sqlite3.Connection, graph: int, label: str, version: int) -> None:
    db.execute("INSERT INTO snapshots VALUES (?, ?, ?, ?)", (graph, label, version, time.time()))


def delete_snapshot(db: sqlite3.Connection, graph: int, label: str) -> None:
    db.execute("DELETE FROM snapshots WHERE graph = ? AND label = ?", (graph, label))


# ---- details


def typed(row: Any, *types: type) -> Any:
    """A row whose values have these types, as SQLite does not promise; Damaged otherwise."""
    if tuple(map(type, row)) != types:
        raise Damaged("a value has a wrong type")
    return row


def _change(version: int, data: bytes, digest: bytes) -> Change:
    if digest_of(data) != digest:
        raise Damaged(f"the checksum of version {version} is wrong")
    try:
        return Change.decode(data)
    except (ValueError, TypeError) as error:
        raise Damaged(f"the change of version {version} cannot be read: {error}") from error


def digest_of(data: bytes) -> bytes:
    """A checksum (XXH3, 8 bytes)."""
    return xxhash.xxh3_64_digest(data)
