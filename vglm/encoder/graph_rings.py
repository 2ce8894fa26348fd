"""Rings of a graph: its chordless cycles up to a length."""

from __future__ import annotations

from collections.abc import Sequence

MAX_RING = 8  # nodes
_BUDGET = (
    50_000  # extensions of a path in one graph; only dense graphs reach it, molecules need a few hundred
)


def rings(neighbours: Sequence[set[int]], longest: int = MAX_RING, budget: int = _BUDGET) -> list[list[int]]:
    """All chordless cycles of 3 to `longest` nodes, each once, as node lists that begin with their least node.

    `neighbours[i]` are the nodes next to i. The search ends after `budget` steps with what it found so far: dense graphs
    have exponentially many, and the first thousands tell as much.
    """
    found: list[list[int]] = []
    steps = 0
    for start in range(len(neighbours)):
        stack = [[start]]
        while stack:
            path = stack.pop()
            inner = path[1:-1]
            for node in sorted(neighbours[path[-1]]):
                steps += 1
                if steps > budget:
                    return found
                if node <= start or node in path or any(node in neighbours[i] for i in inner):
                    continue  # another start finds it, or it closes a shorter ring
                if len(path) > 1 and start in neighbours[node]:
                    if path[1] < node:  # each ring in one of its two directions
                        found.append([*path, node])
                elif len(path) + 1 < longest:
                    stack.append([*path, node])
    return found


def fused_systems(found: Sequence[Sequence[int]]) -> list[list[int]]:
    """The rings (by their place in `found`) that hang together by shared edges, as lists; a lone ring is a list of one."""
    group = list(range(len(found)))

    def root(ring: int) -> int:
        while group[ring] != ring:
            ring = group[ring]
        return ring

    edges: dict[tuple[int, int], int] = {}
    for ring, nodes in enumerate(found):
        for a, b in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
            first = edges.setdefault((min(a, b), max(a, b)), ring)
            group[root(ring)] = root(first)
    systems: dict[int, list[int]] = {}
    for ring in range(len(found)):
        systems.setdefault(root(ring), []).append(ring)
    return list(systems.values())
