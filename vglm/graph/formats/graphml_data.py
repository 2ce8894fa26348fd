"""What the data of a GraphML file say about nodes and edges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vglm.errors import GraphError
from vglm.graph.build import DEFAULT_RELATION, GraphBuilder
from vglm.graph.formats.node_link import parse_json
from vglm.graph.limits import shown

VGLM = "urn:vglm:graphml"  # namespace of `kind`, by which files of our own tell fields, attributes and JSON apart
_MAX_KEYS = 10_000
_MAX_DEFAULTS = 1 << 28  # characters that defaults may add to all nodes and edges together

# The first of these names that a node or an edge has gives the field; the others are attributes.
_NODE_NAMES = {
    "name": ("name", "label", "title"),
    "type": ("type", "labels", "kind", "category"),
    "text": ("text", "description", "definition"),
    "aliases": (),
}
_EDGE_NAMES = {"relation": ("relation", "label", "labels", "type", "name")}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(slots=True)
class Key:
    """A `<key>`: the name and type of some data, for "node", "edge" or "all"."""

    name: str
    type: str
    kind: str  # "field", "attribute" or "json" in files of our own, else ""
    domain: str
    default: str | None = None


@dataclass(slots=True)
class Item:
    """A node or an edge: the element's attributes, the line where it starts, and what is inside."""

    element: dict[str, str]
    where: str
    is_node: bool
    data: dict[str, str] = field(default_factory=dict)  # id of a key -> text
    labels: list[str] = field(default_factory=list)  # of drawings


class GraphData:
    """The keys of a file, and the graph that is being built of its items."""

    def __init__(self, builder: GraphBuilder) -> None:
        self.keys: dict[str, Key] = {}
        self._builder = builder
        self._defaults: dict[bool, dict[str, str]] = {True: {}, False: {}}  # of nodes; of edges
        self._defaulted = 0
        self._awaited: dict[str, str] = {}  # ends of edges that are no node yet -> where the first is

    def add_key(self, key_id: str, key: Key, where: str) -> None:
        """Adds a `<key>`; raises GraphError if there is one with this id, or there are too many."""
        if key_id in self.keys:
            raise GraphError(f"{where}: the key {shown(key_id)} is declared twice")
        if len(self.keys) >= _MAX_KEYS:
            raise GraphError(f"{where}: more than {_MAX_KEYS:,} keys")
        self.keys[key_id] = key
        for is_node, domain in ((True, "node"), (False, "edge")):
            if key.default is not None and key.domain in (domain, "all"):
                self._defaults[is_node][key_id] = key.default

    def add(self, item: Item) -> None:
        """Adds a node or an edge; raises GraphError naming its line and the field."""
        fields, attributes = self._values(item)
        element, builder = item.element, self._builder
        for name in ("id",) if item.is_node else ("source", "target"):
            if name not in element:
                raise GraphError(f"{item.where}.{name}: is missing")
        drawn = next(iter(item.labels), None)
        if item.is_node:
            fields.setdefault("name", drawn)
            builder.add_node(element["id"], **fields, attributes=attributes, where=item.where)
            return
        relation = fields.get("relation") or element.get("label") or drawn or DEFAULT_RELATION
        builder.add_edge(element["source"], relation, element["target"], attributes, item.where)
        for name in ("source", "target"):
            if not builder.has_node(element[name]):
                self._awaited.setdefault(element[name], f"{item.where}.{name}")

    def check_ends(self) -> None:
        """Raises GraphError for an edge whose end is no node of the file."""
        for end, where in self._awaited.items():
            if not self._builder.has_node(end):
                raise GraphError(f"{where}: no node has the id {shown(end)}")

    def _values(self, item: Item) -> tuple[dict[str, Any], dict[str, Any]]:
        """An item's fields and attributes."""
        texts: Mapping[str, str] = item.data
        if defaults := self._defaults[item.is_node]:
            texts = {**defaults, **texts}
            self._defaulted += sum(len(text) + 8 for text in defaults.values())
            if self._defaulted > _MAX_DEFAULTS:
                raise GraphError(f"{item.where}: defaults add more than {_MAX_DEFAULTS:,} characters")
        known = _NODE_NAMES if item.is_node else _EDGE_NAMES
        fields: dict[str, Any] = {}
        attributes: dict[str, Any] = {}
        found: dict[str, tuple[Key, str]] = {}  # of keys that may be fields
        for key_id, text in texts.items():
            key = self.keys[key_id]
            if key.kind == "field" and key.name in known:
                fields[key.name] = parse_json(text, item.where) if key.name == "aliases" else text
            elif not key.kind and key.name not in found:
                found[key.name] = key, text
            else:
                _add_attribute(attributes, key, text, item.where)
        own_type = "type" in fields
        for name, synonyms in known.items():
            own = next((word for word in synonyms if found.get(word, ("", ""))[1]), None)
            if own is not None and name not in fields:
                fields[name] = found.pop(own)[1]
        for key, text in found.values():
            _add_attribute(attributes, key, text, item.where)
        if item.is_node and not own_type:
            fields["type"] = _split_labels(fields.get("type", ""), attributes)
        return fields, attributes


def _add_attribute(attributes: dict[str, Any], key: Key, text: str, where: str) -> None:
    value = _value(key, text, f"{where}.{key.name[:60]}")
    if key.name in attributes:
        raise GraphError(f"{where}: {shown(key.name)} is given twice")
    if not (isinstance(value, float) and math.isnan(value)):  # igraph's way to say that there is none
        attributes[key.name] = value


def _value(key: Key, text: str, where: str) -> Any:
    """The text of some data as a JSON value."""
    if key.kind == "json":
        return parse_json(text, where)
    try:
        if key.type in ("int", "long", "integer"):
            return int(text)
        if key.type in ("double", "float"):
            number = float(text)
            return number if not math.isinf(number) else text
    except ValueError as error:
        raise GraphError(f"{where}: expected {key.type}, found {shown(text)}") from error
    if key.type == "boolean":
        if text.strip().lower() not in _BOOLEANS:
            raise GraphError(f"{where}: expected boolean, found {shown(text)}")
        return _BOOLEANS[text.strip().lower()]
    return text


def _split_labels(kind: str, attributes: dict[str, Any]) -> str:
    """A node's type; of several labels of Neo4j (":Person:Actor") the first, and all of them an attribute."""
    if not kind.startswith(":"):
        return kind
    first, *others = kind[1:].split(":")
    if others:
        attributes.setdefault("labels", [first, *others])
    return first
