"""Sets of graphs for classification in the TU format (https://chrsmrrs.github.io/datasets/docs/format/).

A folder DS with DS_A.txt (an edge "i, j" a line, nodes numbered from 1 through all graphs), DS_graph_indicator.txt (the
graph of each node), DS_graph_labels.txt, and where there are any DS_node_labels.txt, DS_edge_labels.txt and
DS_node_attributes.txt (numbers, the same count a line), which become the attributes "attribute 1", "attribute 2", ...
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError
from vglm.graph.build import DEFAULT_RELATION, GraphBuilder
from vglm.graph.formats.source import open_source
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits, shown

Longs = npt.NDArray[np.int64]


def read_set(
    folder: Path, limits: Limits, node_labels: Mapping[str, str], edge_labels: Mapping[str, str]
) -> tuple[list[Graph], list[str]]:
    """See `Graph.load_set`."""
    found = sorted(folder.glob("*_graph_indicator.txt"))
    if len(found) != 1:
        raise GraphError(f"{folder}: expected one file ..._graph_indicator.txt, found {len(found)}")
    prefix = found[0].name.removesuffix("graph_indicator.txt")
    graph_labels = _texts(folder / f"{prefix}graph_labels.txt", limits)
    count = len(graph_labels)
    graph_of = _integers(found[0], limits, 1)[:, 0] - 1
    _check(found[0], (graph_of >= 0) & (graph_of < count), f"expected the number of a graph, 1 to {count:,}")
    edge_path = folder / f"{prefix}A.txt"
    ends = _integers(edge_path, limits, 2) - 1
    inside = (ends >= 0) & (ends < len(graph_of))
    _check(
        edge_path,
        inside[:, 0] & inside[:, 1],
        f"expected nodes 1 to {len(graph_of):,}",
    )
    _check(edge_path, graph_of[ends[:, 0]] == graph_of[ends[:, 1]], "an edge between two graphs")
    kinds = _labels(folder / f"{prefix}node_labels.txt", limits, len(graph_of), node_labels)
    relations = _labels(folder / f"{prefix}edge_labels.txt", limits, len(ends), edge_labels)
    attributes = _attributes(folder / f"{prefix}node_attributes.txt", limits, len(graph_of))
    nodes_of, edges_of = _grouped(graph_of, count), _grouped(graph_of[ends[:, 0]], count)
    graphs = [
        _graph(
            nodes,
            ends[edges],
            kinds,
            [relations[edge] for edge in edges.tolist()] if relations else None,
            attributes,
            limits,
        )
        for nodes, edges in zip(nodes_of, edges_of, strict=True)
    ]
    return graphs, graph_labels


def _graph(
    nodes: Longs,
    ends: Longs,
    kinds: list[str] | None,
    relations: list[str] | None,
    attributes: list[dict[str, float]] | None,
    limits: Limits,
) -> Graph:
    """One graph, its nodes numbered from 1; what leads both ways is one edge, from the lesser number."""
    builder = GraphBuilder(limits)
    numbers = {node: str(number) for number, node in enumerate(nodes.tolist(), 1)}
    for node, number in numbers.items():
        builder.add_node(
            number, type=kinds[node] if kinds else "", attributes=attributes[node] if attributes else None
        )
    labels = relations or [DEFAULT_RELATION] * len(ends)
    edges = dict.fromkeys(zip(map(tuple, ends.tolist()), labels, strict=True))
    for (source, target), label in edges:
        if source <= target or ((target, source), label) not in edges:
            builder.add_edge(numbers[source], label, numbers[target])
    return builder.build()


def _grouped(groups: Longs, count: int) -> list[Longs]:
    """The positions of each group's members, ascending."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.cumsum(np.bincount(groups, minlength=count))[:-1]) if count else []


def _labels(path: Path, limits: Limits, count: int, names: Mapping[str, str]) -> list[str] | None:
    if not path.is_file():
        return None
    labels = _texts(path, limits)
    if len(labels) != count:
        raise GraphError(f"{path}: expected {count:,} lines, found {len(labels):,}")
    return [names.get(label, label) for label in labels]


def _attributes(path: Path, limits: Limits, count: int) -> list[dict[str, float]] | None:
    """The numbers of each node, by name. Raises GraphError naming the line."""
    if not path.is_file():
        return None
    lines = _texts(path, limits)
    if len(lines) != count:
        raise GraphError(f"{path}: expected {count:,} lines, found {len(lines):,}")
    rows: list[dict[str, float]] = []
    for number, text in enumerate(lines, 1):
        try:
            values = [float(word) for word in text.split(",")]
        except ValueError:
            values = []
        if not values or not all(map(math.isfinite, values)) or (rows and len(values) != len(rows[0])):
            wanted = f"{len(rows[0])} finite numbers" if rows else "finite numbers"
            raise GraphError(f"{path}, line {number}: expected {wanted}, found {shown(text)}")
        rows.append({f"attribute {place}": value for place, value in enumerate(values, 1)})
    return rows


def _texts(path: Path, limits: Limits) -> list[str]:
    """The lines, without empty ones at the end."""
    with open_source(path, limits.bytes) as source:
        texts = [line.strip() for _, line in source.lines()]
    while texts and not texts[-1]:
        texts.pop()
    if len(texts) > limits.edges:
        raise GraphError(f"{path}: more than {limits.edges:,} lines")
    return texts


def _integers(path: Path, limits: Limits, columns: int) -> Longs:
    """int64[lines, columns]; raises GraphError naming the line."""
    rows = []
    for number, text in enumerate(_texts(path, limits), 1):
        try:
            row = [int(word) for word in text.split(",")]
        except ValueError:
            row = []
        if len(row) != columns or max(map(abs, row)) >= 2**62:
            wanted = f"{columns} integers" if columns > 1 else "an integer"
            raise GraphError(f"{path}, line {number}: expected {wanted}, found {shown(text)}")
        rows.append(row)
    return np.array(rows, np.int64).reshape(-1, columns)


def _check(path: Path, good: npt.NDArray[np.bool_], message: str) -> None:
    for row in np.flatnonzero(~good)[:1].tolist():
        raise GraphError(f"{path}, line {row + 1}: {message}")
