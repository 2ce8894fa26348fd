"""Which nodes have other names in another version of a graph, exactly, by comparing whole runs of bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vglm.graph.graph import Columns, Ints
from vglm.graph.strings import StringTable

MAX_CHANGES = 1_000  # nodes; with more of them, or more than a fiftieth of all, a new index is made


@dataclass(frozen=True, slots=True)
class NameColumns:
    """The columns of a graph that its name index is made of."""

    ids: StringTable
    names: StringTable
    aliases: StringTable

    @classmethod
    def of(cls, columns: Columns) -> NameColumns:
        return cls(columns.ids, columns.names, columns.aliases)

    def digest(self) -> bytes:
        """SHA-256 of the content."""
        digest = hashlib.sha256(str(len(self.ids)).encode())
        for table in (self.ids, self.names, self.aliases):
            digest.update(table.offsets.data)
            digest.update(table.data.data)
        return digest.digest()


@dataclass(frozen=True, slots=True)
class NameChanges:
    """Nodes of the old version whose names go (`gone`), nodes of the new version whose names come (`come`), both
    ascending; `numbers` int32[old nodes] is where the others are now, -1 for those that go."""

    gone: Ints
    come: Ints
    numbers: Ints


def name_changes(old: NameColumns, new: NameColumns) -> NameChanges | None:
    """What differs; None if it is so much that a new index is quicker."""
    most = min(MAX_CHANGES, len(new.ids) // 50 + 16)
    gone: list[int] = []
    come: list[int] = []
    before, after = 0, 0
    while True:
        same = _equal_rows(old, before, new, after)
        before, after = before + same, after + same
        left = before < len(old.ids), after < len(new.ids)
        if not any(left):
            break
        if len(gone) + len(come) > most:
            return None
        order = 0
        if all(left):
            one, other = old.ids[before], new.ids[after]
            order = (one > other) - (one < other)
        if left[0] and order <= 0:
            gone.append(before)
            before += 1
        if left[1] and order >= 0:
            come.append(after)
            after += 1
    numbers = np.full(len(old.ids), -1, np.int32)
    numbers[_others(len(old.ids), gone)] = _others(len(new.ids), come)
    return NameChanges(np.array(gone, np.int32), np.array(come, np.int32), numbers)


def _others(count: int, left_out: list[int]) -> Ints:
    kept = np.ones(count, np.bool_)
    kept[left_out] = False
    return np.flatnonzero(kept).astype(np.int32)


def _equal_rows(old: NameColumns, before: int, new: NameColumns, after: int) -> int:
    """How many rows from these on are the same: runs that double as long as they are, then halve."""
    most = min(len(old.ids) - before, len(new.ids) - after)
    same, step = 0, 1
    while same < most:
        step = min(step, most - same)
        if _are_equal(old, before + same, new, after + same, step):
            same, step = same + step, 2 * step
        elif step == 1:
            break
        else:
            most = same + step - 1  # somewhere in this run they differ
            step //= 2
    return same


def _are_equal(old: NameColumns, before: int, new: NameColumns, after: int, count: int) -> bool:
    return all(
        (one is other and before == after) or _same_strings(one, before, other, after, count)
        for one, other in ((old.ids, new.ids), (old.names, new.names), (old.aliases, new.aliases))
    )


def _same_strings(one: StringTable, before: int, other: StringTable, after: int, count: int) -> bool:
    ends, others = one.offsets[before : before + count + 1], other.offsets[after : after + count + 1]
    if not np.array_equal(ends - ends[0], others - others[0]):
        return False
    same: npt.NDArray[np.bool_] = one.data[ends[0] : ends[-1]] == other.data[others[0] : others[-1]]
    return bool(same.all())
