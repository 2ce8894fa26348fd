"""All diseases of a graph against a patient, quickly; then the best of them, with all that is known of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vglm.encoder.disease_genes import twins
from vglm.encoder.disease_properties import NAMES, Properties, properties
from vglm.encoder.disease_vectors import DiseaseVectors, nearest
from vglm.encoder.products import times_vector
from vglm.graph.annotations import Annotations
from vglm.graph.graph import Graph
from vglm.graph.ranking import (
    BREADTH_OFFSET,
    BREADTH_WEIGHT,
    EXCLUSION_TRUST,
    NEARLY_OBLIGATE,
    NOISE,
)
from vglm.graph.ranking_index import RankingIndex

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

AROUND_WEIGHT = 0.3  # of what a disease's neighbours score, beside its own score
PUBLISHED_WEIGHT = 5.0  # nats, of a disease whose patients are published, when candidates are chosen
_PAPERS = NAMES.index("log papers")


@dataclass(frozen=True)
class DiseaseIndex:
    """What is known about the diseases of a graph before a patient comes; `twins` int32[D, T] as `disease_genes.twins` gives
    them."""

    ranking: RankingIndex
    properties: Properties
    vectors: DiseaseVectors
    twins: Ints

    @classmethod
    def build(cls, graph: Graph, ranking: RankingIndex) -> DiseaseIndex:
        edges = np.flatnonzero(np.isin(graph.columns.sources, ranking.diseases))
        stated = properties(graph, ranking.diseases, edges)
        return cls(ranking, stated, DiseaseVectors.build(ranking), no_twins(len(ranking.diseases)))

    def with_genes(self, graph: Graph, genes: Ints) -> DiseaseIndex:
        """The index with the twins that a table of genes gives, int32[P, 2]."""
        return replace(self, twins=twins(graph, self.ranking.diseases, genes))

    @cached_property
    def breadth(self) -> Floats:
        """Log of the number of findings that each disease predicts, relative to the mean, float32[D], as the likelihood
        method has it."""
        predicted = self.ranking.expected_findings + BREADTH_OFFSET
        return (np.log(predicted) - math.log(predicted.mean())).astype(np.float32)


@dataclass(frozen=True)
class Screening:
    """n findings against all D diseases: `log_lifts` float32[n, D]; `scores` float32[D], the likelihood method's;
    `around` float32[D], the weighted mean of the scores of a disease's neighbours; the patient's unit `vector`
    float32[W] and the largest cosine that any disease has with it."""

    log_lifts: Floats
    scores: Floats
    around: Floats
    vector: Floats
    best_cosine: float


def screen(index: DiseaseIndex, findings: Ints) -> Screening:
    """Scores every disease; `findings` int32[n], at least one, are node indices without duplicates."""
    ranking = index.ranking
    terms = np.unique(np.concatenate([ranking.ancestors(finding) for finding in findings.tolist()]))
    of_term = np.zeros((len(terms), len(ranking.diseases)), np.float32)
    for row, term in zip(of_term, terms.tolist(), strict=True):
        held = ranking.holders(term)
        row[ranking.holder_rows[held]] = ranking.lift[held]
    lifts = np.zeros((len(findings), len(ranking.diseases)), np.float32)
    for best, finding in zip(lifts, findings.tolist(), strict=True):
        for place in np.searchsorted(terms, ranking.ancestors(finding)).tolist():
            np.maximum(best, of_term[place], out=best)
    lifts *= 1 - NOISE
    lifts += NOISE
    log_lifts = np.log(lifts, out=lifts)
    scores = log_lifts.sum(axis=0) - np.float32(len(findings) * BREADTH_WEIGHT) * index.breadth
    around = np.einsum("dk,dk->d", scores[index.vectors.neighbours], index.vectors.weights)
    vector = index.vectors.encode(terms, ranking.information_content[terms])
    cosines = times_vector(index.vectors.diseases, vector)
    return Screening(log_lifts, scores, around, vector, float(cosines.max()))


def speaks_against(index: DiseaseIndex, excluded: Ints) -> Floats:
    """What excluded findings (node indices) take from the score of every disease, float32[D], at most 0.

    It is added to what a model says of the findings, and no model learns from what is excluded: in published cases that is what
    was looked for because a disease was suspected, so a model would learn that what is ruled out makes a disease likelier.
    """
    ranking = index.ranking
    taken = np.zeros(len(ranking.diseases), np.float32)
    for finding in excluded.tolist():
        held = ranking.holders(finding)
        frequencies = ranking.holder_frequencies[held]
        taken[ranking.holder_rows[held]] += np.where(
            frequencies >= NEARLY_OBLIGATE, np.log1p(-EXCLUSION_TRUST * frequencies), 0
        )
    return taken


@dataclass(frozen=True)
class Candidates:
    """K diseases, each with at least one annotation: these as CSR (`starts` int64[K + 1], `terms` int32[A], `frequencies`
    float32[A]), the first `scores` and those `around` them float32[K], `neighbours` int32[K, k] as rows of the index with
    `weights`, `vectors` float32[K, W], `properties`, and `twins` int32[K, T] as rows of the index."""

    starts: npt.NDArray[np.int64]
    terms: Ints
    frequencies: Floats
    scores: Floats
    around: Floats
    neighbours: Ints
    weights: Floats
    vectors: Floats
    properties: Properties
    twins: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def owners(self) -> npt.NDArray[np.int64]:
        """The candidate of each annotation, int64[A]."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))


def candidates_of(index: DiseaseIndex, screening: Screening, rows: npt.NDArray[np.integer]) -> Candidates:
    """Some diseases, given by their rows in the index."""
    ranking, vectors = index.ranking, index.vectors
    begin = ranking.annotation_starts[rows]
    lengths = ranking.annotation_starts[rows + 1] - begin
    starts = np.concatenate(([0], np.cumsum(lengths)))
    places = np.arange(starts[-1]) + np.repeat(begin - starts[:-1], lengths)
    return Candidates(
        starts,
        ranking.annotation_terms[places],
        ranking.annotation_frequencies[places],
        screening.scores[rows],
        screening.around[rows],
        vectors.neighbours[rows],
        vectors.weights[rows],
        vectors.diseases[rows],
        Properties(index.properties.values[rows], index.properties.onset[rows]),
        index.twins[rows],
    )


def with_first(
    candidates: Candidates,
    index: DiseaseIndex,
    screening: Screening,
    row: int,
    score: float,
    known: Annotations,
    stated: Properties,
) -> Candidates:
    """The candidates with another version of the first, the disease in `row`: known by these annotations (at least one)
    and properties only, with this first score."""
    terms, weights = _profile(index.ranking, known)
    vector = index.vectors.encode(terms, weights)
    neighbours, shares = nearest(vector[None], index.vectors.diseases, np.array([row]))
    skipped = int(candidates.starts[1])
    own = len(known.terms)
    changed = {
        "scores": np.float32(score),
        "around": screening.scores[neighbours[0]] @ shares[0],
        "neighbours": neighbours[0],
        "weights": shares[0],
        "vectors": vector,
    }
    arrays = {name: getattr(candidates, name).copy() for name in changed}
    for name, value in changed.items():
        arrays[name][0] = value
    values, onset = candidates.properties.values.copy(), candidates.properties.onset.copy()
    values[0], onset[0] = stated.values[0], stated.onset[0]
    return replace(
        candidates,
        starts=np.concatenate(([0], candidates.starts[1:] - skipped + own)),
        terms=np.concatenate((known.terms, candidates.terms[skipped:])),
        frequencies=np.concatenate((known.frequencies, candidates.frequencies[skipped:])),
        properties=Properties(values, onset),
        **arrays,
    )


def no_twins(diseases: int) -> Ints:
    """Of diseases of which no gene is known, int32[D, 0]."""
    return np.zeros((diseases, 0), np.int32)


def first_score(scores: Floats, around: Floats) -> Floats:
    """A disease's own score of the screening and, less, that of its neighbours."""
    return scores + AROUND_WEIGHT * around


def selection(first: Floats, properties: Floats) -> Floats:
    """By what candidates are chosen: the first score, and whether patients are published; float32[K]."""
    return first + PUBLISHED_WEIGHT * published(properties)


def published(properties: Floats) -> Floats:
    """1 for diseases of which a paper is cited, else 0: float32[K], from properties float32[K, len(NAMES)]."""
    return (properties[:, _PAPERS] > 0).astype(np.float32)


def _profile(ranking: RankingIndex, known: Annotations) -> tuple[Ints, Floats]:
    """The terms at or above some annotations, and their weights as messages."""
    closures = [ranking.ancestors(int(term)) for term in known.terms]
    lengths = [len(closure) for closure in closures]
    terms, inverse = np.unique(np.concatenate(closures), return_inverse=True)
    absent = np.bincount(inverse, np.repeat(np.log1p(-np.minimum(known.frequencies, 0.99)), lengths))
    return terms, (-np.expm1(absent) * ranking.information_content[terms]).astype(np.float32)
