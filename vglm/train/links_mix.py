"""How much each channel of a link model counts, per relation and direction: learnt on validation triples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vglm.encoder.link_parts import Float32
from vglm.train.links_data import KnownAnswers, Longs

ChannelScorer = Callable[[Longs, Longs], Float32]
_BEST = 48  # candidates per channel and question that the weights are fitted on
_BATCH = 32


def fit_mix(
    channels: ChannelScorer,
    questions: Longs,
    known: KnownAnswers,
    num_relations: int,
    *,
    steps: int = 300,
    shrinkage: float = 3e-3,
    seed: int = 0,
) -> Float32:
    """Weights float32 [2R, C] under which the wanted entities of questions int64 [n, 3] are most probable.

    `channels` gives float32 [C, B, N]. A relation's weights are those of all relations plus a deviation that `shrinkage`
    keeps small (squared, in units of each channel's standard deviation).
    """
    values, present, own = _candidates(channels, questions, known)
    scale = values[present].std(0).clamp_min(1e-6)
    values = values / scale
    random = torch.Generator().manual_seed(seed)
    relations = torch.from_numpy(questions[:, 1])
    shared = torch.zeros(values.shape[-1], requires_grad=True)
    deviation = torch.zeros(2 * num_relations, values.shape[-1], requires_grad=True)
    optimizer = torch.optim.Adam([shared, deviation], lr=0.05)
    for step in range(steps):
        rows = torch.randint(len(values), (min(512, len(values)),), generator=random)
        weights = shared + deviation[relations[rows]]
        scores = (values[rows] * weights[:, None]).sum(-1).masked_fill(~present[rows], -1e9)
        loss = F.cross_entropy(scores, own[rows]) + shrinkage * deviation.square().sum()
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return ((shared + deviation) / scale).detach().numpy().copy()


def _candidates(
    channels: ChannelScorer, questions: Longs, known: KnownAnswers
) -> tuple[Tensor, Tensor, Tensor]:
    """The best of each channel and the wanted one: values [n, K, C], which of the K are candidates, the wanted one's place."""
    rows: list[Float32] = []
    places: list[int] = []
    for start in range(0, len(questions), _BATCH):
        given, relations, wanted = questions[start : start + _BATCH].T
        found = channels(given, relations)
        which, answers = known.pairs(given, relations)
        best = min(_BEST, found.shape[2])
        for row, target in enumerate(wanted.tolist()):
            top = np.argpartition(-found[:, row], best - 1, axis=1)[:, :best]
            others = np.setdiff1d(top, answers[which == row])
            chosen = np.append(others[others != target], target)
            rows.append(found[:, row, chosen].T)
            places.append(len(chosen) - 1)
    values = torch.zeros(len(rows), max(map(len, rows)), rows[0].shape[1])
    present = torch.zeros(values.shape[:2], dtype=torch.bool)
    for number, found_row in enumerate(rows):
        values[number, : len(found_row)] = torch.from_numpy(np.ascontiguousarray(found_row))
        present[number, : len(found_row)] = True
    return values, present, torch.tensor(places)
