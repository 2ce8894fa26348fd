"""What a graph consists of, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vglm.graph.graph import Graph


@dataclass(frozen=True, slots=True)
class GraphStats:
    """Counts of a graph: nodes by type and edges by relation (the most frequent first), nodes without an edge, edges
    from a node to itself, the mean and the largest number of edges at a node and whose it is, bytes in memory."""

    nodes: int
    edges: int
    types: dict[str, int]
    relations: dict[str, int]
    isolated: int
    loops: int
    mean_degree: float
    max_degree: int
    hub: str | None
    memory_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def graph_stats(graph: Graph) -> GraphStats:
    """The numbers of a graph; linear in its size, some milliseconds for a million edges."""
    columns = graph.columns
    loops = columns.sources == columns.targets
    degrees = np.bincount(columns.sources, minlength=graph.num_nodes)
    degrees += np.bincount(columns.targets[~loops], minlength=graph.num_nodes)
    hub = int(degrees.argmax()) if graph.num_edges else -1
    return GraphStats(
        nodes=graph.num_nodes,
        edges=graph.num_edges,
        types=_counted(columns.type_names, columns.node_types),
        relations=_counted(columns.relation_names, columns.relations),
        isolated=int(np.count_nonzero(degrees == 0)),
        loops=int(np.count_nonzero(loops)),
        mean_degree=float(degrees.mean()) if graph.num_nodes else 0.0,
        max_degree=int(degrees[hub]) if hub >= 0 else 0,
        hub=graph.id_of(hub) if hub >= 0 else None,
        memory_bytes=graph.nbytes,
    )


def _counted(names: tuple[str, ...], codes: Any) -> dict[str, int]:
    counts = np.bincount(codes, minlength=len(names)).tolist()
    return dict(sorted(zip(names, counts, strict=True), key=lambda item: (-item[1], item[0])))
