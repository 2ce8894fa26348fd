"""What is computed once for a graph object and kept as long as it lives."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from vglm.graph.graph import Graph

T = TypeVar("T")


class _Slot(Generic[T]):
    """What is kept for one graph; whoever asks while it is computed waits for it, and for nothing else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: list[T] = []

    def get(self, build: Callable[[Graph], T], graph: Graph) -> T:
        with self._lock:
            if not self._values:
                self._values.append(build(graph))
            return self._values[0]


def once_per_graph(build: Callable[[Graph], T]) -> Callable[[Graph], T]:
    """`build` with a memory: one call per graph object, from whatever thread asks first.

    Keyed by identity and not by content: hashing the content of a large graph takes longer than a walk in it.
    """
    kept: dict[int, _Slot[T]] = {}
    lock = threading.RLock()  # the end of another graph may be noticed while this is held

    def forget(key: int) -> None:
        with lock:
            kept.pop(key, None)

    def get(graph: Graph) -> T:
        key = id(graph)
        with lock:
            if key not in kept:
                kept[key] = _Slot()
                weakref.finalize(graph, forget, key)
            slot = kept[key]
        return slot.get(build, graph)

    return get
