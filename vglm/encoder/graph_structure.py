"""A graph as the features of graph classification see it: types, who is next to whom, distances, rings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vglm.encoder.graph_rings import rings
from vglm.errors import GraphError
from vglm.graph.graph import Graph

MAX_NODES = 2_000  # distances and the spectrum cost the square and the cube of it
MAX_EDGES = 20_000  # chains at a node cost the square of its edges


@dataclass(frozen=True)
class Structure:
    """A graph as features see it: node types, and who is next to whom by which relation.

    Relations count in both directions alike unless `directed`, when ">" or "<" is a part of their name.
    """

    types: list[str]
    links: list[list[tuple[int, str]]]  # per node: (neighbour, relation), a self-loop once
    relations: list[str]  # of the edges
    attributes: dict[str, npt.NDArray[np.float64]]  # numeric node attributes, NaN where a node has none

    @classmethod
    def of(cls, graph: Graph, *, directed: bool = False) -> Structure:
        """Edges that differ in nothing but attributes are one link; `relations` has all of them.

        Raises GraphError for an empty graph and for one of more than `MAX_NODES` nodes or `MAX_EDGES` edges.
        """
        if not 0 < graph.num_nodes <= MAX_NODES:
            raise GraphError(
                f"a graph to classify has 1 to {MAX_NODES:,} nodes, this one has {graph.num_nodes:,}: "
                "take a part of it (Graph.subgraph)"
            )
        if graph.num_edges > MAX_EDGES:
            raise GraphError(
                f"a graph to classify has at most {MAX_EDGES:,} edges, this one has {graph.num_edges:,}: "
                "take a part of it (Graph.subgraph)"
            )
        columns = graph.columns
        types = [columns.type_names[code] for code in columns.node_types.tolist()]
        relations = [columns.relation_names[code] for code in columns.relations.tolist()]
        links: list[list[tuple[int, str]]] = [[] for _ in types]
        out, back = (">", "<") if directed else ("", "")
        edges = zip(columns.sources.tolist(), relations, columns.targets.tolist(), strict=True)
        for source, relation, target in dict.fromkeys(edges):
            links[source].append((target, relation + out))
            if source != target:
                links[target].append((source, relation + back))
        return cls(types, links, relations, _numeric_attributes(graph))

    @cached_property
    def neighbours(self) -> list[set[int]]:
        """Per node the other nodes next to it."""
        return [{other for other, _ in links if other != node} for node, links in enumerate(self.links)]

    @cached_property
    def rings(self) -> list[list[int]]:
        return rings(self.neighbours)

    @cached_property
    def distances(self) -> npt.NDArray[np.int16]:
        """Edges of the shortest path between any two nodes, int16[N, N]; -1 where there is none."""
        count = len(self.types)
        found = np.full((count, count), -1, np.int16)
        for start in range(count):
            row = found[start]
            row[start], wave, steps = 0, [start], 0
            while wave:
                steps += 1
                wave = list({other for node in wave for other in self.neighbours[node] if row[other] < 0})
                row[wave] = steps
        return found


def _numeric_attributes(graph: Graph) -> dict[str, npt.NDArray[np.float64]]:
    if not graph.columns.attributes.nbytes:
        return {}
    found: dict[str, npt.NDArray[np.float64]] = {}
    for index, node in enumerate(graph.nodes()):
        for name, value in node.attributes.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                column = found.setdefault(name, np.full(graph.num_nodes, np.nan))
                column[index] = value
    return found
