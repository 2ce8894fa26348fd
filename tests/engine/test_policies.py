"""The latency controller: alone against what it should learn, and steering the engine on simulated machines."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from math import ceil, floor

import numpy as np
import pytest
from engine_helpers import Clock, greedy, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import (
    Arrival,
    Machine,
    bursty_gamma,
    p95_ms,
    rushes,
    simulate,
    timed_engine,
)

from vglm.engine.core import EngineCore
from vglm.engine.policies import SMALLEST_CHUNK, ControllerState, Quantile, StepTimeModel

MACHINE = Machine()

# The parts


@given(st.lists(st.floats(0, 1e3), max_size=60), st.integers(1, 20), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_a_quantile_is_the_one_of_the_last_values(values: list[float], window: int, q: float) -> None:
    quantile = Quantile(q, window)
    assert quantile.value(-1.0) == -1.0
    last: deque[float] = deque(maxlen=window)
    for value in values:
        quantile.add(value)
        last.append(value)
        ordered, rank = sorted(last), q * (len(last) - 1)
        assert quantile.value(-1.0) in (ordered[ceil(rank - 0.5)], ordered[floor(rank + 0.5)])
        assert len(quantile) == len(last)
    quantile.clear()
    assert quantile.value(-1.0) == -1.0


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.5, 7.0]), st.integers(1, 64)), max_size=40),
    st.floats(0, 1),
)
def test_a_weight_is_so_many_equal_values(values: list[tuple[float, int]], q: float) -> None:
    weighted, plain = Quantile(q, 1000), Quantile(q, 10_000)
    for value, weight in values:
        weighted.add(value, weight)
        for _ in range(weight):
            plain.add(value)
    assert weighted.value(-1.0) == plain.value(-1.0)


def observe(model: StepTimeModel, machine: Machine, steps: int, seed: int = 0) -> None:
    """Let a model see steps of all sizes on a machine."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        tokens, decoding = int(rng.integers(0, 500)), int(rng.integers(0, 64))
        model.observe(machine.seconds(tokens, decoding, 0.0, rng), tokens, decoding)


@pytest.mark.parametrize(
    "machine",
    [
        Machine(noise=0),
        Machine(noise=0, base=1e-4, per_token=2e-6, per_sequence=3e-6),
        Machine(noise=0, base=0.5, per_token=0.01, per_sequence=0.05),
    ],
    ids=["usual", "fast", "slow"],
)
def test_the_time_of_a_step_is_learned(machine: Machine) -> None:
    model = StepTimeModel()
    observe(model, machine, 400)
    for tokens, decoding in ((0, 1), (0, 64), (16, 30), (500, 0), (2000, 10)):
        true = machine.seconds(tokens, decoding, 0.0, np.random.default_rng(0))
        assert model.predict(tokens, decoding) == pytest.approx(true, rel=0.05)


def test_noise_and_hiccups_do_not_spoil_the_model() -> None:
    model = StepTimeModel()
    observe(model, Machine(noise=0.1), 400)
    true = MACHINE.base + 100 * MACHINE.per_token + 20 * MACHINE.per_sequence
    assert model.predict(100, 20) == pytest.approx(true, rel=0.1)
    model.observe(100 * true, 100, 20)
    assert model.predict(100, 20) < 1.5 * true


def test_a_machine_that_has_become_slower_is_learned_again() -> None:
    model = StepTimeModel()
    observe(model, Machine(noise=0.05), 400)
    slower = Machine(noise=0.05, base=0.009, per_token=0.0006, per_sequence=0.003)
    observe(model, slower, 200, seed=1)
    true = slower.base + 100 * slower.per_token + 20 * slower.per_sequence
    assert model.predict(100, 20) == pytest.approx(true, rel=0.1)


def test_what_no_step_tells_of_stays_as_it_was() -> None:
    model = StepTimeModel()
    observe(model, Machine(noise=0), 400)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        decoding = int(rng.integers(1, 30))
        model.observe(Machine(noise=0.05).seconds(0, decoding, 0.0, rng), 0, decoding)
    assert model.per_token == pytest.approx(MACHINE.per_token, rel=0.5)


SECONDS = st.floats(1e-6, 1e3)


@given(st.lists(st.tuples(SECONDS, st.integers(0, 10**5), st.integers(0, 10**4)), max_size=60))
@settings(max_examples=200, deadline=None)
def test_a_model_of_anything_is_finite_and_grows_with_the_work(steps: list[tuple[float, int, int]]) -> None:
    model = StepTimeModel()
    for seconds, tokens, decoding in steps:
        model.observe(seconds, tokens, decoding)
        assert np.isfinite(model.predict(2048, 64))
        assert model.base >= 0
        assert model.per_token > 0
        assert model.per_sequence > 0


# Steering the engine. Targets are milliseconds.

ITL = 50.0
NEIGHBOURS = Machine(slowdown=lambda now: 2.5 if int(now / 4) % 3 == 2 else 1.0)
LOADS = {
    "gamma, with neighbours": (bursty_gamma(100, rate=6.0, burstiness=0.15, seed=5), NEIGHBOURS, 1000.0),
    "rushes": (rushes([(3, 6), (0.5, 60), (4, 6), (1, 40), (4, 6)], seed=1), MACHINE, 700.0),
}
FIXED = [(1024, 64), (64, 32), (32, 32), (24, 16), (16, 16)]  # tokens and sequences of a step


@pytest.mark.parametrize("load", LOADS)
def test_targets_that_fixed_settings_miss_are_met(load: str) -> None:
    """Large steps hold up those who decode, small ones those who wait, and what is right changes with both."""
    arrivals, machine, ttft = LOADS[load]
    steered = simulate(arrivals, machine, itl_target_ms=ITL, ttft_target_ms=ttft)
    assert p95_ms(steered.itl) <= ITL
    assert p95_ms(steered.ttft) <= ttft
    for budget, seqs in FIXED:
        fixed = simulate(arrivals, machine, max_num_batched_tokens=budget, max_num_seqs=seqs)
        assert not fixed.meets(ITL, ttft), (budget, seqs)
        assert fixed.tokens == steered.tokens


def test_what_the_targets_cost() -> None:
    """Less throughput than without them, but not much less."""
    arrivals = [Arrival(0.0, one.prompt, one.output) for one in LOADS["rushes"][0]]
    steered = simulate(arrivals, MACHINE, itl_target_ms=ITL, ttft_target_ms=700.0)
    free = simulate(arrivals, MACHINE)
    assert steered.tokens == free.tokens
    assert p95_ms(free.itl) > 1.5 * ITL
    assert p95_ms(steered.itl) < 1.02 * ITL  # all at once, before anything has been learned
    assert steered.tokens_per_second > 0.7 * free.tokens_per_second


def test_a_target_for_the_first_token_alone_keeps_steps_short() -> None:
    """Whoever arrives waits for a step to end: no step may be longer than a quarter of the target."""
    ends: list[float] = []
    arrivals = [Arrival(0.05 * i, 400, 2) for i in range(20)]
    simulate(arrivals, MACHINE, ttft_target_ms=400.0, watch=lambda engine: ends.append(engine.clock()))
    steps = [after - before for before, after in pairwise(ends)][5:]
    assert max(steps) < 0.1 * 1.3
    assert np.mean(steps) > 0.1 * 0.7, "shorter than they have to be"


def limits_of(engine: EngineCore) -> tuple[int, int]:
    return engine.scheduler.token_budget, engine.scheduler.max_running


def test_without_targets_nothing_is_steered() -> None:
    seen: set[tuple[int, int]] = set()
    arrivals = LOADS["rushes"][0][:60]
    free = simulate(arrivals, MACHINE, watch=lambda engine: seen.add(limits_of(engine)))
    assert seen == {(1024, 64)}
    assert timed_engine(MACHINE, Clock()).controller is None
    assert simulate(arrivals, MACHINE, itl_target_ms=1e6, ttft_target_ms=1e6) == free


@pytest.mark.parametrize(("itl", "ttft"), [(0.001, None), (0.001, 0.001), (None, 0.001)])
def test_targets_that_nobody_can_meet_starve_nobody(itl: float | None, ttft: float | None) -> None:
    arrivals = bursty_gamma(60, rate=8.0, burstiness=0.3)
    steered = simulate(arrivals, MACHINE, itl_target_ms=itl, ttft_target_ms=ttft)
    free = simulate(arrivals, MACHINE)
    assert steered.tokens == free.tokens
    assert steered.seconds < 6 * free.seconds


def test_the_limits_come_back_after_a_burst() -> None:
    arrivals = rushes([(6.0, 4.0), (1.0, 60.0), (12.0, 4.0)], seed=2)
    steered = simulate(arrivals, MACHINE, itl_target_ms=ITL, ttft_target_ms=700.0)
    before = [wait for one, wait in zip(arrivals, steered.ttft, strict=True) if one.at < 6]
    during = [wait for one, wait in zip(arrivals, steered.ttft, strict=True) if 6 <= one.at < 7]
    after = [wait for one, wait in zip(arrivals, steered.ttft, strict=True) if one.at > 12]
    assert np.median(during) > 3 * np.median(before), "this was no burst"
    assert np.median(after) < 1.3 * np.median(before)


def test_the_limits_come_back_after_the_machine_was_slow() -> None:
    """Although no request ever waits: long prompts must not stay cut into small pieces."""
    begin, end = 7.0, 12.0
    machine = Machine(slowdown=lambda now: 8.0 if begin < now < end else 1.0)
    times = [*np.arange(0.0, begin - 1, 1.0), *np.arange(end + 1, end + 16, 1.0)]
    arrivals = [Arrival(float(at), 10, 70) for at in times] + [Arrival(begin - 1.2, 10, 200)]
    arrivals += [Arrival(float(at) + 0.1, 300, 1) for at in times[::2]]
    arrivals.sort(key=lambda arrival: arrival.at)
    states: list[ControllerState] = []

    def watch(engine: EngineCore) -> None:
        assert engine.controller is not None
        states.append(engine.controller.state())

    steered = simulate(arrivals, machine, itl_target_ms=60.0, watch=watch)
    waits = [(one.at, wait) for one, wait in zip(arrivals, steered.ttft, strict=True) if one.prompt == 300]
    before = [wait for at, wait in waits if at < begin]
    after = [wait for at, wait in waits if at > end + 8]
    assert states[-1].decreases > 0
    assert states[-1].increases > 0
    assert np.median(after) < 1.05 * np.median(before)


MILLISECONDS = st.floats(0.001, 1e4)
REQUESTS = st.tuples(
    st.integers(1, 60), st.integers(1, 12), st.integers(0, 12)
)  # prompt, output, at which step


@given(
    costs=st.tuples(st.floats(0, 0.1), st.floats(0, 0.01), st.floats(0, 0.1)),
    noise=st.sampled_from([0.0, 0.3, 2.0]),
    targets=st.tuples(st.none() | MILLISECONDS, MILLISECONDS).flatmap(st.permutations),
    limits=st.tuples(st.integers(1, 12), st.integers(0, 100)),
    requests=st.lists(REQUESTS, min_size=1, max_size=14),
)
@settings(max_examples=100, deadline=None)
def test_limits_are_within_what_was_configured_and_leave_room_for_prompts(
    costs: tuple[float, float, float],
    noise: float,
    targets: list[float | None],
    limits: tuple[int, int],
    requests: list[tuple[int, int, int]],
) -> None:
    most_running, most = limits[0], sum(limits)
    clock = Clock()
    engine = timed_engine(
        Machine(*costs, noise=noise, hiccups=0.05),
        clock,
        max_num_seqs=most_running,
        max_num_batched_tokens=most,
        itl_target_ms=targets[0],
        ttft_target_ms=targets[1],
    )
    left = deque(sorted(requests, key=lambda one: one[2]))
    steps = 0
    while left or engine.has_unfinished:
        while left and left[0][2] <= steps:
            tokens, output, _ = left.popleft()
            engine.add_request(str(len(left)), prompt(tokens, tokens), greedy(output, ignore_eos=True))
        running = list(engine.scheduler.running)
        decoding = sum(one.num_tokens - one.num_computed == 1 for one in running)
        engine.step()
        steps += 1
        budget, running_limit = limits_of(engine)
        assert min(most, max(len(running), decoding + SMALLEST_CHUNK)) <= budget <= most
        assert 1 <= running_limit <= most_running
        assert steps <= 12 + sum(tokens + output for tokens, output, _ in requests), "no progress"
    engine.check_integrity()
