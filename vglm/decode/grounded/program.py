"""Programs over bytes, as native/text_machine.hpp describes them: built instruction by instruction, with jumps patched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum

import numpy as np

from vglm import _native
from vglm.decode.grounded.grounding import refuse
from vglm.decode.grounded.vocabulary import Vocabulary

MAX_INSTRUCTIONS = 100_000
UNBOUNDED = -1
Patch = tuple[int, int]  # (instruction, operand) that a place will be written to


class Op(IntEnum):
    """Instructions; the order is native/text_machine.hpp's."""

    MATCH = 0
    BYTE = 1
    SPLIT = 2
    JUMP = 3
    NAME = 4
    CHARS = 5
    MAY_MOVE = 6
    MAY_END = 7
    CLEAR = 8
    PUSH = 9
    LESS = 10
    AT_LEAST = 11
    COUNT = 12
    POP = 13
    UNUSED = 14


class Source(IntEnum):
    """Where the names come from that may stand at a place."""

    FIXED = 0
    RELATIONS = 1
    TARGETS = 2
    CURRENT = 3


class Effect(IntEnum):
    """What a complete name does."""

    KEEP = 0
    SET_NODES = 1
    SET_RELATION = 2
    STEP = 3
    USE = 4


class Chars(IntEnum):
    """Which characters a run has beside those of its class."""

    UNICODE = 0
    JSON = 1  # and the escapes of a JSON string
    ASCII = 2  # none


class Program:
    """A program that is being built."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._rows: list[list[int]] = []
        self._lists: list[_native.NameList] = []
        self._walks: list[_native.WalkSpec] = []
        self._classes: dict[bytes, int] = {}
        self._spelled: set[str] = set()

    @property
    def here(self) -> int:
        """The place of the next instruction."""
        return len(self._rows)

    def emit(self, op: Op, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
        """Appends an instruction; returns its place. Raises RequestError when the program becomes too long."""
        if len(self._rows) >= MAX_INSTRUCTIONS:
            refuse(f"it needs more than {MAX_INSTRUCTIONS} instructions; make it simpler")
        self._rows.append([int(op), a, b, c, d])
        return len(self._rows) - 1

    def text(self, text: str) -> None:
        """Exactly this text."""
        if text not in self._spelled:
            self.vocabulary.require_spellable(text)
            self._spelled.add(text)
        for byte in text.encode():
            self.emit(Op.BYTE, byte)

    def name(self, names: int, effect: Effect = Effect.KEEP) -> int:
        """One name of a list."""
        return self.emit(Op.NAME, Source.FIXED, names, effect)

    def name_on(self, source: Source, walk: int, effect: Effect = Effect.KEEP) -> int:
        """One name of those that a walk offers where it is."""
        return self.emit(Op.NAME, source, walk, effect)

    def chars(self, allowed: Iterable[int], least: int, most: int, kind: Chars) -> None:
        """A run of characters; `allowed`: those below 128."""
        flags = bytearray(256)
        for byte in allowed:
            flags[byte] = 1
        number = self._classes.setdefault(bytes(flags), len(self._classes))
        self.emit(Op.CHARS, number, least, most, kind)

    def list_of(self, names: _native.NameList) -> int:
        """The number of a list."""
        self._lists.append(names)
        return len(self._lists) - 1

    def walk_of(self, walk: _native.WalkSpec) -> int:
        """The number of a walk."""
        self._walks.append(walk)
        return len(self._walks) - 1

    def split(self) -> Patch:
        """Go on, or at the place that is patched."""
        return self.emit(Op.SPLIT, self.here + 1), 2

    def jump(self, place: int = 0) -> Patch:
        """Go to a place."""
        return self.emit(Op.JUMP, place), 1

    def patch(self, *patches: Patch) -> None:
        """Let them lead here."""
        for instruction, operand in patches:
            self._rows[instruction][operand] = self.here

    def one_of(self, choices: Sequence[Callable[[], object]]) -> None:
        """Go on with one of several pieces, each written by a call."""
        ends = []
        for place, write in enumerate(choices):
            otherwise = self.split() if place < len(choices) - 1 else None
            write()
            if otherwise is not None:
                ends.append(self.jump())
                self.patch(otherwise)
        self.patch(*ends)

    def require_unused(self, instruction: int, names: int, least: int) -> None:
        """Let an instruction go on only while a list has names that are not used up. Raises RequestError if it never has
        `least` of them.
        """
        if len(self._lists[names]) < least:
            refuse(f"{least} different values are needed, but there are only {len(self._lists[names])}")
        self._rows[instruction] = [int(Op.UNUSED), names, 0, 0, 0]

    def machine(self, edges: _native.Adjacency) -> _native.TextMachine:
        """The program, ready to run; its end is the text's."""
        self.emit(Op.MATCH)
        classes = np.frombuffer(b"".join(self._classes), np.uint8).reshape(-1, 256)
        return _native.TextMachine(
            self.vocabulary.trie,
            np.array(self._rows, np.int32),
            tuple(self._lists),
            classes,
            edges,
            tuple(self._walks),
        )
