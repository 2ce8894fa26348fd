"""Trains the disease ranker: a conditional logit of the true disease among the candidates, on published patients.

    vglm train diseases DATA/phenopackets/patients.jsonl.gz --out disease-ranker.safetensors

Weights are pulled towards zero except those of the screening's score and of the prior, so that with little data the ranking
stays that of the screening. A disease counts by the square root of its number of cases, because a few diseases have hundreds.
The objective is convex and minimised with L-BFGS: no seed matters but that of the thinned candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from vglm.encoder.disease_pooling import POOLED
from vglm.encoder.disease_ranker import CLIP, PRIOR, Weights
from vglm.errors import ConfigError
from vglm.train.disease_cases import Case
from vglm.train.disease_examples import Example

PENALTY = 0.5  # of the sum of squares of the scaled weights
CITED_WEIGHT = 0.5  # of a cited case: what is left of its disease is sparser than what a new patient meets
MAX_CASES, MAX_CITED = 25, 10  # of one disease; cited ones only where there are not that many uncited
_ITERATIONS = 100


def choose_cases(cases: Sequence[Case], seed: int = 0) -> list[Case]:
    """At most `MAX_CASES` of each disease, drawn at random, uncited ones first; cited ones up to `MAX_CITED` in all."""
    order = np.random.default_rng(seed).permutation(len(cases)).tolist()
    order.sort(key=lambda i: cases[i].cited)
    taken: Counter[str] = Counter()
    chosen: list[int] = []
    for i in order:
        if taken[cases[i].disease] < (MAX_CITED if cases[i].cited else MAX_CASES):
            taken[cases[i].disease] += 1
            chosen.append(i)
    return [cases[i] for i in sorted(chosen)]


def fit(examples: Sequence[Example], penalty: float = PENALTY, prior: bool = True) -> Weights:
    """The weights for examples of one number of candidates; the calibration is left at temperature 1 and coverage 1.

    Raises ConfigError for no example.
    """
    if not examples:
        raise ConfigError("no published case to train on")
    stacked = np.stack([e.features for e in examples])
    mean = stacked.mean(axis=(0, 1))
    scale = stacked.std(axis=(0, 1)) + 1e-3
    inputs = torch.from_numpy(np.clip((stacked - mean) / scale, -CLIP, CLIP))
    first = torch.from_numpy(np.stack([e.first for e in examples]))
    first = (
        first
        - first.max(dim=1, keepdim=True).values
        + torch.from_numpy(np.stack([e.against for e in examples]))
    )
    known = torch.from_numpy(np.stack([e.prior for e in examples]))
    log_weights = torch.from_numpy(np.stack([e.log_weights for e in examples]))
    case_weights = torch.from_numpy(_case_weights(examples))
    match, screening = torch.zeros(len(POOLED)), torch.full((1,), 0.4)
    documented = torch.zeros(len(PRIOR))
    parameters = [match.requires_grad_(), screening.requires_grad_()]
    if prior:
        parameters.append(documented.requires_grad_())
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=_ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = inputs @ match + screening * first + known @ documented + log_weights
        value = (
            -(case_weights * torch.log_softmax(scores, dim=1)[:, 0]).sum() + penalty * match.square().sum()
        )
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return Weights(
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        match=match.detach().numpy(),
        screening=screening.detach().numpy(),
        prior=documented.detach().numpy(),
        calibration=np.ones(2, np.float32),
    )


def _case_weights(examples: Sequence[Example]) -> npt.NDArray[np.float32]:
    counts = Counter(e.case.disease for e in examples)
    weights = [counts[e.case.disease] ** -0.5 * (CITED_WEIGHT if e.case.cited else 1) for e in examples]
    return np.array(weights, np.float32) / np.float32(sum(weights))


def score(weights: Weights, of: Example) -> npt.NDArray[np.float32]:
    """The score of each candidate of an example, float32[K], as `DiseaseModel.score` gives it."""
    scaled = np.clip((of.features - weights.mean) / weights.scale, -CLIP, CLIP)
    scores: npt.NDArray[np.float32] = (
        scaled @ weights.match + weights.screening * (of.first + of.against) + of.prior @ weights.prior
    )
    return scores


def calibrate(scored: Sequence[tuple[npt.NDArray[np.float32], bool, float]]) -> npt.NDArray[np.float32]:
    """Temperature and coverage, float32[2], from cases that the weights have not seen: (scores with the true disease first,
    whether it would be a candidate, the case's weight)."""
    weights = np.array([weight for _, _, weight in scored])
    inside = np.array([found for _, found, _ in scored])
    coverage = float(weights[inside].sum() / weights.sum())

    def loss(temperature: float) -> float:
        logs = [w * _log_share(s / temperature) for s, found, w in scored if found]
        return -float(np.sum(logs))

    best = min(np.geomspace(0.3, 5, 60).tolist(), key=loss)
    return np.array([best, coverage], np.float32)


def _log_share(scores: npt.NDArray[np.float32]) -> float:
    return float(scores[0] - scores.max() - np.log(np.exp(scores - scores.max()).sum()))
