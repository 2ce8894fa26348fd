"""`Graph`: nodes and typed edges in columns, always in canonical order.

Nodes are sorted by id and edges by (source, relation, target, attributes) when a graph is built, so two
graphs with the same content are the same arrays whatever order they came in. Everything that is derived
from a graph (its text, its fingerprint, a ranking over it) is therefore independent of input order, with no
further care.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError
from vglm.graph.exchange import Exchange
from vglm.graph.limits import shown
from vglm.graph.strings import StringTable

Direction = Literal["out", "in", "both"]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Node:
    """One node; `text` is its definition, `aliases` are other names for it, `attributes` are JSON values."""

    id: str
    name: str
    type: str = ""
    text: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Edge:
    """One directed edge between two node ids; parallel edges differ in `attributes`."""

    source: str
    relation: str
    target: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Columns:
    """The storage of a graph of N nodes and E edges, in canonical order.

    Strings per node: ids, names, texts, aliases (a JSON list or ""), attributes (a JSON object or "").
    `node_types` int32[N] indexes `type_names`. Edges: `sources`, `targets` int32[E] (node indices),
    `relations` int32[E] (into `relation_names`, sorted), `edge_attributes` int32[E] (into the distinct
    `edge_attribute_texts`).
    """

    ids: StringTable
    names: StringTable
    texts: StringTable
    aliases: StringTable
    attributes: StringTable
    node_types: Ints
    type_names: tuple[str, ...]
    sources: Ints
    relations: Ints
    targets: Ints
    relation_names: tuple[str, ...]
    edge_attributes: Ints
    edge_attribute_texts: StringTable


class Graph(Exchange):
    """An immutable directed multigraph; build one with `from_dict`, `load`, another `from_...`, or `GraphBuilder`.

    Methods that take a node take its id; methods that say `index` work on integers, for speed.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._starts = _row_starts(columns.sources, len(columns.ids))

    # ---- reading it

    @property
    def num_nodes(self) -> int:
        return len(self.columns.ids)

    @property
    def num_edges(self) -> int:
        return len(self.columns.sources)

    def __contains__(self, node_id: object) -> bool:
        return isinstance(node_id, str) and self.columns.ids.find(node_id) >= 0

    @property
    def nbytes(self) -> int:
        """Bytes that the columns and the index of edges by source occupy."""
        values = [getattr(self.columns, column.name) for column in fields(self.columns)]
        arrays = {id(value): int(value.nbytes) for value in values if not isinstance(value, tuple)}
        return sum(arrays.values()) + self._starts.nbytes

    def __repr__(self) -> str:
        return f"Graph({self.num_nodes:,} nodes, {self.num_edges:,} edges)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content; equal for equal graphs, whatever order they were given in."""
        digest = hashlib.sha256()
        columns = self.columns
        for table in (columns.ids, columns.names, columns.texts, columns.aliases, columns.attributes):
            digest.update(table.offsets.tobytes())
            digest.update(table.data.tobytes())
        for names in (columns.type_names, columns.relation_names):
            digest.update(json.dumps(names).encode())
        digest.update(columns.edge_attribute_texts.offsets.tobytes())
        digest.update(columns.edge_attribute_texts.data.tobytes())
        for array in (
            columns.node_types,
            columns.sources,
            columns.relations,
            columns.targets,
            columns.edge_attributes,
        ):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def index_of(self, node_id: str) -> int:
        """Position of a node in canonical order; raises GraphError if there is none with this id."""
        index = self.columns.ids.find(node_id) if isinstance(node_id, str) else -1
        if index < 0:
            raise GraphError(f"the graph has no node with the id {shown(node_id)}")
        return index

    def indices_of(self, node_ids: Sequence[str]) -> Ints:
        """`index_of` for many ids at once, int32[len(node_ids)]."""
        indices = self.columns.ids.find_all(node_ids)
        for position in np.flatnonzero(indices < 0)[:1].tolist():
            raise GraphError(f"the graph has no node with the id {shown(node_ids[position])}")
        return indices

    def id_of(self, index: int) -> str:
        return self.columns.ids[index]

    def name_of(self, node_id: str) -> str:
        return self.columns.names[self.index_of(node_id)]

    def node(self, node_id: str) -> Node:
        return self.node_at(self.index_of(node_id))

    def node_at(self, index: int) -> Node:
        columns = self.columns
        aliases, attributes = columns.aliases[index], columns.attributes[index]
        return Node(
            columns.ids[index],
            columns.names[index],
            columns.type_names[columns.node_types[index]],
            columns.texts[index],
            json.loads(attributes) if attributes else {},
            tuple(json.loads(aliases)) if aliases else (),
        )

    def edge_at(self, index: int) -> Edge:
        columns = self.columns
        attributes = columns.edge_attribute_texts[int(columns.edge_attributes[index])]
        return Edge(
            columns.ids[int(columns.sources[index])],
            columns.relation_names[int(columns.relations[index])],
            columns.ids[int(columns.targets[index])],
            json.loads(attributes) if attributes else {},
        )

    def nodes(self) -> Iterator[Node]:
        """All nodes, by id."""
        return (self.node_at(index) for index in range(self.num_nodes))

    def edges(self) -> Iterator[Edge]:
        """All edges, by (source, relation, target, attributes)."""
        return (self.edge_at(index) for index in range(self.num_edges))

    def nodes_of_type(self, node_type: str) -> Ints:
        """Indices int32[n] of the nodes of a type, ascending."""
        if node_type not in self.columns.type_names:
            return np.zeros(0, np.int32)
        code = self.columns.type_names.index(node_type)
        return np.flatnonzero(self.columns.node_types == code).astype(np.int32)

    # ---- walking it

    def edge_indices(self, index: int, direction: Direction = "out", relation: str | None = None) -> Ints:
        """Indices int32[n] of the edges at a node, ascending (canonical); `both` lists a self-loop once."""
        if direction == "both":
            return np.union1d(
                self.edge_indices(index, "out", relation), self.edge_indices(index, "in", relation)
            )
        if direction == "out":
            found = np.arange(self._starts[index], self._starts[index + 1], dtype=np.int32)
        elif direction == "in":
            order, starts = self._incoming
            found = order[starts[index] : starts[index + 1]]
        else:
            raise GraphError(f"direction: expected 'out', 'in' or 'both', found {shown(direction)}")
        if relation is None:
            return found
        chosen: Ints = found[self.columns.relations[found] == self.relation_code(relation)]
        return chosen

    def relation_code(self, relation: str) -> int:
        """Number of a relation, or -1 if no edge has it."""
        names = self.columns.relation_names
        return names.index(relation) if relation in names else -1

    def edges_of(self, node_id: str, direction: Direction = "out", relation: str | None = None) -> list[Edge]:
        """The edges at a node in canonical order, optionally of one relation only."""
        return [self.edge_at(int(i)) for i in self.edge_indices(self.index_of(node_id), direction, relation)]

    def neighbors(
        self,
        node_id: str,
        direction: Direction = "out",
        relation: str | None = None,
        limit: int | None = None,
    ) -> list[Node]:
        """The nodes one edge away, by id, without duplicates; at most `limit` of them."""
        index = self.index_of(node_id)
        found = self.edge_indices(index, direction, relation)
        sources, targets = self.columns.sources[found], self.columns.targets[found]
        near = np.unique(np.where(sources == index, targets, sources))
        return [self.node_at(int(i)) for i in near[:limit]]

    def ancestors(self, node_id: str, relation: str = "is a") -> list[str]:
        """Ids of all nodes that `relation` reaches from a node, by id, without the node itself; cycles
        are fine."""
        start = self.index_of(node_id)
        seen, waiting = {start}, [start]
        while waiting:
            parents = self.columns.targets[self.edge_indices(waiting.pop(), "out", relation)]
            fresh = [parent for parent in parents.tolist() if parent not in seen]
            seen.update(fresh)
            waiting.extend(fresh)
        return [self.columns.ids[index] for index in sorted(seen - {start})]

    def subgraph(self, nodes: Iterable[str]) -> Graph:
        """The given nodes and every edge between two of them."""
        keep = np.zeros(self.num_nodes, bool)
        keep[self.indices_of(list(nodes))] = True
        edges = np.flatnonzero(keep[self.columns.sources] & keep[self.columns.targets])
        return self._restricted(np.flatnonzero(keep), edges)

    def edge_subgraph(self, edges: Iterable[int], nodes: Iterable[str] = ()) -> Graph:
        """The edges with the given indices, their end nodes, and `nodes`."""
        kept = np.unique(np.fromiter(edges, np.int64))
        if len(kept) and not 0 <= kept[0] <= kept[-1] < self.num_edges:
            raise GraphError(f"edge indices must lie in 0..{self.num_edges - 1}")
        extra = self.indices_of(list(nodes))
        ends = (self.columns.sources[kept], self.columns.targets[kept], extra)
        return self._restricted(np.unique(np.concatenate(ends)), kept)

    def _restricted(self, nodes: npt.NDArray[np.integer], edges: npt.NDArray[np.integer]) -> Graph:
        from vglm.graph.build import restrict

        return Graph(restrict(self.columns, nodes, edges))

    @cached_property
    def _incoming(self) -> tuple[Ints, npt.NDArray[np.int64]]:
        order = np.argsort(self.columns.targets, kind="stable").astype(np.int32)
        return order, _row_starts(self.columns.targets, self.num_nodes)


def _row_starts(rows: Ints, num_rows: int) -> npt.NDArray[np.int64]:
    """CSR row pointers int64[num_rows + 1] of row numbers."""
    starts = np.zeros(num_rows + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=num_rows), out=starts[1:])
    return starts
