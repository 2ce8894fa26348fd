"""How a model is asked why a candidate fits a patient: the words, and what of the graph it reads.

A model that was trained for graphs (`GraphCard.spans`) is asked in few words, and answers with names in [brackets]:

    Graph:
    Marfan syndrome (disease)
    - has phenotype: Ectopia lentis (frequency 119/251)
    - has phenotype: Scoliosis (frequent, 30-79 %)
    Patient: Ectopia lentis, High myopia (as Myopia), Scoliosis. Not explained: Deafness. Absent: Tall stature.
    Why may it be Marfan syndrome?

The training of the adapter uses these functions too: change the words, and it has to be trained again.
"""

from __future__ import annotations

from collections.abc import Sequence

from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.evidence import Candidate, Evidence
from vglm.graph.graph import Graph
from vglm.graph.records import Records
from vglm.graph.text import one_line

MOST_EVIDENCE = 8  # phenotypes of one candidate that the model reads, the weightiest
MOST_FINDINGS = 12  # of the patient that are written out
MOST_AGAINST = 4  # excluded findings that are, the weightiest
QUESTION = "Patient: {findings}.{left}{absent}\nWhy may it be {candidate}?"
LEFT = " Not explained: {findings}."
AS = "{finding} (as {phenotype})"
ABSENT = " Absent: {findings}."


def explained_graph(graph: Graph, candidate: Candidate) -> Graph:
    """What the model reads of a candidate: the disease, and its edges to the phenotypes that explain findings, at most
    MOST_EVIDENCE of them, and to the excluded findings that it nearly always has. The edges have frequencies, but no
    references: a small model needs to read what matters and nothing else. Raises GraphError if the graph lacks the candidate.
    """
    explained = [item.matched for item in candidate.evidence if item.explained]
    read = [*dict.fromkeys(explained)][:MOST_EVIDENCE] + [item.matched for item in _against(candidate)]
    edges: dict[tuple[str, str | None], dict[str, object]] = {}
    for edge in graph.edges_of(candidate.id, relation=HAS_PHENOTYPE):
        if edge.target in read:
            label = edge.attributes.get("frequency_label")
            known = {} if label is None else {"frequency_label": label}
            edges[edge.target, label] = {
                "source": edge.source,
                "relation": edge.relation,
                "target": edge.target,
                "attributes": known,
            }
    disease = {"id": candidate.id, "name": graph.name_of(candidate.id), "type": graph.node(candidate.id).type}
    targets = dict.fromkeys(target for target, _ in edges)
    nodes = [disease, *({"id": target, "name": graph.name_of(target)} for target in targets)]
    return Graph.from_dict({"nodes": nodes, "edges": list(edges.values())})


def explained_question(part: Graph, candidate: Candidate) -> str:
    """The question after `part`, the candidate's `explained_graph`.

    The findings that it explains stand in the order of their weight for this candidate, each with the phenotype that it matches
    where that is another one; then those that it does not explain. Of more than MOST_FINDINGS the last are left out.
    """
    name = Records(part).short_name(part.index_of(candidate.id))
    read = candidate.evidence[:MOST_FINDINGS]
    explained = [_finding(item) for item in read if item.explained]
    left = [item.finding_name for item in read if not item.explained]
    against = [item.finding_name for item in _against(candidate)]
    return QUESTION.format(
        findings=_listed(explained) if explained else "none explained",
        left=LEFT.format(findings=_listed(left)) if left else "",
        absent=ABSENT.format(findings=_listed(against)) if against else "",
        candidate=name,
    )


def _finding(item: Evidence) -> str:
    if item.exact:
        return item.finding_name
    return AS.format(finding=item.finding_name, phenotype=item.matched_name)


def _against(candidate: Candidate) -> list[Evidence]:
    return sorted(candidate.against, key=lambda item: (item.log_ratio, item.finding))[:MOST_AGAINST]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(one_line(name) for name in dict.fromkeys(names))
