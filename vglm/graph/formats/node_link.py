"""Node-link JSON: the format that holds everything a graph holds, and the one that networkx writes.

{"nodes": [{"id": "d1", "name": "Marfan syndrome", "type": "disease", "text": "...", "aliases": ["MFS"]}],
 "edges": [{"source": "d1", "relation": "has phenotype", "target": "p7", "frequency": 0.6}]}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vglm.errors import GraphError
from vglm.graph.build import DEFAULT_RELATION, GraphBuilder
from vglm.graph.formats.source import Source
from vglm.graph.graph import Edge, Graph, Node
from vglm.graph.limits import Limits, shown

NODE_FIELDS = frozenset({"id", "name", "type", "text", "aliases", "attributes"})
EDGE_FIELDS = frozenset({"source", "relation", "target", "attributes"})
_PLAIN_EDGE = frozenset({"source", "relation", "target"})
_BATCH = 1 << 14


def graph_from_dict(data: Mapping[str, Any], limits: Limits) -> Graph:
    """See `Graph.from_dict`."""
    if not isinstance(data, Mapping):
        raise GraphError(f"graph: expected an object with nodes and edges, found {shown(data)}")
    if "edges" in data and "links" in data:
        raise GraphError("graph: has both edges and links; give one of them")
    edge_names = "links" if "links" in data else "edges"
    if edge_names not in data and "nodes" not in data:
        raise GraphError(f"graph: has neither nodes nor edges{_hint(data)}")
    builder = GraphBuilder(limits)
    for position, item in enumerate(_items(data, "nodes")):
        add_node_item(builder, item, f"nodes[{position}]")
    items = _items(data, edge_names)
    for first in range(0, len(items), _BATCH):
        _add_edges(builder, items[first : first + _BATCH], first, edge_names)
    return builder.build(edge_names)


def _add_edges(builder: GraphBuilder, items: Sequence[Any], first: int, name: str) -> None:
    """Adds some edges, of which the first is `name[first]`: at once where none has any attributes."""
    if set(map(type, items)) == {dict} and all(item.keys() == _PLAIN_EDGE for item in items):
        sources, relations, targets = (
            [item[field] for item in items] for field in ("source", "relation", "target")
        )
        if all(set(map(type, column)) == {str} for column in (sources, relations, targets)):
            builder.add_triples(sources, relations, targets, lambda i: f"{name}[{first + i}]")
            return
    for position, item in enumerate(items, first):
        add_edge_item(builder, item, f"{name}[{position}]")


def add_node_item(builder: GraphBuilder, item: object, where: str) -> str:
    """Adds one node of node-link JSON and returns its id; raises GraphError naming `where` and the field."""
    fields, attributes = split_fields(item, where, NODE_FIELDS)
    if "id" not in fields:
        raise GraphError(f"{where}.id: is missing")
    return builder.add_node(
        fields["id"],
        fields.get("name"),
        fields.get("type", ""),
        fields.get("text", ""),
        fields.get("aliases", ()),
        attributes,
        where,
    )


def add_edge_item(builder: GraphBuilder, item: object, where: str) -> None:
    """Adds one edge of node-link JSON; raises GraphError naming `where` and the field."""
    fields, attributes = split_fields(item, where, EDGE_FIELDS)
    for end in ("source", "target"):
        if end not in fields:
            raise GraphError(f"{where}.{end}: is missing")
    builder.add_edge(
        fields["source"], fields.get("relation", DEFAULT_RELATION), fields["target"], attributes, where
    )


def split_fields(
    item: object, where: str, known: frozenset[str]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """An item, and its attributes: those given as `attributes`, and every field without a meaning of its own."""
    if type(item) is dict and "attributes" not in item and item.keys() <= known:
        return item, {}
    if not isinstance(item, Mapping):
        raise GraphError(f"{where}: expected an object, found {shown(item)}")
    attributes = item.get("attributes", {})
    if not isinstance(attributes, Mapping):
        raise GraphError(f"{where}.attributes: expected an object, found {shown(attributes)}")
    inline = {key: value for key, value in item.items() if key not in known}
    if not inline:
        return item, attributes
    if both := inline.keys() & attributes.keys():
        raise GraphError(f"{where}.{shown(min(map(str, both)))}: given beside attributes and inside them")
    return item, {**attributes, **inline}


def node_item(node: Node) -> dict[str, Any]:
    """A node as node-link JSON; empty fields are left out."""
    item: dict[str, Any] = {"id": node.id, "name": node.name}
    item |= {key: value for key in ("type", "text") if (value := getattr(node, key))}
    item |= {"aliases": list(node.aliases)} if node.aliases else {}
    item |= {"attributes": dict(node.attributes)} if node.attributes else {}
    return item


def edge_item(edge: Edge) -> dict[str, Any]:
    """An edge as node-link JSON; empty attributes are left out."""
    item: dict[str, Any] = {"source": edge.source, "relation": edge.relation, "target": edge.target}
    item |= {"attributes": dict(edge.attributes)} if edge.attributes else {}
    return item


def graph_to_dict(graph: Graph) -> dict[str, Any]:
    """See `Graph.to_dict`."""
    return {
        "nodes": [node_item(node) for node in graph.nodes()],
        "edges": [edge_item(edge) for edge in graph.edges()],
    }


def parse_json(data: bytes | str, where: str) -> Any:
    """A JSON document of any depth and size; raises GraphError naming line and column when it is none.

    NaN and Infinity are refused, as JSON has no such numbers.
    """
    try:
        return json.loads(data, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise GraphError(
            f"{where}, line {error.lineno}, column {error.colno}: is not JSON: {error.msg}"
        ) from error
    except UnicodeDecodeError as error:
        raise GraphError(f"{where}: is not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise GraphError(f"{where}: the JSON is nested too deep") from error
    except ValueError as error:
        raise GraphError(f"{where}: is not JSON: {str(error)[:200]}") from error


def read_node_link(source: Source, limits: Limits) -> Graph:
    """Reads a file of node-link JSON."""
    data = parse_json(source.read(), source.name)
    try:
        return graph_from_dict(data, limits)
    except GraphError as error:
        raise GraphError(f"{source.name}: {error}") from error


def write_node_link(graph: Graph) -> bytes:
    """Node-link JSON, a node or an edge a line."""
    nodes = ",\n".join(_dumped(node_item(node)) for node in graph.nodes())
    edges = ",\n".join(_edge_lines(graph))
    return f'{{"nodes": [\n{nodes}\n],\n"edges": [\n{edges}\n]}}\n'.encode()


def _edge_lines(graph: Graph) -> Iterator[str]:
    """`edge_item` of every edge as JSON; each id, relation and set of attributes is written once, then copied."""
    columns = graph.columns
    ids = [_dumped(node_id) for node_id in columns.ids]
    relations = [_dumped(name) for name in columns.relation_names]
    attributes = [
        f', "attributes": {_dumped(json.loads(text))}' if text else ""
        for text in columns.edge_attribute_texts
    ]
    ends = columns.sources.tolist(), columns.relations.tolist(), columns.targets.tolist()
    for source, relation, target, code in zip(*ends, columns.edge_attributes.tolist(), strict=True):
        yield (
            f'{{"source": {ids[source]}, "relation": {relations[relation]}, "target": {ids[target]}'
            f"{attributes[code]}}}"
        )


def _dumped(item: dict[str, Any] | str) -> str:
    return json.dumps(item, ensure_ascii=False)


def _items(data: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = data.get(key, [])
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise GraphError(f"{key}: expected a list, found {shown(value)}")
    return value


def _hint(data: Mapping[str, Any]) -> str:
    linked = isinstance(data, Mapping) and ("@context" in data or "@graph" in data)
    return "; this looks like JSON-LD: give format='jsonld'" if linked else ""


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
