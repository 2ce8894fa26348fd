"""Priorities in the engine: the bound on waiting, preemption by class, parked sequences, late prompts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from engine_helpers import (
    Clock,
    assert_empty,
    drain,
    generate,
    greedy,
    make_engine,
    model_of,
    prompt,
    tokens_of,
)

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.core import EngineCore
from vglm.engine.request import PromptEmbeds, Request, RequestKind, Status
from vglm.engine.scheduler import SchedulerConfig
from vglm.errors import ConfigError


def running(engine: EngineCore) -> list[str]:
    return [sequence.request.request_id for sequence in engine.scheduler.running]


def is_running(request: Request) -> bool:
    return request.sequences[0].status is Status.RUNNING


def flooded(max_wait: float = 10.0, **limits: int) -> tuple[EngineCore, Clock]:
    """An engine of two slots that has more high requests than it can serve."""
    clock = Clock()
    engine = make_engine(
        limits.pop("num_blocks", 64),
        max_num_seqs=limits.pop("max_num_seqs", 2),
        max_wait=max_wait,
        clock=clock,
        max_model_len=60,
        **limits,
    )
    for i in range(4):
        engine.add_request(f"high{i}", prompt(5, i), greedy(4), priority="high")
    return engine, clock


def flood(engine: EngineCore, clock: Clock, until: Request, seconds: float = 1.0) -> float:
    """Add a high request in every step until a request has started; returns when that was."""
    for i in range(400):
        if until.scheduled_time:
            return until.scheduled_time
        engine.add_request(f"flood{clock.now}", prompt(5, i), greedy(4), priority="high")
        engine.step()
        engine.check_integrity([until.span] if until.span else [])
        clock.now += seconds
    raise AssertionError("a flood of high requests has starved a low one")


# The bound


@pytest.mark.parametrize("priority", ["normal", "low", 100])
def test_a_flood_of_a_better_class_starves_nobody(priority: str | int) -> None:
    engine, clock = flooded()
    low = engine.add_request("low", prompt(9), greedy(3), priority=priority)
    started = flood(engine, clock, low)
    # Nobody is ahead: two admissions at most, plus one under way; one takes at most the 4 steps of an answer.
    assert 10 < started - low.queued_time <= 10 + 3 * 4
    drain(engine)
    assert tokens_of([low]) == tokens_of(generate(make_engine(), [prompt(9)], greedy(3)))


def test_those_ahead_have_their_turns_first() -> None:
    engine, clock = flooded()
    ahead = [engine.add_request(f"ahead{i}", prompt(6, i), greedy(2), priority="low") for i in range(5)]
    last = engine.add_request("last", prompt(9), greedy(3), priority="low")
    started = flood(engine, clock, last)
    assert started - last.queued_time <= 10 + (2 * (len(ahead) + 1) + 1) * 4
    assert [request.scheduled_time for request in ahead] == sorted(r.scheduled_time for r in ahead)
    assert ahead[-1].scheduled_time <= started
    drain(engine)


def test_a_wall_of_overdue_requests_does_not_shut_out_the_high_class() -> None:
    engine, clock = flooded()
    wall = [engine.add_request(f"low{i}", prompt(5, i), greedy(4), priority="low") for i in range(60)]
    drain_one_class(engine, "high")
    clock.now += 100.0
    engine.step()
    urgent = [engine.add_request(f"urgent{i}", prompt(7, i), greedy(4), priority="high") for i in range(5)]
    while not all(is_running(request) or request.finished for request in urgent):
        engine.step()
        clock.now += 1.0
    assert sum(bool(request.scheduled_time) for request in wall) <= 2 + 2 + len(urgent) + 1
    drain(engine)


def drain_one_class(engine: EngineCore, name: str) -> None:
    while engine.stats().num_waiting_by_class[name]:
        engine.step()


def test_what_it_waited_before_a_preemption_counts() -> None:
    engine, clock = flooded(max_num_seqs=1)
    low = engine.add_request("low", prompt(9), greedy(30), priority="low")
    sequence = low.sequences[0]
    while not is_running(low):
        engine.step()
        clock.now += 0.25
    waited = sequence.waited
    assert 0 < waited < 10
    clock.now += 50.0  # running
    engine.add_request("high", prompt(5), greedy(4), priority="high")
    engine.step()
    assert sequence.status is Status.WAITING
    assert clock.now - sequence.waiting_since == pytest.approx(waited)
    started = flood(engine, clock, low) if not low.scheduled_time else low.scheduled_time
    assert started
    for i in range(100):
        if is_running(low):
            break
        engine.add_request(f"more{i}", prompt(5, i), greedy(4), priority="high")
        engine.step()
        clock.now += 1.0
    assert sequence.overdue
    assert sequence.waited <= 10 + 3 * 4
    drain(engine)
    assert tokens_of([low]) == tokens_of(generate(make_engine(), [prompt(9)], greedy(30)))


@pytest.mark.parametrize("kind", ["fork", "embeds", "span", "encode", "score"])
def test_every_kind_of_request_has_its_turn(kind: str) -> None:
    engine, clock = flooded(max_num_seqs=3)
    params = greedy(4)
    options: dict[str, object] = {}
    if kind == "fork":
        params = SamplingParams(n=3, max_tokens=5, temperature=1.0, seed=3)
    elif kind == "embeds":
        rows = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
        options = {"embeds": PromptEmbeds(np.array([1, 5], np.int32), rows)}
    elif kind == "span":
        options = {"kind": RequestKind.SPAN}
    elif kind == "encode":
        options = {"kind": RequestKind.ENCODE}
    else:
        options = {"kind": RequestKind.SCORE, "target_token_ids": prompt(5, 9)}
    request = engine.add_request("low", prompt(13), params, priority="low", **options)  # type: ignore[arg-type]
    flood(engine, clock, request)
    assert request.sequences[0].overdue or request.finished
    while engine.has_unfinished:
        engine.step()
    alone = make_engine()
    wanted = alone.add_request("low", prompt(13), params, **options)  # type: ignore[arg-type]
    while alone.has_unfinished:
        alone.step()
    assert tokens_of([request]) == tokens_of([wanted])
    assert [score.token_id for score in request.scores] == [score.token_id for score in wanted.scores]
    if wanted.pooled is not None:
        np.testing.assert_allclose(request.pooled, wanted.pooled, atol=1e-5)
    if request.span is not None:
        engine.cache.release(request.span)
    assert_empty(engine)


# Preemption by class


@pytest.mark.parametrize("short_of", ["slots", "blocks"])
def test_a_better_class_takes_the_place_of_the_worst(short_of: str) -> None:
    slots, num_blocks = (3, 64) if short_of == "slots" else (8, 26)
    engine = make_engine(num_blocks, max_num_seqs=slots, max_model_len=60)
    priorities = {"low": "low", "normal": 0, "low too": 5}
    # 20 tokens of prompt and 8 of output are 7 blocks; three of them leave no room for a fourth
    requests = {
        name: engine.add_request(name, prompt(20, i), greedy(8), priority=priority)
        for i, (name, priority) in enumerate(priorities.items())
    }
    engine.step()
    assert running(engine) == ["normal", "low", "low too"]
    high = engine.add_request("high", prompt(24, 8), greedy(8), priority="high")
    engine.step()
    engine.check_integrity()
    assert running(engine) == ["high", "normal", "low"]
    assert requests["low too"].sequences[0].num_preemptions == 1
    drain(engine)
    assert engine.stats().num_preemptions == 1
    finished = [high.finished_time, requests["low too"].finished_time]
    assert finished == sorted(finished)
    wanted = generate(make_engine(200), [prompt(20, i) for i in range(3)], greedy(8))
    assert tokens_of(requests.values()) == tokens_of(wanted)
    assert_empty(engine)


def test_nobody_is_preempted_for_the_same_class_or_in_vain() -> None:
    engine = make_engine(26, max_num_seqs=3, max_model_len=100)
    low = engine.add_request("low", prompt(8), greedy(30), priority="low")
    normal = [engine.add_request(f"normal{i}", prompt(20, i), greedy(12)) for i in range(2)]
    engine.step()
    engine.add_request("same", prompt(9), greedy(2))
    engine.add_request(
        "large", prompt(90, 3), greedy(2), priority="high"
    )  # 23 blocks: more than low's would do
    for _ in range(5):
        engine.step()
        assert low.sequences[0].num_preemptions == 0
    assert all(is_running(request) for request in normal)
    drain(engine)


def test_siblings_make_room_together_and_find_it_together() -> None:
    engine = make_engine(64, max_num_seqs=4, max_model_len=60)
    low = [engine.add_request(f"low{i}", prompt(6, i), greedy(20), priority="low") for i in range(4)]
    engine.step()
    params = SamplingParams(n=3, max_tokens=6, temperature=1.0, seed=2)
    high = engine.add_request("high", prompt(10), params, priority="high")
    engine.step()
    assert running(engine) == ["high", "high", "high", "low0"]
    assert [request.sequences[0].num_preemptions for request in low] == [0, 1, 1, 1]
    drain(engine)
    assert tokens_of([high]) == tokens_of(generate(make_engine(), [prompt(10)], params))
    # and the other way round: n sequences of a request with its prompt not computed yet give way as one
    engine = make_engine(64, max_num_seqs=4, max_model_len=60, max_num_batched_tokens=8)
    forked = engine.add_request("low", prompt(40), params, priority="low")
    engine.step()
    urgent = [engine.add_request(f"high{i}", prompt(5, i), greedy(3), priority="high") for i in range(2)]
    engine.step()
    assert all(is_running(request) for request in urgent)
    assert forked.sequences[0].num_preemptions == 1
    drain(engine)
    assert tokens_of([forked]) == tokens_of(generate(make_engine(), [prompt(40)], params))
    assert_empty(engine)


def test_who_was_started_overdue_keeps_its_place() -> None:
    engine, clock = flooded(num_blocks=22)
    low = engine.add_request("low", prompt(9), greedy(40), priority="low")
    flood(engine, clock, low)
    for i in range(200):
        if low.finished:
            break
        engine.add_request(f"more{i}", prompt(9, i), greedy(12), priority="high")
        engine.step()
        engine.check_integrity()
        clock.now += 1.0
    assert low.finished
    assert low.sequences[0].num_preemptions == 0
    drain(engine)


def test_memory_is_taken_from_those_started_overdue_last() -> None:
    """Four sequences outgrow the memory; the worst class of them was started overdue, and finishes undisturbed."""
    clock = Clock()
    engine = make_engine(24, max_num_seqs=4, max_model_len=60, clock=clock)
    low = engine.add_request("low", prompt(8), greedy(40), priority="low")
    clock.now += 11.0
    others = [engine.add_request(f"high{i}", prompt(8, 1 + i), greedy(40), priority="high") for i in range(3)]
    drain(engine)
    assert low.sequences[0].overdue
    assert low.sequences[0].num_preemptions == 0
    assert sum(request.sequences[0].num_preemptions for request in others) > 0
    wanted = generate(make_engine(200, max_model_len=60), [prompt(8, i) for i in range(4)], greedy(40))
    assert tokens_of([low, *others]) == tokens_of(wanted)


def test_all_overdue_and_too_little_memory_is_no_livelock() -> None:
    clock = Clock()
    engine = make_engine(18, max_num_seqs=8, max_model_len=64, max_wait=0.0, clock=clock)
    requests = [
        engine.add_request(str(i), prompt(8, i), greedy(50), priority=(i * 7) % 5 - 2) for i in range(8)
    ]
    clock.now += 1.0
    steps = 0
    while engine.has_unfinished:
        engine.step()
        clock.now += 1.0
        engine.check_integrity()
        steps += 1
        assert steps < 8 * 50 * 2
    wanted = generate(make_engine(400, max_model_len=64), [prompt(8, i) for i in range(8)], greedy(50))
    assert tokens_of(requests) == tokens_of(wanted)


def test_preemption_by_class_comes_to_an_end() -> None:
    """High requests come one at a time, each as soon as the low one runs again."""
    clock = Clock()
    engine = make_engine(64, max_num_seqs=1, max_wait=10.0, max_model_len=60, clock=clock)
    low = engine.add_request("low", prompt(30), greedy(20), priority="low")
    for i in range(2000):
        if low.finished:
            break
        if is_running(low):
            engine.add_request(f"high{i}", prompt(5, i), greedy(2), priority="high")
        engine.step()
        clock.now += 1.0
    assert low.finished
    assert 2 <= low.sequences[0].num_preemptions <= 10
    drain(engine)
    assert tokens_of([low]) == tokens_of(generate(make_engine(), [prompt(30)], greedy(20)))


def test_the_best_swaps_places_while_an_overdue_one_waits_for_room() -> None:
    """The turn is a large overdue one's, which needs most of the memory; a high one need not wait for that."""
    clock = Clock()
    engine = make_engine(26, max_num_seqs=4, max_model_len=90, clock=clock)
    first = engine.add_request("first", prompt(30), greedy(20))
    other = engine.add_request("other", prompt(30, 1), greedy(20))
    engine.step()
    large = engine.add_request("large", prompt(70, 2), greedy(4), priority="low")
    clock.now += 11.0
    high = [engine.add_request(f"high{i}", prompt(20, 3 + i), greedy(8), priority="high") for i in range(2)]
    engine.step()
    assert is_running(high[0])
    assert other.sequences[0].num_preemptions == 1
    while not is_running(large):
        engine.step()
        engine.check_integrity()
        clock.now += 0.1
    assert large.sequences[0].overdue
    drain(engine)
    assert first.finished


# Parked sequences


def test_who_computes_a_prompt_for_a_better_one_is_served_as_that() -> None:
    engine = make_engine(200, max_num_seqs=4, max_num_batched_tokens=12, max_model_len=200)
    shared = prompt(60)
    engine.add_request("owner", [*shared, 1], greedy(3), priority="low")
    engine.step()
    parked = engine.add_request("parked", [*shared, 2], greedy(3), priority="high")
    normal = engine.add_request("normal", prompt(100, 5), greedy(1))
    drain(engine)
    assert parked.num_cached_tokens == 60
    assert parked.first_token_time < normal.first_token_time


def test_who_keeps_an_overdue_one_waiting_is_late_itself() -> None:
    clock = Clock()
    engine = make_engine(200, max_num_seqs=4, max_num_batched_tokens=12, max_model_len=200, clock=clock)
    shared = prompt(120)
    owner = engine.add_request("owner", [*shared, 1], greedy(3), priority="low")
    engine.step()
    parked = engine.add_request("parked", [*shared, 2], greedy(3))
    engine.step()
    assert engine.scheduler.num_parked == 1
    assert engine.stats().num_waiting_by_class == {"high": 0, "normal": 1, "low": 0}
    steps = 0
    while not is_running(parked) and not parked.finished:
        # prompts that would take the whole budget for ever
        while sum(not r.finished for r in engine.requests.values() if r.priority < 0) < 2:
            name = f"high{clock.now}-{len(engine.requests)}"
            engine.add_request(name, prompt(40, 10 + steps), greedy(1), priority="high")
        engine.step()
        engine.check_integrity()
        clock.now += 1.0
        steps += 1
        assert steps < 100
    assert owner.sequences[0].overdue
    waited = parked.sequences[0].waited
    assert waited <= 20.0 + 4 * 4  # its bound; the shared prompt was there before
    assert parked.num_cached_tokens == 120
    drain(engine)


def test_a_parked_sequence_does_not_wait_for_ever() -> None:
    """The prompt takes too long: after 2 * max_wait the other one computes it itself."""
    clock = Clock()
    engine = make_engine(200, max_num_seqs=4, max_num_batched_tokens=5, max_model_len=200, clock=clock)
    shared = prompt(150)
    engine.add_request("owner", [*shared, 1], greedy(3), priority="low")
    engine.step()
    parked = engine.add_request("parked", [*shared, 2], greedy(3))
    engine.step()
    assert engine.scheduler.num_parked == 1
    started = []
    while not started:
        engine.step()
        engine.check_integrity()
        started = [parked.scheduled_time] if is_running(parked) else []
        clock.now += 3.0
    assert 20 < started[0] - parked.queued_time <= 24
    drain(engine)
    wanted = generate(make_engine(), [[*shared, 2]], greedy(3))
    assert tokens_of([parked]) == tokens_of(wanted)


def test_thousands_that_share_a_prompt_are_not_parked_all_at_once() -> None:
    engine = make_engine(400, max_num_seqs=8, max_num_batched_tokens=16, max_model_len=100)
    shared = prompt(60)
    for i in range(600):
        engine.add_request(str(i), [*shared, 1 + i % 90, i // 90], greedy(1))
    parked = []
    while len(engine.requests) > 599:
        engine.step()
        parked.append(engine.scheduler.num_parked)
    assert max(b - a for a, b in pairwise(parked)) <= 32
    while engine.has_unfinished:
        engine.step()
        assert engine.scheduler.num_parked <= 256
    assert model_of(engine).tokens_computed < 600 * 8


# Tokens


def test_waiting_ones_of_a_better_class_go_before_a_running_prompt() -> None:
    engine = make_engine(100, max_num_seqs=4, max_num_batched_tokens=16, max_model_len=300)
    engine.add_request("low", prompt(200), greedy(2), priority="low")
    engine.step()
    high = engine.add_request("high", prompt(15, 1), greedy(2), priority="high")
    normal = engine.add_request("normal", prompt(20, 2), greedy(2))
    engine.step()
    assert high.first_token_time  # 15 tokens, and one for the low one
    assert not is_running(normal)
    engine.step()
    assert is_running(normal)
    drain(engine)


def test_late_prompts_share_every_step() -> None:
    """A long prompt that runs gets half of the budget once it is late, however many better ones come."""
    clock = Clock()
    engine = make_engine(200, max_num_seqs=8, max_num_batched_tokens=17, max_model_len=300, clock=clock)
    low = engine.add_request("low", prompt(200), greedy(2), priority="low")
    engine.step()
    sequence = low.sequences[0]
    progress = []
    for i in range(14):
        before = sequence.num_computed
        engine.add_request(f"high{i}", prompt(40, 10 + i), greedy(1), priority="high")
        engine.step()
        progress.append(sequence.num_computed - before)
        clock.now += 1.0
    assert set(progress[1:11]) == {1}
    assert min(progress[11:]) >= 7
    drain(engine)


@pytest.mark.parametrize("max_wait", [-1.0, float("nan")])
def test_an_impossible_bound_is_refused(max_wait: float) -> None:
    with pytest.raises(ConfigError, match="max_wait"):
        SchedulerConfig(max_wait=max_wait)


def test_without_a_bound_priority_is_strict() -> None:
    engine, clock = flooded(max_wait=float("inf"))
    low = engine.add_request("low", prompt(9), greedy(3), priority="low")
    with pytest.raises(AssertionError, match="starved"):
        flood(engine, clock, low, seconds=1000.0)
    drain(engine)
    assert low.finished


def test_waits_are_counted_by_class() -> None:
    engine = make_engine(max_num_seqs=1)
    for i, priority in enumerate([-1, "low", 0, 50, -50, "high"]):
        engine.add_request(str(i), prompt(5, i), greedy(2), priority=priority)
    assert engine.stats().num_waiting_by_class == {"high": 3, "normal": 1, "low": 2}
    drain(engine)
    histograms = engine.metrics.queue_time_by_class
    assert {name: h.count for name, h in histograms.items()} == {"high": 3, "normal": 1, "low": 2}
    assert histograms["high"].mean < histograms["normal"].mean < histograms["low"].mean
    assert sum(h.total for h in histograms.values()) == pytest.approx(engine.metrics.request_queue_time.total)
    assert engine.metrics.schedule_seconds.count == engine.metrics.num_steps
    assert 0 < engine.metrics.schedule_seconds.mean < engine.metrics.schedule_time
