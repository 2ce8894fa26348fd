"""What ranks the diseases of a graph for a suggestion: the trained ranking of a model, or likelihood ratios without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from vglm.encoder.disease_index import disease_index
from vglm.encoder.disease_ranker import DiseaseModel
from vglm.graph.derived import once_per_graph
from vglm.graph.evidence import Candidate
from vglm.graph.graph import Graph
from vglm.graph.ranking import DiseaseRanker
from vglm.graph.ranking_index import RankingIndex
from vglm.model.bundle import card_file, is_bundle, is_exported

WEIGHTS = "disease-ranker.safetensors"  # in a model's directory
# Of the likelihood ranker's scores: fitted on 234 uncited published cases, at most 5 of a disease, of a random half of the
# diseases; the best candidate then has a probability of 0.20 on average, and is right in 19 %.
TEMPERATURE = 2.0


@dataclass(frozen=True, slots=True)
class RankedDiseases:
    """The best candidates, each with its probability, and how many diseases were ranked."""

    candidates: tuple[Candidate, ...]
    num_diseases: int


class DiseaseRanking(Protocol):
    """What ranks the diseases of a graph: by ids of findings and of excluded ones, the `top` best. Raises GraphError."""

    def __call__(
        self, graph: Graph, findings: Sequence[str], excluded: Sequence[str], top: int
    ) -> RankedDiseases: ...


class TrainedRanking:
    """Ranks by what a model has learnt of published patients (vglm/encoder/disease_ranker.py)."""

    def __init__(self, model: DiseaseModel) -> None:
        self._model = model

    def __call__(
        self, graph: Graph, findings: Sequence[str], excluded: Sequence[str], top: int
    ) -> RankedDiseases:
        candidates = self._model.rank(graph, findings, excluded, top)
        return RankedDiseases(
            tuple(candidates), len(disease_index(graph, self._model.cache_dir).ranking.diseases)
        )


def likelihood_ranking(
    graph: Graph, findings: Sequence[str], excluded: Sequence[str], top: int
) -> RankedDiseases:
    """Ranks by likelihood ratios (vglm/graph/ranking.py), which needs no training; probabilities are the softmax of the scores
    over all diseases. The first ranking of a graph builds its index: a second for 12,700 diseases.
    """
    ranker = DiseaseRanker(graph, _index(graph))
    scores = ranker.scores(findings, excluded)
    weights = np.exp((scores - scores.max()) / TEMPERATURE)
    total = float(weights.sum())
    best = ranker.best(scores, findings, excluded, top)
    chances = np.sort(weights)[::-1][: len(best)] / total
    ranked = [replace(one, probability=chance) for one, chance in zip(best, chances.tolist(), strict=True)]
    return RankedDiseases(tuple(ranked), len(scores))


# without the graph, which would never be freed otherwise
_index = once_per_graph(RankingIndex.build)


def disease_ranking_of(model: Path, cache_dir: Path) -> DiseaseRanking:
    """The trained ranking in a model's directory, else that by likelihood ratios; what is computed once for a graph is kept in
    `cache_dir`. Raises ModelError for weights that are damaged.
    """
    file = card_file(model, WEIGHTS) if is_bundle(model) or is_exported(model) else None
    return likelihood_ranking if file is None else TrainedRanking(DiseaseModel.load(file, cache_dir))
