"""Bodies of /v1/graphs/{id}/suggest: a patient's findings in, ranked diseases with evidence and explanations out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from vglm.serve.schemas.common import Answer, Count, ModelName, SamplingFields, Usage, Whole, served
from vglm.serve.schemas.graphs import CitedEdge, GraphAnswer, GraphModeName, Version

Finding = Annotated[str, Field(min_length=1, max_length=1000)]


class SuggestRequest(SamplingFields):
    """Which diseases of a graph fit a patient's findings, and why? Findings are ids of phenotypes, or words for them."""

    model: ModelName | None = None
    findings: Annotated[list[Finding], Field(min_length=1, max_length=256)]
    excluded: Annotated[list[Finding], Field(max_length=256)] | None = Field(
        default=None, description="What was looked for and is absent."
    )
    top: Annotated[int, Field(ge=1, le=1000), Whole] = 10
    explain: Annotated[int, Field(ge=0, le=16), Whole] = Field(
        default=1, description="How many of the best candidates are explained in words."
    )
    max_tokens: Count = Field(default=128, description="Of each explanation.")
    stream: bool | None = Field(
        default=None, description="Events: the answer without explanations first, then these piece by piece."
    )
    graph_mode: GraphModeName | None = None
    version: Version | None = None

    model_config = ConfigDict(json_schema_extra=served("suggest_examples"))


class PhenotypeFound(Answer):
    """A phenotype of the graph, and the words that were given for it."""

    id: str
    name: str
    given: str


class SuggestedEvidence(Answer):
    """One finding against one disease.

    `matched` is the phenotype of the disease that comes closest, "" if none does; `exact`: it is the finding itself;
    `explained`: it is likely and close enough to explain the finding. `frequency` of it in the disease as the references state
    it. `weight`: the finding's part of a log likelihood ratio, in nats.
    """

    finding: str
    finding_name: str
    matched: str
    matched_name: str
    exact: bool
    explained: bool
    frequency: str
    references: list[str]
    weight: float


class WeightedEdge(CitedEdge):
    """An edge of the graph, and how often it holds, as the graph says it."""

    frequency: str | None = None


class SuggestedDisease(Answer):
    """A candidate: the probability that it is the disease, if that is in the graph, and the evidence, by weight. `edges` are
    those that explain findings.
    """

    place: int
    id: str
    name: str
    probability: float
    score: float
    evidence: list[SuggestedEvidence]
    against: list[SuggestedEvidence]
    edges: list[WeightedEdge]


class SuggestionText(Answer):
    """Why the candidate at `place` is one: every name in [brackets] is the candidate or a phenotype of it, `edges` are between
    them. `text` is null, with a reason, where nothing of the graph explains anything.
    """

    place: int
    id: str
    text: str | None
    reason: str | None
    edges: list[CitedEdge]
    finish_reason: str | None
    graph: GraphAnswer | None


class SuggestAnswer(Answer):
    """The best candidates, and explanations of the first of them."""

    id: str
    object: Literal["graph.suggestion"] = "graph.suggestion"
    created: int
    model: str
    version: int
    findings: list[PhenotypeFound]
    excluded: list[PhenotypeFound]
    candidates: list[SuggestedDisease]
    num_candidates: int = Field(
        description="Diseases that were ranked. The probabilities of all of them add up to at most 1: to less with a trained "
        "ranking, because the disease may be none of those that it expects."
    )
    explanations: list[SuggestionText]
    usage: Usage


class SuggestionDelta(Answer):
    """More of the explanation of the candidate at `place`; at its end all of it."""

    place: int
    text: str
    explanation: SuggestionText | None = None


class SuggestChunk(Answer):
    """A piece of a streamed answer, after the ranking; the last one has the usage."""

    id: str
    object: Literal["graph.suggestion.chunk"] = "graph.suggestion.chunk"
    created: int
    model: str
    deltas: list[SuggestionDelta]
    usage: Usage | None = None
