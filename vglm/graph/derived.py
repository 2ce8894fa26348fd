"""What is computed once for a graph object and kept as long as it lives."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

from vglm.graph.graph import Graph

T = TypeVar("T")


def once_per_graph(build: Callable[[Graph], T]) -> Callable[[Graph], T]:
    """`build` with a memory: one call per graph object, from whatever thread asks first.

    Keyed by identity and not by content: hashing the content of a large graph takes longer than a walk in it.
    """
    kept: dict[int, T] = {}
    lock = threading.RLock()  # the end of another graph may be noticed while something is built

    def forget(key: int) -> None:
        with lock:
            kept.pop(key, None)

    def get(graph: Graph) -> T:
        key = id(graph)
        with lock:
            if key not in kept:
                kept[key] = build(graph)
                weakref.finalize(graph, forget, key)
            return kept[key]

    return get
