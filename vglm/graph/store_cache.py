"""Graphs that a store keeps in memory: the versions read last, and of each graph the state that writers build on."""

from __future__ import annotations

import threading
from collections import OrderedDict

from vglm.graph.graph import Graph
from vglm.graph.overlay import Overlay

MAX_HEADS = 64


class Head:
    """The newest known state of one graph; `lock` is held by whoever uses or replaces it.

    `overlay` is the content of version `version`, or None when it has to be read from the file.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.overlay: Overlay | None = None
        self.version = 0

    def set(self, overlay: Overlay, version: int) -> None:
        self.overlay, self.version = overlay, version

    def forget(self) -> None:
        self.overlay, self.version = None, 0


class GraphCache:
    """At most about `max_bytes` of graphs by (graph id, version), and always the last one; thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._graphs: OrderedDict[tuple[int, int], tuple[Graph, int]] = OrderedDict()
        self._heads: OrderedDict[int, Head] = OrderedDict()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the graphs that are kept."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._graphs)

    def get(self, graph_id: int, version: int) -> Graph | None:
        with self._lock:
            found = self._graphs.get((graph_id, version))
            if found is None:
                return None
            self._graphs.move_to_end((graph_id, version))
            return found[0]

    def newest(self, graph_id: int, upto: int) -> tuple[int, Graph] | None:
        """(version, graph) of the newest version kept that is not newer than `upto`."""
        with self._lock:
            known = [version for graph, version in self._graphs if graph == graph_id and version <= upto]
            return (max(known), self._graphs[graph_id, max(known)][0]) if known else None

    def put(self, graph_id: int, version: int, graph: Graph) -> None:
        with self._lock:
            self._drop((graph_id, version))
            self._graphs[graph_id, version] = (graph, graph.nbytes)
            self._bytes += graph.nbytes
            while self._bytes > self._max_bytes and len(self._graphs) > 1:
                self._drop(next(iter(self._graphs)))

    def head(self, graph_id: int) -> Head:
        """The head of a graph. One that was forgotten meanwhile still serves whoever holds it: it is only a cache."""
        with self._lock:
            head = self._heads.setdefault(graph_id, Head())
            self._heads.move_to_end(graph_id)
            while len(self._heads) > MAX_HEADS:
                self._heads.popitem(last=False)
            return head

    def forget(self, graph_id: int) -> None:
        """Drops all of a graph that was deleted."""
        with self._lock:
            self._heads.pop(graph_id, None)
            for key in [key for key in self._graphs if key[0] == graph_id]:
                self._drop(key)

    def _drop(self, key: tuple[int, int]) -> None:
        graph, size = self._graphs.pop(key, (None, 0))
        self._bytes -= size
        head = self._heads.get(key[0])
        # A head that is in use keeps its base, until it is one of the oldest of MAX_HEADS.
        if graph is not None and head is not None and head.lock.acquire(blocking=False):
            try:
                if head.overlay is not None and head.overlay.base is graph:
                    head.forget()
            finally:
                head.lock.release()
