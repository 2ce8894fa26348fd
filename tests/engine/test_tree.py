"""Candidates scored over their trie get what each of them gets alone, whatever their shape and however little memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from engine_helpers import assert_empty, drain, greedy, make_engine, model_of, prompt, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import VOCAB, TinyModel

from vglm.engine.core import EngineCore
from vglm.engine.request import Request, RequestKind, SpanSpec
from vglm.engine.step import StepBatch, StepResult
from vglm.engine.tree import MAX_LANES
from vglm.engine.trie import CandidateTrie
from vglm.errors import RequestError

Candidates = Sequence[Sequence[int]]

SHAPES: dict[str, list[list[int]]] = {
    "one token": [[5]],
    "one candidate": [[5, 6, 7, 8, 9]],
    "single tokens": [[i] for i in range(20)],
    "prefixes of each other": [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8]],
    "long": [prompt(60, 1), prompt(59, 2), [*prompt(30, 1), *prompt(30, 3)]],
    "shared stems": [[1, 2, 3, a, b] for a in range(4) for b in range(5)],
    "comb": [[*prompt(n, 7), 96] for n in range(20)],
    "twice": [[3, 4], [3, 4], [3], [3]],
    "random": [prompt(1 + seed % 9, seed) for seed in range(50)],
}


def tree(
    engine: EngineCore, text: list[int], candidates: Candidates, name: str = "tree", **options: Any
) -> Request:
    return engine.add_request(
        name,
        text,
        greedy(1),
        kind=RequestKind.TREE,
        candidates=candidates,
        **options,
    )


def scores_of(request: Request) -> list[list[float]]:
    assert request.error is None
    assert request.finished
    assert request.tree is not None
    return request.tree.token_logprobs()


def one_by_one(text: list[int], candidates: Candidates, **options: Any) -> list[list[float]]:
    """What SCORE requests say, each alone in an engine without a cache."""
    engine = make_engine(200, max_num_batched_tokens=512, prefix_caching=False)
    found = []
    for index, candidate in enumerate(candidates):
        request = engine.add_request(
            str(index),
            text,
            greedy(1),
            kind=RequestKind.SCORE,
            target_token_ids=candidate,
            **options,
        )
        while engine.has_unfinished:
            engine.step()
        found.append([score.logprob for score in request.scores])
    return found


def assert_same(found: list[list[float]], wanted: list[list[float]]) -> None:
    """Equal up to the rounding of numpy's matrix products, whose order of summation depends on the batch."""
    assert [len(row) for row in found] == [len(row) for row in wanted]
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [1, 3, 4, 9])
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_every_shape_scores_as_one_by_one(shape: str, length: int, prefix_caching: bool) -> None:
    candidates, text = SHAPES[shape], prompt(length, 5)
    engine = make_engine(200, max_num_batched_tokens=32, prefix_caching=prefix_caching)
    request = tree(engine, text, candidates)
    drain(engine)
    assert_same(scores_of(request), one_by_one(text, candidates))
    assert request.tree is not None
    assert model_of(engine).tokens_computed == length + request.tree.trie.num_rows
    assert_empty(engine)


@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_any_block_size(block_size: int) -> None:
    text = prompt(7, 5)
    for candidates in SHAPES.values():
        engine = make_engine(300, block_size, max_model_len=100)
        request = tree(engine, text, candidates)
        drain(engine)
        assert_same(scores_of(request), one_by_one(text, candidates))
        assert_empty(engine)


def test_a_shared_prefix_is_computed_once() -> None:
    """The prompt, the stem of 20 tokens, and 30 tails of 3 tokens of which the last is only predicted."""
    stem = prompt(20, 1)
    engine = make_engine(200)
    tree(engine, prompt(10), [[*stem, i, i + 1, i + 2] for i in range(30)])
    drain(engine)
    assert model_of(engine).tokens_computed == 10 + 20 + 30 * 2


def test_a_trie_takes_few_steps_however_deep_it_is() -> None:
    """A name that leaves another waits for it, and for nothing else: a comb of 90 teeth takes two steps."""
    comb = [[*prompt(n, 7), 96, 95] for n in range(90)]
    binary = [[i >> bit & 1 for bit in range(7)] for i in range(128)]
    for candidates, steps in ((comb, 2), (binary, 6), ([[1, 2, 3]] * 3, 1), ([[1]], 0)):
        engine = make_engine(800, max_num_batched_tokens=4096)
        tree(engine, prompt(10, 5), candidates)
        drain(engine)
        assert model_of(engine).num_steps == 1 + steps


def test_scores_do_not_depend_on_the_order_of_candidates() -> None:
    candidates, text = SHAPES["random"] + SHAPES["comb"], prompt(6, 5)
    found = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(candidates)).tolist()
        engine = make_engine(200)
        request = tree(engine, text, [candidates[i] for i in order])
        drain(engine)
        found.append(sorted(zip(order, scores_of(request), strict=True)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("num_blocks", [9, 10, 12, 17, 30])
@pytest.mark.parametrize("shape", ["comb", "random", "shared stems", "prefixes of each other"])
def test_little_memory_costs_work_but_no_score(num_blocks: int, shape: str) -> None:
    """With room for hardly more than the prompt and one candidate, parents are computed again."""
    candidates, text = SHAPES[shape], prompt(10, 5)
    engine = make_engine(num_blocks, max_model_len=32, max_num_batched_tokens=32)
    request = tree(engine, text, candidates)
    drain(engine)
    assert_same(scores_of(request), one_by_one(text, candidates))
    assert_empty(engine)


def test_the_least_memory_makes_parents_lose_their_pages() -> None:
    candidates = [[*prompt(n, 7), 90 + i, 1, 2] for n in range(12) for i in range(3)]
    text = prompt(10, 5)
    engine = make_engine(7, max_model_len=26, max_num_batched_tokens=16)
    request = tree(engine, text, candidates)
    drain(engine)
    assert_same(scores_of(request), one_by_one(text, candidates))
    assert request.tree is not None
    assert model_of(engine).tokens_computed > 10 + request.tree.trie.num_rows  # some of it more than once
    assert_empty(engine)


def test_generation_beside_a_tree_goes_on_and_gets_its_own_tokens() -> None:
    alone = make_engine(200)
    wanted = alone.add_request("a", prompt(9, 1), greedy(20))
    drain(alone)
    engine = make_engine(200, max_num_batched_tokens=24)
    candidates = [prompt(6, seed) for seed in range(300)]
    request = tree(engine, prompt(10, 5), candidates)
    for _ in range(3):
        engine.step()
    other = engine.add_request("b", prompt(9, 1), greedy(20))
    steps = 0
    while not other.finished:
        engine.step()
        engine.check_integrity()
        steps += 1
    assert steps == 20  # it had a token of every step, its prompt's first
    assert not request.finished
    assert tokens_of([other]) == tokens_of([wanted])
    drain(engine)
    assert_same(scores_of(request), one_by_one(prompt(10, 5), candidates))
    assert_empty(engine)


def test_a_prompt_that_arrives_gets_half_of_each_step() -> None:
    """A tree of some thousand tokens is in the engine; the first token of a prompt does not wait for it."""
    engine = make_engine(200, max_num_batched_tokens=24)
    request = tree(engine, prompt(10, 5), [prompt(6, seed) for seed in range(400)])
    for _ in range(3):
        engine.step()
    other = engine.add_request("b", prompt(100, 1), greedy(1))
    steps = 0
    while not other.finished:
        before = model_of(engine).tokens_computed
        engine.step()
        assert model_of(engine).tokens_computed - before == 24  # the tree has what is left
        steps += 1
    assert steps <= 10
    assert not request.finished
    drain(engine)
    assert_empty(engine)


def test_preempted_trees_lose_pages_and_no_score() -> None:
    """Requests of a better class come and go while the tree has little memory."""
    candidates = SHAPES["comb"] + SHAPES["random"]
    text = prompt(10, 5)
    engine = make_engine(14, max_model_len=44, max_num_batched_tokens=16)
    request = tree(engine, text, candidates, priority="low")
    others = []
    for step in range(400):
        if step % 6 == 2 and step < 60:
            others.append(engine.add_request(f"o{step}", prompt(14, step), greedy(12), priority="high"))
        engine.step()
        engine.check_integrity()
    drain(engine)
    assert request.sequences[0].num_preemptions > 1
    assert all(other.error is None for other in others)
    assert_same(scores_of(request), one_by_one(text, candidates))
    assert_empty(engine)


@pytest.mark.parametrize("after", range(12))
def test_abort_at_any_step_gives_everything_back(after: int) -> None:
    engine = make_engine(60, max_num_batched_tokens=16)
    tree(engine, prompt(10, 5), SHAPES["comb"] + SHAPES["random"])
    for _ in range(after):
        engine.step()
    assert engine.abort("tree")
    assert_empty(engine)


def test_a_failing_step_ends_the_tree_and_nothing_else() -> None:
    engine = make_engine(60, max_num_batched_tokens=16)
    request = tree(engine, prompt(10, 5), SHAPES["random"])
    for _ in range(3):
        engine.step()
    executor, engine.executor = engine.executor, _Failing()
    engine.step()
    assert request.error is not None
    assert "the model step failed" in request.error
    engine.executor = executor
    assert_empty(engine)


class _Failing:
    def execute(self, batch: object) -> object:
        raise RuntimeError("no")


def test_a_reset_while_it_grows_ends_the_tree() -> None:
    engine = make_engine(60, max_num_batched_tokens=16)
    request = tree(engine, prompt(10, 5), SHAPES["random"])
    for _ in range(3):
        engine.step()
    assert engine.reset() == [request]
    assert request.finished
    assert_empty(engine)
    again = tree(engine, prompt(10, 5), SHAPES["random"])
    drain(engine)
    assert_same(scores_of(again), one_by_one(prompt(10, 5), SHAPES["random"]))


def test_logits_that_are_no_numbers_end_the_tree() -> None:
    engine = make_engine(60, max_num_batched_tokens=16)
    request = tree(engine, prompt(10, 5), SHAPES["random"])
    for _ in range(3):
        engine.step()
    engine.executor = _NotFinite(model_of(engine))
    engine.step()
    assert request.error is not None
    assert "not finite" in request.error
    assert_empty(engine)


class _NotFinite:
    """The sampler's answer when a row of logits has a NaN."""

    def __init__(self, model: TinyModel) -> None:
        self.model = model

    def execute(self, batch: StepBatch) -> StepResult:
        result = self.model.execute(batch)
        result.token_ids[-1] = -1
        return result


def test_a_step_has_so_many_lanes_at_most() -> None:
    engine = make_engine(1500, max_num_batched_tokens=4096)
    candidates = [[i % 90, i // 90, 1] for i in range(800)]
    request = tree(engine, prompt(10, 5), candidates)
    drain(engine, check=False)
    assert max(sequences for sequences, _ in model_of(engine).batches) == MAX_LANES
    assert_same(scores_of(request)[:20], one_by_one(prompt(10, 5), candidates[:20]))
    assert_empty(engine)


def test_compaction_moves_the_pages_of_a_tree() -> None:
    candidates, text = SHAPES["comb"] + SHAPES["random"], prompt(10, 5)
    engine = make_engine(100, max_num_batched_tokens=16)
    filler = engine.add_request("filler", prompt(40, 9), greedy(1), kind=RequestKind.ENCODE)
    request = tree(engine, text, candidates)
    moved = 0
    while not request.finished:
        engine.step()
        if filler.finished:
            engine.cache.clear()
        moved += engine.compact()
        engine.check_integrity()
    assert moved
    assert_same(scores_of(request), one_by_one(text, candidates))
    assert_empty(engine)


def test_a_tree_sees_the_spans_of_its_context() -> None:
    candidates, text = SHAPES["shared stems"] + SHAPES["random"], prompt(7, 5)
    specs = [
        SpanSpec(np.array(prompt(6, 1), np.int32), 0),
        SpanSpec(np.array(prompt(9, 2), np.int32), 6, (0,)),
    ]
    options: dict[str, Any] = {"span_specs": specs, "first_position": 15}
    engine = make_engine(100, max_num_batched_tokens=16)
    request = tree(engine, text, candidates, **options)
    drain(engine)
    found = scores_of(request)
    assert_same(found, one_by_one(text, candidates, **options))
    plain = tree(engine, text, candidates, "plain")
    drain(engine)
    assert scores_of(plain) != found
    assert_empty(engine)


def test_two_trees_at_once() -> None:
    engine = make_engine(200, max_num_batched_tokens=24)
    first = tree(engine, prompt(10, 5), SHAPES["random"], "first")
    second = tree(engine, prompt(11, 6), SHAPES["comb"], "second")
    drain(engine)
    assert_same(scores_of(first), one_by_one(prompt(10, 5), SHAPES["random"]))
    assert_same(scores_of(second), one_by_one(prompt(11, 6), SHAPES["comb"]))
    assert_empty(engine)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_trees_in_random_traffic(data: st.DataObject) -> None:
    """Pools with as few blocks as may be, other requests that come and take some, compaction in between."""
    token = st.integers(0, data.draw(st.integers(1, 4)))
    candidates = data.draw(st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=25))
    text = prompt(data.draw(st.integers(1, 12)), 5)
    block_size = data.draw(st.sampled_from([1, 2, 3, 4, 16]))
    longest = max(len(text) + max(map(len, candidates)) - 1, 9)
    least = -(-longest // block_size) + (len(text) % block_size > 0)
    engine = make_engine(
        least + data.draw(st.sampled_from([0, 0, 1, 2, 5, 20])),
        block_size,
        max_model_len=longest,
        max_num_seqs=data.draw(st.integers(1, 4)),
        max_num_batched_tokens=data.draw(st.integers(4, 40)),
        prefix_caching=data.draw(st.booleans()),
    )
    request = tree(engine, text, candidates, priority=data.draw(st.integers(-1, 1)))
    arrivals = data.draw(st.integers(0, 4))
    steps = 0
    while engine.has_unfinished or arrivals:
        if arrivals and data.draw(st.booleans()):
            arrivals -= 1
            options: dict[str, Any] = {"priority": data.draw(st.integers(-1, 1))}
            engine.add_request(f"o{arrivals}", prompt(4, arrivals), greedy(3), **options)
        if data.draw(st.integers(0, 9)) == 0:
            engine.compact()
        engine.step()
        engine.check_integrity()
        steps += 1
        assert steps < 3000, "no progress"
    assert_same(scores_of(request), one_by_one(text, candidates))
    assert_empty(engine)


def test_a_neighbour_does_not_keep_a_tree_from_going_on() -> None:
    """With hardly any memory, what the tree computes again must not be lost before it is used."""
    candidates = [
        [3, 3, 5, 4, 3, 1, 5], [2, 5, 1, 4, 2, 2, 5], [2], [5, 2, 2, 2, 3, 3, 5, 2], [3, 3, 1, 3], [6, 1], [2, 6],
        [3, 3, 3, 5, 5, 1, 3, 4, 6], [5, 3, 5, 6, 1, 4, 2, 3], [4, 6, 3, 6, 6, 1], [1, 4, 2, 1, 6, 1, 1, 2, 1],
        [3, 4, 6, 1, 5], [3, 4], [4, 4, 2], [2, 4, 4], [1, 1, 2], [3, 5, 3, 3, 5, 6, 5], [2, 5, 2, 5, 5, 3, 4, 5],
        [1, 5, 1, 3, 3], [4, 1, 2, 6, 1, 3, 2], [3, 3, 3, 5, 3, 3, 5, 2, 1], [6, 2, 2, 2],
    ]  # fmt: skip
    text = prompt(11, 80)
    engine = make_engine(8, 3, max_model_len=19, max_num_seqs=3, max_num_batched_tokens=5)
    request = tree(engine, text, candidates)
    others = [engine.add_request(f"o{i}", prompt(4, i), greedy(3)) for i in range(2)]
    drain(engine, limit=300)
    assert all(other.error is None for other in others)
    assert_same(scores_of(request), one_by_one(text, candidates))
    assert_empty(engine)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([], "there are no candidates"),
        ([[1], []], "candidate 1 is empty"),
        ([[1], [2, VOCAB]], f"candidate 1 has token id {VOCAB}"),
        ([[1], [-1, 2]], "candidate 1 has token id -1"),
        ([[1.5]], "whole numbers"),
        ([[1]] * 100_000, "100000 candidates; at most 65536"),
        ([[1] * 100] * 20_000, "2000000 tokens; at most"),
        ([[1] * 3_000_000], "candidate 0 has 3000000 tokens"),
        ([[1] * 300], "max_model_len"),
    ],
)
def test_bad_candidates_are_refused(candidates: list[list[int]], message: str) -> None:
    engine = make_engine(60)
    with pytest.raises(RequestError, match=message) as error:
        tree(engine, prompt(10), candidates)
    assert len(str(error.value)) < 300
    assert_empty(engine)


def test_a_trie_has_every_prefix_once() -> None:
    for candidates in SHAPES.values():
        trie = CandidateTrie(candidates)
        prefixes = {tuple(c[:n]) for c in candidates for n in range(1, len(c) + 1)}
        assert trie.num_tokens == len(prefixes)
        inner = {tuple(c[:n]) for c in candidates for n in range(1, len(c))}
        assert trie.num_rows == len(inner)
        for branch in trie.branches()[1:]:
            assert branch.parent is not None
            assert branch in branch.parent.children
            assert branch.start == branch.parent.end
            assert tuple(branch.path()) in prefixes
        numbers = np.arange(trie.num_tokens, dtype=np.float32)
        by_prefix: dict[tuple[int, ...], float] = {}
        for candidate, row in zip(candidates, trie.by_candidate(numbers), strict=True):
            for n, number in enumerate(row, 1):
                assert by_prefix.setdefault(tuple(candidate[:n]), number) == number
        assert len(set(by_prefix.values())) == len(by_prefix)
