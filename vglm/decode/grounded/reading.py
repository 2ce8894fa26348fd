"""What a grounded text means: the entities that it names, and the edges that it walks along."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.decode.grounded.forms import NameRole
from vglm.decode.grounded.names import Names
from vglm.decode.grounded.schema import binding, target_of
from vglm.graph.graph import Edge, Graph

Flags = npt.NDArray[np.uint8]
Bound = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Entity:
    """A name, and the ids of all nodes that it may mean, ascending."""

    name: str
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NamedPlace:
    """A mention: `text[start:end]` is the name, without its brackets."""

    start: int
    end: int
    entity: Entity


@dataclass(frozen=True, slots=True)
class WalkedEdge:
    """An edge that a walk takes: its number in the graph, the edge, and whether it was taken against its direction."""

    index: int
    edge: Edge
    inverse: bool = False


Meaning = Entity | tuple[WalkedEdge, ...]


@dataclass(frozen=True, slots=True)
class Grounded:
    """A grounded text and what it means.

    `complete`: whether the text is all of what was asked for; one that was cut off has its beginning only. `entities` are
    those of the answer, or that a JSON value is bound to, in order; `walks` the edges of each walk, `edges` those that a
    JSON value is bound to. Where names are ambiguous, a walk is the first one in canonical order that the text may mean.
    """

    text: str
    complete: bool
    entities: tuple[Entity, ...] = ()
    mentions: tuple[NamedPlace, ...] = ()
    walks: tuple[tuple[WalkedEdge, ...], ...] = ()
    json: Any = None
    edges: tuple[WalkedEdge, ...] = ()

    @property
    def answer(self) -> tuple[str, ...]:
        """The ids of the answer's nodes, in order; of an ambiguous name all of them."""
        return tuple(dict.fromkeys(node for entity in self.entities for node in entity.ids))

    @property
    def walk(self) -> tuple[WalkedEdge, ...]:
        """The edges of the first walk."""
        return self.walks[0] if self.walks else ()


@dataclass(frozen=True, slots=True)
class ReadName:
    """A name in a text: its role, its group in the index, and the bytes [start, end) of the text."""

    role: NameRole
    group: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Allowed:
    """Which nodes a name may mean: flags uint8[nodes], None: all. `first`: where a walk starts; `last`: where it ends, or
    what an answer or a mention may be.
    """

    first: Flags | None = None
    last: Flags | None = None


class Reader:
    """Resolves names of one graph."""

    def __init__(self, graph: Graph, names: Names) -> None:
        self._graph, self._names = graph, names

    def entity(self, nodes: Sequence[int]) -> Entity:
        """The entity of nodes that share a name."""
        return Entity(
            self._graph.columns.names[nodes[0]],
            tuple(self._graph.columns.ids[node] for node in sorted(nodes)),
        )

    def nodes_of(self, group: int) -> list[int]:
        """The nodes of a name, ascending."""
        nodes: list[int] = self._names.nodes.native.items(group).tolist()
        return nodes

    def named(self, name: str) -> list[int]:
        """The nodes with this name, ascending."""
        group = self._names.nodes.native.find(name.encode("utf-8", "replace"))
        return [] if group < 0 else self.nodes_of(group)

    def edge_between(self, source: int, relation: int, target: int) -> int | None:
        """The first edge of a relation between two nodes."""
        columns = self._graph.columns
        found = self._graph.edge_indices(source)
        first = np.searchsorted(columns.relations[found], relation)
        last = np.searchsorted(columns.relations[found], relation, side="right")
        place = int(first + np.searchsorted(columns.targets[found[first:last]], target))
        return int(found[place]) if place < last and columns.targets[found[place]] == target else None

    def walk(
        self, start: Sequence[int], steps: Sequence[tuple[int, bool, list[int]]]
    ) -> tuple[tuple[WalkedEdge, ...], list[int]]:
        """The edges of a walk whose names are known, and the nodes where it may end: `steps` are (relation, against the
        edge, nodes of the name).
        """
        layers = [list(start)]
        for relation, against, nodes in steps:
            layers.append([n for n in nodes if any(self._joins(m, relation, n, against) for m in layers[-1])])
        ends = layers[-1]
        edges: list[WalkedEdge] = []
        node = ends[0] if ends else -1
        for (relation, against, _), layer in zip(reversed(steps), reversed(layers[:-1]), strict=True):
            node, edge = next(
                (m, e) for m in layer if (e := self._edge(m, relation, node, against)) is not None
            )
            edges.append(WalkedEdge(edge, self._graph.edge_at(edge), against))
        return tuple(reversed(edges)), ends

    def _joins(self, node: int, relation: int, other: int, against: bool) -> bool:
        return self._edge(node, relation, other, against) is not None

    def _edge(self, node: int, relation: int, other: int, against: bool) -> int | None:
        return (
            self.edge_between(other, relation, node) if against else self.edge_between(node, relation, other)
        )

    # ---- texts

    def read(
        self, text: bytes, complete: bool, names: Sequence[ReadName], allowed: Mapping[int, Allowed]
    ) -> Grounded:
        """What a text means in which these names were read; `allowed` by part of the grounding."""
        entities: list[Entity] = []
        mentions: list[NamedPlace] = []
        walks: list[tuple[WalkedEdge, ...]] = []
        ends: list[int] = []
        for part, of_part in _by_part(names):
            if of_part[0].role.what == "start":
                walk, ends = self._read_walk(of_part, allowed[part], complete)
                walks.append(walk)
                continue
            for name in of_part:
                nodes = (
                    ends if name.role.what == "end" else _kept(self.nodes_of(name.group), allowed[part].last)
                )
                if name.role.what == "mention":
                    start, end = (len(text[:place].decode()) for place in (name.start, name.end))
                    mentions.append(NamedPlace(start, end, self.entity(nodes)))
                else:
                    entities.append(self.entity(nodes))
        shown = text.decode("utf-8", "replace")
        return Grounded(shown, complete, tuple(entities), tuple(mentions), tuple(walks))

    def _read_walk(
        self, names: Sequence[ReadName], allowed: Allowed, complete: bool
    ) -> tuple[tuple[WalkedEdge, ...], list[int]]:
        relations = self._names.relations.native
        names = [name for name in names if name.role.what != "end"]
        steps = [
            (
                int(relations.items(relation.group)[0]),
                relation.role.what == "against",
                self.nodes_of(target.group),
            )
            for relation, target in zip(names[1::2], names[2::2], strict=False)
        ]
        start = _kept(self.nodes_of(names[0].group), allowed.first)
        if complete and steps:
            steps[-1] = (*steps[-1][:2], _kept(steps[-1][2], allowed.last))
        elif complete:
            start = _kept(start, allowed.last)
        return self.walk(start, steps)

    # ---- JSON

    def read_json(
        self,
        text: str,
        complete: bool,
        value: Any,
        schema: Any,
        allowed: Callable[[Mapping[str, Any]], Allowed],
    ) -> Grounded:
        """What a JSON value means under a schema with bindings; `allowed` by the options of a binding."""
        entities: list[Entity] = []
        edges: list[WalkedEdge] = []

        def meaning(bound: Bound, found: Any) -> Entity | tuple[WalkedEdge, ...] | None:
            what, options = bound
            if what == "entity" and isinstance(found, str):
                nodes = _kept(self.named(found), allowed(options).last)
                return self.entity(nodes) if nodes else None
            if what == "edge" and isinstance(found, Mapping):
                return self._json_edge(found, allowed(options))
            return () if what == "relation" and found in self._graph.columns.relation_names else None

        for meant in _Meanings(schema, meaning).of(value, schema):
            if isinstance(meant, Entity):
                entities.append(meant)
            else:
                edges += meant
        return Grounded(text, complete, tuple(entities), json=value, edges=tuple(edges))

    def _json_edge(self, value: Mapping[str, Any], allowed: Allowed) -> tuple[WalkedEdge, ...] | None:
        source, relation, target = (value.get(key) for key in ("source", "relation", "target"))
        if not isinstance(source, str) or not isinstance(relation, str) or not isinstance(target, str):
            return None
        code = self._graph.relation_code(relation)
        start, ends = _kept(self.named(source), allowed.first), _kept(self.named(target), allowed.last)
        return self.walk(start, [(code, False, ends)])[0] or None


def _kept(nodes: list[int], flags: Flags | None) -> list[int]:
    return nodes if flags is None else [node for node in nodes if flags[node]]


def _by_part(names: Sequence[ReadName]) -> Iterator[tuple[int, list[ReadName]]]:
    parts: dict[int, list[ReadName]] = {}
    for name in names:
        parts.setdefault(name.role.part, []).append(name)
    yield from sorted(parts.items())


class _Meanings:
    """What the bound parts of a value mean, in the order of the value."""

    def __init__(self, root: Any, meaning: Callable[[Bound, Any], Meaning | None]) -> None:
        self._root, self._meaning = root, meaning

    def of(self, value: Any, schema: Any, depth: int = 0) -> list[Meaning]:
        """Of alternatives the first counts under which something is bound and everything bound means something."""
        if not isinstance(schema, Mapping) or depth > 256:
            return []
        if (bound := binding(schema)) is not None:
            meant = self._meaning(bound, value)
            if meant is None:
                raise LookupError
            return [meant]
        found: list[Meaning] = []
        if isinstance(reference := schema.get("$ref"), str):
            found += self.of(value, target_of(reference, self._root), depth + 1)
        for branch in schema.get("allOf", ()):
            found += self.of(value, branch, depth + 1)
        found += self._of_alternatives(value, schema, depth)
        if isinstance(value, Mapping):
            properties = schema.get("properties", {})
            for name, inner in value.items():
                found += self.of(inner, properties.get(name, schema.get("additionalProperties")), depth + 1)
        if isinstance(value, list):
            first = schema.get("prefixItems", [])
            for i, inner in enumerate(value):
                found += self.of(inner, first[i] if i < len(first) else schema.get("items"), depth + 1)
        return found

    def _of_alternatives(self, value: Any, schema: Mapping[str, Any], depth: int) -> list[Meaning]:
        for key in ("anyOf", "oneOf"):
            for branch in schema.get(key, ()):
                try:
                    if found := self.of(value, branch, depth + 1):
                        return found
                except LookupError:
                    continue
        return []
