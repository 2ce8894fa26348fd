"""What the graphs of a store hold: loaded from the file, kept in memory, patched, copied in full now and then."""

from __future__ import annotations

import logging
import time
from sqlite3 import Connection

from vglm.errors import StoreError
from vglm.graph import store_schema as rows
from vglm.graph.changes import Patch
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits
from vglm.graph.overlay import Overlay
from vglm.graph.store_base import read_base, write_base
from vglm.graph.store_cache import GraphCache, Head
from vglm.graph.store_file import StoreFile
from vglm.graph.store_names import expected, find
from vglm.graph.store_schema import Damaged, Found, Version

_log = logging.getLogger(__name__)


class Contents:
    """The content of graphs by version. `cache` keeps what was read last; when replaying the changes since the last
    full copy costs more than `compact_after` bytes and than half of that copy, a new one is written."""

    def __init__(self, file: StoreFile, cache: GraphCache, compact_after: int, limits: Limits) -> None:
        self.cache = cache
        self._file = file
        self._compact_after = compact_after
        self._limits = limits

    def graph(self, db: Connection, head: Head, found: Found) -> Graph:
        """The graph of a version, and a head (whose lock is held) that builds on it if it is the newest."""
        graph = self.cache.get(found.id, found.version)
        if graph is not None:
            return graph
        if head.overlay is not None and found.version < head.version:
            graph = self.loaded(db, found.id, found.version).graph()
        else:
            graph = self._advance(db, head, found).graph()
            head.set(Overlay(graph), found.version)
        self.cache.put(found.id, found.version, graph)
        return graph

    def patch(self, name: str, patch: Patch, expected_version: int | None) -> int:
        """Writes a patch as a new version and returns its number; the current one if nothing changes."""
        while True:
            with self._file.reading() as db:
                graph_id = expected(db, name, expected_version).id
            head = self.cache.head(graph_id)
            with head.lock:
                with self._file.reading() as db:  # what takes long is read before other writers have to wait
                    found = find(db, name)
                    if found.id != graph_id:  # it was deleted and made anew meanwhile
                        continue
                    self._advance(db, head, found)
                version, due = self._patched(head, found, patch, expected_version)
                if due:
                    self._compact(head, graph_id)
                if version:
                    return version

    def loaded(self, db: Connection, graph_id: int, version: int, cached: bool = True) -> Overlay:
        """A version, from the nearest one in memory or on disk, and the changes from there on."""
        base = rows.newest_base(db, graph_id, version)
        about = rows.version_of(db, graph_id, version)
        if base is None or about is None:
            raise Damaged(f"version {version} is missing")
        near = self.cache.newest(graph_id, version) if cached else None
        start = base[0] if near is None or near[0] < base[0] else near[0]
        changes = rows.changes(db, graph_id, start, version)
        if changes is None:
            raise Damaged(f"a version between {start} and {version} is missing")
        if near is not None and start == near[0]:
            graph = near[1]
        else:
            graph = read_base(db, graph_id, start)
            if cached:
                self.cache.put(graph_id, start, graph)
        overlay = Overlay(graph)
        for change in changes:
            overlay.apply(change)
        if (overlay.num_nodes, overlay.num_edges) != (about.nodes, about.edges):
            raise Damaged(f"version {version} has not the size that it had")
        return overlay

    def _advance(self, db: Connection, head: Head, found: Found) -> Overlay:
        """Brings a head, whose lock is held, to a version that is not older."""
        overlay = head.overlay
        changes = None
        if overlay is not None and head.version <= found.version:
            changes = rows.changes(db, found.id, head.version, found.version)
        if overlay is None or changes is None:
            overlay = self.loaded(db, found.id, found.version)
        elif changes:
            head.forget()  # until it is whole again
            for change in changes:
                overlay.apply(change)
        head.set(overlay, found.version)
        return overlay

    def _patched(
        self, head: Head, seen: Found, patch: Patch, expected_version: int | None
    ) -> tuple[int, bool]:
        """Writes a patch; the new version, and whether a full copy is due. (0, False) if the graph was deleted and
        made anew since it was `seen`."""
        whole = True  # False while the head is ahead of the file
        try:
            with self._file.writing() as db:
                found = expected(db, seen.name, expected_version)
                if found.id != seen.id:
                    return 0, False
                overlay = self._advance(db, head, found)
                change = overlay.resolve(patch, self._limits)
                if not change:
                    return found.version, False
                whole = False
                overlay.apply(change)
                head.version = number = found.version + 1
                sizes = (overlay.num_nodes, overlay.num_edges)
                rows.add_version(db, found.id, Version(number, "patch", time.time(), *sizes), change)
                base = rows.newest_base(db, found.id, number)
                most = max(self._compact_after, base[1] // 2 if base else 0)
                due = rows.replay_cost(db, found.id, number) > most
        except BaseException:
            if not whole:
                head.forget()
            raise
        return number, due

    def _compact(self, head: Head, graph_id: int) -> None:
        """Writes a full copy of the head's version. The patch that made it due is safe already."""
        if head.overlay is None:
            return
        version, graph = head.version, head.overlay.graph()
        head.set(Overlay(graph), version)
        self.cache.put(graph_id, version, graph)
        try:
            with self._file.writing() as db:
                base = rows.newest_base(db, graph_id, version)
                if base is not None and base[0] < version:
                    write_base(db, graph_id, version, graph)
        except StoreError as error:
            _log.warning("a full copy of version %d will be written later: %s", version, error)
