"""Scores of candidates: a softmax in which names that are alike share, and the temperature that makes them honest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vglm.errors import RequestError
from vglm.tasks.calibration import HIGHEST, LOWEST, calibrated, fit_temperature

LOGPROBS = st.lists(st.floats(-700, 0), min_size=1, max_size=30)


@given(LOGPROBS, st.floats(0.1, 10))
def test_scores_are_the_softmax(logprobs: list[float], temperature: float) -> None:
    scores = calibrated(logprobs, [str(i) for i in range(len(logprobs))], temperature)
    scaled = np.array(logprobs) / temperature
    reference = np.exp(scaled - np.logaddexp.reduce(scaled))
    assert np.allclose(scores, reference, rtol=1e-9, atol=1e-300)
    assert scores.sum() == pytest.approx(1)


def test_candidates_that_are_written_alike_share_one_probability() -> None:
    apart = calibrated([-1.0, -2.0], ["a", "b"])
    shared = calibrated([-1.0, -1.0, -1.0, -2.0], ["a", "a", "a", "b"])
    assert shared[:3].sum() == pytest.approx(apart[0])
    assert shared[3] == pytest.approx(apart[1])
    assert shared[0] == shared[1] == shared[2]
    assert len(calibrated([], [])) == 0


def questions(count: int, overconfidence: float, seed: int = 0) -> tuple[list[list[float]], list[int]]:
    """Questions of a model whose log-probabilities are `overconfidence` times too far apart."""
    random = np.random.default_rng(seed)
    rows, answers = [], []
    for _ in range(count):
        true = random.normal(size=6)
        chances = np.exp(true - np.logaddexp.reduce(true))
        answers.append(int(random.choice(6, p=chances / chances.sum())))
        rows.append((overconfidence * true).tolist())
    return rows, answers


@pytest.mark.parametrize("overconfidence", [0.5, 1.0, 4.0])
def test_the_temperature_of_a_model_that_is_too_sure_is_found(overconfidence: float) -> None:
    rows, answers = questions(6000, overconfidence)
    temperature = fit_temperature(rows, answers)
    assert temperature == pytest.approx(overconfidence, rel=0.1)
    scores = np.array([calibrated(row, list("abcdef"), temperature) for row in rows])
    best = scores.argmax(axis=1)
    claimed, right = scores.max(axis=1).mean(), (best == np.array(answers)).mean()
    assert claimed == pytest.approx(right, abs=0.02), "as often right as it says"


def test_the_fitted_temperature_is_the_best_of_a_grid() -> None:
    rows, answers = questions(50, 2.5, seed=3)

    def loss(temperature: float) -> float:
        scores = [
            calibrated(row, list("abcdef"), temperature)[a] for row, a in zip(rows, answers, strict=True)
        ]
        return -float(np.log(scores).sum())

    fitted = fit_temperature(rows, answers)
    assert loss(fitted) <= min(loss(t) for t in np.geomspace(0.1, 20, 60)) + 1e-6


def test_temperatures_stay_within_bounds() -> None:
    sure = fit_temperature([[0.0, -1.0]], [0])
    assert sure >= LOWEST
    assert calibrated([0.0, -1.0], ["a", "b"], sure)[0] > 0.999999, "always right: as sure as may be"
    assert fit_temperature([[0.0, -1.0]], [1]) == pytest.approx(HIGHEST, rel=0.01), "always wrong"


@pytest.mark.parametrize(
    ("rows", "answers"),
    [([], []), ([[0.0]], [1]), ([[0.0]], [0, 0]), ([[float("nan")]], [0]), ([[0.0, 1.0]], [-1])],
)
def test_what_cannot_be_fitted_is_refused(rows: list[list[float]], answers: list[int]) -> None:
    with pytest.raises(RequestError):
        fit_temperature(rows, answers)
