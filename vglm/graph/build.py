"""Building graphs: collects nodes and edges, checks them, sorts them into canonical columns."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError
from vglm.graph.graph import Columns, Graph, Ints
from vglm.graph.limits import DEFAULT_LIMITS, Limits, canonical_json, checked_id, checked_text, shown
from vglm.graph.strings import StringTable

DEFAULT_RELATION = "related to"
_Row = tuple[str, str, str, str, str]  # name, type, text, aliases, attributes


class Codes(dict[str, int]):
    """Numbers strings in the order of their first mention: `codes[text]` always answers."""

    __slots__ = ()

    def __missing__(self, text: str) -> int:
        code = self[text] = len(self)
        return code

    def of(self, texts: Sequence[str]) -> Ints:
        """The numbers of many strings, int32[len(texts)]."""
        return np.fromiter(map(self.__getitem__, texts), np.int32, len(texts))


class GraphBuilder:
    """Collects nodes and edges in any order; `build()` gives the graph.

    `where` in each call is what error messages call the item ("nodes[3]", "line 17 of hp.obo"). Edges are kept
    as numbers, so that ten million of them are 160 MB.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._ids = Codes()  # of nodes and of edge ends, in order of first mention
        self._rows: dict[int, _Row] = {}  # of the ids that have been added as nodes
        self._relations = Codes()
        self._attributes = Codes({"": 0})
        self._edges = tuple(array("i") for _ in range(4))  # sources, relations, targets, attributes

    def add_node(
        self,
        node_id: object,
        name: object = None,
        type: object = "",
        text: object = "",
        aliases: object = (),
        attributes: object = None,
        where: str = "node",
    ) -> str:
        """Adds one node and returns its id; `name` defaults to the id. Raises GraphError and adds nothing
        if it is bad."""
        limits = self._limits
        key = checked_id(node_id, f"{where}.id", limits.id)
        if self.has_node(key):
            raise GraphError(f"{where}.id: the id {shown(key)} is used twice; ids must be unique")
        if len(self._rows) >= limits.nodes:
            raise GraphError(f"{where}: more than {limits.nodes:,} nodes")
        bare = attributes is None or attributes == {}
        row = (
            _text(key if name is None else name, where, "name", limits.name),
            _text(type, where, "type", limits.type),
            _text(text, where, "text", limits.text),
            "" if aliases == () else aliases_json(aliases, f"{where}.aliases", limits),
            "" if bare else canonical_json(attributes, f"{where}.attributes", limits.attributes),
        )
        self._rows[self._ids[key]] = row
        return key

    def has_node(self, node_id: str) -> bool:
        """True if `add_node` has added this id."""
        return self._ids.get(node_id) in self._rows

    def attributes_code(self, attributes: object, where: str = "edge") -> int:
        """A number for these edge attributes, to give to `add_edge` many times without checking them
        again."""
        return self._attributes[canonical_json(attributes, f"{where}.attributes", self._limits.attributes)]

    def add_edge(
        self,
        source: object,
        relation: object,
        target: object,
        attributes: object = None,
        where: str = "edge",
        code: int | None = None,
    ) -> None:
        """Adds one edge; its ends may be added later. Exact duplicates collapse into one when the graph is
        built.

        `code`, from `attributes_code`, stands for attributes that were checked before.
        """
        start = self._end(source, where, "source")
        end = self._end(target, where, "target")
        label = checked_text(relation, f"{where}.relation", self._limits.relation, empty=False)
        if code is None:
            code = self.attributes_code({} if attributes is None else attributes, where)
        self.append_checked(start, label, end, code)

    def append_checked(self, source: str, relation: str, target: str, code: int) -> None:
        """`add_edge` for a reader that has checked every value already, and has millions of them."""
        if len(self._edges[0]) >= self._limits.edges:
            raise GraphError(f"more than {self._limits.edges:,} edges")
        sources, relations, targets, attributes = self._edges
        sources.append(self._ids[source])
        relations.append(self._relations[relation])
        targets.append(self._ids[target])
        attributes.append(code)

    def add_triples(
        self,
        sources: Sequence[str],
        relations: Sequence[str],
        targets: Sequence[str],
        where: Callable[[int], str],
    ) -> None:
        """Adds many edges without attributes at once; `where(i)` is what messages call the i-th.

        Each distinct string is checked once. After an error the builder is of no further use.
        """
        if len(self._edges[0]) + len(sources) > self._limits.edges:
            raise GraphError(f"more than {self._limits.edges:,} edges")
        for codes, texts, field, column, limit in (
            (self._ids, sources, "source", 0, self._limits.id),
            (self._relations, relations, "relation", 1, self._limits.relation),
            (self._ids, targets, "target", 2, self._limits.id),
        ):
            known = len(codes)
            numbers = codes.of(texts)
            for text in islice(reversed(codes), len(codes) - known):
                if not text or len(text) > limit or not text.isascii():
                    checked_text(text, f"{where(texts.index(text))}.{field}", limit, empty=False)
            self._edges[column].frombytes(numbers.tobytes())
        self._edges[3].frombytes(bytes(4 * len(sources)))

    def add_numbered(self, sources: Ints, relations: Ints, targets: Ints, names: Sequence[str]) -> None:
        """Adds many edges without attributes between nodes that are numbers, int32[n] each: the place of a node among
        all that were added, if nothing but nodes was added before; and that of a relation among `names`."""
        if len(self._edges[0]) + len(sources) > self._limits.edges:
            raise GraphError(f"more than {self._limits.edges:,} edges")
        for name in names:
            checked_text(name, "relation", self._limits.relation, empty=False)
        columns = (sources, self._relations.of(names)[relations], targets)
        for edge, column in zip(self._edges, columns, strict=False):
            edge.frombytes(np.ascontiguousarray(column, np.int32).tobytes())
        self._edges[3].frombytes(bytes(4 * len(sources)))

    def build(self, edge_names: str = "edges", bare_ends: bool = False) -> Graph:
        """The graph of everything added.

        An edge's end that is no node becomes a node without more than its id with `bare_ends`; otherwise it is
        a GraphError that names the edge by its number in `edge_names`.
        """
        if len(self._ids) != len(self._rows):
            self._check_ends(edge_names, bare_ends)
        sources, relations, targets, attributes = (np.frombuffer(edge, np.int32) for edge in self._edges)
        relation_names, relation_order = _sorted_texts(self._relations, relations)
        attribute_texts, attribute_order = _sorted_texts(self._attributes, np.append(attributes, 0))
        ids = sorted(self._ids)
        order = self._ids.of(ids)
        positions = np.empty(len(ids), np.int32)
        positions[order] = np.arange(len(ids), dtype=np.int32)
        sources, relations, targets, attributes = canonical_edges(
            (positions[sources], relation_order[relations], positions[targets], attribute_order[attributes]),
            (len(ids), len(relation_names), len(ids), len(attribute_texts)),
        )
        return Graph(
            Columns(
                **self._node_columns(ids, order),
                sources=sources,
                relations=relations,
                targets=targets,
                relation_names=tuple(relation_names),
                edge_attributes=attributes,
                edge_attribute_texts=StringTable.of(attribute_texts),
            )
        )

    def _end(self, node_id: object, where: str, field: str) -> str:
        if isinstance(node_id, str) and node_id in self._ids:
            return node_id
        return checked_id(node_id, f"{where}.{field}", self._limits.id)

    def _check_ends(self, edge_names: str, bare_ends: bool) -> None:
        if bare_ends:
            if len(self._ids) > self._limits.nodes:
                raise GraphError(f"more than {self._limits.nodes:,} nodes")
            return
        added = np.zeros(len(self._ids), bool)
        added[list(self._rows)] = True
        ids = list(self._ids)
        for field, column in (("source", self._edges[0]), ("target", self._edges[2])):
            ends = np.frombuffer(column, np.int32)
            for position in np.flatnonzero(~added[ends])[:1].tolist():
                raise GraphError(
                    f"{edge_names}[{position}].{field}: no node has the id {shown(ids[ends[position]])}"
                )

    def _node_columns(self, ids: list[str], order: Ints) -> dict[str, Any]:
        table = StringTable.of(ids)
        if not self._rows:
            empty = StringTable.empty(len(ids))
            columns: dict[str, Any] = dict.fromkeys(("texts", "aliases", "attributes"), empty)
            no_types = {"type_names": ("",) if ids else (), "node_types": np.zeros(len(ids), np.int32)}
            return {**columns, **no_types, "ids": table, "names": table}
        rows = [
            self._rows.get(code) or (node_id, "", "", "", "")
            for code, node_id in zip(order.tolist(), ids, strict=True)
        ]
        names, types, texts, aliases, attributes = zip(*rows, strict=True)
        type_names = sorted(set(types))
        type_codes = {name: code for code, name in enumerate(type_names)}
        return {
            "ids": table,
            "names": StringTable.of(names),
            "texts": StringTable.of(texts),
            "aliases": StringTable.of(aliases),
            "attributes": StringTable.of(attributes),
            "node_types": np.fromiter((type_codes[name] for name in types), np.int32, len(ids)),
            "type_names": tuple(type_names),
        }


def restrict(columns: Columns, nodes: npt.NDArray[np.integer], edges: npt.NDArray[np.integer]) -> Columns:
    """The columns of a sub-graph: `nodes` and `edges` are ascending indices, and hold the ends of the edges.

    Codes are renumbered to what occurs, so that a sub-graph equals the same graph built from its parts.
    """
    types, type_codes = np.unique(columns.node_types[nodes], return_inverse=True)
    kinds, relation_codes = np.unique(columns.relations[edges], return_inverse=True)
    used, attribute_codes = np.unique(np.append(columns.edge_attributes[edges], 0), return_inverse=True)
    return Columns(
        ids=columns.ids.take(nodes),
        names=columns.names.take(nodes),
        texts=columns.texts.take(nodes),
        aliases=columns.aliases.take(nodes),
        attributes=columns.attributes.take(nodes),
        node_types=type_codes.astype(np.int32),
        type_names=tuple(columns.type_names[int(code)] for code in types),
        sources=np.searchsorted(nodes, columns.sources[edges]).astype(np.int32),
        relations=relation_codes.astype(np.int32),
        targets=np.searchsorted(nodes, columns.targets[edges]).astype(np.int32),
        relation_names=tuple(columns.relation_names[int(code)] for code in kinds),
        edge_attributes=attribute_codes[:-1].astype(np.int32),
        edge_attribute_texts=columns.edge_attribute_texts.take(used),
    )


def _text(value: object, where: str, field: str, limit: int) -> str:
    """`checked_text`, quickly for what is plainly right."""
    if isinstance(value, str) and len(value) <= limit and value.isascii():
        return value
    return checked_text(value, f"{where}.{field}", limit)


def aliases_json(aliases: object, where: str, limits: Limits) -> str:
    if isinstance(aliases, str) or not isinstance(aliases, Sequence):
        raise GraphError(f"{where}: expected a list of strings, found {shown(aliases)}")
    if len(aliases) > limits.aliases:
        raise GraphError(f"{where}: {len(aliases):,} aliases, the limit is {limits.aliases:,}")
    names = {
        checked_text(alias, f"{where}[{position}]", limits.name) for position, alias in enumerate(aliases)
    }
    return json.dumps(sorted(names), ensure_ascii=False, separators=(",", ":")) if names else ""


def _sorted_texts(codes: Codes, used: Ints) -> tuple[list[str], Ints]:
    """The texts in use, sorted, and old code -> new code, int32[len(codes)]."""
    occurs = np.zeros(len(codes), bool)
    occurs[used] = True
    texts = sorted(text for text, code in codes.items() if occurs[code])
    order = np.zeros(len(codes), np.int32)
    order[codes.of(texts)] = np.arange(len(texts), dtype=np.int32)
    return texts, order


def canonical_edges(
    columns: tuple[Ints, Ints, Ints, Ints], sizes: tuple[int, int, int, int]
) -> tuple[Ints, Ints, Ints, Ints]:
    """Sorts edges by (source, relation, target, attributes) and drops exact duplicates.

    `sizes` bounds each column's codes. Where a whole edge fits into 63 bits, as nearly always, one sort of one
    array does both, twenty times faster than a sort by four keys.
    """
    if math.prod(max(size, 1) for size in sizes) < 2**63:
        keys = columns[0].astype(np.int64)
        for column, size in zip(columns[1:], sizes[1:], strict=True):
            keys *= max(size, 1)
            keys += column
        keys.sort()
        keys = keys[_first_of_equal(keys)]
        found: list[Ints] = []
        for size in sizes[:0:-1]:
            keys, codes = np.divmod(keys, max(size, 1))
            found.append(codes.astype(np.int32))
        return keys.astype(np.int32), found[2], found[1], found[0]
    order = np.lexsort(columns[::-1])
    sources, relations, targets, attributes = (column[order] for column in columns)
    distinct = np.zeros(len(order), bool)
    for column in (sources, relations, targets, attributes):
        distinct |= _first_of_equal(column)
    return sources[distinct], relations[distinct], targets[distinct], attributes[distinct]


def _first_of_equal(values: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """True where a value differs from the one before it."""
    first = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return first
