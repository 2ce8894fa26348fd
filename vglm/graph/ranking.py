"""Ranks diseases by a patient's findings, over an ontology whose diseases carry annotated phenotypes.

Two methods. `resnik`: each finding counts the information content of the most informative ancestor that it
shares with the disease (best match, summed). `likelihood`, the default: each finding counts a log
likelihood ratio,

    log(NOISE + (1 - NOISE) * max over ancestors a of the finding of  P(a | disease) / P(a))

which is the best match again, with frequencies: P(a | disease) joins the frequencies of the disease's
annotations at or below a, P(a) is the mean over all diseases. A disease with many annotations matches
anything by chance, so every finding also pays BREADTH_WEIGHT times the log of the number of findings that
the disease predicts, relative to the mean.

Excluded findings count only against diseases in which they are nearly obligate, and little: in published
case tables the features noted as absent are those that other patients with the same disease have, so they
are hardly evidence against it.

The constants were chosen by hand on 822 uncited published cases, at most 15 of a disease; around these values
the figures are flat. `vglm eval disease_ranking` measures them on all cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError
from vglm.graph.annotations import HAS_PHENOTYPE, Annotations, pool
from vglm.graph.evidence import Candidate, Evidence, explain
from vglm.graph.graph import Graph
from vglm.graph.limits import shown
from vglm.graph.profile import Profile
from vglm.graph.ranking_index import RankingIndex

Method = Literal["likelihood", "resnik"]
Floats = npt.NDArray[np.float64]

NOISE = 0.1  # chance that a finding has nothing to do with the disease
BREADTH_WEIGHT = 0.4
BREADTH_OFFSET = 10.0  # findings added to what every disease predicts, so that sparse annotation is no virtue
EXCLUSION_TRUST = 0.3
NEARLY_OBLIGATE = 0.8
MAX_FINDINGS = 1_000


class DiseaseRanker:
    """Scores every disease of a graph against a patient's findings."""

    def __init__(self, graph: Graph, index: RankingIndex | None = None) -> None:
        """`index` must come from the same graph; without it, it is built (a second for 12,700 diseases)."""
        self.graph = graph
        self.index = RankingIndex.build(graph) if index is None else index
        predicted = self.index.expected_findings + BREADTH_OFFSET
        self._log_mean_breadth = math.log(predicted.mean())
        self._breadth = BREADTH_WEIGHT * (np.log(predicted) - self._log_mean_breadth)

    def rank(
        self,
        findings: Sequence[str],
        excluded: Sequence[str] = (),
        top: int = 10,
        method: Method = "likelihood",
    ) -> list[Candidate]:
        """The `top` best diseases with the evidence for each, best first; equal scores are ordered by id.

        Findings are ids of the graph; raises GraphError for unknown ids, none at all, too many, or one that
        is both observed and excluded.
        """
        return self.best(self.scores(findings, excluded, method), findings, excluded, top)

    def best(
        self, scores: Floats, findings: Sequence[str], excluded: Sequence[str], top: int
    ) -> list[Candidate]:
        """The `top` best diseases by `scores` float64[D], with the evidence for each; errors as in `rank`."""
        present, absent = self.checked(findings, excluded)
        best = np.argsort(-scores, kind="stable")[: max(0, top)]
        return [
            self.candidate(place, int(row), float(scores[row]), present, absent)
            for place, row in enumerate(best, 1)
        ]

    def scores(
        self, findings: Sequence[str], excluded: Sequence[str] = (), method: Method = "likelihood"
    ) -> Floats:
        """The score of every disease, float64[D] in nats, in the order of `index.diseases`; errors as
        in `rank`."""
        present, absent = self.checked(findings, excluded)
        index = self.index
        scores = np.zeros(len(index.diseases))
        if method == "resnik":
            for finding in present:
                scores += self._best(finding, None)
            return scores
        if method != "likelihood":
            raise GraphError(f"method: expected 'likelihood' or 'resnik', found {shown(method)}")
        for finding in present:
            scores += np.log(NOISE + (1 - NOISE) * self._best(finding, index.lift))
        scores -= len(present) * self._breadth
        for finding in absent:
            found = index.holders(finding)
            frequencies = index.holder_frequencies[found]
            against = np.where(frequencies >= NEARLY_OBLIGATE, np.log1p(-EXCLUSION_TRUST * frequencies), 0)
            scores[index.holder_rows[found]] += against
        return scores

    def _best(self, finding: int, values: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
        """For each disease the largest value over the ancestors of a finding that it holds: lift, or
        else content."""
        index = self.index
        best = np.zeros(len(index.diseases), np.float32)
        for ancestor in index.ancestors(finding):
            found = index.holders(ancestor)
            rows = index.holder_rows[found]
            value = index.information_content[ancestor] if values is None else values[found]
            best[rows] = np.maximum(best[rows], value)
        return best

    def score_annotations(
        self,
        annotations: Annotations,
        findings: Sequence[str],
        excluded: Sequence[str] = (),
        method: Method = "likelihood",
    ) -> float:
        """The score of one disease that is given by its annotations instead of by the graph.

        This is the plain form of `scores`, which the fast one is tested against; an evaluation uses it to
        leave out what is known from the patient's own paper.
        """
        present, absent = self.checked(findings, excluded)
        index = self.index
        profile = Profile(index, annotations)
        score = 0.0
        for finding in present:
            if method == "resnik":
                shared = (a for a in index.ancestors(finding).tolist() if a in profile.below)
                score += max((float(index.information_content[a]) for a in shared), default=0.0)
            else:
                score += math.log(NOISE + (1 - NOISE) * profile.best_match(index, finding)[1])
        if method == "resnik":
            return score
        predicted = float(annotations.frequencies.sum()) + BREADTH_OFFSET
        score -= len(present) * BREADTH_WEIGHT * (math.log(predicted) - self._log_mean_breadth)
        frequencies = (profile.frequency.get(finding, 0.0) for finding in absent)
        return score + sum(math.log1p(-EXCLUSION_TRUST * f) for f in frequencies if f >= NEARLY_OBLIGATE)

    def annotations_of(self, disease: str, without_references: Iterable[str] = ()) -> Annotations:
        """A disease's pooled annotations, leaving out those whose only references are the given ones."""
        dropped = frozenset(without_references)
        node = self.graph.index_of(disease)
        edges = self.graph.edge_indices(node, "out", HAS_PHENOTYPE)
        if dropped:
            references = (
                frozenset(self.graph.edge_at(int(e)).attributes.get("references", ())) for e in edges
            )
            edges = edges[[not (r and r <= dropped) for r in references]]
        return pool(self.graph, edges)

    def checked(self, findings: Sequence[str], excluded: Sequence[str]) -> tuple[list[int], list[int]]:
        """Node indices without duplicates, ascending: the order of a patient's findings never matters. Errors as
        in `rank`."""
        if len(findings) + len(excluded) > MAX_FINDINGS:
            raise GraphError(
                f"findings: {len(findings) + len(excluded):,} in all, the limit is {MAX_FINDINGS:,}"
            )
        present = sorted({self.graph.index_of(finding) for finding in findings})
        absent = sorted({self.graph.index_of(finding) for finding in excluded})
        if not present:
            raise GraphError("findings: a ranking needs at least one observed finding")
        if both := set(present) & set(absent):
            raise GraphError(f"findings: {self.graph.id_of(min(both))} is both observed and excluded")
        return present, absent

    def candidate(
        self, place: int, row: int, score: float, present: list[int], absent: list[int]
    ) -> Candidate:
        """The disease in a row of the index with its evidence for findings that `checked` gave."""
        node = self.graph.node_at(int(self.index.diseases[row]))
        profile = Profile(self.index, self.index.annotations(row))
        evidence: list[Evidence] = []
        for finding in present:
            ancestor, lift = profile.best_match(self.index, finding)
            weight = math.log(NOISE + (1 - NOISE) * lift)
            evidence.append(explain(self.graph, self.index, node.id, profile, finding, ancestor, weight))
        evidence.sort(key=lambda item: (-item.log_ratio, item.finding))
        against: list[Evidence] = []
        for finding in absent:
            frequency = profile.frequency.get(finding, 0.0)
            if frequency >= NEARLY_OBLIGATE:
                weight = math.log1p(-EXCLUSION_TRUST * frequency)
                against.append(explain(self.graph, self.index, node.id, profile, finding, finding, weight))
        return Candidate(place, node.id, node.name, score, tuple(evidence), tuple(against))
