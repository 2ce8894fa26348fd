"""The native sampler against its naive twin."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decode.sampler_reference import Row, choose, distribution, logprobs, philox, sample
from vglm import _native

VOCABS = (1, 2, 31, 32, 33, 63, 64, 65, 127, 129, 500, 1000, 4097)
Float32 = npt.NDArray[np.float32]


def make_logits(kind: str, vocab: int, rng: np.random.Generator) -> Float32:
    if kind == "equal":
        return np.full(vocab, 3.5, np.float32)
    if kind == "ties":
        return rng.integers(-4, 5, vocab).astype(np.float32)
    x = rng.normal(0, 3, vocab)
    if kind == "peaked":
        x[rng.integers(vocab, size=5)] += 12
    if kind == "wide":
        x *= 100
    if kind == "holes":
        x[rng.random(vocab) < 0.5] = -np.inf
        x[rng.integers(vocab)] = 0
    return x.astype(np.float32)


@st.composite
def cases(draw: st.DrawFn, changing: bool) -> tuple[Float32, Row]:
    vocab = draw(st.sampled_from(VOCABS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = make_logits(
        draw(st.sampled_from(["normal", "equal", "ties", "peaked", "wide", "holes"])), vocab, rng
    )
    row = Row(
        temperature=draw(st.sampled_from([0.0, 1e-6, 0.1, 0.7, 1.0, 3.0])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.999, 0.9, 0.5, 0.01])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0])),
        top_k=draw(st.sampled_from([0, 0, -1, 1, 2, 5, 70, vocab - 1, vocab, vocab + 5])),
        seed=draw(st.integers(0, 2**64 - 1)),
        step=draw(st.integers(0, 2**40)),
    )
    if changing:
        tokens = st.lists(st.integers(0, vocab - 1), max_size=20)
        row.repetition_penalty = draw(st.sampled_from([1.0, 0.8, 1.3]))
        row.presence_penalty = draw(st.sampled_from([0.0, -0.5, 1.5]))
        row.frequency_penalty = draw(st.sampled_from([0.0, -0.5, 0.7]))
        row.prompt, row.output = draw(tokens), draw(tokens)
        values = st.sampled_from([-100.0, -1.5, 2.0, 30.0, -np.inf])
        row.bias = draw(st.dictionaries(st.integers(0, vocab - 1), values, max_size=5))
        row.allowed = draw(st.none() | st.lists(st.integers(0, vocab - 1), max_size=40, unique=True))
    return logits, row


def check_token(logits: Float32, row: Row) -> None:
    expected, fragile = choose(logits, row)
    token = int(sample(logits[None], [row])[0][0])
    assert token == expected or (fragile and 0 <= token < len(logits))


@given(cases(changing=False))
@settings(max_examples=400, deadline=None)
def test_draws_the_token_of_the_reference(case: tuple[Float32, Row]) -> None:
    check_token(*case)


@given(cases(changing=True))
@settings(max_examples=400, deadline=None)
def test_bias_mask_and_penalties_come_before_the_draw(case: tuple[Float32, Row]) -> None:
    check_token(*case)


@pytest.mark.parametrize(
    "row",
    [
        Row(repetition_penalty=1.3),
        Row(repetition_penalty=0.7),
        Row(presence_penalty=0.8),
        Row(frequency_penalty=0.4),
        Row(repetition_penalty=1.2, presence_penalty=-0.5, frequency_penalty=0.3, bias={3: 1.0, 4: -1.0}),
    ],
)
def test_penalties_shift_every_probability_as_they_should(row: Row) -> None:
    logits = np.random.default_rng(2).uniform(-2, 2, 40).astype(np.float32)
    row.prompt, row.output = list(range(0, 30, 2)) * 2, list(range(0, 30, 3)) * 3
    draws = [replace(row, step=step) for step in range(1000)]
    tokens = sample(np.tile(logits, (1000, 1)), draws)[0]
    for one, token in zip(draws, tokens, strict=True):
        expected, fragile = choose(logits, one)
        assert token == expected or fragile


@pytest.mark.parametrize("vocab", [60, 64, 130, 4097])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 20, 59])
def test_top_k_keeps_exactly_the_k_best(vocab: int, k: int) -> None:
    logits = np.random.default_rng(vocab + k).normal(0, 3, vocab).astype(np.float32)
    rows = [Row(temperature=1e6, top_k=k, step=step) for step in range(20 * k)]  # all k about as probable
    tokens = sample(np.tile(logits, (len(rows), 1)), rows)[0]
    assert set(tokens.tolist()) == set(np.argsort(-logits)[:k].tolist())


@pytest.mark.parametrize("kind", ["normal", "peaked", "ties", "equal"])
@pytest.mark.parametrize("vocab", [49152, 151_552])
def test_full_vocabularies(kind: str, vocab: int) -> None:
    logits = make_logits(kind, vocab, np.random.default_rng(vocab))
    close_calls = 0
    for step, (top_p, top_k, min_p) in enumerate(
        [(1, 0, 0), (0.95, 0, 0), (0.5, 0, 0), (0.9, 50, 0), (1, 5000, 0), (0.99, 5000, 0), (1, 0, 0.05)]
    ):
        row = Row(top_p=top_p, top_k=top_k, min_p=min_p, seed=7, step=step)
        expected, fragile = choose(logits, row)
        token = int(sample(logits[None], [row])[0][0])
        close_calls += fragile
        assert token == expected or (fragile and abs(logits[token] - logits[expected]) < 20)
    assert kind == "equal" or close_calls < 7


@pytest.mark.parametrize(
    "row",
    [Row(), Row(top_p=0.8), Row(top_k=7), Row(min_p=0.1), Row(temperature=2, top_k=12, top_p=0.9)],
    ids=["plain", "top_p", "top_k", "min_p", "together"],
)
def test_draws_follow_the_distribution(row: Row) -> None:
    logits = np.random.default_rng(5).normal(0, 1.5, 40).astype(np.float32)
    probabilities, _ = distribution(logits, row)
    draws = 20_000
    rows = [replace(row, seed=1234, step=step) for step in range(draws)]
    seen = np.bincount(sample(np.tile(logits, (draws, 1)), rows)[0], minlength=40)
    assert np.all(seen[probabilities == 0] == 0)
    expected = probabilities[probabilities > 0] * draws
    freedom = len(expected) - 1
    chi_square = np.sum((seen[probabilities > 0] - expected) ** 2 / expected)
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)  # four standard deviations


def test_neighbouring_seeds_and_steps_are_independent() -> None:
    u = np.array([[philox(seed, step) for step in range(100)] for seed in range(100)])
    logits = np.zeros((10_000, 64), np.float32)
    rows = [Row(seed=seed, step=step) for seed in range(100) for step in range(100)]
    assert np.array_equal(sample(logits, rows)[0].reshape(100, 100), np.floor(u * 64))
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 0.04
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.04


def test_random_numbers_are_philox() -> None:
    # Random123's known answer for a key and a counter of zero begins with these two words.
    assert philox(0, 0) == ((0x6627E8D5 << 32 | 0xE169C58D) >> 11) * 2.0**-53


@given(st.integers(0, 2**32), st.sampled_from(VOCABS), st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_logprobs_ranks_and_best_tokens(seed: int, vocab: int, wanted: int) -> None:
    rng = np.random.default_rng(seed)
    logits = make_logits(["normal", "ties", "wide", "holes"][seed % 4], vocab, rng)
    target = int(rng.integers(vocab)) if seed % 3 else -1
    row = Row(num_logprobs=wanted, need_logprob=True, target=target, seed=seed, repetition_penalty=1.5)
    row.prompt = [int(token) for token in rng.integers(vocab, size=10)]
    tokens, scores, ranks, top_ids, top_scores = sample(logits[None], [row])
    expected = logprobs(logits)
    token = int(tokens[0])
    assert target < 0 or token == target
    np.testing.assert_allclose(scores[0], expected[token], rtol=1e-6, atol=1e-5)
    assert ranks[0] == 1 + np.sum(logits > logits[token])
    best = np.lexsort((np.arange(vocab), -logits))[:wanted]
    assert np.array_equal(top_ids[0][: len(best)], best)
    np.testing.assert_allclose(top_scores[0][: len(best)], expected[best], rtol=1e-6, atol=1e-5)
    assert np.all(top_ids[0][len(best) :] == -1)
    assert np.all(np.isneginf(top_scores[0][len(best) :]))


def test_all_logprobs_of_a_full_vocabulary() -> None:
    logits = make_logits("normal", 49152, np.random.default_rng(1))
    _, _, _, top_ids, top_scores = sample(logits[None], [Row(num_logprobs=49152)])
    assert np.array_equal(np.sort(top_ids[0]), np.arange(49152))
    np.testing.assert_allclose(top_scores[0], np.sort(logprobs(logits))[::-1], atol=1e-5)
    assert abs(np.exp(top_scores[0].astype(np.float64)).sum() - 1) < 1e-6


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 63, 64, 99])
@pytest.mark.parametrize(
    "row",
    [
        Row(temperature=0),
        Row(top_p=0.9, top_k=3),
        Row(num_logprobs=2),
        Row(target=5),
        Row(allowed=[1, 2, 50]),
        Row(bias={0: -np.inf, 99: -np.inf}),
    ],
)
def test_logits_that_are_not_finite_are_reported(bad: float, at: int, row: Row) -> None:
    logits = np.zeros((1, 100), np.float32)
    logits[0, at] = bad
    tokens, scores, ranks, top_ids, _ = sample(logits, [row])
    assert tokens[0] == -1
    assert ranks[0] == 0
    assert np.isneginf(scores[0])
    assert np.all(top_ids == -1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_banned_is_reported(temperature: float) -> None:
    logits = np.zeros((3, 70), np.float32)
    logits[2] = -np.inf
    rows = [
        Row(temperature=temperature, allowed=[]),
        Row(temperature=temperature, bias=dict.fromkeys(range(70), -np.inf)),
        Row(temperature=temperature),
    ]
    assert sample(logits, rows)[0].tolist() == [-2, -2, -2]


def test_a_row_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (24, 90)).astype(np.float32)
    rows = [
        Row(
            temperature=[0, 0.7, 1][i % 3],
            top_p=[1, 0.9][i % 2],
            top_k=[0, 20, 70][i % 3],
            frequency_penalty=[0, -2][i % 2],
            output=[int(token) for token in rng.integers(90, size=3 * i)],
            seed=i,
            num_logprobs=i % 4,
        )
        for i in range(24)
    ]
    together = sample(logits, rows)
    order = rng.permutation(24)
    shuffled = sample(logits[order], [rows[i] for i in order])
    for i in range(24):
        alone = sample(logits[i : i + 1], [rows[i]])
        place = int(np.flatnonzero(order == i)[0])
        for one, many, moved in zip(alone, together, shuffled, strict=True):
            width = one.shape[1] if one.ndim == 2 else 1  # a batch is as wide as its widest row
            expected = np.atleast_1d(one[0])
            assert np.array_equal(expected, np.atleast_1d(many[i])[:width])
            assert np.array_equal(expected, np.atleast_1d(moved[place])[:width])


def test_threads_do_not_share_anything() -> None:
    logits = np.random.default_rng(9).normal(0, 3, (8, 5000)).astype(np.float32)
    rows = [Row(top_p=0.9, seed=i, output=list(range(i * 10)), presence_penalty=1) for i in range(8)]
    expected = sample(logits, rows)[0]
    with ThreadPoolExecutor(4) as pool:
        for tokens in pool.map(lambda _: sample(logits, rows)[0], range(40)):
            assert np.array_equal(tokens, expected)


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 1e30, np.inf])
@pytest.mark.parametrize("scale", [1e-30, 1, 1e38])
@pytest.mark.parametrize("extra", [{}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 1.0}, {"top_p": 1e-9}])
def test_extreme_values_give_a_token_that_is_allowed(
    temperature: float, scale: float, extra: dict[str, Any]
) -> None:
    logits = (np.random.default_rng(0).uniform(-3, 3, 300) * scale).astype(np.float32)
    logits[::2] = -np.inf
    row = Row(
        temperature=temperature, repetition_penalty=1e-30, prompt=list(range(300)), bias={1: 3e38}, **extra
    )
    for step in range(20):
        token = int(sample(logits[None], [replace(row, step=step)])[0][0])
        assert 0 <= token < 300
        assert token % 2 == 1


def test_history_outside_the_vocabulary_is_passed_over() -> None:
    logits = np.array([[1, 2, 3]], np.float32)
    row = Row(
        temperature=0, prompt=[-1, 7, 2**31 - 1], output=[-5, 3], repetition_penalty=9, bias={3: 50, -1: 50}
    )
    assert sample(logits, [row])[0][0] == 2


def test_the_callers_logits_stay_as_they_are() -> None:
    logits = np.ones((1, 50), np.float32)
    sample(logits, [Row(bias={1: 5}, allowed=[1], repetition_penalty=2, prompt=[1])])
    assert np.all(logits == 1)


def test_omitted_arguments_mean_plain_sampling() -> None:
    logits = np.random.default_rng(0).normal(0, 1, (2, 64)).astype(np.float32)
    assert np.array_equal(_native.sample(logits)[0], sample(logits, [Row(), Row()])[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"temperature": np.zeros(3, np.float32)}, "temperature has 3 entries for 2 rows"),
        ({"prompt_tokens": np.zeros(3, np.int32)}, "prompt needs"),
        ({"output_tokens": np.zeros(3, np.int32), "output_start": np.array([0, 2, 4], np.int32)}, "row 1"),
        ({"output_tokens": np.zeros(3, np.int32), "output_start": np.array([2, 1, 3], np.int32)}, "row 0"),
        ({"allowed_mask": np.zeros((2, 1), np.uint32)}, r"allowed_mask must be \[2, 2\]"),
        ({"target": np.array([0, 40], np.int32)}, "target of row 1"),
        ({"num_logprobs": np.array([-1, 0], np.int32)}, "num_logprobs of row 0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _native.sample(np.zeros((2, 40), np.float32), **arguments)


def test_a_vocabulary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        _native.sample(np.zeros((1, 0), np.float32))
