"""What changes in a graph: a patch as a caller gives it, checked, and as it is written down and replayed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from vglm.errors import GraphError
from vglm.graph.build import DEFAULT_RELATION, aliases_json
from vglm.graph.formats.node_link import EDGE_FIELDS, NODE_FIELDS, node_item, split_fields
from vglm.graph.graph import Edge, Node
from vglm.graph.limits import Limits, canonical_json, checked_id, checked_text, shown

Row = tuple[
    str, str, str, str, str, str
]  # of a node: id, name, type, text, aliases, attributes (as in `Columns`)
EdgeKey = tuple[str, str, str, str]  # source, relation, target, attributes (canonical JSON, "" for none)
NodeItem = Node | Mapping[str, Any]
EdgeItem = Edge | Mapping[str, Any] | tuple[Any, ...] | list[Any]


@dataclass(frozen=True, slots=True)
class Change:
    """What one version does to the one before it, exactly: edges and nodes go, then nodes and edges come.

    Edges that go with a node are not listed; replaying the change finds them again.
    """

    delete_edges: tuple[EdgeKey, ...] = ()
    delete_nodes: tuple[str, ...] = ()
    upsert_nodes: tuple[Row, ...] = ()
    upsert_edges: tuple[EdgeKey, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.delete_edges or self.delete_nodes or self.upsert_nodes or self.upsert_edges)

    def encode(self) -> bytes:
        """As JSON."""
        lists = [getattr(self, part.name) for part in fields(self)]
        return json.dumps(lists, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Change:
        """What `encode` wrote; raises ValueError or TypeError for anything else."""
        edges_out, nodes_out, nodes_in, edges_in = json.loads(data)
        return cls(
            tuple(_strings(edge, 4) for edge in edges_out),
            _strings(nodes_out, len(nodes_out)),
            tuple(_strings(row, 6) for row in nodes_in),
            tuple(_strings(edge, 4) for edge in edges_in),
        )


@dataclass(frozen=True, slots=True)
class EdgePattern:
    """Edges to delete: with `attributes` one edge, without (None) all parallel ones."""

    source: str
    relation: str
    target: str
    attributes: str | None

    def __str__(self) -> str:
        suffix = "" if self.attributes is None else f" with the attributes {shown(self.attributes or '{}')}"
        return edge_shown(self.source, self.relation, self.target) + suffix


@dataclass(frozen=True, slots=True)
class Patch:
    """A caller's patch of which everything is checked that can be without the graph."""

    delete_edges: tuple[EdgePattern, ...]
    delete_nodes: tuple[str, ...]
    upsert_nodes: tuple[Row, ...]
    upsert_edges: tuple[EdgeKey, ...]

    @classmethod
    def of(
        cls,
        upsert_nodes: Iterable[NodeItem],
        delete_nodes: Iterable[object],
        upsert_edges: Iterable[EdgeItem],
        delete_edges: Iterable[EdgeItem],
        limits: Limits,
    ) -> Patch:
        """Checks and puts into canonical form; raises GraphError that names list, item and field."""
        rows: dict[str, Row] = {}
        for where, node in _numbered("upsert_nodes", upsert_nodes, limits.nodes):
            row = node_row(node, where, limits)
            if row[0] in rows:
                raise GraphError(f"{where}.id: the id {shown(row[0])} is used twice in upsert_nodes")
            rows[row[0]] = row
        return cls(
            tuple(
                _pattern(edge, where, limits)
                for where, edge in _numbered("delete_edges", delete_edges, limits.edges)
            ),
            tuple(
                checked_id(node_id, where, limits.id)
                for where, node_id in _numbered("delete_nodes", delete_nodes, limits.nodes)
            ),
            tuple(rows.values()),
            tuple(
                edge_key(edge, where, limits)
                for where, edge in _numbered("upsert_edges", upsert_edges, limits.edges)
            ),
        )


def patch_parts(document: object) -> dict[str, list[Any]]:
    """The arguments of `GraphStore.patch` in a JSON document: an object with any of upsert_nodes, delete_nodes,
    upsert_edges and delete_edges. Raises GraphError for anything else in it."""
    known = [part.name for part in fields(Patch)]
    if not isinstance(document, Mapping):
        raise GraphError(f"patch: expected an object with {', '.join(known)}, found {shown(document)}")
    for key, value in document.items():
        if key not in known:
            raise GraphError(f"patch: has no field {shown(key)}; it may have {', '.join(known)}")
        if not isinstance(value, list):
            raise GraphError(f"{key}: expected a list, found {shown(value)}")
    return dict(document)


def node_row(item: NodeItem, where: str, limits: Limits) -> Row:
    """A node in canonical form; unknown fields become attributes, and the name defaults to the id."""
    found, attributes = split_fields(node_item(item) if isinstance(item, Node) else item, where, NODE_FIELDS)
    if "id" not in found:
        raise GraphError(f"{where}.id: is missing")
    node_id = checked_id(found["id"], f"{where}.id", limits.id)
    name = found.get("name")
    return (
        node_id,
        checked_text(node_id if name is None else name, f"{where}.name", limits.name),
        checked_text(found.get("type", ""), f"{where}.type", limits.type),
        checked_text(found.get("text", ""), f"{where}.text", limits.text),
        aliases_json(found.get("aliases", ()), f"{where}.aliases", limits),
        canonical_json(attributes, f"{where}.attributes", limits.attributes),
    )


def edge_key(item: EdgeItem, where: str, limits: Limits) -> EdgeKey:
    """An edge in canonical form."""
    pattern = _pattern(item, where, limits)
    return pattern.source, pattern.relation, pattern.target, pattern.attributes or ""


def edge_shown(source: str, relation: str, target: str) -> str:
    """An edge for an error message."""
    return f"{shown(source)} -[{shown(relation)}]-> {shown(target)}"


def _pattern(item: EdgeItem, where: str, limits: Limits) -> EdgePattern:
    if isinstance(item, Edge):
        source: object = item.source
        relation: object = item.relation
        target: object = item.target
        attributes: object = item.attributes
    elif isinstance(item, tuple | list):
        if len(item) not in (3, 4):
            raise GraphError(f"{where}: expected (source, relation, target), found {len(item)} values")
        source, relation, target = item[:3]
        attributes = item[3] if len(item) == 4 else None
    else:
        found, merged = split_fields(item, where, EDGE_FIELDS)
        for end in ("source", "target"):
            if end not in found:
                raise GraphError(f"{where}.{end}: is missing")
        source, target = found["source"], found["target"]
        relation = found.get("relation", DEFAULT_RELATION)
        attributes = merged if merged or "attributes" in found else None
    return EdgePattern(
        checked_id(source, f"{where}.source", limits.id),
        checked_text(relation, f"{where}.relation", limits.relation, empty=False),
        checked_id(target, f"{where}.target", limits.id),
        None if attributes is None else canonical_json(attributes, f"{where}.attributes", limits.attributes),
    )


def _numbered(name: str, items: Iterable[Any], most: int) -> Iterable[tuple[str, Any]]:
    """Each item with what messages call it; at most `most` of them."""
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise GraphError(f"{name}: expected a list, found {shown(items)}")
    for position, item in enumerate(islice(items, most + 1)):
        if position == most:
            raise GraphError(f"{name}: more than {most:,} items")
        yield f"{name}[{position}]", item


def _strings(values: Any, count: int) -> Any:
    """`values` as a tuple, if they are so many strings."""
    if not isinstance(values, list) or len(values) != count or not all(type(v) is str for v in values):
        raise ValueError("not a list of strings")
    return tuple(values)
