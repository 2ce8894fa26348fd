"""What the scheduler promises: order, budget, progress, sharing of work in flight, no deadlock."""

from __future__ import annotations

import pytest
from engine_helpers import assert_empty, drain, generate, greedy, make_engine, model_of, prompt, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.request import RequestKind, Status
from vglm.engine.scheduler import SchedulerConfig
from vglm.errors import ConfigError


def test_requests_start_in_order_of_arrival() -> None:
    engine = make_engine(24, max_num_seqs=3, max_model_len=40)
    requests = [engine.add_request(str(i), prompt(5 + 7 * (i % 3), i), greedy(6)) for i in range(12)]
    drain(engine)
    started = [request.scheduled_time for request in requests]
    assert started == sorted(started)


def test_a_large_head_is_not_overtaken() -> None:
    """Small requests that would fit wait behind a large one that does not, or it might never start."""
    engine = make_engine(16, max_num_seqs=8, max_num_batched_tokens=64)
    first = engine.add_request("first", prompt(32), greedy(20))
    engine.step()
    large = engine.add_request("large", prompt(44, 1), greedy(2))
    small = [engine.add_request(f"small{i}", prompt(3, i), greedy(2)) for i in range(5)]
    while not first.finished:
        engine.step()
        assert all(not request.scheduled_time for request in (large, *small))
    drain(engine)
    assert all(request.scheduled_time >= large.scheduled_time for request in small)


def test_lower_priority_number_runs_first_and_is_preempted_last() -> None:
    engine = make_engine(10, max_num_seqs=4, max_model_len=32)
    late = engine.add_request("late", prompt(10, 1), greedy(12), priority=5)
    urgent = engine.add_request("urgent", prompt(10, 2), greedy(12), priority=-1)
    engine.step()
    assert [sequence.request for sequence in engine.scheduler.running] == [urgent, late]
    drain(engine)
    assert urgent.sequences[0].num_preemptions == 0
    assert late.sequences[0].num_preemptions > 0
    assert urgent.finished_time < late.finished_time


def test_running_sequences_advance_in_every_step() -> None:
    """A long prompt in chunks does not stall the others' decoding."""
    engine = make_engine(100, max_num_batched_tokens=12, max_model_len=300)
    short = [engine.add_request(str(i), prompt(2, i), greedy(40)) for i in range(4)]
    engine.step()
    engine.add_request("long", prompt(200), greedy(2), priority=-1)
    for step in range(2, 20):
        engine.step()
        assert all(len(request.sequences[0].output_token_ids) == step for request in short)
    drain(engine)
    assert max(tokens for _, tokens in model_of(engine).batches) == 12


@pytest.mark.parametrize("budget", [32, 100])
def test_work_in_flight_is_shared(budget: int) -> None:
    """Of many waiting requests with one prefix, one computes it and the others hit it."""
    engine = make_engine(200, max_num_seqs=16, max_num_batched_tokens=budget, max_model_len=100)
    prefix = prompt(62)  # 15 full blocks and 2 tokens
    prompts = [prefix + prompt(5, i) for i in range(10)]
    wanted = [tokens_of(generate(make_engine(), [p], greedy(4)))[0] for p in prompts]
    requests = [engine.add_request(str(i), p, greedy(4)) for i, p in enumerate(prompts)]
    drain(engine)
    assert model_of(engine).batches[0] == (1, min(budget, 67))  # nobody else starts with the same blocks
    assert tokens_of(requests) == wanted
    assert [request.num_cached_tokens for request in requests] == [0] + [60] * 9
    assert model_of(engine).tokens_computed == 67 + 9 * 7 + 10 * 3
    assert_empty(engine)


def test_identical_prompts_share_all_but_the_last_block() -> None:
    engine = make_engine(100, max_num_seqs=8)
    requests = generate(engine, [prompt(24)] * 6, greedy(3))
    assert len({tuple(s[0]) for s in tokens_of(requests)}) == 1
    assert [request.num_cached_tokens for request in requests] == [0] + [20] * 5


def test_parked_requests_do_not_block_others() -> None:
    engine = make_engine(200, max_num_seqs=8, max_num_batched_tokens=16, max_model_len=200)
    shared = prompt(100)
    leader = engine.add_request("leader", [*shared, 1], greedy(2))
    follower = engine.add_request("follower", [*shared, 2], greedy(2))
    engine.step()
    for _ in range(5):
        engine.step()
    other = engine.add_request("other", prompt(6, 7), greedy(2))
    drain(engine)
    assert leader.scheduled_time < other.scheduled_time
    assert follower.num_cached_tokens == 100


@pytest.mark.parametrize("ending", ["abort", "error", "preempt"])
def test_whoever_waits_for_a_lost_span_goes_on(ending: str) -> None:
    """The leader disappears in the middle of its prompt: the next one takes over from what is cached."""
    engine = make_engine(60, max_num_seqs=8, max_num_batched_tokens=16, max_model_len=120)
    shared = prompt(80)
    wanted = tokens_of(generate(make_engine(), [[*shared, i] for i in range(1, 4)], greedy(3)))
    computed = model_of(engine).tokens_computed
    requests = [engine.add_request(str(i), [*shared, i], greedy(3)) for i in range(1, 4)]
    engine.step()
    engine.step()
    leader = requests[0].sequences[0]
    assert leader.num_computed == 32
    if ending == "abort":
        engine.abort("1")
    elif ending == "preempt":
        engine.scheduler._preempt(leader)
    else:
        engine.fail_request(requests[0], "lost")
    engine.check_integrity()
    drain(engine)
    survivors = requests if ending == "preempt" else requests[1:]
    assert tokens_of(survivors) == wanted[-len(survivors) :]
    # nothing was computed twice but the tokens after the shared blocks, and the tokens that were generated
    own = len(survivors) * (1 + 2)
    assert model_of(engine).tokens_computed - computed == 80 + own
    assert_empty(engine)


def test_encode_never_waits_for_a_prefix_that_it_cannot_use() -> None:
    engine = make_engine(60, max_num_batched_tokens=32)
    engine.add_request("a", prompt(40), greedy(2))
    pooled = engine.add_request("b", prompt(40), greedy(1), kind=RequestKind.ENCODE)
    engine.step()
    engine.step()
    assert engine.scheduler.num_parked == 0
    assert pooled.sequences[0].status is Status.RUNNING
    drain(engine)
    assert pooled.pooled is not None


def test_preempted_sequences_resume_from_their_spans() -> None:
    engine = make_engine(64, max_num_batched_tokens=64)
    request = engine.add_request("a", prompt(40), greedy(30))
    for _ in range(12):
        engine.step()
    computed = model_of(engine).tokens_computed
    engine.scheduler._preempt(engine.scheduler.running[0])
    engine.step()
    assert model_of(engine).tokens_computed - computed <= 4
    drain(engine)
    assert tokens_of([request]) == tokens_of(generate(make_engine(), [prompt(40)], greedy(30)))


def test_starting_a_sequence_does_not_preempt_another() -> None:
    """Two sequences grow to 9 of the 19 blocks: the third must wait, although its prompt alone would fit."""
    engine = make_engine(19, max_num_batched_tokens=64, max_model_len=40)
    requests = [engine.add_request(str(i), prompt(24, i), greedy(9)) for i in range(4)]
    engine.step()
    assert engine.stats().num_requests_running == 2
    drain(engine)
    assert engine.stats().num_preemptions == 0
    assert all(len(request.sequences[0].output_token_ids) == 9 for request in requests)


def test_siblings_need_slots_for_all_of_them() -> None:
    engine = make_engine(max_num_seqs=4)
    params = SamplingParams(n=3, max_tokens=5, temperature=1.0)
    one, two = engine.add_request("1", prompt(5), params), engine.add_request("2", prompt(6), params)
    engine.step()
    assert one.sequences[0].status is Status.RUNNING
    assert two.sequences[0].status is Status.WAITING
    drain(engine)
    assert [len(s.output_token_ids) for s in two.sequences] == [5, 5, 5]


@settings(max_examples=30, deadline=None)
@given(
    num_blocks=st.integers(6, 30),
    budget=st.integers(4, 40),
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 4)), min_size=1, max_size=10),
    shared=st.booleans(),
)
def test_every_request_ends(
    num_blocks: int, budget: int, lengths: list[tuple[int, int]], shared: bool
) -> None:
    """Whatever the memory and the budget, prefixes shared or not: no deadlock, no starvation, no leak."""
    engine = make_engine(num_blocks, max_num_seqs=4, max_num_batched_tokens=budget, max_model_len=24)
    params = [SamplingParams(max_tokens=4, n=n, seed=1) for _, n in lengths]
    prompts = [prompt(length, 0 if shared else length) for length, _ in lengths]
    requests = generate(engine, prompts, params)
    assert all(s.finish_reason == "length" for request in requests for s in request.sequences)
    assert model_of(engine).num_steps < 400
    assert_empty(engine)


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_seqs": 0},
        {"max_model_len": 1},
        {"max_num_seqs": 8, "max_num_batched_tokens": 7},
    ],
)
def test_impossible_limits_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        SchedulerConfig(**options)
