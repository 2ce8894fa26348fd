"""Who runs next: the classes of priority, and the queue that gives every class its turn."""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Iterator

from vglm.engine.request import Sequence
from vglm.errors import RequestError

#: The named classes; any integer from MIN_PRIORITY to MAX_PRIORITY is a class of its own. Lower runs first.
PRIORITY_CLASSES = {"high": -1, "normal": 0, "low": 1}
MIN_PRIORITY, MAX_PRIORITY = -100, 100


def parse_priority(value: int | str) -> int:
    """The number of a class: "high", "normal", "low", or a whole number. Raises RequestError otherwise."""
    if isinstance(value, str):
        name = value.strip().lower()
        if name in PRIORITY_CLASSES:
            return PRIORITY_CLASSES[name]
        number = int(name) if re.fullmatch(r"[+-]?[0-9]{1,3}", name, re.ASCII) else None
    else:
        number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if number is None or not MIN_PRIORITY <= number <= MAX_PRIORITY:
        shown = repr(value) if not isinstance(value, int) or abs(value) < 10**9 else "a far larger number"
        raise RequestError(
            f"priority is {shown[:60]}, but must be 'high', 'normal', 'low', or a whole number from "
            f"{MIN_PRIORITY} to {MAX_PRIORITY}; lower runs first",
            "priority",
        )
    return number


def class_name(priority: int) -> str:
    """The named class under which a priority is reported: "high" below 0, "normal" 0, "low" above."""
    return "normal" if not priority else "high" if priority < 0 else "low"


class _Class:
    """The waiting sequences of one priority: in the order of their arrival, and by how long they have waited.

    The two differ only where a sequence is back after a preemption: it has its place, but has waited less.
    """

    __slots__ = ("by_arrival", "by_wait")

    def __init__(self) -> None:
        self.by_arrival: list[Sequence] = []
        self.by_wait: list[Sequence] = []


class WaitingQueue:
    """Waiting sequences, best class first, each class in order of arrival, under a bound on waiting.

    A sequence that has waited longer than `max_wait` seconds in all is **overdue**. Admissions take turns:
    after one that went to the best class, the next goes to the overdue sequence that has waited longest
    among those that it went past, if there is one. So a flood of a better class starves nobody, and however
    many are overdue, every second admission is the best class's.

    **The bound.** Ahead of an overdue sequence are those that have waited longer, and those of its own class
    that arrived earlier. Of an admission to the best class and the one after it, at least one goes to the
    overdue sequence or to one ahead of it. So it is admitted within max_wait, plus the time that the engine
    takes for two admissions for each one ahead of it (preemption may put a few back there) and for itself,
    plus one admission that was under way. Admissions that only swap places with a running sequence of a
    worse class (see `Scheduler`) take no room that anybody waits for and do not count.

    Adding, taking and finding the next cost O(log n) comparisons and a move of pointers (memmove); nothing
    here looks at every sequence but iteration.
    """

    def __init__(self, max_wait: float) -> None:
        self.max_wait = max_wait
        self._classes: dict[int, _Class] = {}  # those that are not empty
        self._priorities: list[int] = []  # their keys, sorted
        self._longest: list[tuple[float, int, int, int]] = []  # (waiting since, *order) of each one's longest
        self._passed: int | None = None  # the class of the last admission, unless that was an overdue turn
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        """In order of class and arrival."""
        for priority in self._priorities:
            yield from self._classes[priority].by_arrival

    def __contains__(self, sequence: Sequence) -> bool:
        waiting = self._classes.get(sequence.order[0])
        return waiting is not None and _index(waiting.by_arrival, sequence) is not None

    def counts(self) -> dict[int, int]:
        """How many wait, by priority: O(classes)."""
        return {priority: len(waiting.by_arrival) for priority, waiting in self._classes.items()}

    @property
    def best(self) -> Sequence:
        """The first of the best class; IndexError when nobody waits."""
        return self._classes[self._priorities[0]].by_arrival[0]

    @property
    def longest_since(self) -> float:
        """Since when the one that has waited longest waits; IndexError when nobody does."""
        return self._longest[0][0]

    def is_overdue(self, sequence: Sequence, now: float) -> bool:
        """Whether a waiting sequence has waited longer than max_wait."""
        return now - sequence.waiting_since > self.max_wait

    def next(self, now: float) -> Sequence:
        """Whose turn it is: the best, or an overdue one; IndexError when nobody waits. Changes nothing."""
        return self._turn_of_overdue(now) or self.best

    def _turn_of_overdue(self, now: float) -> Sequence | None:
        """The longest waiting of those that have been passed, when it is overdue and nothing made up for it.

        Passed are all classes worse than the last admission's. The class that is best now gets the other turns:
        it takes part only if it is worse than that, too; else its time may never come, with better sequences
        there whenever it is its turn as the best.
        """
        if self._passed is None or not self._longest:
            return None
        best = self._priorities[0]
        skip = best <= self._passed and self._longest[0][1] == best
        if skip and len(self._longest) == 1:
            return None
        longest = self._classes[self._longest[skip][1]].by_wait[0]
        return longest if self.is_overdue(longest, now) else None

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, at its place; it has been waiting since `sequence.waiting_since`."""
        priority = sequence.order[0]
        waiting = self._classes.get(priority)
        if waiting is None:
            waiting = self._classes[priority] = _Class()
            insort(self._priorities, priority)
        else:
            self._forget_longest(waiting)
        insort(waiting.by_arrival, sequence, key=_arrival)
        insort(waiting.by_wait, sequence, key=_wait)
        insort(self._longest, _wait(waiting.by_wait[0]))
        self._length += 1

    def remove(self, sequence: Sequence) -> None:
        """Take a waiting sequence out; ValueError when it does not wait here."""
        priority = sequence.order[0]
        waiting = self._classes.get(priority)
        index = None if waiting is None else _index(waiting.by_arrival, sequence)
        if waiting is None or index is None:
            raise ValueError(f"{sequence!r} is not waiting")
        self._forget_longest(waiting)
        del waiting.by_arrival[index]
        del waiting.by_wait[bisect_left(waiting.by_wait, _wait(sequence), key=_wait)]
        if waiting.by_wait:
            insort(self._longest, _wait(waiting.by_wait[0]))
        else:
            del self._classes[priority]
            del self._priorities[bisect_left(self._priorities, priority)]
        self._length -= 1

    def admitted(self, sequence: Sequence, now: float) -> None:
        """Remove a sequence that starts to run, and pass the turn on."""
        turn = self._turn_of_overdue(now)
        if turn is sequence:
            self._passed = None
        elif turn is None or self._passed is None:
            self._passed = sequence.order[0]
        else:  # it swapped places with a running sequence: whose turn it was still has it
            self._passed = min(self._passed, sequence.order[0])
        self.remove(sequence)

    def _forget_longest(self, waiting: _Class) -> None:
        del self._longest[bisect_left(self._longest, _wait(waiting.by_wait[0]))]

    def check_integrity(self) -> None:
        """Assert that every order is sorted and that all of them hold the same sequences."""
        assert self._priorities == sorted(self._classes), "the list of classes is wrong"
        for priority, waiting in self._classes.items():
            assert waiting.by_arrival, f"class {priority} is kept although it is empty"
            assert all(sequence.order[0] == priority for sequence in waiting.by_arrival), (
                "a sequence waits in another class"
            )
            assert waiting.by_arrival == sorted(waiting.by_arrival, key=_arrival), "arrivals are out of order"
            assert waiting.by_wait == sorted(waiting.by_arrival, key=_wait), "waits are out of order"
        longest = [_wait(waiting.by_wait[0]) for waiting in self._classes.values()]
        assert self._longest == sorted(longest), "the longest waits are wrong"
        assert self._length == sum(self.counts().values()), "waiting sequences are miscounted"


def _arrival(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order


def _wait(sequence: Sequence) -> tuple[float, int, int, int]:
    return (sequence.waiting_since, *sequence.order)


def _index(queue: list[Sequence], sequence: Sequence) -> int | None:
    """Where a sequence stands in the order of arrival; None when it does not."""
    index = bisect_left(queue, sequence.order, key=_arrival)
    return index if index < len(queue) and queue[index] is sequence else None
