"""Suggestion: which diseases of a graph fit a patient's findings, on what evidence, and why, in words that name nothing else.

The ranking is computed from the graph's annotations, without the language model; the model says why a candidate is one, and
reads nothing but the edges that count for or against it. So a structured result is there at once, and a model trained for this
says of the candidate what the graph says: it chooses the words and the evidence, and the form that it writes in holds the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vglm.decode.graph_outputs import GraphOutput
from vglm.errors import RequestError
from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.evidence import Candidate
from vglm.graph.graph import Edge, Graph
from vglm.graph.question import evidence_graph, explanation, matched_phenotypes
from vglm.tasks.asking import Asked, Asking
from vglm.tasks.disease_ranking import DiseaseRanking
from vglm.tasks.findings import Finding, link_patient
from vglm.tasks.suggestion_form import explanation_form
from vglm.tasks.suggestion_prompt import explained_graph, explained_question

MAX_TOP = 1_000
MAX_EXPLAINED = 16
EXPLANATION_TOKENS = 128  # that an explanation may have, unless more or less is asked for
MOST_NAMED = 5  # phenotypes in an explanation that is a list of names


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A candidate.

    Attributes:
        place: 1 for the best.
        probability: that this is the disease, if it is one of the graph's; calibrated on published patients over the Human
            Phenotype Ontology, so over a graph of a few diseases it is a share among them and no more.
        candidate: the evidence for it, finding by finding, and what speaks against it.
        edges: of the graph, between the disease and the phenotypes that explain findings; with frequencies and references.
    """

    place: int
    id: str
    name: str
    probability: float
    candidate: Candidate
    edges: tuple[Edge, ...]


@dataclass(frozen=True, slots=True)
class SuggestionExplained:
    """Why the candidate at `place` is one.

    Attributes:
        text: "" if there is none; then `reason` says why.
        edges: the candidate's edges to the phenotypes that the text names.
        finish_reason: "stop", or "length" for one that was cut off; None if there is none.
        graph: what the model has read, and what is cited; None if there is no text.
    """

    place: int
    id: str
    text: str = ""
    reason: str = ""
    edges: tuple[Edge, ...] = ()
    finish_reason: str | None = None
    graph: GraphOutput | None = None


@dataclass(frozen=True, slots=True)
class SuggestionChunk:
    """A piece of the explanation of the candidate at `place`; the last one has the whole as `explained`, and no text."""

    place: int
    text: str
    explained: SuggestionExplained | None = None


@dataclass(frozen=True, slots=True)
class Suggested:
    """The best candidates of `num_diseases` for a patient, and why the first of them are candidates."""

    findings: tuple[Finding, ...]
    excluded: tuple[Finding, ...]
    candidates: tuple[Suggestion, ...]
    num_diseases: int
    explanations: tuple[SuggestionExplained, ...] = ()


@dataclass(frozen=True, slots=True)
class WhyTask:
    """An explanation that is to be written: `asked` is None, with a `reason`, when nothing explains anything.

    `lead` is what it begins with, and is in the prompt.
    """

    graph: Graph
    candidate: Candidate
    asked: Asked | None
    lead: str = ""
    reason: str = ""

    def explained(
        self, text: str = "", finish_reason: str | None = None, graph: GraphOutput | None = None
    ) -> SuggestionExplained:
        """The explanation, of what the model has written."""
        place, node_id = self.candidate.place, self.candidate.id
        if graph is None:
            return SuggestionExplained(place, node_id, reason=self.reason)
        edges = tuple(self._edges({*(one.id for one in graph.answer), *graph.mentions}))
        ends = (end for edge in edges for end in (edge.source, edge.target))
        citations = tuple(dict.fromkeys((node_id, *ends)))
        graph = replace(graph, evidence=tuple((edge,) for edge in edges), citations=citations)
        return SuggestionExplained(place, node_id, self.lead + text, "", edges, finish_reason, graph)

    def _edges(self, named: set[str]) -> list[Edge]:
        edges = self.graph.edges_of(self.candidate.id, relation=HAS_PHENOTYPE)
        return [edge for edge in edges if edge.target in named]


@dataclass(frozen=True, slots=True)
class SuggestionTask:
    """A ranking that is done, and explanations that are to be written."""

    suggested: Suggested
    tasks: tuple[WhyTask, ...]


def suggestion_task(
    asking: Asking,
    ranking: DiseaseRanking,
    graph: Graph,
    findings: Sequence[str],
    excluded: Sequence[str] = (),
    *,
    top: int = 10,
    explain: int = 1,
    graph_mode: str = "auto",
    max_tokens: int = EXPLANATION_TOKENS,
) -> SuggestionTask:
    """Rank the diseases of a graph, and prepare the explanations, each of `max_tokens`, of the first `explain` candidates.

    Findings are ids of phenotypes, or words for them (see `link_patient`). Raises GraphError and RequestError that name the
    argument at fault.
    """
    _whole("top", top, 1, MAX_TOP)
    _whole("explain", explain, 0, MAX_EXPLAINED)
    present, absent = link_patient(graph, findings, excluded)
    ranked = ranking(graph, [one.id for one in present], [one.id for one in absent], top)
    found = [
        Suggestion(one.place, one.id, one.name, one.probability or 0.0, one, _supporting(graph, one))
        for one in ranked.candidates
    ]
    names = [one.name for one in present]
    tasks = tuple(
        why_task(asking, graph, one, names, graph_mode, max_tokens) for one in ranked.candidates[:explain]
    )
    return SuggestionTask(Suggested(present, absent, tuple(found), ranked.num_diseases), tasks)


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{name} is {value!r:.40}; it must be a whole number from {low} to {high}", name)


def _supporting(graph: Graph, candidate: Candidate) -> tuple[Edge, ...]:
    edges = {edge for item in candidate.evidence if item.explained for edge in item.edges}
    return tuple(graph.edge_at(edge) for edge in sorted(edges))


def why_task(
    asking: Asking,
    graph: Graph,
    candidate: Candidate,
    findings: Sequence[str],
    graph_mode: str = "auto",
    max_tokens: int = EXPLANATION_TOKENS,
) -> WhyTask:
    """The prompt for why a candidate is one.

    A model that was trained for graphs writes sentences, which say what the evidence says (vglm/tasks/suggestion_form.py).
    Another one, which would write what it remembers, gets an example and names phenotypes of the candidate, nothing else.
    `findings` are the patient's, by name.
    """
    if not matched_phenotypes(candidate):
        return WhyTask(graph, candidate, None, reason="the graph links none of the findings to it")
    if asking.prompts.card.spans or not asking.has_chat:
        return _sentences(asking, graph, candidate, graph_mode, max_tokens)
    part = evidence_graph(graph, [candidate])
    matched = [node for node in matched_phenotypes(candidate) if node in part]
    count = min(MOST_NAMED, len({part.name_of(node) for node in matched}))
    constraint = {"kind": "answer", "candidates": matched, "count": count, "min_count": min(2, count)}
    messages = explanation(part.name_of(candidate.id), findings)
    asked = asking.chat(
        messages, part, constraint, graph_mode, continue_final_message=True, add_generation_prompt=False
    )
    return WhyTask(graph, candidate, asked, messages[-1]["content"])


def _sentences(
    asking: Asking, graph: Graph, candidate: Candidate, graph_mode: str, max_tokens: int
) -> WhyTask:
    part = explained_graph(graph, candidate)
    form = explanation_form(part, candidate, asking.prompts.count_tokens, max_tokens)
    if form is None:
        return WhyTask(graph, candidate, None, reason="none of the names can stand in brackets")
    constraint = {"kind": "pattern", "pattern": form}
    asked = asking.question(explained_question(part, candidate), part, constraint, graph_mode, named=False)
    return WhyTask(graph, candidate, asked)
