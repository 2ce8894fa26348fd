"""The waiting queue: classes, turns, the bound on waiting, and what it costs."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.request import Request, Sequence
from vglm.engine.waiting import (
    MAX_PRIORITY,
    MIN_PRIORITY,
    PRIORITY_CLASSES,
    WaitingQueue,
    class_name,
    parse_priority,
)
from vglm.errors import RequestError

PARAMS = SamplingParams(max_tokens=1)
MAX_WAIT = 10.0


def sequence(priority: int, arrival: int, since: float = 0.0) -> Sequence:
    request = Request(str(arrival), [1], PARAMS, priority=priority, arrival=arrival)
    made = Sequence(request, 0, np.ones(1, np.int32), 1)
    made.waiting_since = since
    return made


# Priorities


@pytest.mark.parametrize(
    ("value", "number"),
    [("high", -1), (" Normal", 0), ("LOW", 1), (5, 5), (-100, -100), ("100", 100), ("-7", -7), ("+3", 3)],
)
def test_priorities(value: int | str, number: int) -> None:
    assert parse_priority(value) == number


@pytest.mark.parametrize(
    "value",
    [
        *[101, -101, "101", "urgent", "", "1.0", 1.0, None, True, [1], b"high", "٣", "9" * 5000, "--1"],
        pytest.param(10**5000, id="huge"),
    ],
)
def test_what_is_no_priority_is_refused(value: int | str) -> None:
    with pytest.raises(RequestError, match="'high', 'normal', 'low'") as caught:
        parse_priority(value)
    assert caught.value.param == "priority"
    assert len(str(caught.value)) < 200


def test_every_priority_has_a_named_class() -> None:
    assert [class_name(PRIORITY_CLASSES[name]) for name in PRIORITY_CLASSES] == list(PRIORITY_CLASSES)
    assert class_name(MIN_PRIORITY) == "high"
    assert class_name(MAX_PRIORITY) == "low"


# Turns


def admit(queue: WaitingQueue, now: float) -> Sequence:
    chosen = queue.next(now)
    queue.admitted(chosen, now)
    return chosen


def test_classes_in_order_and_arrivals_within_them() -> None:
    queue = WaitingQueue(MAX_WAIT)
    rng = random.Random(0)
    everybody = [sequence(rng.choice([-1, 0, 1, 7]), i) for i in range(40)]
    for one in rng.sample(everybody, 40):
        queue.add(one)
        queue.check_integrity()
    in_order = sorted(everybody, key=lambda one: one.order)
    assert list(queue) == in_order
    assert [admit(queue, MAX_WAIT) for _ in range(40)] == in_order  # at max_wait, nobody is overdue yet
    assert not queue


def test_every_second_admission_goes_to_the_longest_overdue() -> None:
    queue = WaitingQueue(MAX_WAIT)
    low = [sequence(1, i, since=i) for i in range(4)]
    worse = [sequence(5, 10 + i, since=0.5 + i) for i in range(2)]
    high = [sequence(-1, 100 + i, since=12) for i in range(8)]
    for one in low + worse + high:
        queue.add(one)
    admitted = [admit(queue, 12.2) for _ in range(14)]
    overdue = [low[0], worse[0], low[1], worse[1], low[2]]  # the last low one has waited 9.2 seconds
    assert admitted[1:10:2] == overdue
    assert admitted[0:10:2] + admitted[10:13] == high
    assert admitted[13] == low[3]


def test_a_wall_of_overdue_ones_leaves_every_second_admission_to_the_best_class() -> None:
    queue = WaitingQueue(MAX_WAIT)
    for i in range(100):
        queue.add(sequence(1, i))
    turns = []
    for i in range(20):
        queue.add(sequence(-1, 1000 + i, since=50.0))
        turns.append(admit(queue, 50.0).request.priority)
    assert turns == [-1, 1] * 10


def test_a_better_class_that_comes_and_goes_cannot_hold_the_turns() -> None:
    """Whenever the normal one would be next as the best, a better one has come; on the other turns, it is alone
    the best, and those turns are for the overdue.
    """
    queue = WaitingQueue(MAX_WAIT)
    normal = sequence(0, 50, since=5.0)
    queue.add(normal)
    for i in range(20):
        queue.add(sequence(1, 100 + i, since=10.0))
    for i in range(4):
        high = sequence(-1, 1000 + i, since=30.0)
        queue.add(high)
        assert admit(queue, 30.0) is high
        if admit(queue, 30.0) is normal:
            break
    assert normal not in queue
    assert i == 0


def test_whose_turn_it_is_keeps_it_when_the_best_swaps_in() -> None:
    queue = WaitingQueue(MAX_WAIT)
    low, high = sequence(1, 0), [sequence(-1, 1 + i, since=11.0) for i in range(4)]
    for one in [low, *high]:
        queue.add(one)
    assert admit(queue, 11.0) is high[0]
    for one in high[1:3]:
        assert queue.next(11.0) is low
        queue.admitted(one, 11.0)
    assert admit(queue, 11.0) is low
    assert admit(queue, 11.0) is high[3]


def test_a_preempted_sequence_has_its_place_but_not_the_time_that_it_ran() -> None:
    queue = WaitingQueue(MAX_WAIT)
    preempted, second = sequence(1, 0, since=19.0), sequence(1, 1, since=5.0)
    high = sequence(-1, 2, since=20.0)
    for one in (second, preempted, high):
        queue.add(one)
    assert list(queue) == [high, preempted, second]
    assert [admit(queue, 20.0) for _ in range(3)] == [high, second, preempted]


class WaitingMachine(RuleBasedStateMachine):
    """Compares the queue with its definition, and counts the admissions that everybody overdue has to bear."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue(MAX_WAIT)
        self.now = 1.0
        self.arrivals = 0
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.passed: int | None = None
        self.left: dict[Sequence, int] = {}  # overdue ones: admissions within which they must be admitted

    def ahead(self, one: Sequence) -> list[Sequence]:
        return [
            other
            for other in self.waiting
            if other is not one
            and (
                (other.waiting_since, other.order) < (one.waiting_since, one.order)
                or (other.order[0] == one.order[0] and other.order < one.order)
            )
        ]

    def note_overdue(self) -> None:
        for one in self.waiting:
            if one not in self.left and self.now - one.waiting_since > MAX_WAIT:
                self.left[one] = 2 * (len(self.ahead(one)) + 1) + 1

    @rule(priority=st.sampled_from([-1, 0, 0, 1, 4]), count=st.integers(1, 3))
    def arrive(self, priority: int, count: int) -> None:
        for _ in range(count):
            one = sequence(priority, self.arrivals, since=self.now)
            self.arrivals += 1
            self.put(one)

    def put(self, one: Sequence) -> None:
        self.queue.add(one)
        self.waiting.append(one)
        for other in self.left:
            if one in self.ahead(other):
                self.left[other] += 2
        self.note_overdue()

    @rule(seconds=st.sampled_from([0.5, 3.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.note_overdue()

    def turn(self) -> tuple[Sequence, bool]:
        """By the definition: whose turn it is, and whether as an overdue one."""
        best = min(self.waiting, key=lambda one: one.order)
        if self.passed is not None:
            worse_than = min(self.passed, best.order[0])
            passed = [one for one in self.waiting if one.order[0] > worse_than]
            if passed:
                longest = min(passed, key=lambda one: (one.waiting_since, one.order))
                if self.now - longest.waiting_since > MAX_WAIT:
                    return longest, True
        return best, False

    @precondition(lambda self: self.waiting)
    @rule(count=st.integers(1, 4))
    def admit(self, count: int) -> None:
        for _ in range(min(count, len(self.waiting))):
            chosen, as_overdue = self.turn()
            assert self.queue.next(self.now) is chosen
            self.passed = None if as_overdue else chosen.order[0]
            self.take(chosen)
            for other in self.left:
                self.left[other] -= 1
                assert self.left[other] > 0, "an overdue sequence has waited for too many admissions"

    @precondition(lambda self: self.waiting)
    @rule()
    def swap(self) -> None:
        """The best starts in the place of a running one, although it may be another's turn."""
        chosen, as_overdue = self.turn()
        best = min(self.waiting, key=lambda one: one.order)
        if as_overdue and best is not chosen:
            assert self.passed is not None
            self.passed = min(self.passed, best.order[0])
            self.take(best)

    def take(self, one: Sequence) -> None:
        self.queue.admitted(one, self.now)
        self.waiting.remove(one)
        self.running.append(one)
        self.left.pop(one, None)
        one.waited = self.now - one.waiting_since

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        one = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        one.waiting_since = self.now - one.waited
        self.put(one)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        one = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        assert one in self.queue
        self.queue.remove(one)
        assert one not in self.queue
        self.left.pop(one, None)

    @invariant()
    def same(self) -> None:
        self.queue.check_integrity()
        assert list(self.queue) == sorted(self.waiting, key=lambda one: one.order)
        assert len(self.queue) == len(self.waiting)


WaitingMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestWaitingMachine = WaitingMachine.TestCase


def test_what_does_not_wait_cannot_be_removed() -> None:
    queue = WaitingQueue(MAX_WAIT)
    queue.add(sequence(0, 1))
    for other in (sequence(0, 1), sequence(0, 2), sequence(1, 1)):
        assert other not in queue
        with pytest.raises(ValueError, match="not waiting"):
            queue.remove(other)
    assert len(queue) == 1


# Cost


def calls(function: Callable[[], object]) -> int:
    """Python and C functions called."""
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("priorities", [[-1, 0, 1], list(range(-100, 100))])
def test_operations_do_not_grow_with_the_queue(priorities: list[int]) -> None:
    """A hundred times as many waiting: binary searches take a few more steps, and that is all."""

    def cost(length: int) -> list[int]:
        queue = WaitingQueue(0.0)
        everybody = [sequence(priorities[i % len(priorities)], i, since=float(i)) for i in range(length)]
        for one in everybody:
            queue.add(one)
        victim = everybody[length // 2]
        return [
            calls(lambda: queue.next(1e9)),
            calls(lambda: admit(queue, 1e9)),
            calls(lambda: admit(queue, 1e9)),
            calls(lambda: queue.remove(victim)),
            calls(lambda: queue.add(victim)),
        ]

    for small, large in zip(cost(400), cost(40_000), strict=True):
        assert large <= small + 4 * 7 + 8  # log2(100) is 6.6, over at most four sorted lists
