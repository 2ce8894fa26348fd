"""How well diseases match a patient, in numbers: a row per finding and disease, and a row per disease."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vglm.encoder.disease_candidates import Candidates, Screening
from vglm.encoder.products import times_vector
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
TWIN = ("log lift of twins", "twins above own")
_NONE = 99.0  # above every information content
WHOLE = (
    *("likelihood", "Resnik", "behind the best", "log findings", "explained frequency"),
    *("mean explained", "explained content", "missing obligate", "log expected", "mean content"),
    *("around", "behind the best around", "cosine", "cosine behind the best"),
)


@dataclass(frozen=True)
class Shared:
    """What K candidates with A annotations say about the S terms at or above a patient's findings.

    `terms` int32[S] ascending; of each term and candidate, float32[S, K]: `frequency`, the noisy or of the annotations
    at or below the term, their `number`, and the least `content` among them (large where there are none). `closest`
    float32[A] is the content that an annotation shares with the closest present finding.
    """

    terms: Ints
    frequency: Floats
    number: Floats
    content: Floats
    closest: Floats


def share(index: RankingIndex, candidates: Candidates, findings: Ints) -> Shared:
    """Carries the annotations of the candidates up to the terms of the patient; node indices int32[n]."""
    terms = np.unique(np.concatenate([index.ancestors(f) for f in findings.tolist()]))
    pairs = _pairs(index, candidates.terms, terms)
    keys = pairs.term.astype(np.int64) * len(candidates) + candidates.owners[pairs.annotation]
    size = len(terms) * len(candidates)
    absent = np.log1p(-np.minimum(candidates.frequencies, MAX_FREQUENCY))
    joined = np.bincount(keys, absent[pairs.annotation], size)
    number = np.bincount(keys, minlength=size)
    least = np.full(size, _NONE, np.float32)
    np.minimum.at(least, keys, index.information_content[candidates.terms][pairs.annotation])
    shape = (len(terms), len(candidates))
    frequency = np.minimum(-np.expm1(joined), MAX_FREQUENCY).astype(np.float32)
    return Shared(
        terms,
        frequency.reshape(shape),
        number.astype(np.float32).reshape(shape),
        least.reshape(shape),
        pairs.closest,
    )


@dataclass(frozen=True)
class _Pairs:
    """Places of annotations, and of terms at or above them; `closest` as in `Shared`."""

    annotation: npt.NDArray[np.int64]
    term: Ints
    closest: Floats


def _pairs(index: RankingIndex, annotated: Ints, terms: Ints) -> _Pairs:
    """Expands the ancestors of each distinct annotated term once: candidates that resemble a patient share most of them."""
    num_nodes = len(index.closure_starts) - 1
    place = np.full(num_nodes, -1, np.int32)
    place[annotated] = 0
    nodes = np.flatnonzero(place == 0)
    place[nodes] = np.arange(len(nodes))
    which = place[annotated]
    place.fill(-1)
    place[terms] = np.arange(len(terms))
    content = np.zeros(num_nodes, np.float32)
    content[terms] = index.information_content[terms]

    owners, ancestors = _expand(index.closure_starts, index.closure_nodes, nodes)
    inside = np.flatnonzero(place[ancestors] >= 0)
    owners, ancestors = owners[inside], ancestors[inside]
    starts = np.searchsorted(owners, np.arange(len(nodes) + 1))
    closest = np.zeros(len(nodes), np.float32)
    some = np.flatnonzero(starts[1:] > starts[:-1])
    if len(some):
        closest[some] = np.maximum.reduceat(content[ancestors], starts[some])
    annotation, term = _expand(starts, place[ancestors], which)
    return _Pairs(annotation, term, closest[which])


def _expand(
    starts: npt.NDArray[np.int64], values: Ints, rows: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int64], Ints]:
    """The values of some rows of a CSR table one after the other, and the place in `rows` that each comes from."""
    begin = starts[rows]
    lengths = starts[rows + 1] - begin
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    places = np.arange(total) + np.repeat(begin - ends + lengths, lengths)
    return np.repeat(np.arange(len(rows)), lengths), values[places]


def match(index: RankingIndex, candidates: Candidates, shared: Shared, findings: Ints) -> Floats:
    """Some of the patient's findings against every candidate: float32[n, K, len(MATCH)]."""
    content = index.information_content
    out = np.zeros((len(findings), len(candidates), len(MATCH)), np.float32)
    columns = np.arange(len(candidates))
    exact = _exact(candidates, findings)
    for place, finding in enumerate(findings.tolist()):
        closure = index.ancestors(finding)
        rows = np.searchsorted(shared.terms, closure)
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
    return out


def _exact(candidates: Candidates, findings: Ints) -> Floats:
    """The frequency of each finding as an annotation of each candidate, float32[n, K], 0 where it is none."""
    found = np.zeros((len(findings), len(candidates)), np.float32)
    if len(findings) == 0:
        return found
    order = np.argsort(findings)
    place = np.searchsorted(findings[order], candidates.terms).clip(max=len(findings) - 1)
    hit = np.flatnonzero(findings[order][place] == candidates.terms)
    found[order[place[hit]], candidates.owners[hit]] = candidates.frequencies[hit]
    return found


def around(screening: Screening, candidates: Candidates) -> Floats:
    """What the neighbours of each candidate say about each finding: the weighted mean and the largest log lift,
    float32[n, K, 2]."""
    lifts = screening.log_lifts[:, candidates.neighbours]  # [n, K, k]
    mean = np.einsum("nkj,kj->nk", lifts, candidates.weights)
    return np.stack([mean, lifts.max(axis=2, initial=np.log(NOISE))], axis=2)


def of_twins(screening: Screening, candidates: Candidates, own: Floats) -> Floats:
    """What the entries that share a gene with each candidate say about each finding, beside the candidate's own log lift
    float32[n, K]: float32[n, K, len(TWIN)]. Without any, that of a finding that has nothing to do with the disease."""
    out = np.zeros((*own.shape, len(TWIN)), np.float32)
    out[:, :, 0] = np.log(NOISE)
    some = np.flatnonzero((candidates.twins >= 0).any(axis=1)) if candidates.twins.shape[1] else ()
    if len(some) == 0:
        return out
    rows, own = candidates.twins[some], own[:, some]
    known = rows >= 0
    lifts = screening.log_lifts[:, np.maximum(rows, 0)]  # [n, some, T]
    best = np.where(known, lifts, -np.inf).max(axis=2)
    out[:, some] = np.stack((best, np.maximum(best - own, 0)), axis=2)
    return out


def whole(
    index: RankingIndex, candidates: Candidates, matches: Floats, shared: Shared, screening: Screening
) -> Floats:
    """Every candidate as a whole, float32[K, len(WHOLE)], from what `match` gave for the findings."""
    size = len(candidates)
    frequencies, closest = candidates.frequencies, shared.closest
    content: Floats = np.maximum(index.information_content[candidates.terms], np.float32(0.1))
    count = np.diff(candidates.starts).astype(np.float32)

    def per_candidate(values: Floats) -> Floats:
        sums: Floats = np.add.reduceat(values, candidates.starts[:-1])
        return sums

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
    out[:, 7] = per_candidate(np.where(frequencies >= 0.6, 1 - closest / content, np.float32(0))) / count
    out[:, 8] = np.log1p(expected)
    out[:, 9] = per_candidate(content) / count
    out[:, 10] = candidates.around / n
    out[:, 11] = np.maximum(candidates.around - screening.around.max(), -20)
    out[:, 12] = times_vector(candidates.vectors, screening.vector)
    out[:, 13] = out[:, 12] - screening.best_cosine
    return out
