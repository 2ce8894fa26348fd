"""Idle work: free memory goes back, damage is found, a piece of it is small however much there is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_helpers import assert_empty, drain, generate, greedy, make_engine, prompt

from vglm.engine import integrity
from vglm.engine.core import EngineCore
from vglm.engine.request import RequestKind


def used_engine(num_prompts: int = 12) -> EngineCore:
    """An idle engine with the spans of some prompts in its cache."""
    engine = make_engine(400, max_model_len=60)
    generate(engine, [prompt(30, i) for i in range(num_prompts)], greedy(6))
    return engine


def tidy(engine: EngineCore) -> int:
    """Idle until nothing is left to do; returns how many pieces that took."""
    pieces = 1
    while engine.idle():
        pieces += 1
        assert pieces < 1000
    return pieces


def test_free_memory_goes_back_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "TRIM", 5)
    engine = used_engine()
    engine.cache.clear()
    committed = engine.pool.num_committed
    assert committed > 50
    engine.idle()
    assert engine.pool.num_committed == committed - 5
    assert tidy(engine) >= committed // 5 - 1
    assert engine.pool.num_committed == 0
    assert_empty(engine)


def test_spans_stay_and_may_be_held() -> None:
    engine = used_engine()
    holder = engine.add_request("span", prompt(20, 99), greedy(1), kind=RequestKind.SPAN)
    while engine.has_unfinished:
        engine.step()
    assert holder.span is not None
    spans = len(engine.cache)
    tidy(engine)
    assert len(engine.cache) == spans
    engine.cache.release(holder.span)
    assert_empty(engine)


def test_a_piece_looks_at_few_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "SLICE", 10)
    seen: list[int] = []
    counts = []
    for num_prompts in (3, 12):
        engine = used_engine(num_prompts)
        spans = len(engine.cache)
        check = engine.cache.check_span
        monkeypatch.setattr(
            engine.cache, "check_span", lambda span, check=check: seen.append(1) or check(span)
        )
        total = 0
        while engine.idle():
            assert len(seen) <= 10
            total += len(seen)
            seen.clear()
        assert total == spans  # and every one of them was looked at
        counts.append(total)
    assert counts[1] > 3 * counts[0]


def test_a_round_starts_again_when_the_cache_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "SLICE", 10)
    engine = used_engine()
    for i in range(3):
        for _ in range(12):
            engine.idle()
        generate(engine, [prompt(40, 50 + i)], greedy(4))
    engine.cache.clear()
    for _ in range(3):
        engine.idle()
    engine._reset()
    tidy(engine)
    assert_empty(engine)


def test_nothing_is_done_while_there_are_requests() -> None:
    engine = used_engine()
    engine.cache.clear()
    committed = engine.pool.num_committed
    engine.add_request("a", prompt(9), greedy(3))
    assert not engine.idle()
    assert engine.pool.num_committed == committed
    drain(engine)


def free_a_spans_block(engine: EngineCore) -> None:
    engine.pool.release(next(iter(engine.cache)).blocks[0][0])


def lose_a_block(engine: EngineCore) -> None:
    engine.pool.allocate(1)


def count_a_user_too_many(engine: EngineCore) -> None:
    next(iter(engine.cache)).refs += 1


def take_a_block_twice(engine: EngineCore) -> None:
    engine.pool.retain(next(iter(engine.cache)).blocks[0][0])


def use_a_free_block(engine: EngineCore) -> None:
    engine.pool._ref_count[engine.pool._free[0]] = 1


def lose_a_slot(engine: EngineCore) -> None:
    engine.scheduler._free_slots.pop()


def leave_a_sequence(engine: EngineCore) -> None:
    request = engine.add_request("left", prompt(5), greedy(3))
    del engine.requests["left"]
    assert not request.finished


@pytest.mark.parametrize(
    "damage",
    [
        free_a_spans_block,
        lose_a_block,
        count_a_user_too_many,
        take_a_block_twice,
        use_a_free_block,
        lose_a_slot,
        leave_a_sequence,
    ],
)
def test_damage_is_found(damage: Callable[[EngineCore], None]) -> None:
    engine = used_engine()
    engine.cache.evict()  # so that there is a free block
    tidy(engine)
    damage(engine)
    with pytest.raises(AssertionError):
        tidy(engine)
