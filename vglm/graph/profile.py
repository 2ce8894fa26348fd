"""One disease's annotations carried up the ontology, plainly: for evidence, and to test the ranking."""

from __future__ import annotations

import math

from vglm.graph.annotations import Annotations
from vglm.graph.ranking_index import MAX_FREQUENCY, RankingIndex


class Profile:
    """What a disease says about every term at or above its annotations.

    `frequency[term]` is P(term | disease), the noisy or of the annotations at or below the term;
    `below[term]` lists those annotations as (frequency, annotated term).
    """

    def __init__(self, index: RankingIndex, annotations: Annotations) -> None:
        self.annotations = annotations
        self.below: dict[int, list[tuple[float, int]]] = {}
        pairs = zip(annotations.frequencies.tolist(), annotations.terms.tolist(), strict=True)
        for frequency, term in pairs:
            for ancestor in index.ancestors(term).tolist():
                self.below.setdefault(ancestor, []).append((frequency, term))
        self.frequency = {ancestor: _noisy_or(below) for ancestor, below in self.below.items()}

    def best_match(self, index: RankingIndex, finding: int) -> tuple[int, float]:
        """The ancestor of a finding with the largest P(ancestor | disease) / P(ancestor), and that ratio.

        Of equally good ancestors the more informative one; (-1, 0.0) when the disease has no annotation.
        """
        ancestors = index.ancestors(finding)
        background, content = (
            index.background[ancestors].tolist(),
            index.information_content[ancestors].tolist(),
        )
        best = (0.0, -1.0, -1)
        for ancestor, chance, information in zip(ancestors.tolist(), background, content, strict=True):
            if ancestor in self.frequency:
                best = max(best, (self.frequency[ancestor] / chance, information, ancestor))
        return best[2], best[0]

    def matched_term(self, finding: int, ancestor: int) -> int:
        """Of the annotations below `ancestor`: the finding itself, else the most frequent, else the first."""
        return min((term != finding, -frequency, term) for frequency, term in self.below[ancestor])[2]


def _noisy_or(annotations: list[tuple[float, int]]) -> float:
    absent = math.prod(1 - min(frequency, MAX_FREQUENCY) for frequency, _ in annotations)
    return min(1 - absent, MAX_FREQUENCY)
