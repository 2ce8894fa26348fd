"""From log-probabilities of candidates to scores that mean something: the softmax over the candidates, with a temperature.

At temperature 1 a score is what the model itself believes: the probability that it would give this answer, if one of the
candidates is what it gives. Models are surer than they are right; a temperature fitted to questions whose answers are
known mends that without changing the order (temperature scaling: Guo et al., "On Calibration of Modern Neural
Networks", 2017).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vglm.errors import RequestError

Floats = npt.NDArray[np.float64]
LOWEST, HIGHEST = 0.02, 50.0  # temperatures
_STEPS = 80  # each leaves two thirds of what is searched


def calibrated(logprobs: Sequence[float], texts: Sequence[str], temperature: float = 1.0) -> Floats:
    """Scores float64 [n] of candidates that sum to 1: the softmax of `logprobs` / `temperature` over the distinct texts.

    Candidates that share a text share its probability equally: nothing in the answer tells them apart.
    """
    if not len(logprobs):
        return np.zeros(0)
    _, group, sizes = np.unique(np.array(texts, object), return_inverse=True, return_counts=True)
    scaled = np.asarray(logprobs, np.float64) / temperature - np.log(sizes[group])
    scaled -= scaled.max()
    weights: Floats = np.exp(scaled)
    weights /= weights.sum()
    return weights


def fit_temperature(logprobs: Sequence[Sequence[float]], answers: Sequence[int]) -> float:
    """The temperature under which the known answers of some questions are likeliest.

    `logprobs[i]` are those of question i's candidates, `answers[i]` is the place of the right one among them. The negative
    log-likelihood is convex in the inverse of the temperature, so a search by thirds finds its minimum; it is kept
    within LOWEST and HIGHEST. Raises RequestError for lists that do not fit together.
    """
    if len(logprobs) != len(answers) or not len(answers):
        raise RequestError(
            f"{len(logprobs)} questions but {len(answers)} answers; give as many, at least one", "answers"
        )
    rows = [np.asarray(row, np.float64) for row in logprobs]
    for place, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        if row.ndim != 1 or not 0 <= answer < len(row) or not np.isfinite(row).all():
            raise RequestError(
                f"question {place}: expected finite log-probabilities, and the answer's place", "answers"
            )

    def loss(inverse: float) -> float:
        total = 0.0
        for row, answer in zip(rows, answers, strict=True):
            scaled = inverse * (row - row.max())
            total += float(np.log(np.exp(scaled).sum()) - scaled[answer])
        return total

    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(_STEPS):
        third = (high - low) / 3
        if loss(low + third) <= loss(high - third):
            high -= third
        else:
            low += third
    return 2 / (low + high)
