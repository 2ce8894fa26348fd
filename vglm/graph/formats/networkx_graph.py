"""Graphs of networkx: any object with its `nodes`, `edges`, `is_directed` and `is_multigraph` is read."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from vglm.errors import GraphError
from vglm.graph.build import DEFAULT_RELATION, GraphBuilder
from vglm.graph.formats.node_link import EDGE_FIELDS, NODE_FIELDS, add_edge_item, add_node_item
from vglm.graph.formats.values import plain, plain_fields
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits, shown

_METHODS = ("nodes", "edges", "is_directed", "is_multigraph")


def graph_from_networkx(data: Any, limits: Limits, relation: str = "relation") -> Graph:
    """See `Graph.from_networkx`."""
    if not all(callable(getattr(data, name, None)) for name in _METHODS):
        raise GraphError(f"networkx: expected a graph of networkx, found {shown(data)}")
    builder = GraphBuilder(limits)
    for node, fields in data.nodes(data=True):
        where = f"node {shown(node)}"
        item = plain_fields(fields, where)
        if item.get("id", node) != node:  # a field with this name is the node's own
            _keep(item, "id")
        add_node_item(builder, {**item, "id": _id(node, where)}, where)
    keyed = data.is_multigraph()
    directed = data.is_directed()
    for source, target, *key, fields in data.edges(data=True, **({"keys": True} if keyed else {})):
        where = f"edge {shown(source)} -> {shown(target)}"
        ends = [_id(source, f"{where}.source"), _id(target, f"{where}.target")]
        if not directed:  # which end comes first depends on how the graph was made
            ends.sort(key=str)
        item = _edge_item(plain_fields(fields, where), key, relation)
        add_edge_item(builder, {**item, "source": ends[0], "target": ends[1]}, where)
    return builder.build()


def graph_to_networkx(graph: Graph) -> Any:
    """See `Graph.to_networkx`."""
    try:
        networkx = importlib.import_module("networkx")
    except ImportError as error:
        raise GraphError("to_networkx needs networkx: pip install networkx") from error
    made = networkx.MultiDiGraph()
    for node in graph.nodes():
        fields = {"name": node.name, "type": node.type, "text": node.text, "aliases": list(node.aliases)}
        given = {key: value for key, value in fields.items() if value or key == "name"}
        made.add_nodes_from([(node.id, {**given, **_inline(node.attributes, NODE_FIELDS)})])
    made.add_edges_from(
        (edge.source, edge.target, {"relation": edge.relation, **_inline(edge.attributes, EDGE_FIELDS)})
        for edge in graph.edges()
    )
    return made


def _edge_item(fields: dict[Any, Any], key: list[Any], relation: str) -> dict[Any, Any]:
    """The fields of an edge as node-link JSON; its key, if a string, is the relation unless a field says so."""
    text = key[0] if key and isinstance(key[0], str) else None
    label = fields.pop(relation, None)
    if label is None:
        label = DEFAULT_RELATION if text is None else text
    elif text is not None and text != label:
        fields.setdefault("key", text)
    _keep(fields, "source", "target", "relation")
    return {**fields, "relation": label}


def _keep(fields: dict[Any, Any], *names: str) -> None:
    """Moves fields whose names mean something else into `attributes`."""
    moved = {name: fields.pop(name) for name in names if name in fields}
    attributes = fields.get("attributes", {})
    if moved and isinstance(attributes, Mapping):
        fields["attributes"] = {**attributes, **moved}


def _inline(attributes: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Attributes as fields; those that are named like a field of their own stay together in `attributes`."""
    clashing = {key: value for key, value in attributes.items() if key in known}
    inline = {key: value for key, value in attributes.items() if key not in known}
    return {**inline, "attributes": clashing} if clashing else inline


def _id(node: Any, where: str) -> Any:
    """A node as an id; raises GraphError saying what to do about nodes that are other objects."""
    key = plain(node, where)
    if isinstance(key, str | int):
        return key
    raise GraphError(
        f"{where}: a node must be a string or an integer, found {shown(node)}: "
        "use networkx.relabel_nodes(graph, str)"
    )
