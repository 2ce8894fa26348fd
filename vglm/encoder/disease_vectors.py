"""The graph encoder of diseases: message passing between terms and diseases, down to one vector each.

Every disease sends its annotations up the ontology; the weight of the message from disease d to term t is P(t | d) times
the information content of t, normalised per disease. Messages go from diseases to terms and back, three rounds with an
orthonormal basis after each (randomised subspace iteration, Halko et al. 2011), which is linear message passing to its
fixed point: vectors whose dot products approximate the similarity of annotation profiles, with what is not annotated
filled in from diseases alike. Nothing is stored per disease, so it works on a graph that has never been seen, and a
disease or a patient that is given by its terms alone gets a vector too (`encode`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vglm.encoder.products import times_vector
from vglm.graph.ranking_index import RankingIndex

Floats = npt.NDArray[np.float32]

WIDTH = 64
ROUNDS = 3
NEIGHBOURS = 10
SHARPNESS = 4  # a neighbour counts by its cosine to this power
_EXTRA = 8  # further directions while iterating, for accuracy
_CHUNK = 65_536


@dataclass(frozen=True)
class DiseaseVectors:
    """`terms` float32[N, W] are vectors of terms, `diseases` float32[D, W] unit vectors; the `NEIGHBOURS` diseases most
    like each: `neighbours` int32[D, k] and their `weights` float32[D, k], which sum to 1."""

    terms: Floats
    diseases: Floats
    neighbours: npt.NDArray[np.int32]
    weights: Floats

    @classmethod
    def build(cls, index: RankingIndex) -> DiseaseVectors:
        """Runs the message passing: two seconds for 12,700 diseases."""
        messages = _Messages(index)
        width = min(WIDTH, len(index.diseases))
        columns = min(WIDTH + _EXTRA, len(index.diseases))
        basis = np.random.default_rng(0).standard_normal((len(index.diseases), columns)).astype(np.float32)
        for _ in range(ROUNDS):
            basis = np.linalg.qr(messages.to_diseases(messages.to_terms(basis)))[0]
        gathered = messages.to_terms(basis)  # [N, columns]
        rotation, squared, _ = np.linalg.svd((gathered.T @ gathered).astype(np.float64))
        kept = np.maximum(squared[:width], 1e-9) ** -0.5  # 1 / singular value
        terms = (gathered @ rotation[:, :width].astype(np.float32)) * kept.astype(np.float32)
        terms = terms * kept.astype(np.float32) ** 0.5
        diseases = _unit(messages.to_diseases(terms))
        neighbours, weights = nearest(diseases, diseases, np.arange(len(diseases)))
        return cls(terms.astype(np.float32), diseases, neighbours, weights)

    def encode(self, terms: npt.NDArray[np.integer], weights: npt.NDArray[np.floating]) -> Floats:
        """A unit vector float32[W] from terms (node indices int[n]) and their weights."""
        vector: Floats = _unit(times_vector(self.terms[terms].T, weights.astype(np.float32))[None])[0]
        return vector


def nearest(
    queries: Floats, diseases: Floats, own: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int32], Floats]:
    """For each query float32[Q, W] the diseases most like it but for `own` int[Q]: int32[Q, k], weights float32[Q, k]."""
    k = min(NEIGHBOURS, len(diseases) - 1)
    found = np.zeros((len(queries), k), np.int32)
    weights = np.zeros((len(queries), k), np.float32)
    step = max(1, 16_000_000 // max(len(diseases), 1))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        cosines = queries[part] @ diseases.T
        cosines[np.arange(len(cosines)), own[part]] = -2
        best = np.argpartition(-cosines, max(k - 1, 0), axis=1)[:, :k]
        found[part] = best
        weights[part] = np.maximum(np.take_along_axis(cosines, best, 1), 1e-3) ** SHARPNESS
    return found, weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-30)


class _Messages:
    """The weighted edges between terms and diseases, sorted both ways."""

    def __init__(self, index: RankingIndex) -> None:
        terms = np.repeat(
            np.arange(len(index.holder_starts) - 1, dtype=np.int32), np.diff(index.holder_starts)
        )
        weights = index.holder_frequencies * index.information_content[terms]
        lengths = np.sqrt(np.bincount(index.holder_rows, weights**2, len(index.diseases))) + 1e-6
        weights = (weights / lengths[index.holder_rows]).astype(np.float32)
        order = np.argsort(index.holder_rows, kind="stable")
        self._by_term = (index.holder_starts, index.holder_rows, weights)
        starts = np.searchsorted(index.holder_rows[order], np.arange(len(index.diseases) + 1))
        self._by_disease = (starts, terms[order], weights[order])

    def to_terms(self, vectors: Floats) -> Floats:
        return _gather(*self._by_term, vectors)

    def to_diseases(self, vectors: Floats) -> Floats:
        return _gather(*self._by_disease, vectors)


def _gather(
    starts: npt.NDArray[np.int64], sources: npt.NDArray[np.int32], weights: Floats, vectors: Floats
) -> Floats:
    """The weighted sum of the vectors that each row of a CSR table names, float32[rows, W]."""
    out = np.zeros((len(starts) - 1, vectors.shape[1]), np.float32)
    filled = np.flatnonzero(starts[1:] > starts[:-1])
    first = 0
    while first < len(filled):
        last = int(np.searchsorted(starts[filled + 1], starts[filled[first]] + _CHUNK, side="right"))
        rows = filled[first : max(last, first + 1)]
        begin, end = int(starts[rows[0]]), int(starts[rows[-1] + 1])
        products = vectors[sources[begin:end]] * weights[begin:end, None]
        out[rows] = np.add.reduceat(products, starts[rows] - begin, axis=0)
        first += len(rows)
    return out


def _unit(vectors: Floats) -> Floats:
    lengths = np.sqrt((vectors**2).sum(axis=-1, keepdims=True))
    unit: Floats = vectors / np.maximum(lengths, 1e-9).astype(np.float32)
    return unit
