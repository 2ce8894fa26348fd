"""Contexts: spans that requests attend to, found in the cache or computed once for all who wait for them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from engine_helpers import Clock, assert_empty, drain, greedy, make_engine, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from vglm.engine.core import EngineCore
from vglm.engine.request import Request, RequestKind, SpanSpec
from vglm.engine.step import StepBatch, StepResult
from vglm.errors import RequestError

LEVEL = 12  # positions of a level


def span(seed: int, length: int, position: int, *parents: int) -> SpanSpec:
    return SpanSpec(np.array(prompt(length, seed), np.int32), position, parents)


def graph(nodes: list[int], edges: list[tuple[int, int]] = ()) -> tuple[tuple[SpanSpec, ...], int]:  # type: ignore[assignment]
    """A prefix, a span for each node, one for each edge between two of them; and where the prompt begins."""
    specs = [span(1000, 5, 0)]
    for node in nodes:
        specs.append(span(node, 3 + node % 8, 5, 0))
    for source, target in edges:
        ends = (1 + nodes.index(source), 1 + nodes.index(target))
        specs.append(span(100 * source + target, 4, 5 + LEVEL, 0, *ends))
    return tuple(specs), 5 + 2 * LEVEL


def ask(engine: EngineCore, name: str, specs: tuple[SpanSpec, ...], start: int, **options: object) -> Request:
    params = greedy(6, logprobs=2)
    return engine.add_request(name, prompt(7, 77), params, span_specs=specs, first_position=start, **options)  # type: ignore[arg-type]


def answer(request: Request) -> list[object]:
    assert request.error is None
    sequence = request.sequences[0]
    return [sequence.output_token_ids, sequence.logprobs]


def run(engine: EngineCore) -> None:
    while engine.has_unfinished:
        engine.step()


def by_hand(engine: EngineCore, specs: tuple[SpanSpec, ...], start: int) -> Request:
    """The same with spans that the caller computes and holds, one after the other."""
    held = []
    for i, spec in enumerate(specs):
        request = engine.add_request(
            f"span {i}", spec.tokens.tolist(), greedy(1), kind=RequestKind.SPAN,
            context=list({held[parent]: None for parent in spec.parents}), first_position=spec.first_position,
        )  # fmt: skip
        run(engine)
        assert request.span is not None
        held.append(request.span)
    request = engine.add_request(
        "by hand", prompt(7, 77), greedy(6, logprobs=2), context=held, first_position=start
    )
    run(engine)
    for one in held:
        engine.cache.release(one)
    return request


NODES, EDGES = [1, 2, 3, 9], [(1, 2), (2, 9), (3, 3)]


def test_a_gathered_context_is_the_one_that_a_caller_would_compute_by_hand() -> None:
    expected = answer(by_hand(make_engine(), *graph(NODES, EDGES)))
    engine = make_engine()
    request = ask(engine, "a", *graph(NODES, EDGES))
    drain(engine)
    assert answer(request) == expected
    assert_empty(engine)


def test_the_order_of_the_parts_changes_nothing_and_everything_is_a_hit_the_second_time() -> None:
    engine = make_engine()
    first = ask(engine, "first", *graph(NODES, EDGES))
    drain(engine)
    assert first.num_cached_context_tokens == 0
    computed = model_of(engine).tokens_computed
    for seed in range(5):
        nodes, edges = NODES.copy(), EDGES.copy()
        random.Random(seed).shuffle(nodes)
        random.Random(seed).shuffle(edges)
        again = ask(engine, f"again {seed}", *graph(nodes, edges))
        drain(engine)
        assert answer(again) == answer(first)
        assert again.num_cached_context_tokens == again.num_context_tokens == first.num_context_tokens
    assert model_of(engine).tokens_computed - computed < 5 * (7 + 6), (
        "only questions and answers are computed again"
    )


def test_a_span_that_several_wait_for_is_computed_once() -> None:
    engine = make_engine(num_blocks=256)
    requests = [ask(engine, f"r{i}", *graph([1, 2, 3, 4 + i])) for i in range(6)]
    drain(engine)
    spans = {spec.tokens.tobytes(): len(spec.tokens) for r in requests for spec in r.span_specs}
    own = sum(len(r.prompt_token_ids) + 6 - 1 for r in requests)
    assert model_of(engine).tokens_computed == sum(spans.values()) + own
    alone = [make_engine(), make_engine()]
    for one, request in zip(alone, (requests[0], requests[5]), strict=True):
        expected = ask(one, "alone", request.span_specs, request.first_position)
        drain(one)
        assert answer(request) == answer(expected)


def test_requests_for_spans_are_never_seen_from_outside() -> None:
    engine = make_engine()
    ask(engine, "a", *graph(NODES, EDGES))
    seen = []
    while engine.has_unfinished:
        seen += [request.request_id for request in engine.step()]
    assert set(seen) == {"a"}
    assert engine.metrics.requests_finished == {"length": 1}
    with pytest.raises(RequestError, match="must not begin"):
        engine.add_request("\0span-1", [1], greedy())


def test_contexts_that_do_not_fit_together_wait_for_each_other_and_never_for_ever() -> None:
    """Each of them needs more than half of the blocks, and they share nothing but the prefix."""
    engine = make_engine(num_blocks=24, max_model_len=90)
    wanted = [graph([10 * i + j for j in range(1, 6)]) for i in range(6)]
    requests = [ask(engine, f"r{i}", *parts) for i, parts in enumerate(wanted)]
    requests += [engine.add_request(f"plain {i}", prompt(20, i), greedy(20)) for i in range(4)]
    drain(engine)
    assert all(request.error is None for request in requests)
    assert_empty(engine)


def test_who_waits_too_long_comes_before_better_classes() -> None:
    clock = Clock()
    engine = make_engine(num_blocks=24, max_model_len=90, max_wait=5.0, clock=clock)
    blocker = ask(engine, "blocker", *graph([1, 2, 3, 4, 5]))
    low = ask(engine, "low", *graph([11, 12, 13, 14, 15]), priority="low")
    finished: list[str] = []
    arrivals = 0
    while not low.finished and arrivals < 60:
        ask(engine, f"high {arrivals}", *graph([21, 22, 23, 24, 25 + arrivals]), priority="high")
        arrivals += 1
        clock.now += 1.0
        for _ in range(8):
            finished += [request.request_id for request in engine.step() if request.finished]
    assert blocker.finished
    assert low.finished, "a flood of better requests starves a worse one"
    assert any(name.startswith("high") for name in finished)


def test_aborts_and_failures_give_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(batch: StepBatch) -> StepResult:
        raise MemoryError("no more")

    engine = make_engine(num_blocks=128)
    first, second = ask(engine, "first", *graph(NODES, EDGES)), ask(engine, "second", *graph([1, 2, 5]))
    engine.step()
    assert engine.abort("first")
    engine.check_integrity()
    drain(engine)
    assert first.sequences[0].finish_reason == "abort"
    assert second.error is None
    third, fourth = ask(engine, "third", *graph([31, 32])), ask(engine, "fourth", *graph([31, 33]))
    with monkeypatch.context() as patch:
        patch.setattr(engine.executor, "execute", fail)
        engine.step()
    drain(engine)
    assert third.error is not None
    assert "the model step failed" in third.error
    assert fourth.error is not None
    fifth = ask(engine, "fifth", *graph([31, 32]))
    drain(engine)
    assert fifth.error is None
    ask(engine, "sixth", *graph([41, 42]))
    engine.step()
    assert [request.request_id for request in engine.abort_all()] == ["sixth"]
    drain(engine)
    assert_empty(engine)


@pytest.mark.parametrize(
    ("specs", "start", "message"),
    [
        ((span(1, 4, 0, 0),), 9, "names 0 as its parent"),
        ((span(1, 4, 0), span(2, 4, 3, 0)), 9, "begins at position 3, but a parent ends at 4"),
        ((span(1, 4, 0),), 3, "begins at position 3, but its context ends at 4"),
        ((SpanSpec(np.zeros(0, np.int32), 0),), 9, "is empty"),
        ((SpanSpec(np.array([1 << 20], np.int32), 0),), 9, "token id 1048576"),
        (tuple(span(i, 40, 0) for i in range(64)), 40, "of the 256 that the KV cache has room for"),
    ],
)
def test_a_malformed_context_is_refused(specs: tuple[SpanSpec, ...], start: int, message: str) -> None:
    engine = make_engine()
    with pytest.raises(RequestError, match=message):
        ask(engine, "bad", specs, start)
    assert_empty(engine)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_comes_in_whatever_order_the_answers_are_those_of_a_fresh_engine(
    data: st.DataObject,
) -> None:
    engine = make_engine(num_blocks=data.draw(st.sampled_from([24, 40, 128])), max_model_len=90)
    requests: list[Request] = []
    for i in range(data.draw(st.integers(2, 8))):
        nodes = data.draw(st.lists(st.integers(1, 12), min_size=0, max_size=5, unique=True))
        edges = (
            data.draw(st.lists(st.tuples(st.sampled_from(nodes), st.sampled_from(nodes)), max_size=3))
            if nodes
            else []
        )
        requests.append(ask(engine, f"r{i}", *graph(nodes, edges), priority=data.draw(st.integers(-1, 1))))
        for _ in range(data.draw(st.integers(0, 4))):
            engine.step()
            engine.check_integrity()
        if data.draw(st.booleans()):
            engine.abort(data.draw(st.sampled_from(requests)).request_id)
            engine.check_integrity()
    drain(engine)
    for request in requests:
        if request.sequences[0].finish_reason != "abort":
            fresh = make_engine(num_blocks=128, max_model_len=90)
            again = ask(fresh, "again", request.span_specs, request.first_position)
            drain(fresh, check=False)
            assert answer(request) == answer(again)
    assert_empty(engine)
