"""A published case as an example: the features of its true disease, first, and of the other candidates."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vglm.encoder.disease_candidates import (
    DiseaseIndex,
    candidates_of,
    first_score,
    screen,
    selection,
    speaks_against,
    with_first,
)
from vglm.encoder.disease_genes import UNKNOWN
from vglm.encoder.disease_pooling import pooled
from vglm.encoder.disease_properties import properties
from vglm.encoder.disease_ranker import CANDIDATES, documentation
from vglm.graph.annotations import Annotations
from vglm.graph.hpo import HPO
from vglm.train.disease_cases import Case, fair_edges

Floats = npt.NDArray[np.float32]

HARD = 64  # others that are kept when an example is thinned: the best of the screening,
DRAWN = 63  # and so many of the rest, which then stand for all of it
MIN_SHARE, MIN_ANNOTATIONS = 0.5, 6  # of a cited case's disease that must be left for it to be an example


@dataclass(frozen=True)
class Example:
    """K candidates, the true disease first and the others by their first score: `features` float32[K, len(POOLED)],
    `first` float32[K] the scores of the screening, `against` float32[K] what the excluded findings take from them,
    `prior` float32[K, len(PRIOR)], `log_weights` float32[K] (what a thinned candidate stands for). `places` are those of
    the true disease among all diseases by the screening, by the likelihood method and by best-match Resnik similarity;
    ties share the mean of their places."""

    case: Case
    features: Floats
    first: Floats
    against: Floats
    prior: Floats
    log_weights: Floats
    places: dict[str, float]


def example(hpo: HPO, index: DiseaseIndex, case: Case, resnik: bool = False) -> Example | None:
    """None for a disease without annotations, and for a cited case of whose disease too little is left to tell."""
    graph, ranker, row = hpo.graph, hpo.ranker, _row(hpo, index, case.disease)
    if row is None:
        return None
    present, absent = ranker.checked(case.findings, case.excluded)
    findings, excluded = np.array(present, np.int32), np.array(absent, np.int32)
    screening = screen(index, findings)
    against = speaks_against(index, excluded)
    known: Annotations | None = None
    if case.cited:
        known = ranker.annotations_of(case.disease, case.papers)
        left, whole = len(known.terms), len(index.ranking.annotations(row).terms)
        if left < max(MIN_ANNOTATIONS, MIN_SHARE * whole):
            return None
        edges = fair_edges(graph, case.disease, case.papers)
        stated = properties(graph, index.ranking.diseases[row : row + 1], edges)
        score = ranker.score_annotations(known, case.findings)
        against[row] = ranker.score_annotations(known, case.findings, case.excluded) - score
    own = candidates_of(index, screening, np.array([row]))
    if known is not None:
        own = with_first(own, index, screening, row, score, known, stated)
    total = selection(first_score(screening.scores, screening.around), index.properties.values) + against
    total[row] = selection(first_score(own.scores, own.around), own.properties.values)[0] + against[row]
    likelihood = screening.scores + against
    likelihood[row] = own.scores[0] + against[row]
    places = {"screening": _place(total, row), "likelihood": _place(likelihood, row)}
    if resnik:
        places["resnik"] = _resnik(hpo, case, known, row)
    total[row] = np.inf
    rows = np.argsort(-total, kind="stable")[:CANDIDATES]
    candidates = candidates_of(index, screening, rows)
    if known is not None:
        candidates = with_first(candidates, index, screening, row, score, known, stated)
    candidates.twins[0] = _fair_twins(hpo, index, candidates.twins[0], case.papers)
    return Example(
        case,
        pooled(index, screening, candidates, findings),
        first_score(candidates.scores, candidates.around),
        against[rows],
        documentation(candidates.properties.values),
        np.zeros(len(rows), np.float32),
        places,
    )


def _fair_twins(
    hpo: HPO, index: DiseaseIndex, twins: npt.NDArray[np.int32], papers: frozenset[str]
) -> npt.NDArray[np.int32]:
    """The twins of a true disease but for those that cite a paper of the patient at all."""
    fair = twins.copy()
    for place in np.flatnonzero(twins != UNKNOWN).tolist():
        edges = hpo.graph.edges_of(hpo.graph.id_of(int(index.ranking.diseases[twins[place]])), "out")
        if any(papers & set(edge.attributes.get("references", ())) for edge in edges):
            fair[place] = UNKNOWN
    return fair


def thinned(example: Example, random: np.random.Generator) -> Example:
    """The example with `HARD` + `DRAWN` other candidates; those drawn weigh as much as all that they were drawn from.

    Without the weights, a model learns that what lies deep in the screening is rare, and lets it rise.
    """
    rest = len(example.first) - 1 - HARD
    if rest <= DRAWN:
        return example
    drawn = 1 + HARD + np.sort(random.choice(rest, DRAWN, replace=False))
    kept = np.concatenate((np.arange(1 + HARD), drawn))
    weights = np.zeros(len(kept), np.float32)
    weights[1 + HARD :] = np.log(rest / DRAWN)
    return replace(
        example,
        features=example.features[kept],
        first=example.first[kept],
        against=example.against[kept],
        prior=example.prior[kept],
        log_weights=weights,
    )


def _row(hpo: HPO, index: DiseaseIndex, disease: str) -> int | None:
    node, diseases = hpo.graph.index_of(disease), index.ranking.diseases
    row = int(np.searchsorted(diseases, node))
    return row if row < len(diseases) and diseases[row] == node else None


def _resnik(hpo: HPO, case: Case, known: Annotations | None, row: int) -> float:
    scores = hpo.ranker.scores(case.findings, case.excluded, "resnik")
    if known is not None:
        scores[row] = hpo.ranker.score_annotations(known, case.findings, case.excluded, "resnik")
    return _place(scores, row)


def _place(scores: npt.NDArray[np.floating], row: int) -> float:
    """Place of a row among all; ties share the mean of their places."""
    return 1 + float((scores > scores[row]).sum()) + (float((scores == scores[row]).sum()) - 1) / 2
