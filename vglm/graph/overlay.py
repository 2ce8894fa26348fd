"""A graph and what has changed since: it answers what is there now without a new graph being built.

A patch of a graph of a million edges is checked and counted here in microseconds; the arrays of the new graph
are made (vglm/graph/splice.py) when somebody reads it.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from vglm.errors import GraphError
from vglm.graph.changes import Change, EdgeKey, EdgePattern, Patch, Row, edge_shown
from vglm.graph.graph import Graph, Ints
from vglm.graph.limits import Limits, shown
from vglm.graph.splice import spliced

_Triple = tuple[str, str, str]
_LOOKS = 32


class Overlay:
    """`base` after some changes. Not safe for several threads at once.

    `_rows` are nodes that came (a row) or went (None); `_removed` bool[E] marks edges of the base that are gone;
    `_added` has the edges that the base lacks, as attributes by triple, and `_added_at` the triples at a node.
    """

    def __init__(self, base: Graph) -> None:
        self.base = base
        self.num_nodes = base.num_nodes
        self.num_edges = base.num_edges
        self._rows: dict[str, Row | None] = {}
        self._removed = np.zeros(base.num_edges, np.bool_)
        self._added: dict[_Triple, set[str]] = {}
        self._added_at: dict[str, set[_Triple]] = {}
        self._changed = False
        self._looks = 0

    # ---- what is there

    def row(self, node_id: str) -> Row | None:
        """A node, or None if there is none with this id."""
        if node_id in self._rows:
            return self._rows[node_id]
        columns = self.base.columns
        index = columns.ids.find(node_id)
        if index < 0:
            return None
        kind = columns.type_names[int(columns.node_types[index])]
        texts = (columns.texts[index], columns.aliases[index], columns.attributes[index])
        return (node_id, columns.names[index], kind, *texts)

    def has_node(self, node_id: str) -> bool:
        if node_id in self._rows:
            return self._rows[node_id] is not None
        return self.base.columns.ids.find(node_id) >= 0

    def has_edge(self, key: EdgeKey) -> bool:
        index = self._base_edge(key)
        return not self._removed[index] if index >= 0 else key[3] in self._added.get(key[:3], ())

    def parallel_edges(self, source: str, relation: str, target: str) -> list[EdgeKey]:
        """The edges between two nodes of one relation, by attributes."""
        columns = self.base.columns
        texts = set(self._added.get((source, relation, target), ()))
        for index in self._base_parallel(source, relation, target):
            if not self._removed[index]:
                texts.add(columns.edge_attribute_texts[int(columns.edge_attributes[index])])
        return [(source, relation, target, text) for text in sorted(texts)]

    # ---- changing it

    def resolve(self, patch: Patch, limits: Limits) -> Change:
        """What a patch changes here; without items that change nothing. Raises GraphError that names the item
        if it deletes what is not there, links an unknown node, or makes the graph too large."""
        deleted = self._deleted_nodes(patch)
        dead_edges = self._deleted_edges(patch)
        rows = {row[0]: row for row in patch.upsert_nodes}
        dead_nodes = set(deleted)
        for position, edge in enumerate(patch.upsert_edges):
            for field, end in (("source", edge[0]), ("target", edge[2])):
                if end not in rows and (end in dead_nodes or not self.has_node(end)):
                    gone = "; the patch deletes it" if end in dead_nodes else ""
                    raise GraphError(
                        f"upsert_edges[{position}].{field}: no node has the id {shown(end)}{gone} "
                        f"(edge {edge_shown(*edge[:3])})"
                    )
        change = Change(
            tuple(dead_edges),
            tuple(deleted),
            tuple(row for node_id, row in rows.items() if node_id in dead_nodes or self.row(node_id) != row),
            tuple(
                edge
                for edge in dict.fromkeys(patch.upsert_edges)
                if edge in dead_edges or not dead_nodes.isdisjoint(edge[::2]) or not self.has_edge(edge)
            ),
        )
        fresh = sum(not self.has_node(row[0]) for row in change.upsert_nodes)
        if self.num_nodes - len(dead_nodes - rows.keys()) + fresh > limits.nodes:
            raise GraphError(f"the graph would have more than {limits.nodes:,} nodes")
        if self.num_edges - len(dead_edges) + len(change.upsert_edges) > limits.edges:
            raise GraphError(f"the graph would have more than {limits.edges:,} edges")
        return change

    def apply(self, change: Change) -> None:
        """Replays a change that `resolve` gave for this content."""
        for edge in change.delete_edges:
            self._remove_edge(edge)
        for node_id in change.delete_nodes:
            self._remove_node(node_id)
        for row in change.upsert_nodes:
            self.num_nodes += not self.has_node(row[0])
            self._rows[row[0]] = row
        for edge in change.upsert_edges:
            self._add_edge(edge)
        self._changed = self._changed or bool(change)

    def graph(self) -> Graph:
        """The content as a graph: `base` itself if nothing has changed."""
        if not self._changed:
            return self.base
        added = [(*triple, text) for triple, texts in self._added.items() for text in texts]
        return Graph(spliced(self.base.columns, self._rows, self._removed, added))

    # ---- details

    def _deleted_nodes(self, patch: Patch) -> dict[str, None]:
        deleted: dict[str, None] = {}
        for position, node_id in enumerate(patch.delete_nodes):
            if not self.has_node(node_id):
                raise GraphError(f"delete_nodes[{position}]: no node has the id {shown(node_id)}")
            deleted[node_id] = None
        return deleted

    def _deleted_edges(self, patch: Patch) -> dict[EdgeKey, None]:
        deleted: dict[EdgeKey, None] = {}
        for position, pattern in enumerate(patch.delete_edges):
            found = self._matching(pattern)
            if not found:
                raise GraphError(f"delete_edges[{position}]: there is no edge {pattern}")
            deleted.update(dict.fromkeys(found))
        return deleted

    def _matching(self, pattern: EdgePattern) -> list[EdgeKey]:
        triple = (pattern.source, pattern.relation, pattern.target)
        if pattern.attributes is None:
            return self.parallel_edges(*triple)
        key = (*triple, pattern.attributes)
        return [key] if self.has_edge(key) else []

    def _remove_edge(self, key: EdgeKey) -> None:
        index = self._base_edge(key)
        if index >= 0:
            self.num_edges -= not self._removed[index]
            self._removed[index] = True
            return
        triple = key[:3]
        texts = self._added.get(triple, set())
        if key[3] in texts:
            self.num_edges -= 1
            texts.remove(key[3])
        if not texts:
            self._forget(triple)

    def _add_edge(self, key: EdgeKey) -> None:
        index = self._base_edge(key)
        if index >= 0:
            self.num_edges += bool(self._removed[index])
            self._removed[index] = False
            return
        texts = self._added.setdefault(key[:3], set())
        self.num_edges += key[3] not in texts
        texts.add(key[3])
        for end in key[:3:2]:
            self._added_at.setdefault(end, set()).add(key[:3])

    def _remove_node(self, node_id: str) -> None:
        self.num_nodes -= self.has_node(node_id)
        self._rows[node_id] = None
        index = self.base.columns.ids.find(node_id)
        for edges in self._base_edges(index) if index >= 0 else ():
            self.num_edges -= int(np.count_nonzero(~self._removed[edges]))
            self._removed[edges] = True
        for triple in list(self._added_at.get(node_id, ())):
            self.num_edges -= len(self._added[triple])
            self._forget(triple)

    def _forget(self, triple: _Triple) -> None:
        """Drops a triple that was added, from the indexes too."""
        self._added.pop(triple, None)
        for end in triple[::2]:
            there = self._added_at.get(end, set())
            there.discard(triple)
            if not there:
                self._added_at.pop(end, None)

    def _base_edges(self, index: int) -> tuple[Ints, Ints]:
        """The base's edges that leave a node, and those that reach it.

        The first few times all edges are looked at: an index of the targets costs as much as a hundred such looks.
        """
        self._looks += 1
        if self._looks > _LOOKS:
            return self.base.edge_indices(index, "out"), self.base.edge_indices(index, "in")
        reach = np.flatnonzero(self.base.columns.targets == index)
        return self.base.edge_indices(index, "out"), reach.astype(np.int32)

    def _base_parallel(self, source: str, relation: str, target: str) -> range:
        """Indices of the base's edges of one triple: three binary searches in sorted columns."""
        columns = self.base.columns
        code = bisect_left(columns.relation_names, relation)
        known = columns.relation_names[code : code + 1] == (relation,)
        values = (columns.ids.find(source), code if known else -1, columns.ids.find(target))
        low, high = 0, self.base.num_edges
        for column, value in zip((columns.sources, columns.relations, columns.targets), values, strict=True):
            if value < 0:
                return range(0)
            # an int32 value, or numpy would convert the whole column first
            first, last = (
                np.searchsorted(column[low:high], np.int32(value), side) for side in ("left", "right")
            )
            low, high = low + int(first), low + int(last)
        return range(low, high)

    def _base_edge(self, key: EdgeKey) -> int:
        """Index of an edge in the base, gone or not; -1 if the base never had it."""
        columns = self.base.columns
        parallel = self._base_parallel(*key[:3])
        code = columns.edge_attribute_texts.find(key[3]) if parallel else -1
        if code < 0:
            return -1
        codes = columns.edge_attributes[parallel.start : parallel.stop]
        index = parallel.start + int(np.searchsorted(codes, np.int32(code)))
        return index if index in parallel and columns.edge_attributes[index] == code else -1
