"""Questions about a patient's candidates: what of the graph they need, and the words around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.evidence import Candidate
from vglm.graph.graph import Edge, Graph

SYSTEM = (
    "You are a medical assistant. "
    "You explain why a disease fits a patient. You use only the facts in the graph."
)
# One worked example: without it a small model writes what it remembers, not what the graph says.
EXAMPLE_QUESTION = """Graph:
Cystic fibrosis (disease)
- has phenotype: Bronchiectasis (frequency 45/60)
- has phenotype: Exocrine pancreatic insufficiency (very frequent, 80-99 %)
- has phenotype: Recurrent pneumonia

Patient: Bronchiectasis, Exocrine pancreatic insufficiency, Recurrent pneumonia.

Question: Why is Cystic fibrosis a candidate for this patient?"""
LEAD = "{} is a candidate because the graph links it to these findings of the patient: "
EXAMPLE_ANSWER = (
    LEAD.format("Cystic fibrosis") + "Exocrine pancreatic insufficiency, Bronchiectasis, Recurrent pneumonia"
)
Message = dict[str, str]


def matched_phenotypes(candidate: Candidate) -> list[str]:
    """Ids of the disease's phenotypes that explain findings of the patient, the weightiest first."""
    return list(dict.fromkeys(item.matched for item in candidate.evidence if item.explained))


def supporting_edges(graph: Graph, candidate: Candidate) -> list[Edge]:
    """The edges of the graph between a candidate and the phenotypes that explain findings, in canonical order."""
    matched = set(matched_phenotypes(candidate))
    if candidate.id not in graph:
        return []
    return [edge for edge in graph.edges_of(candidate.id, relation=HAS_PHENOTYPE) if edge.target in matched]


def evidence_graph(graph: Graph, candidates: Iterable[Candidate]) -> Graph:
    """The candidates and the edges that explain the patient's findings, without definitions, aliases and references:
    a small model needs to read what matters and nothing else.
    """
    nodes: dict[str, dict[str, str]] = {}
    edges: list[dict[str, object]] = []
    for candidate in candidates:
        if candidate.id in graph:
            nodes[candidate.id] = {"name": graph.name_of(candidate.id), "type": graph.node(candidate.id).type}
        for edge in supporting_edges(graph, candidate):
            nodes.setdefault(edge.target, {"name": graph.name_of(edge.target)})
            frequency = edge.attributes.get("frequency_label")
            known = {} if frequency is None else {"frequency_label": frequency}
            edges.append(
                {"source": edge.source, "relation": edge.relation, "target": edge.target, "attributes": known}
            )
    return Graph.from_dict({"nodes": [{"id": i, **node} for i, node in nodes.items()], "edges": edges})


def explanation(name: str, findings: Sequence[str]) -> list[Message]:
    """A conversation that ends within the answer to why the disease of this name is a candidate."""
    asked = f"Why is {name} a candidate for this patient?"
    return [*_conversation(findings, asked), {"role": "assistant", "content": LEAD.format(name)}]


def choice(names: Sequence[str], findings: Sequence[str]) -> list[Message]:
    """A conversation that ends within the answer to which of the diseases fits best."""
    asked = f"Which disease fits this patient best: {', '.join(names[:-1])} or {names[-1]}?"
    return [*_conversation(findings, asked), {"role": "assistant", "content": "The best fit is "}]


def _conversation(findings: Sequence[str], asked: str) -> list[Message]:
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": EXAMPLE_QUESTION},
        {"role": "assistant", "content": EXAMPLE_ANSWER},
        {"role": "user", "content": f"\nPatient: {', '.join(findings)}.\n\nQuestion: {asked}"},
    ]
