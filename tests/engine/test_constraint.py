"""Constrained sequences: masks, forced tokens, how they end; the same tokens whatever happens around them."""

from __future__ import annotations

import threading
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from engine_helpers import assert_empty, drain, generate, greedy, make_engine, model_of, prompt, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import VOCAB, TinyModel, TinyStorage

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.block_pool import BlockPool
from vglm.engine.constraint import MaskArray, MaskFiller, fill_masks
from vglm.engine.core import EngineCore
from vglm.engine.request import Request, RequestKind
from vglm.engine.step import RowKind, StepBatch, StepResult
from vglm.errors import RequestError, VGLMError

EOS = 96

#: What a text must be, token by token: one token, or any of several.
Form = Seq[int | Seq[int]]


@dataclass
class FormConstraint:
    """Follows a form. With `forces`, tokens without a choice are said to be forced; else masks allow them alone."""

    form: Form
    forces: bool = True
    position: int = 0
    fail_at: int = -1  # accepting the token there fails
    error: str | None = None

    @property
    def finished(self) -> bool:
        return self.position == len(self.form)

    def begin(self) -> list[int]:
        return self._forced()

    def accept(self, token: int) -> list[int]:
        if self.position == self.fail_at:
            raise VGLMError("the form is too complex")
        allowed = self.form[self.position]
        assert token == allowed or (not isinstance(allowed, int) and token in allowed)
        self.position += 1
        return self._forced()

    def _forced(self) -> list[int]:
        forced: list[int] = []
        while self.forces and not self.finished and isinstance(self.form[self.position], int):
            forced.append(self.form[self.position])  # type: ignore[arg-type]
            self.position += 1
        return forced

    def fill_mask(self, row: MaskArray) -> None:
        allowed = self.form[self.position]
        bits = np.zeros(len(row) * 32, np.uint8)
        bits[allowed if isinstance(allowed, int) else list(allowed)] = 1
        row[:] = np.packbits(bits, bitorder="little").view(np.uint32)

    @staticmethod
    def fill_masks(constraints: Seq[Any], masks: MaskArray) -> None:
        for constraint, row in zip(constraints, masks, strict=True):
            constraint.fill_mask(row)


@dataclass
class Factory:
    form: Form
    forces: bool = True
    fail_at: int = -1
    made: list[FormConstraint] = field(default_factory=list)

    def start(self) -> FormConstraint:
        self.made.append(FormConstraint(self.form, self.forces, fail_at=self.fail_at))
        return self.made[-1]


def run(
    engine: EngineCore, form: Form, params: SamplingParams, forces: bool = True, **options: Any
) -> Request:
    name = str(engine.metrics.num_steps)
    tokens = options.pop("tokens", prompt(9))
    request = engine.add_request(name, tokens, params, constraint=Factory(form, forces), **options)
    drain(engine)
    assert_empty(engine)
    return request


def fits(tokens: Seq[int], form: Form) -> bool:
    return len(tokens) == len(form) and all(
        token == allowed if isinstance(allowed, int) else token in allowed
        for token, allowed in zip(tokens, form, strict=True)
    )


ANY = tuple(range(1, 90))
FORM: Form = [5, 6, 7, ANY, (1, 2, 3), 8, 9, 10, 11, 12, 13, 14, 15, ANY, 16, (4, 5), 17]


# ---- what comes out ----


def test_output_follows_the_form_and_forced_tokens_take_no_step_of_their_own() -> None:
    engine = make_engine()
    request = run(engine, FORM, greedy(40))
    sequence = request.sequences[0]
    assert fits(sequence.output_token_ids, FORM)
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", None)
    assert engine.metrics.num_steps == 4  # the prompt, and after each of three choices but the last
    assert model_of(engine).tokens_computed == 9 + len(FORM) - 2  # neither the last choice nor what it forces
    assert engine.metrics.generation_tokens == len(FORM)
    assert engine.metrics.prompt_tokens == 9
    assert sequence.constraint is None


def test_forced_and_sampled_tokens_are_the_same() -> None:
    for params in (greedy(40), SamplingParams(max_tokens=40, temperature=1.5, seed=3)):
        outputs = [tokens_of([run(make_engine(), FORM, params, forces)]) for forces in (True, False)]
        assert outputs[0] == outputs[1]
        assert fits(outputs[0][0][0], FORM)


@pytest.mark.parametrize("max_tokens", range(1, len(FORM) + 2))
@pytest.mark.parametrize("logprobs", [None, 2])
def test_max_tokens_cuts_anywhere(max_tokens: int, logprobs: int | None) -> None:
    whole = run(make_engine(), FORM, greedy(40), forces=False).sequences[0].output_token_ids
    sequence = run(make_engine(), FORM, greedy(max_tokens, logprobs=logprobs)).sequences[0]
    assert sequence.output_token_ids == whole[:max_tokens]
    assert sequence.finish_reason == ("length" if max_tokens < len(FORM) else "stop")
    assert len(sequence.logprobs) == (0 if logprobs is None else min(max_tokens, len(FORM)))


def test_a_text_without_a_choice_needs_the_prompt_only() -> None:
    engine = make_engine()
    seen: list[int] = []
    request = run(engine, [5, 6, 7], greedy(40, n=2), on_token=lambda index, token: seen.append(token))
    assert tokens_of([request]) == [[[5, 6, 7], [5, 6, 7]]]
    assert [s.finish_reason for s in request.sequences] == ["stop", "stop"]
    assert seen == [5, 6, 7] * 2
    assert engine.metrics.num_steps == 1
    assert request.first_token_time > 0
    empty = run(make_engine(), [], greedy(4, logprobs=0))
    assert (tokens_of([empty]), empty.sequences[0].finish_reason) == ([[[]]], "stop")


def test_the_end_token_ends_where_the_mask_allows_it() -> None:
    form = [5, (EOS,), ANY]
    for ignore_eos in (False, True):  # a constrained text ends where it may: there is nothing after the end
        sequence = run(make_engine(eos=(EOS,)), form, greedy(9, ignore_eos=ignore_eos)).sequences[0]
        assert (sequence.output_token_ids, sequence.finish_reason) == ([5, EOS], "stop")


@pytest.mark.parametrize("at", [1, 3, 4, 7, 12, 16])
@pytest.mark.parametrize("logprobs", [None, 0])
def test_a_callback_stops_inside_of_forced_tokens(at: int, logprobs: int | None) -> None:
    whole = run(make_engine(), FORM, greedy(40)).sequences[0].output_token_ids
    seen: list[int] = []

    def on_token(index: int, token: int) -> str | None:
        seen.append(token)
        return "END" if len(seen) == at else None

    sequence = run(make_engine(), FORM, greedy(40, logprobs=logprobs), on_token=on_token).sequences[0]
    assert sequence.output_token_ids == seen == whole[:at]
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", "END")
    assert len(sequence.logprobs) == (0 if logprobs is None else at)
    assert sequence.cumulative_logprob == pytest.approx(sum(e.logprob for e in sequence.logprobs))


def test_stop_tokens_among_forced_ones() -> None:
    for params, length in ((greedy(40, stop_token_ids=[10]), 8), (greedy(40, stop_token_ids=[6]), 2)):
        sequence = run(make_engine(), FORM, params).sequences[0]
        assert len(sequence.output_token_ids) == length
        assert (sequence.finish_reason, sequence.stop_reason) == ("stop", sequence.output_token_ids[-1])
    late = run(make_engine(), FORM, greedy(40, stop_token_ids=[6], min_tokens=5)).sequences[0]
    assert fits(late.output_token_ids, FORM)


def test_masks_compose_with_bias_min_tokens_and_penalties() -> None:
    form = [(3, 4, 5), 6, (3, 4, 5, EOS), (3, 4)]
    params = greedy(9, logit_bias={4: 100.0}, min_tokens=3)
    sequence = run(make_engine(eos=(EOS,)), form, params).sequences[0]
    assert sequence.output_token_ids == [4, 6, 4, 4]
    params = greedy(9, logit_bias={4: 90.0, 3: 60.0}, repetition_penalty=2.0)
    request = run(make_engine(), form, params, tokens=[10, 20, 30])
    assert request.sequences[0].output_token_ids[0::2] == [4, 3]
    request = run(make_engine(), [6, (3, 4)], greedy(9, logit_bias={3: 60.0, 50: 100.0}))
    assert request.sequences[0].output_token_ids == [6, 3]


def test_nothing_allowed_fails_that_request_only() -> None:
    engine = make_engine(eos=(EOS,))
    bad = engine.add_request("bad", prompt(5), greedy(6, min_tokens=3), constraint=Factory([(1, 2), (EOS,)]))
    good = engine.add_request("good", prompt(9), greedy(6))
    drain(engine)
    assert bad.error is not None
    assert "min_tokens" in bad.error
    assert tokens_of([good]) == tokens_of(generate(make_engine(eos=(EOS,)), [prompt(9)], greedy(6)))
    assert_empty(engine)


# ---- log-probabilities ----


@pytest.mark.parametrize("budget", [8, 13, 64])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("prompt_logprobs", [None, 1])
def test_forced_tokens_have_the_log_probabilities_of_sampled_ones(
    budget: int, n: int, prompt_logprobs: int | None
) -> None:
    params = SamplingParams(
        max_tokens=40, temperature=1.2, seed=4, n=n, logprobs=3, prompt_logprobs=prompt_logprobs
    )
    sampled = run(make_engine(), FORM, params, forces=False)
    engine = make_engine(max_num_batched_tokens=budget)
    forced = run(engine, FORM, params)
    assert tokens_of([forced]) == tokens_of([sampled])
    assert len(forced.prompt_logprobs) == len(sampled.prompt_logprobs) == (8 if prompt_logprobs else 0)
    for mine, theirs in zip(forced.sequences, sampled.sequences, strict=True):
        assert [entry.token_id for entry in mine.logprobs] == mine.output_token_ids
        assert [entry.rank for entry in mine.logprobs] == [entry.rank for entry in theirs.logprobs]
        assert [entry.top_ids for entry in mine.logprobs] == [entry.top_ids for entry in theirs.logprobs]
        assert [e.logprob for e in mine.logprobs] == pytest.approx(
            [e.logprob for e in theirs.logprobs], abs=1e-5
        )
        assert mine.cumulative_logprob == pytest.approx(theirs.cumulative_logprob, abs=1e-4)


def test_a_sequence_ends_when_its_log_probabilities_are_complete() -> None:
    engine = make_engine()
    request = engine.add_request("a", prompt(9), greedy(40, logprobs=0), constraint=Factory([ANY, 5, 6, 7]))
    sequence = request.sequences[0]
    engine.step()
    assert len(sequence.output_token_ids) == 4
    assert (len(sequence.logprobs), sequence.finish_reason) == (1, None)
    engine.check_integrity()
    assert engine.step() == [request]
    assert (len(sequence.logprobs), sequence.finish_reason) == (4, "stop")
    assert model_of(engine).tokens_computed == 9 + 3  # the last one is predicted and never computed
    assert_empty(engine)


# ---- whatever happens around them ----

CHOICES = st.one_of(
    st.integers(1, 89), st.lists(st.integers(1, 89), min_size=2, max_size=5, unique=True), st.just(ANY)
)
RUNS = st.lists(st.integers(1, 89), max_size=20)
FORMS = st.lists(st.one_of(CHOICES.map(lambda choice: [choice]), RUNS), max_size=8).map(
    lambda parts: [part for run in parts for part in run][:40]
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_traffic_gives_each_request_its_own_tokens(data: st.DataObject) -> None:
    """Constrained and free requests, n of each, in little memory, in chunks, preempted and compacted at any time."""
    engine = make_random_engine(data)
    requests = []
    for i in range(data.draw(st.integers(1, 6))):
        form = data.draw(st.one_of(st.none(), FORMS))
        params = SamplingParams(
            n=data.draw(st.integers(1, 3)),
            max_tokens=data.draw(st.integers(1, 30)),
            temperature=data.draw(st.sampled_from([0.0, 1.3])),
            seed=i,
            logprobs=data.draw(st.sampled_from([None, None, 2])),
            repetition_penalty=data.draw(st.sampled_from([1.0, 1.2])),
        )
        tokens = prompt(data.draw(st.integers(1, 20)), seed=data.draw(st.integers(0, 2)))
        constraint = None if form is None else Factory(form)
        requests.append(
            (form, params, tokens, engine.add_request(str(i), tokens, params, constraint=constraint))
        )
    while engine.has_unfinished:
        engine.step()
        engine.check_integrity()
        event = data.draw(st.integers(0, 7))
        if event == 0 and (running := engine.scheduler.running):
            engine.scheduler._preempt(data.draw(st.sampled_from(running)))
        elif event == 1:
            engine.compact()
    assert_empty(engine)
    for form, params, tokens, request in requests:
        alone = make_engine(200, prefix_caching=False)
        constraint = None if form is None else Factory(form, forces=False)
        wanted = alone.add_request("a", tokens, params, constraint=constraint)
        drain(alone, check=False)
        assert tokens_of([request]) == tokens_of([wanted])
        for mine, theirs in zip(request.sequences, wanted.sequences, strict=True):
            assert mine.finish_reason == theirs.finish_reason
            assert [e.token_id for e in mine.logprobs] == [e.token_id for e in theirs.logprobs]
            logprobs = [e.logprob for e in theirs.logprobs]
            assert [e.logprob for e in mine.logprobs] == pytest.approx(logprobs, abs=1e-4)


def make_random_engine(data: st.DataObject) -> EngineCore:
    block_size = data.draw(st.sampled_from([1, 3, 4]))
    return make_engine(
        data.draw(st.integers(52, 90)) // block_size + 1,
        block_size,
        max_model_len=52,
        max_num_seqs=data.draw(st.integers(3, 6)),
        max_num_batched_tokens=data.draw(st.integers(6, 40)),
        prefix_caching=data.draw(st.booleans()),
    )


def test_forced_tokens_of_siblings_need_blocks_and_private_pages() -> None:
    """Siblings fork in the middle of a page and write runs of forced tokens into it and beyond."""
    form = [5, ANY, *range(10, 40), ANY, *range(40, 60)]
    params = SamplingParams(n=4, max_tokens=60, temperature=1.5, seed=2)
    roomy = run(make_engine(200), form, params)
    assert len({s.output_token_ids[1] for s in roomy.sequences}) > 1
    engine = make_engine(20, max_model_len=70)
    tight = run(engine, form, params)
    assert engine.stats().num_preemptions > 0
    assert tokens_of([tight]) == tokens_of([roomy])
    assert all(fits(s.output_token_ids, form) for s in tight.sequences)


def test_forced_tokens_come_from_the_cache_the_second_time() -> None:
    engine = make_engine()
    form = [*range(10, 40), ANY]
    first = run_keeping(engine, form)
    computed = model_of(engine).tokens_computed
    again = run_keeping(engine, form)
    assert tokens_of([again]) == tokens_of([first])
    assert model_of(engine).tokens_computed - computed == (9 + 30) - 36
    assert again.num_cached_tokens == 9  # of the prompt


def run_keeping(engine: EngineCore, form: Form) -> Request:
    name = str(engine.metrics.num_steps)
    request = engine.add_request(name, prompt(9), greedy(40), constraint=Factory(form))
    drain(engine)
    return request


def test_free_neighbours_are_not_changed() -> None:
    alone = tokens_of(generate(make_engine(200), [prompt(11, 1)], greedy(20)))
    engine = make_engine(200)
    free = engine.add_request("free", prompt(11, 1), greedy(20))
    for i in range(5):
        engine.add_request(f"c{i}", prompt(9 + i), greedy(40), constraint=Factory(FORM))
    drain(engine)
    assert tokens_of([free]) == alone


def test_abort_in_the_middle() -> None:
    for steps in range(6):
        engine = make_engine()
        engine.add_request("a", prompt(9), greedy(40, n=2, logprobs=1), constraint=Factory(FORM))
        for _ in range(steps):
            engine.step()
        engine.abort("a")
        assert_empty(engine)


# ---- what goes wrong ----


def test_requests_that_make_no_sense() -> None:
    engine = make_engine()
    for kind in (RequestKind.ENCODE, RequestKind.SPAN):
        with pytest.raises(RequestError, match="constraint makes no sense"):
            engine.add_request("a", prompt(3), greedy(1), kind=kind, constraint=Factory(FORM))

    class Broken(Factory):
        def start(self) -> FormConstraint:
            made = super().start()
            made.begin = self.begin  # type: ignore[method-assign]
            return made

        def begin(self) -> list[int]:
            raise VGLMError("too complex")

    with pytest.raises(RequestError, match="at its start: too complex") as refused:
        engine.add_request("a", prompt(3), greedy(1), constraint=Broken(FORM))
    assert refused.value.param == "structured_outputs"
    assert_empty(engine)


def test_a_constraint_that_fails_on_a_token_fails_its_request_only() -> None:
    engine = make_engine()
    bad = engine.add_request("bad", prompt(5), greedy(9, n=2), constraint=Factory(FORM, fail_at=4))
    good = engine.add_request("good", prompt(9), greedy(40), constraint=Factory(FORM))
    drain(engine)
    assert bad.error == "structured output failed: the form is too complex"
    assert {s.finish_reason for s in bad.sequences} == {"error"}
    assert fits(good.sequences[0].output_token_ids, FORM)
    assert_empty(engine)


class FillingModel(TinyModel):
    """Fills masks as the native executor does: in a thread, and failures leave masks that allow nothing."""

    def __init__(self) -> None:
        super().__init__(TinyStorage(64, 4))
        self.filler = MaskFiller(VOCAB)
        self.fail_at_step = -1

    def execute(self, batch: StepBatch) -> StepResult:
        rows = batch.sample_rows
        if not rows.constraints:
            return super().execute(batch)
        masks = self.filler.start(rows.constraints)
        if self.num_steps == self.fail_at_step:
            self.num_steps += 1
            raise RuntimeError("device lost")
        self.filler.wait()
        rows.constraints = [Fixed(row) for row in masks]  # type: ignore[misc]
        result = super().execute(batch)
        self.filler.finish()
        result.mask_error = self.filler.error
        return result


class Fixed(FormConstraint):
    """A mask that is there already."""

    def __init__(self, mask: MaskArray) -> None:
        super().__init__([])
        self.mask = mask

    def fill_mask(self, row: MaskArray) -> None:
        row[:] = self.mask


class BrokenMasks(FormConstraint):
    """Its masks cannot be filled after the first token."""

    @staticmethod
    def fill_masks(constraints: Seq[Any], masks: MaskArray) -> None:
        if any(constraint.position > 4 for constraint in constraints):
            raise MemoryError("no room for masks")
        FormConstraint.fill_masks(constraints, masks)


class BrokenFactory(Factory):
    def start(self) -> FormConstraint:
        return BrokenMasks(self.form)


def filling_engine() -> tuple[EngineCore, FillingModel]:
    model = FillingModel()
    return EngineCore(model, BlockPool(64, 4, model.storage), make_engine().config), model


def test_masks_that_cannot_be_filled_fail_the_constrained_requests_only() -> None:
    engine, _ = filling_engine()
    bad = engine.add_request("bad", prompt(5), greedy(40), constraint=BrokenFactory(FORM))
    free = engine.add_request("free", prompt(9), greedy(12))
    drain(engine)
    assert bad.error == "structured output failed: MemoryError: no room for masks"
    assert tokens_of([free]) == tokens_of(generate(make_engine(), [prompt(9)], greedy(12)))
    again = engine.add_request("again", prompt(9), greedy(40), constraint=Factory(FORM))
    drain(engine)
    assert fits(again.sequences[0].output_token_ids, FORM)
    assert_empty(engine)


def test_a_failed_step_waits_for_its_masks() -> None:
    engine, model = filling_engine()
    model.fail_at_step = 1
    bad = engine.add_request("bad", prompt(9), greedy(40), constraint=Factory(FORM))
    drain(engine)
    assert bad.error is not None
    assert "device lost" in bad.error
    good = engine.add_request("good", prompt(9), greedy(40), constraint=Factory(FORM))
    drain(engine)
    assert fits(good.sequences[0].output_token_ids, FORM)


def test_a_constraint_without_a_mask_says_why() -> None:
    class Silent(FormConstraint):
        def fill_mask(self, row: MaskArray) -> None:
            row[:] = 0
            self.error = "too many states"

    class SilentFactory(Factory):
        def start(self) -> FormConstraint:
            return Silent(self.form)

    engine = make_engine()
    bad = engine.add_request("bad", prompt(5), greedy(40), constraint=SilentFactory(FORM))
    drain(engine)
    assert bad.error == "structured output failed: too many states"


# ---- parts ----


def test_masks_are_filled_in_another_thread_while_the_caller_goes_on() -> None:
    """The filling begins before `wait` and needs nobody to wait for it; `start` waits for what came before."""
    began, go_on = threading.Event(), threading.Event()

    class Slow(FormConstraint):
        def fill_mask(self, row: MaskArray) -> None:
            began.set()
            assert go_on.wait(60)
            super().fill_mask(row)

    filler = MaskFiller(VOCAB)
    masks = filler.start([Slow([(3, 40)]), Slow([(5,)])])
    assert began.wait(60)  # although nobody has asked for the masks yet
    go_on.set()
    filler.wait()
    assert masks.shape == (2, 4)
    assert [
        np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist() for row in masks
    ] == [
        [3, 40],
        [5],
    ]
    filler.finish()


def test_constraints_of_several_classes_are_filled_by_their_own() -> None:
    class Other(FormConstraint):
        pass

    constraints = [FormConstraint([(1,)]), Other([(2,)]), FormConstraint([(3,)]), Other([(64,)])]
    masks = np.ones((4, 4), np.uint32)
    fill_masks(constraints, masks)
    assert masks.tolist() == [[2, 0, 0, 0], [4, 0, 0, 0], [8, 0, 0, 0], [0, 0, 1, 0]]


def test_rows_and_masks_of_a_step() -> None:
    engine = make_engine()
    engine.add_request("a", prompt(3), greedy(9, n=2), constraint=Factory([5, 6, ANY]))
    engine.add_request("b", prompt(4), greedy(9))
    batch = engine.builder.build(engine.scheduler.schedule())
    rows = batch.sample_rows
    assert batch.token_ids.tolist() == [*prompt(3), 5, 6, *prompt(4)]
    assert rows.kind.tolist() == [RowKind.SAMPLE] * 3
    assert rows.mask_row is not None
    assert rows.mask_row.tolist() == [0, 1, -1]
    assert len(rows.constraints) == 2
    assert rows.index.tolist() == [2, 2, 0]  # two tokens are known already
