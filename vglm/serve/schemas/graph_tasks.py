"""Bodies of /v1/graphs/{id}/complete, /classify and /explain, and of /v1/classify."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from vglm.serve.schemas.common import (
    Answer,
    Body,
    Count,
    ModelName,
    Priority,
    SamplingFields,
    Usage,
    Whole,
    served,
)
from vglm.serve.schemas.graphs import (
    Budget,
    CitedEdge,
    GraphAnswer,
    GraphModeName,
    Hops,
    InlineGraph,
    NodeId,
    Version,
)

Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
Labels = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(min_length=2, max_length=4096)
]
Classifier = Annotated[
    str,
    Field(
        min_length=1,
        max_length=100,
        description="A trained classifier that ranks its classes (or those among `labels`) in place of the language model: one "
        "that the server was given (`--classifier NAME=FILE`), or the model's own.",
    ),
]
Question = Annotated[str, Field(min_length=1)]


class RankingFields(Body):
    """What rankings share."""

    model: ModelName | None = None
    temperature: Temperature | None = Field(
        default=None, description="Of the softmax that makes scores of log-probabilities; 1 by default."
    )
    hops: Hops = 2
    budget: Budget = 1024
    graph_mode: GraphModeName | None = None
    user: str | None = None
    priority: Priority = None


class LinkRequest(RankingFields):
    """What stands at the open end of (head, relation, ?) or (?, relation, tail)?"""

    relation: Annotated[str, Field(min_length=1, max_length=1000)]
    head: NodeId | None = None
    tail: NodeId | None = None
    top: Annotated[int, Field(ge=1, le=10_000), Whole] = 10
    filtered: bool | None = Field(default=None, description="Leave out what the graph says already.")
    candidates: Annotated[list[NodeId], Field(min_length=1, max_length=65_536)] | None = Field(
        default=None, description="Ids; by default all nodes of the types that stand there in the graph."
    )
    types: list[str] | None = Field(default=None, description="Nodes of these types instead.")
    scorer: Literal["auto", "encoder", "language"] | None = Field(
        default=None,
        description="What ranks: the model's graph encoder, which reads the whole graph, or its language model, which reads "
        "what is near the given node; by default the encoder where the model has one.",
    )
    version: Version | None = None

    model_config = ConfigDict(json_schema_extra=served("link_example"))


class ClassifyStoredRequest(RankingFields):
    """Which label fits an entity and what is near it, or without an entity the whole graph?"""

    labels: Labels | None = Field(default=None, description="Needed, unless a classifier has its own.")
    classifier: Classifier | None = None
    entity: NodeId | None = None
    question: Question | None = Field(default=None, description="In place of: Which label fits ...?")
    version: Version | None = None

    model_config = ConfigDict(json_schema_extra={"example": {"labels": ["medicine", "geography"]}})


class ClassifyRequest(RankingFields):
    """Which label fits a graph, or with `entity` that node and what is near it?"""

    graph: InlineGraph
    labels: Labels | None = Field(default=None, description="Needed, unless a classifier has its own.")
    classifier: Classifier | None = None
    entity: NodeId | None = None
    question: Question | None = Field(default=None, description="In place of: Which label fits ...?")

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "graph": {"nodes": [{"id": "1", "name": "Cat"}]},
                "labels": ["animal", "mineral"],
                "graph_mode": "sequential",
            }
        }
    )


class ExplainRequest(SamplingFields):
    """How are two entities related?"""

    model: ModelName | None = None
    source: NodeId
    target: NodeId
    question: Question | None = Field(default=None, description="In place of: How is ... related to ...?")
    max_paths: Annotated[int, Field(ge=1, le=100), Whole] = 3
    max_hops: Annotated[int, Field(ge=1, le=16), Whole] = 4
    max_tokens: Count = 128
    graph_mode: GraphModeName | None = None
    version: Version | None = None

    model_config = ConfigDict(json_schema_extra=served("explain_example"))


class RankedEntity(Answer):
    """A candidate: `logprob` in nats of its name after the prompt, `score` the calibrated probability among all candidates.

    `known`: the graph has this edge already.
    """

    id: str
    name: str
    type: str
    score: float
    logprob: float
    known: bool


class RankedLabel(Answer):
    """A label, as a candidate is ranked."""

    label: str
    score: float
    logprob: float


class LinkAnswer(Answer):
    """Ranked candidates, the best first."""

    id: str
    object: Literal["graph.completion"] = "graph.completion"
    created: int
    model: str
    version: int
    head: str | None = None
    relation: str
    tail: str | None = None
    candidates: list[RankedEntity]
    num_candidates: int = Field(description="How many were scored; scores of all of them add up to 1.")
    temperature: float
    graph: GraphAnswer
    usage: Usage


class ClassifyAnswer(Answer):
    """All labels, the best first."""

    id: str
    object: Literal["graph.classification"] = "graph.classification"
    created: int
    model: str
    version: int | None = None
    labels: list[RankedLabel]
    temperature: float
    graph: GraphAnswer
    usage: Usage


class ExplainAnswer(Answer):
    """Paths of edges between the two entities, and an explanation; null, with a reason, if there is none."""

    id: str
    object: Literal["graph.explanation"] = "graph.explanation"
    created: int
    model: str
    version: int
    source: str
    target: str
    paths: list[list[CitedEdge]]
    explanation: str | None
    reason: str | None
    finish_reason: str | None
    graph: GraphAnswer | None
    usage: Usage
