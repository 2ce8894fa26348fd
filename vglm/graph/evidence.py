"""Why a disease is a candidate: for each finding the annotation that it matches, and the edges that say
so."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.graph import Graph
from vglm.graph.profile import Profile
from vglm.graph.ranking_index import RankingIndex

# An annotation explains a finding that is at least twice as likely with the disease as without, if what
# both share says at least half as much as the finding: an "abnormality of the heart" explains no murmur.
EXPLAINED_RATIO = math.log(2)
EXPLAINED_CONTENT = 0.5
# What more than a quarter of the diseases have (in a small graph, that may be all of them) can hardly be twice as likely with
# one of them: there the annotation itself is enough.
COMMON_CONTENT = 2 * EXPLAINED_RATIO


@dataclass(frozen=True, slots=True)
class Evidence:
    """One finding against one disease.

    `matched` is the disease's annotated term, `ancestor` the term that covers both (the finding itself when
    the annotation is at or below it); `information_content` is the ancestor's and `log_ratio` the finding's
    part of the score, both in nats; `frequency` is as the references state it ("3/5", "obligate" or "").
    `edges` are the indices of the `has phenotype` edges that were used. All is empty when the disease has no
    annotation.
    """

    finding: str
    finding_name: str
    finding_content: float
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
        """True if the annotation is likely and close enough to explain the finding."""
        if self.exact and self.finding_content < COMMON_CONTENT:
            return True
        close = self.exact or self.information_content >= EXPLAINED_CONTENT * self.finding_content
        return close and self.log_ratio >= EXPLAINED_RATIO


@dataclass(frozen=True, slots=True)
class Candidate:
    """A ranked disease: `evidence` for it by weight, `against` it the excluded findings that it nearly
    always has. `probability` is the chance that it is the patient's, where the ranking is calibrated."""

    place: int
    id: str
    name: str
    score: float
    evidence: tuple[Evidence, ...]
    against: tuple[Evidence, ...]
    probability: float | None = None


def explain(
    graph: Graph,
    index: RankingIndex,
    disease: str,
    profile: Profile,
    finding: int,
    ancestor: int,
    log_ratio: float,
) -> Evidence:
    """The evidence for or against a disease that `ancestor` (-1: none) carries, with its edges."""
    name, ident, content = graph.columns.names, graph.columns.ids, index.information_content
    own = float(content[finding])
    if ancestor < 0:
        return Evidence(ident[finding], name[finding], own, "", "", "", "", 0.0, log_ratio, "", (), ())
    term = profile.matched_term(finding, ancestor)
    outgoing = graph.edge_indices(graph.index_of(disease), "out", HAS_PHENOTYPE)
    edges = outgoing[graph.columns.targets[outgoing] == term].tolist()
    attributes = [graph.edge_at(edge).attributes for edge in edges]
    labels = dict.fromkeys(str(a["frequency_label"]) for a in attributes if "frequency_label" in a)
    references = dict.fromkeys(str(r) for a in attributes for r in a.get("references", ()))
    return Evidence(
        finding=ident[finding],
        finding_name=name[finding],
        finding_content=own,
        matched=ident[term],
        matched_name=name[term],
        ancestor=ident[ancestor],
        ancestor_name=name[ancestor],
        information_content=float(content[ancestor]),
        log_ratio=log_ratio,
        frequency=" and ".join(labels),
        references=tuple(references),
        edges=tuple(edges),
    )
