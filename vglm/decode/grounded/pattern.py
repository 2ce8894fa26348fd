"""Patterns: texts with choices, lists and names of entities, from which a model chooses and beyond which it cannot go.

    ["[Marfan syndrome] has ", {"list": [[{"entity": "p2"}, " (6/10)"], {"entity": "p6"}], "max": 2}, "."]

    text                    exactly this
    [pattern, ...]          one after the other
    {"entity": id}          the name of the node in brackets, "[Ectopia lentis]"
    {"one_of": [pattern, ...]}
    {"list": [pattern, ...], "min": 1, "max": 3}    some of them in their order: "A", "A and B", "A, B and C"

There is no repetition, so every text comes to an end, and what a text says of an entity can be bound to that entity: in the
example no other frequency than 6/10 can stand after Ectopia lentis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from vglm.decode.grounded.grounding import refuse
from vglm.decode.grounded.program import Patch, Program
from vglm.graph.limits import shown

MAX_DEPTH = 32
MAX_ALTERNATIVES = 1_000  # of a choice or a list
MAX_LISTED = 16  # at once
MAX_TEXT = 100_000  # characters
_KEYS = (("entity", {"entity"}), ("one_of", {"one_of"}), ("list", {"list", "min", "max"}))


def check_pattern(pattern: Any, depth: int = 0) -> None:
    """Raises RequestError (of parameter `constraint`) for what is no pattern."""
    if depth > MAX_DEPTH:
        refuse(f"the pattern has more than {MAX_DEPTH} levels")
    if isinstance(pattern, str):
        if not 0 < len(pattern) <= MAX_TEXT or pattern.encode("utf-8", "replace").decode() != pattern:
            refuse(f"a text of the pattern must have 1 to {MAX_TEXT:,} characters, all of Unicode")
    elif isinstance(pattern, list):
        _check_all("a sequence", pattern, depth)
    elif not isinstance(pattern, dict) or not any(
        what in pattern and pattern.keys() <= known for what, known in _KEYS
    ):
        refuse(
            f"the pattern has {shown(pattern)}; it must be a text, a list, or an object with entity, one_of or list"
        )
    elif "entity" in pattern:
        if not isinstance(pattern["entity"], str):
            refuse(f"an entity of the pattern is {shown(pattern['entity'])}, but must be an id")
    elif "one_of" in pattern:
        _check_all("one_of", pattern["one_of"], depth)
    else:
        _check_all("list", pattern["list"], depth)
        _limits(pattern)


def _check_all(what: str, patterns: Any, depth: int) -> None:
    if not isinstance(patterns, list) or not 1 <= len(patterns) <= MAX_ALTERNATIVES:
        refuse(f"{what} of the pattern must be a list of 1 to {MAX_ALTERNATIVES:,} patterns")
    for inner in patterns:
        check_pattern(inner, depth + 1)


def _limits(pattern: Mapping[str, Any]) -> tuple[int, int]:
    """Least and most of a list; the most is at most what there is."""
    least, most = pattern.get("min", 1), pattern.get("max", 1)
    for name, value in (("min", least), ("max", most)):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_LISTED:
            refuse(f"{name} of a list of the pattern is {shown(value)}, but must lie in 1 to {MAX_LISTED}")
    most = min(most, len(pattern["list"]))
    if least > most:
        refuse(f"min of a list of the pattern is {least}, but it has at most {most}")
    return least, most


class PatternWriter:
    """Writes a pattern that was checked into a program; `entity` writes the name of a node."""

    def __init__(self, program: Program, entity: Callable[[str], None]) -> None:
        self._program = program
        self._entity = entity

    def write(self, pattern: Any) -> None:
        """Raises RequestError for an id that the graph lacks, and for a program that becomes too long."""
        if isinstance(pattern, str):
            self._program.text(pattern)
        elif isinstance(pattern, list):
            for inner in pattern:
                self.write(inner)
        elif "entity" in pattern:
            self._entity(pattern["entity"])
        elif "one_of" in pattern:
            self._program.one_of([partial(self.write, inner) for inner in pattern["one_of"]])
        else:
            least, most = _limits(pattern)
            items = pattern["list"]
            self._program.one_of([partial(self._listed, items, count) for count in range(least, most + 1)])

    def _listed(self, items: Sequence[Any], count: int) -> None:
        """`count` of the items in their order: a layer of all items for each place in the list; behind item i of a layer the
        next layer is entered at item i + 1.
        """
        program = self._program
        entries: dict[tuple[int, int], list[Patch]] = {}  # (layer, item): jumps to where it may be chosen
        ends: list[Patch] = []
        for layer in range(count):
            last = len(items) - count + layer  # behind it there are too few for the layers that follow
            for place in range(layer, last + 1):
                program.patch(*entries.pop((layer, place), ()))
                if place < last:
                    entries.setdefault((layer, place + 1), []).append(program.split())
                self.write(items[place])
                if layer == count - 1:
                    ends.append(program.jump())
                    continue
                program.text(" and " if layer == count - 2 else ", ")
                entries.setdefault((layer + 1, place + 1), []).append(program.jump())
        program.patch(*ends)
