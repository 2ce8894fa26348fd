"""Writes a graph as GraphML that networkx, igraph, Gephi and yEd read, and that reads back as an equal graph.

Attributes have keys of their types; lists, objects, null and numbers beyond 64 bits are JSON in strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from vglm.errors import GraphError
from vglm.graph.formats.graphml_data import VGLM
from vglm.graph.graph import Graph
from vglm.graph.limits import shown

_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    f'<graphml xmlns="http://graphml.graphdrawing.org/xmlns" xmlns:vglm="{VGLM}">'
)
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # no XML 1.0 document can hold these
_RETURN = {"\r": "&#13;"}  # which XML would turn into a line feed
_TYPES: dict[type, str] = {bool: "boolean", int: "long", float: "double", str: "string"}


def write_graphml(graph: Graph) -> bytes:
    """The graph as GraphML; raises GraphError naming the node for control characters, which XML cannot hold."""
    keys = _Keys()
    items = [*_nodes(graph, keys), *_edges(graph, keys)]
    lines = [_HEAD, *keys.declared, '<graph edgedefault="directed">', *items, "</graph>", "</graphml>", ""]
    return "\n".join(lines).encode()


class _Keys:
    """Numbers each distinct (domain, name, type); `declared` are the `<key>` elements."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, str, str, str], str] = {}
        self.declared: list[str] = []

    def data(self, domain: str, name: str, value: Any, where: str, kind: str = "attribute") -> str:
        """The `<data>` element of a value."""
        if kind == "attribute" and not _fits(value):
            kind = "json"
        plain = isinstance(value, str) and kind != "json"
        type_name = "string" if kind == "json" else _TYPES.get(type(value), "string")
        key = self._id(domain, name, type_name, kind, where)
        text = value if plain else json.dumps(value)
        return f'<data key="{key}">{_text(text, f"{where}.{name[:60]}")}</data>'

    def _id(self, domain: str, name: str, type_name: str, kind: str, where: str) -> str:
        key = (domain, name, type_name, kind)
        if key not in self._ids:
            self._ids[key] = f"d{len(self._ids)}"
            quoted = _quoted(name, f"{where}: the name of an attribute")
            self.declared.append(
                f'<key id="{self._ids[key]}" for="{domain}" attr.name={quoted} attr.type="{type_name}"'
                f' vglm:kind="{kind}"/>'
            )
        return self._ids[key]


def _nodes(graph: Graph, keys: _Keys) -> Iterator[str]:
    for node in graph.nodes():
        where = f"node {shown(node.id)}"
        fields = {"name": node.name, "type": node.type, "text": node.text, "aliases": list(node.aliases)}
        data = [
            keys.data("node", name, value, where, "field")
            for name, value in fields.items()
            if value or name == "name"
        ]
        data += _attributes(keys, "node", node.attributes, where)
        yield f"<node id={_quoted(node.id, f'{where}.id')}>{''.join(data)}</node>"


def _edges(graph: Graph, keys: _Keys) -> Iterator[str]:
    for position, edge in enumerate(graph.edges()):
        where = f"edges[{position}]"
        data = [keys.data("edge", "relation", edge.relation, where, "field")]
        data += _attributes(keys, "edge", edge.attributes, where)
        ends = f"source={_quoted(edge.source, where)} target={_quoted(edge.target, where)}"
        yield f"<edge {ends}>{''.join(data)}</edge>"


def _attributes(keys: _Keys, domain: str, attributes: Mapping[str, Any], where: str) -> list[str]:
    return [keys.data(domain, name, value, where) for name, value in attributes.items()]


def _fits(value: Any) -> bool:
    """True if the value's own type in GraphML holds it."""
    if isinstance(value, str):
        return _ILLEGAL.search(value) is None
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return isinstance(value, float)


def _text(text: str, where: str) -> str:
    return escape(_legal(text, where), _RETURN)


def _quoted(text: str, where: str) -> str:
    return quoteattr(_legal(text, where))


def _legal(text: str, where: str) -> str:
    if match := _ILLEGAL.search(text):
        code = f"U+{ord(match[0]):04X}"
        raise GraphError(f"{where}: GraphML cannot hold the character {code}; save as .json")
    return text
