"""Building graphs: collects nodes and edges, checks them, sorts them into canonical columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError
from vglm.graph.graph import Columns, Graph, Ints
from vglm.graph.limits import DEFAULT_LIMITS, Limits, canonical_json, checked_id, checked_text, shown
from vglm.graph.strings import StringTable

NODE_FIELDS = frozenset({"id", "name", "type", "text", "aliases", "attributes"})
EDGE_FIELDS = frozenset({"source", "relation", "target", "attributes"})
DEFAULT_RELATION = "related to"


class GraphBuilder:
    """Collects nodes and edges in any order; `build()` gives the graph.

    `where` in each call is what error messages call the item ("nodes[3]", "line 17 of hp.obo").
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._nodes: dict[
            str, tuple[str, str, str, str, str]
        ] = {}  # id -> name, type, text, aliases, attributes
        self._sources: list[str] = []
        self._relations: list[str] = []
        self._targets: list[str] = []
        self._attributes: list[int] = []
        self._attribute_codes: dict[str, int] = {"": 0}
        self._ends: set[str] = set()  # ids of edge ends that were checked: most occur many times

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
        if key in self._nodes:
            raise GraphError(f"{where}.id: the id {shown(key)} is used twice; ids must be unique")
        if len(self._nodes) >= limits.nodes:
            raise GraphError(f"{where}: more than {limits.nodes:,} nodes")
        self._nodes[key] = (
            checked_text(key if name is None else name, f"{where}.name", limits.name),
            checked_text(type, f"{where}.type", limits.type),
            checked_text(text, f"{where}.text", limits.text),
            _aliases_json(aliases, f"{where}.aliases", limits),
            canonical_json(
                {} if attributes is None else attributes, f"{where}.attributes", limits.attributes
            ),
        )
        return key

    def has_node(self, node_id: str) -> bool:
        return node_id in self._nodes

    def attributes_code(self, attributes: object, where: str = "edge") -> int:
        """A number for these edge attributes, to give to `add_edge` many times without checking them
        again."""
        text = canonical_json(attributes, f"{where}.attributes", self._limits.attributes)
        return self._attribute_codes.setdefault(text, len(self._attribute_codes))

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
        if len(self._sources) >= self._limits.edges:
            raise GraphError(f"more than {self._limits.edges:,} edges")
        self._sources.append(source)
        self._relations.append(relation)
        self._targets.append(target)
        self._attributes.append(code)

    def _end(self, node_id: object, where: str, field: str) -> str:
        if isinstance(node_id, str) and node_id in self._ends:
            return node_id
        key = checked_id(node_id, f"{where}.{field}", self._limits.id)
        self._ends.add(key)
        return key

    def build(self, edge_names: str = "edges") -> Graph:
        """The graph of everything added; raises GraphError naming the edge whose end is no node."""
        ids = sorted(self._nodes)
        index = {node_id: position for position, node_id in enumerate(ids)}
        rows = [self._nodes[node_id] for node_id in ids]
        type_names = tuple(sorted({row[1] for row in rows}))
        type_codes = {name: code for code, name in enumerate(type_names)}
        relation_names = tuple(sorted(set(self._relations)))
        relation_codes = {name: code for code, name in enumerate(relation_names)}
        attribute_texts, attribute_order = _sorted_texts(self._attribute_codes, {0, *self._attributes})
        sources, targets, relations, attributes = _canonical_edges(
            _ends(self._sources, index, f"{edge_names}[%d].source"),
            _ends(self._targets, index, f"{edge_names}[%d].target"),
            np.fromiter((relation_codes[name] for name in self._relations), np.int32),
            attribute_order[np.array(self._attributes, np.int32)],
        )
        return Graph(
            Columns(
                ids=StringTable.of(ids),
                names=StringTable.of(row[0] for row in rows),
                texts=StringTable.of(row[2] for row in rows),
                aliases=StringTable.of(row[3] for row in rows),
                attributes=StringTable.of(row[4] for row in rows),
                node_types=np.fromiter((type_codes[row[1]] for row in rows), np.int32),
                type_names=type_names,
                sources=sources,
                relations=relations,
                targets=targets,
                relation_names=relation_names,
                edge_attributes=attributes,
                edge_attribute_texts=attribute_texts,
            )
        )


def graph_from_dict(data: Mapping[str, Any], limits: Limits) -> Graph:
    """See `Graph.from_dict`."""
    if not isinstance(data, Mapping):
        raise GraphError(f"graph: expected an object with nodes and edges, found {shown(data)}")
    if "edges" in data and "links" in data:
        raise GraphError("graph: has both edges and links; give one of them")
    edge_names = "links" if "links" in data else "edges"
    builder = GraphBuilder(limits)
    for position, item in enumerate(_items(data, "nodes")):
        where = f"nodes[{position}]"
        fields = _fields(item, where, NODE_FIELDS)
        if "id" not in item:
            raise GraphError(f"{where}.id: is missing")
        builder.add_node(
            item["id"],
            item.get("name"),
            item.get("type", ""),
            item.get("text", ""),
            item.get("aliases", ()),
            fields,
            where,
        )
    for position, item in enumerate(_items(data, edge_names)):
        where = f"{edge_names}[{position}]"
        fields = _fields(item, where, EDGE_FIELDS)
        for end in ("source", "target"):
            if end not in item:
                raise GraphError(f"{where}.{end}: is missing")
        builder.add_edge(
            item["source"], item.get("relation", DEFAULT_RELATION), item["target"], fields, where
        )
    return builder.build(edge_names)


def graph_from_triples(triples: Iterable[Sequence[str]], limits: Limits) -> Graph:
    """See `Graph.from_triples`."""
    builder = GraphBuilder(limits)
    for position, triple in enumerate(triples):
        where = f"triples[{position}]"
        if isinstance(triple, str) or not isinstance(triple, Sequence) or len(triple) != 3:
            raise GraphError(f"{where}: expected (source, relation, target), found {shown(triple)}")
        source, relation, target = triple
        for end, field in ((source, "source"), (target, "target")):
            key = checked_id(end, f"{where}.{field}", limits.id)
            if not builder.has_node(key):
                builder.add_node(key, where=where)
        builder.add_edge(source, relation, target, where=where)
    return builder.build("triples")


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


def _items(data: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = data.get(key, [])
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise GraphError(f"{key}: expected a list, found {shown(value)}")
    return value


def _fields(item: object, where: str, known: frozenset[str]) -> dict[str, Any]:
    """An item's attributes: those given as `attributes`, and every field that has no meaning of its own."""
    if not isinstance(item, Mapping):
        raise GraphError(f"{where}: expected an object, found {shown(item)}")
    attributes = item.get("attributes", {})
    if not isinstance(attributes, Mapping):
        raise GraphError(f"{where}.attributes: expected an object, found {shown(attributes)}")
    inline = {key: value for key, value in item.items() if key not in known}
    if both := inline.keys() & attributes.keys():
        raise GraphError(f"{where}.{shown(min(map(str, both)))}: given beside attributes and inside them")
    return {**attributes, **inline}


def _aliases_json(aliases: object, where: str, limits: Limits) -> str:
    if isinstance(aliases, str) or not isinstance(aliases, Sequence):
        raise GraphError(f"{where}: expected a list of strings, found {shown(aliases)}")
    if len(aliases) > limits.aliases:
        raise GraphError(f"{where}: {len(aliases):,} aliases, the limit is {limits.aliases:,}")
    names = {
        checked_text(alias, f"{where}[{position}]", limits.name) for position, alias in enumerate(aliases)
    }
    return json.dumps(sorted(names), ensure_ascii=False, separators=(",", ":")) if names else ""


def _ends(ids: list[str], index: dict[str, int], where: str) -> Ints:
    try:
        return np.fromiter((index[node_id] for node_id in ids), np.int32, len(ids))
    except KeyError:
        position = next(i for i, node_id in enumerate(ids) if node_id not in index)
        raise GraphError(f"{where % position}: no node has the id {shown(ids[position])}") from None


def _sorted_texts(codes: dict[str, int], used: set[int]) -> tuple[StringTable, Ints]:
    """The attribute texts in use, sorted ("" comes first, as code 0), and old code -> new code."""
    texts = sorted(text for text, code in codes.items() if code in used)
    order = np.zeros(len(codes), np.int32)
    for position, text in enumerate(texts):
        order[codes[text]] = position
    return StringTable.of(texts), order


def _canonical_edges(
    sources: Ints, targets: Ints, relations: Ints, attributes: Ints
) -> tuple[Ints, Ints, Ints, Ints]:
    """Sorts edges by (source, relation, target, attributes) and drops exact duplicates."""
    order = np.lexsort((attributes, targets, relations, sources))
    columns = [column[order] for column in (sources, targets, relations, attributes)]
    if len(order):
        distinct = np.zeros(len(order), bool)
        distinct[0] = True
        for column in columns:
            distinct[1:] |= column[1:] != column[:-1]
        columns = [column[distinct] for column in columns]
    return columns[0], columns[1], columns[2], columns[3]
