"""The server's graphs: the store, opened when it is needed, and the threads that work on graphs.

Nothing here touches the engine, and nothing of it runs in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vglm.errors import ConfigError, GraphError, StoreError, UnknownGraphError
from vglm.serve.errors import ApiError

if TYPE_CHECKING:
    from vglm.graph.graph import Edge, Graph
    from vglm.graph.store import GraphStore
    from vglm.serve.options import ServeOptions

log = logging.getLogger("vglm.serve.graphs")

WORKERS = 4  # threads; what they do holds the interpreter most of the time
T = TypeVar("T")


class GraphService:
    """The graph store of a server, and threads for what takes long with graphs."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._workers = ThreadPoolExecutor(WORKERS, "vglm-graphs")
        self._store: GraphStore | None = None
        self._opening = threading.Lock()
        self.example: Edge | None = None  # of the first graph that the server started with

    async def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """The result of a function that runs in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(
            self._workers, partial(function, *args, **kwargs)
        )

    @property
    def store(self) -> GraphStore:
        """The store; called in a thread. Raises ApiError (404) when there is none, and StoreError."""
        from vglm.graph.store import GraphStore

        if not self._options.has_graph_store:
            raise ApiError(404, "this server has no graph store", code="no_graph_store")
        with self._opening:
            if self._store is None:
                self._store = GraphStore(self._options.graph_store)
            return self._store

    def prepare(self) -> None:
        """Open the store and load the graphs that the server starts with.

        Raises StoreError, GraphError and ConfigError; of a store in the default place that cannot be opened only a warning
        is given, as the server may never need it.
        """
        if not self._options.has_graph_store:
            return
        try:
            _ = self.store
        except StoreError as error:
            if self._options.graph_store is not None or self._options.graphs:
                raise
            log.warning("graphs cannot be stored: %s", error)
        for name, path in self._options.graphs:
            self._load(name, path)

    def _load(self, name: str, path: Path) -> None:
        from vglm.graph.graph import Graph
        from vglm.graph.retrieval import prepare

        graph = Graph.load(path)
        known: Graph | None = None
        with suppress(UnknownGraphError):
            known = self.store.get(name)
        if known is None:
            self.store.create(name, graph)
        elif known.fingerprint != graph.fingerprint:
            self.store.replace(name, graph)
        stored = self.store.read(name)
        prepare(stored.graph)
        if self.example is None and stored.graph.num_edges:
            self.example = stored.graph.edge_at(0)
        log.info("graph %s: version %d, %r", name, stored.version, stored.graph)

    def close(self) -> None:
        """Wait for the threads and close the store."""
        self._workers.shutdown(wait=True, cancel_futures=True)
        if self._store is not None:
            self._store.close()


def parse_named_file(option: str, text: str, example: str) -> tuple[str, Path]:
    """NAME=FILE, the value of an option. Raises ConfigError for anything else."""
    from vglm.graph.store_names import checked_name

    name, equals, path = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"{option} {text!r}: expected NAME=FILE, as in {option} {example}")
    try:
        return checked_name(name), Path(path)
    except GraphError as error:
        raise ConfigError(f"{option} {text!r}: {error}") from error
