"""Admission: bounds that hold under any order of arrivals and ends, and honest times to come back."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from vglm.serve.admission import Admission, Ticket
from vglm.serve.errors import ApiError


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def refusal(admission: Admission, *args: object, **kwargs: object) -> ApiError:
    with pytest.raises(ApiError) as raised:
        admission.admit(*args, **kwargs)  # type: ignore[arg-type]
    assert 1 <= int(raised.value.headers["retry-after"]) <= 60
    return raised.value


def test_the_queue_is_bounded() -> None:
    admission = Admission(2, 3)
    tickets = [admission.admit() for _ in range(5)]
    assert (admission.active, admission.waiting) == (5, 3)
    error = refusal(admission)
    assert error.status == 429
    assert error.code == "rate_limit_exceeded"
    assert "3 requests wait already" in error.message
    tickets[0].release()
    tickets[0].release()
    assert admission.active == 4, "a ticket gives back one place, however often it is released"
    with admission.admit():
        assert refusal(admission).status == 429
    assert admission.active == 4
    with pytest.raises(ValueError, match="inside"), admission.admit():
        raise ValueError("inside")
    assert admission.active == 4
    assert admission.refused == {"queue_full": 2, "key_limit": 0, "draining": 0}


def test_a_queue_of_none() -> None:
    admission = Admission(1, 0)
    with admission.admit():
        assert refusal(admission).status == 429
    admission.admit()


def test_a_batch_is_taken_whole_when_there_is_room() -> None:
    admission = Admission(2, 2)
    with admission.admit(weight=100):
        assert admission.waiting == 98
        assert refusal(admission).status == 429
    assert admission.active == 0


def test_keys_have_shares() -> None:
    admission = Admission(100, 100, per_key_limit=2)
    alice = [admission.admit("alice"), admission.admit("alice")]
    error = refusal(admission, "alice")
    assert error.status == 429
    assert "'alice'" in error.message
    admission.admit("bob")
    admission.admit(None)
    with pytest.raises(ApiError):
        admission.admit("bob", key_limit=1)
    assert [admission.admit("carol", key_limit=5) for _ in range(5)]
    alice[0].release()
    admission.admit("alice")
    assert admission.refused["key_limit"] == 2


def test_draining_takes_nobody_and_lets_the_others_finish() -> None:
    admission = Admission(2, 2)
    ticket = admission.admit()
    admission.draining = True
    error = refusal(admission)
    assert error.status == 503
    ticket.release()
    assert admission.active == 0


def test_when_to_come_back() -> None:
    clock = Clock()
    admission = Admission(1, 9, clock=clock)
    tickets = [admission.admit() for _ in range(10)]
    assert refusal(admission).headers["retry-after"] == "5", "nothing has finished, nothing is known"
    admission = Admission(1, 9, clock=clock)
    tickets = [admission.admit() for _ in range(10)]
    for _ in range(20):  # two in a second
        clock.now += 0.5
        tickets.pop(0).release()
        tickets.append(admission.admit())
    retries = [int(refusal(admission).headers["retry-after"]) for _ in range(200)]
    assert retries == sorted(retries)
    assert retries[:6] == [1, 1, 2, 2, 3, 3], "each refused one takes the next place in line"
    assert retries[-1] == 60
    clock.now += 3600.0
    assert refusal(admission).headers["retry-after"] == "60", "nothing has finished for an hour"
    for ticket in tickets:
        ticket.release()
    clock.now += 8 * 3600.0
    tickets = [admission.admit() for _ in range(10)]
    for _ in range(2):
        clock.now += 0.5
        tickets.pop().release()
    tickets += [admission.admit(), admission.admit()]
    assert refusal(admission).headers["retry-after"] == "1", "a quiet night says nothing about a busy morning"


def test_those_who_come_back_when_told_find_room() -> None:
    """A crowd of 300 against a server of 10 requests a second: obedient clients are refused little more than once."""
    clock = Clock()
    admission = Admission(1, 9, clock=clock)
    running: list[Ticket] = []
    comes_back: list[tuple[float, int]] = []
    attempts: Counter[int] = Counter()
    arrivals = [(clock.now + i * 0.001, i) for i in range(300)]
    served = 0
    while served < 300:
        clock.now += 0.1
        if running:
            running.pop(0).release()
            served += 1
        due = sorted(entry for entry in arrivals + comes_back if entry[0] <= clock.now)
        arrivals = [entry for entry in arrivals if entry[0] > clock.now]
        comes_back = [entry for entry in comes_back if entry[0] > clock.now]
        for _, client in due:
            attempts[client] += 1
            try:
                running.append(admission.admit())
            except ApiError as error:
                comes_back.append((clock.now + int(error.headers["retry-after"]), client))
        assert clock.now < 1000.0 + 300, "the crowd is never served"
    assert sum(attempts.values()) < 4 * 300
    assert clock.now < 1000.0 + 2 * 30, "the server idles while clients wait"


@pytest.mark.parametrize("seed", range(5))
def test_bounds_hold_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
    clock = Clock()
    admission = Admission(4, 8, per_key_limit=3, clock=clock)
    held: list[Ticket] = []
    for _ in range(3000):
        clock.now += rng.random()
        if held and rng.random() < 0.5:
            held.pop(rng.randrange(len(held))).release()
        else:
            key = rng.choice([None, "a", "b", "c"])
            own = Counter(ticket.key for ticket in held)
            full = sum(ticket.weight for ticket in held) >= 12
            allowed = not full and (key is None or own[key] < 3)
            try:
                held.append(admission.admit(key, weight=rng.choice([1, 1, 1, 4])))
                assert allowed
            except ApiError:
                assert not allowed
        assert admission.active == sum(ticket.weight for ticket in held)
        assert admission._by_key == Counter(ticket.key for ticket in held if ticket.key)
    while held:
        held.pop().release()
    assert admission.active == 0
    assert admission._by_key == {}
