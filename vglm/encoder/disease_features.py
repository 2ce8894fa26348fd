"""How well diseases match a patient, in numbers: a row per finding and disease, and a row per disease."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vglm.encoder.disease_candidates import Candidates, Screening
from vglm.graph.ranking import NOISE
from vglm.graph.ranking_index import MAX_FREQUENCY, RankingIndex

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

MATCH = (
    *("best log lift", "shared content", "content", "share of content", "Lin"),
    *("frequency if exact", "exact", "frequency", "below", "log frequency where shared"),
    *("log lift where shared", "frequency where best", "content where best", "log number where shared"),
    "shared ancestors",
)
AROUND = ("log lift around", "best log lift around")
WHOLE = (
    *("likelihood", "Resnik", "behind the best", "log findings", "explained frequency"),
    *("mean explained", "explained content", "missing obligate", "log expected", "mean content"),
    *("around", "behind the best around", "cosine", "cosine behind the best"),
)


@dataclass(frozen=True)
class _Shared:
    """What K candidates say about S terms: those at or above the patient's findings. All [S, K]."""

    frequency: Floats  # noisy or of the annotations at or below the term
    number: Floats  # of these annotations
    content: Floats  # the least information content among them; large where there are none


def match(index: RankingIndex, candidates: Candidates, findings: Ints) -> tuple[Floats, Floats]:
    """Every finding (node indices int32[n]) against every candidate: float32[n, K, len(MATCH)]; and the content that
    each annotation shares with its closest finding, float32[A]."""
    closures = [index.ancestors(int(finding)) for finding in findings]
    terms = np.unique(np.concatenate(closures)) if closures else np.zeros(0, np.int32)
    shared, closest = _share(index, candidates, terms)
    content = index.information_content
    out = np.zeros((len(findings), len(candidates), len(MATCH)), np.float32)
    columns = np.arange(len(candidates))
    exact = _exact(candidates, findings)
    for place, (finding, closure) in enumerate(zip(findings, closures, strict=True)):
        rows = np.searchsorted(terms, closure)
        frequency = shared.frequency[rows]  # [ancestors, K]
        lift = frequency / index.background[closure][:, None]
        best = lift.argmax(axis=0)
        held = np.where(frequency > 0, content[closure][:, None], -1.0)
        nearest = held.argmax(axis=0)
        own = float(content[finding])
        near_content = np.maximum(held[nearest, columns], 0)
        near_frequency = frequency[nearest, columns]
        there = near_frequency > 0
        at_finding = frequency[int(np.searchsorted(closure, finding))]
        matched = np.where(there, shared.content[rows[nearest], columns], 0)
        x = out[place]
        x[:, 0] = np.log(NOISE + (1 - NOISE) * lift[best, columns])
        x[:, 1] = near_content
        x[:, 2] = own
        x[:, 3] = near_content / max(own, 0.1)
        x[:, 4] = 2 * near_content / np.maximum(own + matched, 0.1)
        x[:, 5] = exact[place]
        x[:, 6] = exact[place] > 0
        x[:, 7] = at_finding
        x[:, 8] = (at_finding > 0) & (exact[place] == 0)
        x[:, 9] = np.log(np.maximum(near_frequency, 0.01))
        x[:, 10] = np.log(NOISE + (1 - NOISE) * lift[nearest, columns])
        x[:, 11] = frequency[best, columns]
        x[:, 12] = np.where(there, content[closure][best], 0)
        x[:, 13] = np.log1p(shared.number[rows[nearest], columns])
        x[:, 14] = (frequency > 0).mean(axis=0)
    return out, closest


def _share(index: RankingIndex, candidates: Candidates, terms: Ints) -> tuple[_Shared, Floats]:
    place = np.full(len(index.closure_starts) - 1, -1, np.int32)
    place[terms] = np.arange(len(terms))
    begin = index.closure_starts[candidates.terms]
    lengths = index.closure_starts[candidates.terms + 1] - begin
    ends = np.cumsum(lengths)
    ancestors = index.closure_nodes[
        np.arange(int(lengths.sum())) + np.repeat(begin - ends + lengths, lengths)
    ]
    rows = place[ancestors]
    inside = np.flatnonzero(rows >= 0)
    annotation = np.repeat(np.arange(len(lengths)), lengths)[inside]
    keys = rows[inside].astype(np.int64) * len(candidates) + candidates.owners[annotation]
    size = len(terms) * len(candidates)
    absent = np.log1p(-np.minimum(candidates.frequencies, MAX_FREQUENCY))
    joined = np.bincount(keys, absent[annotation], size)
    number = np.bincount(keys, minlength=size)
    least = np.full(size, 99.0, np.float32)
    content = index.information_content
    np.minimum.at(least, keys, content[candidates.terms][annotation])
    closest = np.zeros(len(lengths), np.float32)
    np.maximum.at(closest, annotation, content[ancestors[inside]])
    shape = (len(terms), len(candidates))
    frequency = np.minimum(-np.expm1(joined), MAX_FREQUENCY).astype(np.float32)
    shared = _Shared(frequency.reshape(shape), number.astype(np.float32).reshape(shape), least.reshape(shape))
    return shared, closest


def _exact(candidates: Candidates, findings: Ints) -> Floats:
    """The frequency of each finding as an annotation of each candidate, float32[n, K], 0 where it is none."""
    found = np.zeros((len(findings), len(candidates)), np.float32)
    order = np.argsort(findings)
    place = np.searchsorted(findings[order], candidates.terms).clip(max=max(len(findings) - 1, 0))
    hit = np.flatnonzero(findings[order][place] == candidates.terms) if len(findings) else np.zeros(0, int)
    found[order[place[hit]], candidates.owners[hit]] = candidates.frequencies[hit]
    return found


def around(screening: Screening, candidates: Candidates) -> Floats:
    """What the neighbours of each candidate say about each finding: the weighted mean and the largest log lift,
    float32[n, K, 2]."""
    lifts = screening.log_lifts[:, candidates.neighbours]  # [n, K, k]
    mean = np.einsum("nkj,kj->nk", lifts, candidates.weights)
    return np.stack([mean, lifts.max(axis=2, initial=np.log(NOISE))], axis=2)


def whole(
    index: RankingIndex, candidates: Candidates, matches: Floats, closest: Floats, screening: Screening
) -> Floats:
    """Every candidate as a whole, float32[K, len(WHOLE)], from what `match` gave for the findings."""
    owners, size = candidates.owners, len(candidates)
    frequencies = candidates.frequencies
    content = np.maximum(index.information_content[candidates.terms], 0.1)
    count = np.maximum(np.diff(candidates.starts), 1)

    def per_candidate(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        return np.bincount(owners, values, size).astype(np.float64, copy=False)

    expected = per_candidate(frequencies)
    n = len(matches)
    out = np.zeros((size, len(WHOLE)), np.float32)
    out[:, 0] = candidates.scores / n
    out[:, 1] = matches[:, :, 1].mean(axis=0)
    out[:, 2] = np.maximum(candidates.scores - screening.scores.max(), -20)
    out[:, 3] = np.log(n)
    out[:, 4] = per_candidate(frequencies * closest / content) / np.maximum(expected, 0.1)
    out[:, 5] = per_candidate(closest / content) / count
    out[:, 6] = per_candidate(frequencies * closest) / np.maximum(per_candidate(frequencies * content), 0.1)
    out[:, 7] = per_candidate(np.where(frequencies >= 0.6, 1 - closest / content, 0)) / count
    out[:, 8] = np.log1p(expected)
    out[:, 9] = per_candidate(content) / count
    out[:, 10] = candidates.around / n
    out[:, 11] = np.maximum(candidates.around - screening.around.max(), -20)
    out[:, 12] = candidates.vectors @ screening.vector
    out[:, 13] = out[:, 12] - screening.best_cosine
    return out
