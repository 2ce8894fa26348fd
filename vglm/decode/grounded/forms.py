"""Answers, walks, mentions and patterns, and sequences of them, as programs over bytes; and what to tell a model about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from json import loads
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm import _native
from vglm.decode.grounded.grounding import Grounding, refuse
from vglm.decode.grounded.names import GraphIndex, Names
from vglm.decode.grounded.pattern import PatternWriter
from vglm.decode.grounded.program import UNBOUNDED, Chars, Effect, Op, Program, Source
from vglm.decode.grounded.vocabulary import Vocabulary
from vglm.graph.limits import shown

ALONG, AGAINST = " -> ", " <- "
_NOT_IN_MENTIONS = b"[]\x7f" + bytes(range(32))  # what would end a mention, or hide in it
_JSON_PLAIN = [byte for byte in range(0x20, 0x80) if byte not in b'"\\']

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class NameRole:
    """What a name in a text is: which part of the grounding it is in, and what it says there."""

    part: int
    what: str  # "answer", "end" (of a walk), "mention", "start", "along", "against" or "target"


class FormBuilder:
    """Writes groundings for one graph as a program; notes what each name in it is (`roles`, by instruction)."""

    def __init__(self, index: GraphIndex, vocabulary: Vocabulary) -> None:
        self.index = index
        self.names: Names = index.names(vocabulary)
        self.program = Program(vocabulary)
        self.roles: dict[int, NameRole] = {}
        self.inverse = False

    # ---- what the graph has

    def nodes(self, grounding: Grounding) -> Ints | None:
        """The nodes of the grounding's types and candidates, ascending; None: all."""
        chosen: npt.NDArray[np.integer] | None = None
        if grounding.types:
            chosen = np.flatnonzero(np.isin(self.index.columns.node_types, self.type_codes(grounding.types)))
        if grounding.candidates:
            ids = self.node_indices(grounding.candidates, "candidates")
            chosen = ids if chosen is None else np.intersect1d(chosen, ids)
        return None if chosen is None else chosen.astype(np.int32)

    def type_codes(self, types: Iterable[str]) -> list[int]:
        """Numbers of node types. Raises RequestError for one that the graph lacks."""
        return _codes("node type", types, self.index.columns.type_names)

    def relation_flags(self, relations: Iterable[str]) -> npt.NDArray[np.uint8] | None:
        """1 for each relation that may be taken, uint8[relations]; None: all. Raises RequestError as `type_codes`."""
        known = self.index.columns.relation_names
        if not relations:
            return None
        flags = np.zeros(len(known), np.uint8)
        flags[_codes("relation", relations, known)] = 1
        return flags

    def node_indices(self, node_ids: Iterable[str], name: str) -> Ints:
        """Indices of nodes, ascending. Raises RequestError for an id that the graph lacks."""
        ids = tuple(node_ids)
        found = self.index.columns.ids.find_all(ids)
        for position in np.flatnonzero(found < 0)[:1].tolist():
            refuse(f"{name}: the graph has no node with the id {shown(ids[position])}")
        return np.unique(found).astype(np.int32)

    def flags_of(self, nodes: Ints) -> npt.NDArray[np.uint8]:
        """1 for each of the nodes, uint8[N]."""
        flags = np.zeros(len(self.index.columns.ids), np.uint8)
        flags[nodes] = 1
        return flags

    def entity_list(self, nodes: Ints | None, json: bool, wanted: str, count: int = 1) -> int:
        """A list of the names of nodes. Raises RequestError if there are fewer than `count` different ones."""
        names = _native.NameList(self.names.of_nodes(json).native, nodes)
        if len(names) < count:
            refuse(f"the graph has {len(names) or 'no'} {wanted} with different names; {count} are needed")
        return self.program.list_of(names)

    def walk(self, grounding: Grounding, json: bool, min_hops: int, max_hops: int) -> tuple[int, int]:
        """The numbers of a walk and of the list of the entities where it may start. Raises RequestError if there are
        none.
        """
        self.inverse |= grounding.inverse
        ends = self.nodes(grounding)
        walk = _native.WalkSpec(
            self.index.edges_both_ways if grounding.inverse else self.index.edges,
            self.names.of_nodes(json).native,
            self.names.of_relations(json).native,
            min_hops,
            max_hops,
            grounding.inverse,
            self.relation_flags(grounding.relations),
            None if ends is None else self.flags_of(ends),
        )
        first = self.node_indices(grounding.start, "start") if grounding.start else None
        starts = walk.starts(self.index.edges_both_ways if grounding.inverse else self.index.edges, first)
        if not len(starts):
            where = "from the nodes of start " if grounding.start else ""
            refuse(f"the graph has no walk {where}of {min_hops} to {max_hops} edges as it is asked for")
        return self.program.walk_of(walk), self.entity_list(starts, json, "entities where a walk starts")

    # ---- the kinds

    def write(self, grounding: Grounding) -> None:
        """The whole program of a grounding."""
        if grounding.kind != "sequence":
            self._part(grounding, 0, in_sequence=False)
            return
        parts: Any = grounding.parts
        for number, part in enumerate(parts):
            if number:
                self.program.text(str(grounding.separator))
            if part.of_walk:
                self._role(self.program.name_on(Source.CURRENT, self._last_walk), number, "end")
                self.program.emit(Op.CLEAR)
            else:
                self.program.emit(Op.CLEAR)
                self._part(part, number, in_sequence=True)

    def _part(self, grounding: Grounding, number: int, in_sequence: bool) -> None:
        if grounding.kind == "answer":
            self._answer(grounding, number)
        elif grounding.kind == "walk":
            self._walk(grounding, number)
        elif grounding.kind == "pattern":
            PatternWriter(self.program, self._named).write(loads(str(grounding.pattern)))
        else:
            self._mentions(grounding, number, in_sequence)

    def _role(self, instruction: int, part: int, what: str) -> None:
        self.roles[instruction] = NameRole(part, what)

    def _answer(self, grounding: Grounding, number: int) -> None:
        program, least = self.program, grounding.min_count or grounding.count
        names = self.entity_list(self.nodes(grounding), False, _wanted(grounding), least)
        ends = []
        for position in range(grounding.count):
            if position >= least:
                ends.append(program.split())
                program.emit(Op.UNUSED, names)
            if position:
                program.text(str(grounding.separator))
            self._role(program.name(names, Effect.USE), number, "answer")
        program.patch(*ends)
        program.emit(Op.CLEAR)

    def _walk(self, grounding: Grounding, number: int) -> None:
        program = self.program
        walk, starts = self.walk(grounding, False, grounding.min_hops, grounding.max_hops)
        self._last_walk = walk
        self._role(program.name(starts, Effect.SET_NODES), number, "start")
        again = program.here
        for against in (False, True) if grounding.inverse else (False,):
            otherwise = program.split()
            arrow = AGAINST if against else ALONG
            program.emit(Op.MAY_MOVE, walk, int(against))
            program.text(arrow)
            relation = program.name_on(Source.RELATIONS, walk, Effect.SET_RELATION)
            self._role(relation, number, "against" if against else "along")
            program.text(arrow)
            self._role(program.name_on(Source.TARGETS, walk, Effect.STEP), number, "target")
            program.jump(again)
            program.patch(otherwise)
        program.emit(Op.MAY_END, walk)

    def _mentions(self, grounding: Grounding, number: int, in_sequence: bool) -> None:
        """Text outside of brackets may be anything but an opening one; in a sequence it is a line."""
        program, nodes = self.program, self.nodes(grounding)
        sayable = self.names.nodes.native.items_without(_NOT_IN_MENTIONS)
        if nodes is None or sayable is None:
            nodes = sayable if nodes is None else nodes
        else:
            nodes = np.intersect1d(sayable, nodes).astype(np.int32)
        names = self.entity_list(nodes, False, f"{_wanted(grounding)} that can be put in brackets")
        excluded = b"[\n" if in_sequence else b"["
        again = program.here
        program.chars((b for b in range(128) if b not in excluded), 0, UNBOUNDED, Chars.UNICODE)
        end = program.split()
        program.text("[")
        self._role(program.name(names), number, "mention")
        program.text("]")
        program.jump(again)
        program.patch(end)

    def _named(self, node_id: str) -> None:
        """The name of a node in brackets, in a pattern."""
        nodes = self.node_indices([node_id], "entity")
        sayable = self.names.nodes.native.items_without(_NOT_IN_MENTIONS)
        if sayable is not None and nodes[0] not in sayable:
            refuse(f"entity: the name of {shown(node_id)} cannot be put in brackets")
        names = self.entity_list(nodes, False, "entities of a pattern that can be put in brackets")
        self.program.text("[")
        self._role(self.program.name(names), 0, "mention")
        self.program.text("]")


def json_text(program: Program, least: int, most: int) -> None:
    """The inside of a JSON string of `least` to `most` characters (UNBOUNDED: any number)."""
    program.chars(_JSON_PLAIN, least, most, Chars.JSON)


def _codes(what: str, wanted: Iterable[str], known: Sequence[str]) -> list[int]:
    codes, names = {name: code for code, name in enumerate(known)}, tuple(wanted)
    for name in names:
        if name not in codes:
            some = ", ".join(shown(other) for other in known[:10]) or "none"
            refuse(f"the graph has no {what} {shown(name)}; it has {some}")
    return [codes[name] for name in names]


def _wanted(grounding: Grounding) -> str:
    types: Any = grounding.types
    of_types = f" of the types {', '.join(map(shown, types[:10]))}" if types else ""
    return f"{'candidates' if grounding.candidates else 'entities'}{of_types}"
