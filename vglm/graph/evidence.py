"""Why a disease is a candidate: for each finding the annotation that it matches, and the edges that say
so."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.graph import Graph
from vglm.graph.ranking_index import RankingIndex

EXPLAINED = math.log(2)  # a finding at least twice as likely with the disease as without counts as explained


@dataclass(frozen=True, slots=True)
class Evidence:
    """One finding against one disease.

    `matched` is the disease's annotated term, `ancestor` the term that covers both (the finding itself when
    the annotation is at or below it); `information_content` is the ancestor's and `log_ratio` the finding's
    part of the score, both in nats; `frequency` is as the references state it ("3/5", "very frequent, 80-99
    %", or ""). `edges` are the indices of the `has phenotype` edges that were used. All empty when the
    disease has no annotation at all.
    """

    finding: str
    finding_name: str
    matched: str
    matched_name: str
    ancestor: str
    ancestor_name: str
    information_content: float
    log_ratio: float
    frequency: str
    references: tuple[str, ...]
    edges: tuple[int, ...]

    @property
    def exact(self) -> bool:
        """True if the disease is annotated with the very finding."""
        return self.finding == self.matched

    @property
    def explained(self) -> bool:
        """True if the finding is at least twice as likely with the disease as without it."""
        return self.log_ratio >= EXPLAINED


@dataclass(frozen=True, slots=True)
class Candidate:
    """A ranked disease: `evidence` for it by weight, `against` it the excluded findings that it nearly
    always has."""

    place: int
    id: str
    name: str
    score: float
    evidence: tuple[Evidence, ...]
    against: tuple[Evidence, ...]


def explain_finding(graph: Graph, index: RankingIndex, row: int, finding: int, noise: float) -> Evidence:
    """The evidence that the likelihood score of (disease `row`, finding) rests on."""
    best, best_lift = -1, 0.0
    for ancestor in index.ancestors(finding).tolist():
        lift = index.frequency(ancestor, row) / float(index.background[ancestor])
        # Of equally good ancestors the more informative one is shown.
        if lift > 0 and (lift, index.information_content[ancestor]) > (
            best_lift,
            index.information_content[best],
        ):
            best, best_lift = ancestor, lift
    return _evidence(graph, index, row, finding, best, math.log(noise + (1 - noise) * best_lift))


def explain_excluded(graph: Graph, index: RankingIndex, row: int, finding: int, log_ratio: float) -> Evidence:
    """The evidence against a disease that nearly always shows an excluded finding."""
    return _evidence(graph, index, row, finding, finding, log_ratio)


def _evidence(
    graph: Graph, index: RankingIndex, row: int, finding: int, ancestor: int, log_ratio: float
) -> Evidence:
    name, ident = graph.columns.names, graph.columns.ids
    if ancestor < 0:
        return Evidence(ident[finding], name[finding], "", "", "", "", 0.0, log_ratio, "", (), ())
    term = _matched_term(index, row, finding, ancestor)
    outgoing = graph.edge_indices(int(index.diseases[row]), "out", HAS_PHENOTYPE)
    edges = [int(edge) for edge in outgoing if graph.columns.targets[edge] == term]
    attributes = [graph.edge_at(edge).attributes for edge in edges]
    labels = dict.fromkeys(str(a["frequency_label"]) for a in attributes if "frequency_label" in a)
    references = dict.fromkeys(str(r) for a in attributes for r in a.get("references", ()))
    return Evidence(
        ident[finding],
        name[finding],
        ident[term],
        name[term],
        ident[ancestor],
        name[ancestor],
        float(index.information_content[ancestor]),
        log_ratio,
        " and ".join(labels),
        tuple(references),
        tuple(edges),
    )


def _matched_term(index: RankingIndex, row: int, finding: int, ancestor: int) -> int:
    """Of the disease's terms at or below `ancestor`: the finding itself, else the most frequent, else the
    first."""
    own = slice(int(index.annotation_starts[row]), int(index.annotation_starts[row + 1]))
    annotated = zip(
        index.annotation_terms[own].tolist(), index.annotation_frequencies[own].tolist(), strict=True
    )
    below = [
        (term != finding, -frequency, term)
        for term, frequency in annotated
        if ancestor in index.ancestors(term)
    ]
    term: int = min(below)[2]
    return term
