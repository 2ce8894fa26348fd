"""`GraphStore`: named graphs on disk, with versions that can be edited and read at the same time.

A store is one SQLite file, for any number of threads and processes. A write that has returned survives a crash
of the process and of the machine. A reader holds a `Graph`, which is immutable, of one version.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from types import TracebackType

from vglm.errors import ConflictError, GraphError, StoreError, UnknownGraphError
from vglm.graph import store_schema as rows
from vglm.graph.changes import EdgeItem, NodeItem, Patch
from vglm.graph.graph import Graph
from vglm.graph.limits import DEFAULT_LIMITS, Limits, shown
from vglm.graph.store_base import Written, write_base
from vglm.graph.store_cache import GraphCache
from vglm.graph.store_content import Contents
from vglm.graph.store_file import StoreFile, default_store_path
from vglm.graph.store_names import GraphInfo, checked_label, checked_name, expected, find, info, resolved
from vglm.graph.store_schema import Found, Snapshot, Version

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of a stored graph."""

    name: str
    version: int
    graph: Graph


class GraphStore:
    """Named graphs in a file (default: `default_store_path()`), which is made unless `create` is False.

    `cache_bytes` bounds the graphs kept in memory, `timeout` (seconds) the wait for another process's write. When
    the changes since a graph's last full copy cost more to replay than `compact_after` bytes and than half of that
    copy, a new one is written. Thread-safe. Every method raises StoreError if the file cannot be used, and leaves
    everything as it was when it raises.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        create: bool = True,
        cache_bytes: int = 1 << 29,
        timeout: float = 30.0,
        compact_after: int = 1 << 20,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.path = default_store_path() if path is None else Path(path)
        self._file = StoreFile(self.path, create=create, timeout=timeout)
        self._cache = GraphCache(cache_bytes)
        self._contents = Contents(self._file, self._cache, compact_after, limits)
        self._limits = limits

    def __enter__(self) -> GraphStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file. Graphs that were read stay valid."""
        self._file.close()

    # ---- what is there

    def names(self) -> list[str]:
        """The names of all graphs, sorted."""
        with self._file.reading() as db:
            return [found.name for found in rows.all_graphs(db)]

    def __contains__(self, name: object) -> bool:
        with suppress(GraphError), self._file.reading() as db:
            return rows.find(db, checked_name(name)) is not None
        return False

    def graphs(self) -> list[GraphInfo]:
        """All graphs, by name."""
        with self._file.reading() as db:
            return [info(db, found) for found in rows.all_graphs(db)]

    def info(self, name: str) -> GraphInfo:
        """One graph; UnknownGraphError if there is none of this name."""
        with self._file.reading() as db:
            return info(db, find(db, name))

    def version(self, name: str) -> int:
        """The current version, in microseconds: for callers who keep what they made of a graph."""
        with self._file.reading() as db:
            return find(db, name).version

    def versions(self, name: str, limit: int | None = None) -> list[Version]:
        """The versions, the newest first; `limit` of them."""
        with self._file.reading() as db:
            return rows.versions(db, find(db, name).id, -1 if limit is None else max(limit, 0))

    # ---- reading

    def get(self, name: str, version: int | str | None = None) -> Graph:
        """The graph at its current version, at a number, or at a snapshot's label. The same object as long as it
        is cached. Raises UnknownGraphError if there is no such graph, version or snapshot."""
        return self.read(name, version).graph

    def read(self, name: str, version: int | str | None = None) -> Stored:
        """`get`, and which version it is."""
        while True:
            with self._file.reading() as db:
                found = resolved(db, name, version)
            graph = self._cache.get(found.id, found.version)
            if graph is not None:
                return Stored(found.name, found.version, graph)
            head = self._cache.head(found.id)
            with head.lock, self._file.reading() as db:
                again = resolved(db, name, version)
                if again.id == found.id:  # else it was deleted and made anew meanwhile
                    return Stored(again.name, again.version, self._contents.graph(db, head, again))

    def export(
        self,
        name: str,
        path: str | Path,
        *,
        version: int | str | None = None,
        format: str | None = None,
    ) -> int:
        """Writes a version to a file as `Graph.save` does, and returns the version's number."""
        stored = self.read(name, version)
        stored.graph.save(path, format)
        return stored.version

    # ---- writing

    def create(self, name: str, graph: Graph, *, written: Written | None = None) -> int:
        """Stores a graph under a new name as version 1; ConflictError if the name is taken. `written` is told of
        bytes as they are written."""
        name = checked_name(name)
        with self._file.writing() as db:
            if rows.find(db, name) is not None:
                raise ConflictError(f"there is a graph named {shown(name)} already")
            found = rows.add_graph(db, name)
            self._write_base(db, found, "create", graph, written)
        self._cache.put(found.id, 1, graph)
        return 1

    def replace(
        self, name: str, graph: Graph, *, expected_version: int | None = None, written: Written | None = None
    ) -> int:
        """Makes a graph the next version of a stored one, as a whole; returns the version's number."""
        with self._file.writing() as db:
            found = expected(db, name, expected_version)
            version = self._write_base(db, found, "replace", graph, written)
        self._cache.put(found.id, version, graph)
        return version

    def patch(
        self,
        name: str,
        *,
        upsert_nodes: Iterable[NodeItem] = (),
        delete_nodes: Iterable[str | int] = (),
        upsert_edges: Iterable[EdgeItem] = (),
        delete_edges: Iterable[EdgeItem] = (),
        expected_version: int | None = None,
    ) -> int:
        """Changes a graph, all or nothing, and returns the new version; the current one if nothing changes.

        Edges go first, then nodes with their edges, then nodes come, then edges. Nodes and edges are given as
        objects or as node-link JSON, edges also as (source, relation, target). A node replaces the one of its id.
        An edge to delete without attributes stands for all parallel ones. Raises GraphError naming the item for
        what cannot be (an edge to an unknown node, a deletion of what is not there), and ConflictError if the
        current version is not `expected_version`.
        """
        patch = Patch.of(upsert_nodes, delete_nodes, upsert_edges, delete_edges, self._limits)
        return self._contents.patch(name, patch, expected_version)

    def delete(self, name: str, *, expected_version: int | None = None) -> None:
        """Deletes a graph with its versions and snapshots. Graphs that were read stay valid."""
        with self._file.writing() as db:
            found = expected(db, name, expected_version)
            rows.delete_graph(db, found.id)
        self._cache.forget(found.id)
        self._give_back()

    # ---- snapshots and history

    def snapshot(self, name: str, label: str, version: int | str | None = None) -> int:
        """Names a version (default: the current one), and returns its number; `get(name, label)` reads it."""
        label = checked_label(label)
        with self._file.writing() as db:
            found = resolved(db, name, version)
            there = rows.snapshot(db, found.id, label)
            if there is not None and there.version != found.version:
                raise ConflictError(
                    f"the snapshot {shown(label)} is version {there.version}; delete it first", there.version
                )
            if there is None:
                rows.add_snapshot(db, found.id, label, found.version)
        return found.version

    def snapshots(self, name: str) -> list[Snapshot]:
        """The snapshots of a graph, by label."""
        with self._file.reading() as db:
            return rows.snapshots(db, find(db, name).id)

    def delete_snapshot(self, name: str, label: str) -> None:
        """Takes the name off a version, which stays."""
        with self._file.writing() as db:
            found = resolved(db, name, checked_label(label))
            rows.delete_snapshot(db, found.id, checked_label(label))

    def prune(self, name: str, keep: int = 1) -> int:
        """Drops old versions, so that the newest `keep` stay and those from the oldest snapshot on; returns how
        many were dropped."""
        if keep < 1:
            raise GraphError(f"keep: at least the current version stays, found {keep}")
        with self._file.writing() as db:
            found = find(db, name)
            labelled = [snapshot.version for snapshot in rows.snapshots(db, found.id)]
            first = max(1, min([found.version - keep + 1, *labelled]))
            if rows.version_of(db, found.id, first) is None:
                return 0
            base = rows.newest_base(db, found.id, first)
            if base is None or base[0] != first:
                write_base(db, found.id, first, self._contents.loaded(db, found.id, first).graph())
            dropped = rows.forget_versions_before(db, found.id, first)
        self._give_back()
        return dropped

    def check_integrity(self) -> None:
        """Reads every version of every graph; StoreError names the first thing that is wrong."""
        for problem in self._file.integrity():
            raise StoreError(f"{self.path}: is damaged ({problem})")
        for name in self.names():
            with suppress(UnknownGraphError), self._file.reading() as db:
                found = find(db, name)
                bases = rows.base_versions(db, found.id)
                for last in (*(base - 1 for base in bases[1:]), found.version):
                    self._contents.loaded(db, found.id, last, cached=False).graph()

    def _write_base(
        self, db: Connection, found: Found, kind: str, graph: Graph, written: Written | None
    ) -> int:
        if not isinstance(graph, Graph):
            raise GraphError(f"graph: expected a Graph, found {shown(graph)}")
        number = found.version + 1
        version = Version(number, kind, time.time(), graph.num_nodes, graph.num_edges)
        rows.add_version(db, found.id, version, None)
        write_base(db, found.id, number, graph, written)
        return number

    def _give_back(self) -> None:
        try:
            self._file.give_back()
        except StoreError as error:
            _log.warning("the space of what was deleted is reused, but not returned: %s", error)
