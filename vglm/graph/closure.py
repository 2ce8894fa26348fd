"""Ancestors of every node at once, as CSR arrays."""

from __future__ import annotations

from itertools import chain

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.graph.limits import DEFAULT_LIMITS

Csr = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]


def ancestor_closure(graph: Graph, relation: str, max_pairs: int = DEFAULT_LIMITS.closure) -> Csr:
    """For each node its ancestors over `relation` and itself: (starts int64[N + 1], nodes int32[pairs],
    ascending).

    Cycles are allowed (their members are each other's ancestors). Raises GraphError when there would be
    more than `max_pairs` pairs, before the memory for them is spent.
    """
    mask = graph.columns.relations == graph.relation_code(relation)
    parents: list[list[int]] = [[] for _ in range(graph.num_nodes)]
    children: list[list[int]] = [[] for _ in range(graph.num_nodes)]
    ends = zip(graph.columns.sources[mask].tolist(), graph.columns.targets[mask].tolist(), strict=True)
    for child, parent in ends:
        if child != parent:
            parents[child].append(parent)
            children[parent].append(child)
    closures: list[set[int] | None] = [None] * graph.num_nodes
    pairs = 0
    for node in _roots_first(parents, children):
        own = {node}
        for parent in parents[node]:
            above = closures[parent]
            own.update(_search(parent, parents) if above is None else above)
        closures[node] = own
        pairs += len(own)
        if pairs > max_pairs:
            raise GraphError(f"the ancestors over {relation!r} are more than {max_pairs:,} pairs: too deep")
    ordered = [sorted(own or ()) for own in closures]
    starts = np.zeros(graph.num_nodes + 1, np.int64)
    np.cumsum([len(own) for own in ordered], out=starts[1:])
    return starts, np.fromiter(chain.from_iterable(ordered), np.int32, pairs)


def _roots_first(parents: list[list[int]], children: list[list[int]]) -> list[int]:
    """All nodes, every node after its parents; nodes on or below a cycle come last."""
    waiting_for = [len(above) for above in parents]
    order = [node for node, count in enumerate(waiting_for) if count == 0]
    for node in order:
        for child in children[node]:
            waiting_for[child] -= 1
            if waiting_for[child] == 0:
                order.append(child)
    return order + [node for node, count in enumerate(waiting_for) if count > 0]


def _search(start: int, parents: list[list[int]]) -> set[int]:
    seen, waiting = {start}, [start]
    while waiting:
        fresh = [parent for parent in parents[waiting.pop()] if parent not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
    return seen
