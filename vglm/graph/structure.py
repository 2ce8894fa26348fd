"""What the shape of a graph says, in words: its parts, whether it has a cycle, how far apart two nodes are.

A language model cannot see these by reading edges one by one, however long it was trained. They are computed exactly, for the
graph as an undirected one, and said in front of the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vglm.graph.graph import Graph
from vglm.graph.text import one_line

Ints = npt.NDArray[np.int64]
MAX_PAIRS = 3  # of nodes whose distance is said
MAX_DISTANCE = 1_000


@dataclass(frozen=True, slots=True)
class Structure:
    """The shape of a graph without the directions of its edges.

    `part` int64 [nodes] numbers each node's connected part by its lowest node; `num_parts` counts them; `has_cycle` counts two
    different edges between the same two nodes once, and a loop as a cycle.
    """

    num_nodes: int
    num_edges: int
    part: Ints
    num_parts: int
    has_cycle: bool


def structure(graph: Graph) -> Structure:
    """The shape of a graph, in time that grows with its edges times the logarithm of its longest path."""
    columns = graph.columns
    ends = np.stack([columns.sources, columns.targets]).astype(np.int64)
    part = _parts(ends, graph.num_nodes)
    num_parts = len(np.unique(part))
    pairs = np.unique(np.sort(ends, axis=0), axis=1).shape[1] if ends.shape[1] else 0
    has_cycle = pairs > graph.num_nodes - num_parts
    return Structure(graph.num_nodes, graph.num_edges, part, num_parts, has_cycle)


def _parts(ends: Ints, num_nodes: int) -> Ints:
    """The lowest node that each node is connected with: labels fall along edges and are followed to their ends."""
    label = np.arange(num_nodes, dtype=np.int64)
    while ends.shape[1]:
        lowest = label[ends].min(axis=0)
        before = label.copy()
        np.minimum.at(label, ends[0], lowest)
        np.minimum.at(label, ends[1], lowest)
        np.minimum.at(label, before[ends[0]], lowest)
        np.minimum.at(label, before[ends[1]], lowest)
        label = label[label]
        if np.array_equal(label, before):
            break
    return label


def distance(graph: Graph, source: int, target: int) -> int:
    """Edges on the shortest path between two nodes, walked either way; -1 when there is none."""
    seen = {source}
    front = [source]
    steps = 0
    while front and target not in seen and steps < MAX_DISTANCE:
        steps += 1
        reached: list[int] = []
        for node in front:
            for way, ends in (("out", graph.columns.targets), ("in", graph.columns.sources)):
                for other in ends[graph.edge_indices(node, way)].tolist():  # type: ignore[arg-type]
                    if other not in seen:
                        seen.add(other)
                        reached.append(other)
        front = reached
    return steps if target in seen else -1


def facts(graph: Graph, nodes: Sequence[int] = ()) -> str:
    """The shape of a graph in a line of words, and how the given nodes (indices) are connected, the first few pairs of them.

    >>> facts(Graph.from_dict({"nodes": [{"id": "a"}, {"id": "b"}], "edges": []}))
    'Facts: 2 nodes, 0 edges, 2 parts, no cycle.'
    """
    shape = structure(graph)
    words = [
        _count(shape.num_nodes, "node"),
        _count(shape.num_edges, "edge"),
        _count(shape.num_parts, "part"),
        "a cycle" if shape.has_cycle else "no cycle",
    ]
    said = [f"Facts: {', '.join(words)}."]
    pairs = [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :]][:MAX_PAIRS]
    for a, b in pairs:
        names = " and ".join(one_line(graph.columns.names[node]) for node in (a, b))
        if shape.part[a] != shape.part[b]:
            said.append(f"{names} are not connected.")
        else:
            said.append(f"{names} are connected, {_count(distance(graph, a, b), 'step')} apart.")
    return " ".join(said)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
