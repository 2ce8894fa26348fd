"""The engine's loop: how sequences end, kinds of requests, refusals, failures, interrupts, memory."""

from __future__ import annotations

import queue
import random
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
from engine_helpers import assert_empty, drain, generate, greedy, make_engine, model_of, prompt, tokens_of
from tiny_model import HIDDEN, VOCAB, TinyModel, TinyStorage

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.block_pool import BlockPool
from vglm.engine.config import EngineConfig
from vglm.engine.core import EngineCore
from vglm.engine.request import PromptEmbeds, Request, RequestKind
from vglm.engine.step import StepBatch, StepResult
from vglm.errors import ConfigError, RequestError

OUTPUT = tokens_of(generate(make_engine(), [prompt(9)], greedy(12)))[0][0]  # of prompt(9)


# How sequences end


def test_stop_token_ids_and_end_of_text() -> None:
    stop, eos = OUTPUT[4], OUTPUT[6]
    assert stop not in OUTPUT[:4]
    assert eos not in OUTPUT[:6]
    cases = [
        (greedy(12, stop_token_ids=[stop]), 5, "stop", stop),
        (greedy(12), 7, "stop", None),
        (greedy(12, ignore_eos=True), 12, "length", None),
        (greedy(3), 3, "length", None),
    ]
    for params, length, finish_reason, stop_reason in cases:
        engine = make_engine(eos=(eos,))
        sequence = generate(engine, [prompt(9)], params)[0].sequences[0]
        assert sequence.output_token_ids == OUTPUT[:length]
        assert (sequence.finish_reason, sequence.stop_reason) == (finish_reason, stop_reason)
        assert_empty(engine)


def test_min_tokens_bans_what_would_end_the_sequence() -> None:
    engine = make_engine(eos=(OUTPUT[2],))
    sequence = generate(engine, [prompt(9)], greedy(12, min_tokens=6))[0].sequences[0]
    assert sequence.output_token_ids[:2] == OUTPUT[:2]
    assert OUTPUT[2] not in sequence.output_token_ids[:6]


def test_max_model_len_ends_a_sequence() -> None:
    engine = make_engine(max_model_len=16)
    for params in (SamplingParams(max_tokens=None, temperature=0.0), greedy(100)):
        sequence = generate(engine, [prompt(9)], params)[0].sequences[0]
        assert (len(sequence.output_token_ids), sequence.finish_reason) == (7, "length")


def test_a_callback_can_stop_its_sequence() -> None:
    engine = make_engine()
    seen: list[tuple[int, int]] = []

    def on_token(index: int, token: int) -> str | None:
        seen.append((index, token))
        return "END" if index == 1 and token == OUTPUT[3] else None

    request = engine.add_request("a", prompt(9), greedy(8, n=2), on_token=on_token)
    drain(engine)
    first, second = request.sequences
    assert (first.output_token_ids, first.finish_reason) == (OUTPUT[:8], "length")
    assert second.output_token_ids == OUTPUT[:4]
    assert (second.finish_reason, second.stop_reason) == ("stop", "END")
    assert [token for index, token in seen if index == 1] == OUTPUT[:4]


def test_stop_tokens_are_not_text() -> None:
    engine = make_engine()
    seen: list[int] = []

    def on_token(index: int, token: int) -> str | None:
        seen.append(token)
        return None

    params = greedy(8, stop_token_ids=[OUTPUT[4]])
    request = engine.add_request("a", prompt(9), params, on_token=on_token)
    drain(engine)
    assert seen == OUTPUT[:4]
    assert request.sequences[0].output_token_ids == OUTPUT[:5]


def test_step_returns_what_changed() -> None:
    engine = make_engine(max_num_batched_tokens=8)
    short, long = (
        engine.add_request("s", prompt(4), greedy(2)),
        engine.add_request("l", prompt(20), greedy(1)),
    )
    changes = []
    while engine.has_unfinished:
        changes.append([(request.request_id, request.finished) for request in engine.step()])
    assert changes == [[("s", False)], [("s", True)], [], [("l", True)]]
    assert engine.step() == []
    assert short.finished_time <= long.finished_time


# Kinds of requests


@pytest.mark.parametrize("budget", [8, 64])
def test_encode_is_the_mean_of_all_prompt_rows(budget: int) -> None:
    tokens = prompt(21)
    engine = make_engine(max_num_batched_tokens=budget)
    generate(engine, [tokens], greedy(2))  # what is cached must not be missing from the mean
    request = engine.add_request("e", tokens, greedy(1), kind=RequestKind.ENCODE)
    drain(engine)
    reference = RowSpy()
    whole = EngineCore(reference, make_pool(reference), engine.config)
    whole.add_request("e", tokens, greedy(1), kind=RequestKind.ENCODE)
    drain(whole)
    assert request.pooled is not None
    assert request.pooled.dtype == np.float32
    rows = np.concatenate(reference.rows)
    assert rows.shape == (21, HIDDEN)
    np.testing.assert_allclose(request.pooled, rows.mean(axis=0), atol=1e-5)
    assert request.sequences[0].output_token_ids == []


class RowSpy(TinyModel):
    """Keeps the hidden rows that it has answered."""

    def __init__(self) -> None:
        super().__init__(TinyStorage(64, 4))
        self.rows: list[np.ndarray] = []

    def execute(self, batch: StepBatch) -> StepResult:
        result = super().execute(batch)
        assert result.hidden is not None
        self.rows.append(result.hidden)
        return result


def make_pool(model: TinyModel) -> BlockPool:
    return BlockPool(64, 4, model.storage)


@pytest.mark.parametrize("budget", [8, 64])
def test_score_gives_the_log_probability_of_each_target(budget: int) -> None:
    engine = make_engine(max_num_batched_tokens=budget)
    tokens = prompt(9)
    generated = generate(engine, [tokens], greedy(8, logprobs=0))[0].sequences[0]
    request = engine.add_request(
        "s", tokens, greedy(1), kind=RequestKind.SCORE, target_token_ids=generated.output_token_ids
    )
    drain(engine)
    assert request.num_cached_tokens == 8
    assert [score.token_id for score in request.scores] == generated.output_token_ids
    assert [score.rank for score in request.scores] == [1] * 8
    for score, logprobs in zip(request.scores, generated.logprobs, strict=True):
        assert score.logprob == pytest.approx(logprobs.logprob, abs=1e-5)
    assert generated.cumulative_logprob == pytest.approx(sum(s.logprob for s in request.scores), abs=1e-4)
    assert_empty(engine)


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_all_kinds_together_with_preemptions_at_any_point(prefix_caching: bool) -> None:
    """Every kind of request gets what it gets alone, although one is preempted every third step."""
    tokens = [prompt(10 + 3 * i, i) for i in range(4)]

    def add(engine: EngineCore, i: int) -> list[Request]:
        text = tokens[i]
        return [
            engine.add_request(f"g{i}", text, greedy(12, n=2, prompt_logprobs=0, logprobs=0)),
            engine.add_request(f"e{i}", text, greedy(1), kind=RequestKind.ENCODE),
            engine.add_request(
                f"s{i}", text, greedy(1), kind=RequestKind.SCORE, target_token_ids=prompt(9, i + 9)
            ),
        ]

    engine = make_engine(40, max_num_batched_tokens=11, prefix_caching=prefix_caching)
    together = [request for i in range(4) for request in add(engine, i)]
    preempted = set()
    while engine.has_unfinished:
        engine.step()
        if engine.metrics.num_steps % 3 == 0 and (running := engine.scheduler.running):
            preempted.add(engine.scheduler._preempt(running[-1]).request.kind)
        engine.check_integrity()
    assert preempted == {RequestKind.GENERATE, RequestKind.ENCODE, RequestKind.SCORE}
    assert_empty(engine)
    alone = []
    for i in range(4):
        engine = make_engine(200)
        alone += add(engine, i)
        drain(engine)
    for a, b in zip(together, alone, strict=True):
        assert tokens_of([a]) == tokens_of([b])
        for mine, theirs in ((a.prompt_logprobs, b.prompt_logprobs), (a.scores, b.scores)):
            assert [x.token_id for x in mine] == [x.token_id for x in theirs]
            assert [x.logprob for x in mine] == pytest.approx([x.logprob for x in theirs], abs=1e-5)
        if b.pooled is not None:
            assert a.pooled is not None
            np.testing.assert_allclose(a.pooled, b.pooled, atol=1e-5)


def test_logprobs_of_the_sampled_and_the_best_tokens() -> None:
    engine = make_engine()
    none, own, three = (greedy(4, logprobs=count) for count in (None, 0, 3))
    requests = generate(engine, [prompt(9)] * 3, [none, own, three])
    assert [len(request.sequences[0].logprobs) for request in requests] == [0, 4, 4]
    assert all(entry.top_ids == () for entry in requests[1].sequences[0].logprobs)
    for entry, token in zip(requests[2].sequences[0].logprobs, OUTPUT, strict=False):
        assert entry.token_id == token == entry.top_ids[0]
        assert len(entry.top_ids) == len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0] == pytest.approx(entry.logprob, abs=1e-6)
        assert list(entry.top_logprobs) == sorted(entry.top_logprobs, reverse=True)


# Refusals


@pytest.mark.parametrize(
    ("tokens", "options", "message", "param"),
    [
        ([], {}, "empty", "prompt"),
        ([1, VOCAB], {}, f"token id {VOCAB}", "prompt"),
        ([1, -1], {}, "token id -1", "prompt"),
        ([1.5], {}, "whole numbers", "prompt"),
        (["a"], {}, "whole numbers", "prompt"),
        ([[1]], {}, "whole numbers", "prompt"),
        (prompt(32), {}, "max_model_len is 32", "prompt"),
        (prompt(20), {"first_position": 12}, "from position 12", "prompt"),
        ([1], {"first_position": -1}, "must not be negative", "first_position"),
        ([1], {"params": SamplingParams(n=9)}, "max_num_seqs=8", "n"),
        ([1], {"params": SamplingParams(stop_token_ids=[VOCAB])}, "stop_token_ids", "stop_token_ids"),
        ([1], {"params": SamplingParams(logit_bias={VOCAB: 1})}, "logit_bias", "logit_bias"),
        ([1], {"kind": RequestKind.SCORE}, "continuation is empty", "continuation"),
        ([1], {"target_token_ids": [1]}, "score", "continuation"),
        ([1], {"kind": RequestKind.ENCODE, "params": SamplingParams(n=2)}, "n=2", "n"),
        ([1], {"priority": 101}, "priority is 101", "priority"),
        ([1], {"priority": "urgent"}, "'high', 'normal', 'low'", "priority"),
        (
            [1],
            {"embeds": PromptEmbeds(np.array([0]), np.zeros((1, 3), np.float32))},
            "shape",
            "prompt_embeds",
        ),
        (
            [1],
            {"embeds": PromptEmbeds(np.array([1]), np.zeros((1, HIDDEN), np.float32))},
            "positions",
            "prompt_embeds",
        ),
        (
            [1],
            {"embeds": PromptEmbeds(np.array([0]), np.full((1, HIDDEN), np.nan, np.float32))},
            "finite",
            "prompt_embeds",
        ),
        (
            [1],
            {
                "embeds": PromptEmbeds(np.array([0]), np.zeros((1, HIDDEN), np.float32)),
                "params": SamplingParams(prompt_logprobs=1),
            },
            "prompt_logprobs",
            "prompt_logprobs",
        ),
    ],
)
def test_what_can_never_run_is_refused(
    tokens: list[int], options: dict[str, object], message: str, param: str
) -> None:
    engine = make_engine(max_model_len=32)
    options.setdefault("params", greedy(4))
    with pytest.raises(RequestError, match=message) as caught:
        engine.prepare_request("a", tokens, **options)  # type: ignore[arg-type]
    assert caught.value.param == param
    with pytest.raises(RequestError, match=message):
        engine.add_request("a", tokens, **options)  # type: ignore[arg-type]
    assert_empty(engine)
    assert tokens_of(generate(engine, [prompt(9)], greedy(3))) == [[OUTPUT[:3]]]


def test_a_request_id_is_used_once_at_a_time() -> None:
    engine = make_engine()
    engine.add_request("a", prompt(3), greedy(2))
    with pytest.raises(RequestError, match="already in use"):
        engine.add_request("a", prompt(3), greedy(2))
    drain(engine)
    engine.add_request("a", prompt(3), greedy(2))
    drain(engine)


def test_a_prepared_request_changes_nothing_until_it_is_admitted() -> None:
    engine, together = make_engine(), make_engine()
    sampled = SamplingParams(max_tokens=6, temperature=1.0, n=2)  # seeds are drawn in the order of admission
    first, second = (engine.prepare_request(name, prompt(9), sampled) for name in "ab")
    assert_empty(engine)
    assert engine.step() == []
    engine.admit(second)
    engine.admit(first)
    wanted = [together.add_request(name, prompt(9), sampled) for name in "ab"]
    with pytest.raises(RequestError, match="already in use"):
        engine.admit(engine.prepare_request("a", prompt(3), sampled))
    drain(engine)
    drain(together)
    assert tokens_of([second, first]) == tokens_of(wanted)
    with pytest.raises(RequestError, match="admitted before"):
        engine.admit(first)
    assert_empty(engine)


def test_requests_can_be_prepared_in_other_threads_while_the_engine_runs() -> None:
    engine = make_engine(40, max_model_len=60)
    prompts = [prompt(3 + i % 20, i) for i in range(120)]
    prepared: queue.SimpleQueue[Request] = queue.SimpleQueue()

    def prepare(start: int) -> None:
        for i in range(start, len(prompts), 3):
            prepared.put(engine.prepare_request(str(i), prompts[i], greedy(5)))

    threads = [threading.Thread(target=prepare, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    requests: list[Request] = []
    while len(requests) < len(prompts) or engine.has_unfinished:
        if len(requests) < len(prompts):
            requests.append(prepared.get(timeout=60))
            engine.admit(requests[-1])
        engine.step()
    for thread in threads:
        thread.join()
    requests.sort(key=lambda request: int(request.request_id))
    assert tokens_of(requests) == tokens_of(generate(make_engine(200), prompts, greedy(5)))
    assert_empty(engine)


def test_a_context_that_is_evicted_after_the_request_was_prepared_is_refused() -> None:
    engine = make_engine()
    holder = engine.add_request("span", prompt(20), greedy(1), kind=RequestKind.SPAN)
    drain_holding(engine)
    assert holder.span is not None
    request = engine.prepare_request("a", prompt(3), greedy(2), context=[holder.span])
    engine.cache.release(holder.span)
    engine.cache.clear()
    with pytest.raises(RequestError, match="no longer in the cache") as caught:
        engine.admit(request)
    assert caught.value.param == "context"
    assert_empty(engine)


def test_a_model_length_beyond_the_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv_cache_memory"):
        make_engine(4, 4, max_model_len=17)


def test_spans_held_from_outside_end_in_an_error_not_in_a_hang() -> None:
    engine = make_engine(8, max_model_len=32)
    holder = engine.add_request("span", prompt(20), greedy(1), kind=RequestKind.SPAN)
    drain_holding(engine)
    assert holder.span is not None
    request = engine.add_request("a", prompt(16), greedy(2))
    assert engine.step() == [request]
    assert request.sequences[0].finish_reason == "error"
    assert request.error is not None
    assert "no room" in request.error
    engine.cache.release(holder.span)
    assert_empty(engine)
    gone = holder.span
    with pytest.raises(RequestError, match="no longer in the cache"):
        engine.add_request("b", prompt(3), greedy(2), context=[gone])


def drain_holding(engine: EngineCore) -> None:
    while engine.has_unfinished:
        engine.step()


# Failures


class Failing(TinyModel):
    """Runs `fail` on the result of the steps whose numbers are given."""

    def __init__(self, fail: Callable[[StepResult], StepResult], steps: set[int]) -> None:
        super().__init__(TinyStorage(64, 4))
        self.fail = fail
        self.steps = steps

    def execute(self, batch: StepBatch) -> StepResult:
        result = super().execute(batch)
        return self.fail(result) if self.num_steps in self.steps else result


def raising(error: BaseException) -> Callable[[StepResult], StepResult]:
    def fail(result: StepResult) -> StepResult:
        raise error

    return fail


def truncated(result: StepResult) -> StepResult:
    return StepResult(result.token_ids[:-1], result.logprobs[:-1])


def failing_engine(fail: Callable[[StepResult], StepResult], steps: set[int]) -> EngineCore:
    model = Failing(fail, steps)
    return EngineCore(model, make_pool(model), make_engine().config)


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (raising(RuntimeError("device lost")), "RuntimeError: device lost"),
        (raising(MemoryError()), "MemoryError"),
        (truncated, "answered 2 of 3 output rows"),
    ],
)
def test_a_failed_step_fails_its_requests_only(
    fail: Callable[[StepResult], StepResult], message: str
) -> None:
    engine = failing_engine(fail, {3})
    failed = [engine.add_request(str(i), prompt(9 + i), greedy(12)) for i in range(3)]
    engine.step()
    engine.step()
    waiting = engine.add_request("later", prompt(9, 5), greedy(12), priority=9)
    engine.scheduler.waiting.remove(waiting.sequences[0])  # keep it out of the failing step
    assert set(engine.step()) == set(failed)
    engine.scheduler.add(waiting.sequences[0])
    engine.check_integrity()
    for request in failed:
        assert request.error is not None
        assert message in request.error
        assert request.sequences[0].finish_reason == "error"
    drain(engine)
    assert tokens_of([waiting]) == tokens_of(generate(make_engine(), [prompt(9, 5)], greedy(12)))
    assert tokens_of(generate(engine, [prompt(9)], greedy(12))) == [[OUTPUT]]
    assert_empty(engine)


@pytest.mark.parametrize(("code", "message"), [(-1, "not finite"), (-2, "banned")])
def test_a_row_without_a_token_fails_its_request_only(code: int, message: str) -> None:
    def fail(result: StepResult) -> StepResult:
        result.token_ids[0] = code
        return result

    engine = failing_engine(fail, {2})
    bad, good = (
        engine.add_request("bad", prompt(5), greedy(6)),
        engine.add_request("good", prompt(9), greedy(6)),
    )
    drain(engine)
    assert bad.error is not None
    assert message in bad.error
    assert tokens_of([good]) == [[OUTPUT[:6]]]
    assert_empty(engine)


def test_a_failing_callback_fails_its_request_only() -> None:
    engine = make_engine()

    def on_token(index: int, token: int) -> str | None:
        raise UnicodeError("no text")

    bad = engine.add_request("bad", prompt(9), greedy(6, n=2), on_token=on_token)
    good = engine.add_request("good", prompt(9), greedy(6))
    drain(engine)
    assert [s.output_token_ids for s in bad.sequences] == [OUTPUT[:1], []]
    assert bad.error == "the token callback failed: UnicodeError: no text"
    assert [s.finish_reason for s in bad.sequences] == ["error", "error"]
    assert tokens_of([good]) == [[OUTPUT[:6]]]
    assert_empty(engine)


def no_memory(src: np.ndarray, dst: np.ndarray) -> None:
    raise OSError("no memory")


def test_failing_storage_fails_everything_but_the_engine_goes_on() -> None:
    engine = make_engine()
    request = engine.add_request("a", prompt(9), greedy(6, n=3))
    engine.step()
    copy_blocks = model_of(engine).storage.copy_blocks
    model_of(engine).storage.copy_blocks = no_memory  # type: ignore[method-assign]
    assert engine.step() == [request]
    assert request.error == "scheduling failed: OSError: no memory"
    model_of(engine).storage.copy_blocks = copy_blocks  # type: ignore[method-assign]
    assert_empty(engine)
    assert tokens_of(generate(engine, [prompt(9)], greedy(12))) == [[OUTPUT]]


def test_an_interrupted_forward_pass_can_be_run_again() -> None:
    engine = failing_engine(raising(KeyboardInterrupt()), {1, 4})
    requests = [engine.add_request(str(i), prompt(9), greedy(12)) for i in range(2)]
    interrupts = 0
    while engine.has_unfinished:
        try:
            engine.step()
        except KeyboardInterrupt:
            interrupts += 1
        engine.check_integrity()
    assert interrupts == 2
    assert tokens_of(requests) == [[OUTPUT], [OUTPUT]]
    assert_empty(engine)


def test_abort_all_after_an_interrupt_anywhere() -> None:
    """Interrupt after the k-th line that a few steps execute, for many k: abort_all returns every block."""

    class Interrupt:
        def __init__(self, after: int) -> None:
            self.left = after

        def __call__(self, frame, event, arg):  # type: ignore[no-untyped-def]
            if "vglm/engine" not in frame.f_code.co_filename:
                return None
            if event == "line":
                self.left -= 1
                if self.left < 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return self

    rng = random.Random(0)
    interrupted = 0
    for after in sorted(rng.sample(range(2500), 150)):
        engine = make_engine(16, max_num_batched_tokens=16, max_model_len=40)
        requests = [engine.add_request(str(i), prompt(7 + i), greedy(6, n=1 + i % 2)) for i in range(5)]
        sys.settrace(Interrupt(after))
        try:
            while engine.has_unfinished:
                engine.step()
                engine.abort(str(engine.metrics.num_steps))
                more = f"more{engine.metrics.num_steps}"
                requests.append(engine.add_request(more, prompt(3), greedy(3)))
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(None)
        aborted = engine.abort_all()
        assert all(request.finished for request in requests)
        assert all(request.sequences[-1].finish_reason == "abort" for request in aborted)
        assert_empty(engine)
        assert tokens_of(generate(engine, [prompt(9)], greedy(12))) == [[OUTPUT]]
    assert interrupted == 150


# Abort


def test_abort_in_every_state() -> None:
    engine = make_engine(max_num_batched_tokens=16, max_num_seqs=4)
    shared = prompt(40)
    names = ["prefilling", "parked", "waiting"]
    requests = [engine.add_request(name, [*shared, i + 1], greedy(8)) for i, name in enumerate(names)]
    forking = engine.add_request("forking", prompt(30, 4), greedy(8, n=3))
    for _ in range(3):
        engine.step()
    for request in [*requests, forking]:
        assert engine.abort(request.request_id)
        assert {s.finish_reason for s in request.sequences} == {"abort"}
        engine.check_integrity()
        assert not engine.abort(request.request_id)
    assert_empty(engine)


# Memory


def test_compaction_in_the_middle_of_generation() -> None:
    engine = make_engine(64)
    requests = [engine.add_request(str(i), prompt(9 if i == 7 else 20, i % 7), greedy(12)) for i in range(8)]
    for _ in range(4):
        engine.step()
    for name in ("0", "2", "3", "5"):
        engine.abort(name)
    engine.cache.clear()
    before = engine.stats().pool
    assert before.external_fragmentation > 0
    assert engine.compact() > 0
    after = engine.stats().pool
    assert (after.used, after.committed) == (before.used, before.used)
    assert np.isnan(model_of(engine).storage.kv[:, :, after.committed :]).all()
    engine.check_integrity()
    drain(engine)
    assert tokens_of([requests[7]]) == [[OUTPUT]]
    assert_empty(engine)


def test_thousands_of_requests_leak_nothing() -> None:
    rng = random.Random(1)
    config = EngineConfig(
        max_num_seqs=16,
        max_num_batched_tokens=64,
        max_model_len=64,
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        eos_token_ids=(0,),
    )
    engine = EngineCore(RandomAnswers(), BlockPool(30, 4, NoStorage()), config)
    for i in range(4000):
        params = SamplingParams(max_tokens=rng.randint(1, 24), n=rng.choice((1, 1, 1, 2, 3)))
        engine.add_request(str(i), [rng.randint(1, 3) for _ in range(rng.randint(1, 40))], params)
        for _ in range(rng.randint(0, 4)):
            engine.step()
        if rng.random() < 0.05:
            engine.abort(str(rng.randint(0, i)))
        if i % 500 == 0:
            engine.compact()
            engine.check_integrity()
    drain(engine, check=False)
    assert engine.stats().num_preemptions > 0
    assert engine.cache.stats.evicted > 0
    assert sum(engine.metrics.requests_finished.values()) == 4000
    assert not engine.scheduler.in_flight._owner
    assert not engine.scheduler.num_parked
    assert sorted(engine.scheduler._free_slots) == list(range(16))
    assert_empty(engine)


class NoStorage:
    """Blocks without memory."""

    def copy_blocks(self, src: np.ndarray, dst: np.ndarray) -> None:
        assert len(src) == len(dst)

    def release(self, blocks: np.ndarray) -> None:
        assert len(blocks)


class RandomAnswers:
    """Answers with few different tokens, so that spans are often the same."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def execute(self, batch: StepBatch) -> StepResult:
        rows = len(batch.output_rows)
        return StepResult(self.random.integers(0, 10, rows, dtype=np.int32), np.zeros(rows, np.float32))


def test_metrics_add_up() -> None:
    engine = make_engine(max_num_batched_tokens=16)
    generate(engine, [prompt(9), prompt(20, 1)], greedy(5))
    generate(engine, [prompt(9)], greedy(5))
    metrics = engine.metrics
    assert metrics.generation_tokens == 15
    assert metrics.prompt_tokens == 9 + 20 + 1
    assert metrics.requests_finished == {"length": 3}
    assert metrics.time_to_first_token.count == metrics.request_queue_time.count == 3
    assert metrics.inter_token_latency.count == 12
    assert metrics.e2e_request_latency.count == 3
    assert 0 < metrics.overhead_per_step < 0.1
    assert 0 < metrics.time_to_first_token.mean <= metrics.e2e_request_latency.mean
    assert metrics.time_to_first_token.quantile(0.5) >= metrics.time_to_first_token.quantile(0.0) > 0
    assert engine.cache.stats.hits == 8
    assert engine.stats().kv_cache_usage == 0.0
    engine.add_request("a", prompt(9), greedy(2))
    engine.step()
    assert engine.stats().kv_cache_usage == 3 / 64
