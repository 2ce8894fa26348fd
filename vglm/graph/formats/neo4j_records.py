"""What a driver of Neo4j returns: records, and in them nodes, relationships, paths, lists and maps of them.

The driver is never imported: a node has `element_id` and `labels`, a relationship `type`, `start_node` and `end_node`,
a path `nodes` and `relationships` (https://neo4j.com/docs/api/python-driver/current/types/graph.html).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vglm.errors import GraphError
from vglm.graph.build import GraphBuilder
from vglm.graph.formats.values import plain_fields
from vglm.graph.graph import Graph
from vglm.graph.limits import MAX_DEPTH, Limits, shown

_NAMES = ("name", "title", "label")
_TEXTS = ("text", "description", "definition")
_ALIASES = ("aliases", "synonyms")


def graph_from_neo4j(result: Any, limits: Limits, id_property: str | None, names: Iterable[str]) -> Graph:
    """See `Graph.from_neo4j`."""
    found = _Found()
    found.take_result(result)
    name_properties = (names,) if isinstance(names, str) else tuple(names)
    builder = GraphBuilder(limits)
    ids: dict[str, str] = {}
    for element_id, node in found.nodes.items():
        ids[element_id] = _add_node(builder, element_id, node, id_property, name_properties or _NAMES)
    for element_id, relationship in found.relationships.items():
        where = f"relationship {shown(element_id)}"
        start, end = (ids[node.element_id] for node in _ends(relationship, where))
        attributes = plain_fields(dict(relationship.items()), where)
        builder.add_edge(start, relationship.type, end, attributes, where)
    return builder.build()


class _Found:
    """Nodes and relationships by element id, each once, however many records hold it."""

    def __init__(self) -> None:
        self.nodes: dict[str, Any] = {}
        self.relationships: dict[str, Any] = {}

    def take_result(self, result: Any) -> None:
        """A `Result`, an `EagerResult`, a `neo4j.graph.Graph`, records, or values of records."""
        if hasattr(result, "nodes") and hasattr(result, "relationships"):  # a graph or a path
            self._take_all(result, "graph", 0)
            return
        records = getattr(result, "records", result)
        if callable(records) or isinstance(records, str | bytes) or not isinstance(records, Iterable):
            raise GraphError(f"neo4j: expected records, found {shown(result)}")
        if isinstance(records, Mapping) or hasattr(records, "element_id"):
            records = [records]
        size = 0
        for position, record in enumerate(records):
            self.take(record, f"records[{position}]", 0)
            size = position + 1
        if size and not self.nodes:
            raise GraphError(
                "neo4j: no record holds a node, a relationship or a path; "
                "return them whole (RETURN n, r, m), and give the records, not their data()"
            )

    def take(self, value: Any, where: str, depth: int) -> None:
        """Takes what there is in a value; numbers and texts are passed over."""
        if value is None or isinstance(value, str | bytes | int | float):
            return
        if depth > MAX_DEPTH:
            raise GraphError(f"{where}: nested more than {MAX_DEPTH} levels deep")
        if hasattr(value, "element_id"):
            self._take_entity(value, where)
        elif hasattr(value, "nodes") and hasattr(value, "relationships"):
            self._take_all(value, where, depth)
        elif callable(getattr(value, "values", None)):  # a record or a map
            for item in value.values():
                self.take(item, where, depth + 1)
        elif isinstance(value, list | tuple | set | frozenset):
            for item in value:
                self.take(item, where, depth + 1)

    def _take_all(self, value: Any, where: str, depth: int) -> None:
        for item in (*value.nodes, *value.relationships):
            self.take(item, where, depth + 1)

    def _take_entity(self, value: Any, where: str) -> None:
        if hasattr(value, "labels"):
            known = self.nodes.get(value.element_id)
            # The ends of a relationship that is returned alone are bare; the same node may come whole.
            if known is None or not (known.labels or len(known)):
                self.nodes[value.element_id] = value
        elif hasattr(value, "start_node"):
            if value.element_id not in self.relationships:
                self.relationships[value.element_id] = value
                for end in _ends(value, where):
                    self._take_entity(end, where)
        else:
            raise GraphError(f"{where}: {shown(value)} is neither a node nor a relationship")


def _ends(relationship: Any, where: str) -> tuple[Any, Any]:
    start, end = relationship.start_node, relationship.end_node
    if not (hasattr(start, "labels") and hasattr(end, "labels")):
        raise GraphError(f"{where}: a relationship without its two nodes")
    return start, end


def _add_node(
    builder: GraphBuilder, element_id: str, node: Any, id_property: str | None, names: tuple[str, ...]
) -> str:
    where = f"node {shown(element_id)}"
    properties = plain_fields(dict(node.items()), where)
    node_id: Any = element_id
    if id_property is not None:
        if id_property not in properties:
            raise GraphError(f"{where}: has no property {shown(id_property)}; return the nodes whole")
        node_id = properties.pop(id_property)
    labels = sorted(node.labels)
    name = _popped(properties, names, _is_text)
    text = _popped(properties, _TEXTS, _is_text)
    aliases = _popped(properties, _ALIASES, _are_texts)
    if len(labels) > 1:
        properties.setdefault("labels", labels)
    kind = labels[0] if labels else ""
    return builder.add_node(node_id, name, kind, text or "", aliases or (), properties, where)


def _popped(properties: dict[str, Any], names: tuple[str, ...], fits: Callable[[Any], bool]) -> Any:
    """Takes out the first of the properties that fits, or None."""
    return next((properties.pop(name) for name in names if fits(properties.get(name))), None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
