"""Graphs in bodies: as part of a request, and what an answer says of one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from vglm.serve.schemas.common import Answer, Body, Whole

GraphName = Annotated[str, Field(min_length=1, max_length=200)]
NodeId = Annotated[str, Field(min_length=1, max_length=1000)]
AnyId = NodeId | int
Version = Annotated[int, Field(ge=1, le=2**53), Whole] | Annotated[str, Field(min_length=1, max_length=200)]
Hops = Annotated[int, Field(ge=0, le=8), Whole]
Budget = Annotated[int, Field(ge=1, le=1_000_000), Whole]
Method = Literal["auto", "ppr", "khop", "paths"]
GraphModeName = Literal["auto", "spans", "sequential"]


class NodeItem(Body):
    """A node of node-link JSON; other fields are attributes."""

    id: AnyId
    name: str | None = Field(default=None, description="The id by default.")
    type: str = ""
    text: str = Field(default="", description="Its definition.")
    aliases: list[str] = Field(default=[], description="Other names.")
    attributes: dict[str, Any] = Field(default={})


class EdgeItem(Body):
    """A directed edge of node-link JSON; other fields are attributes."""

    source: AnyId
    relation: Annotated[str, Field(min_length=1)] = "related to"
    target: AnyId
    attributes: dict[str, Any] = Field(default={})


class NodeLink(Body):
    """A graph as node-link JSON: nodes, and edges between them, which may be called links instead. Ids are unique."""

    nodes: list[NodeItem]
    edges: list[EdgeItem] = Field(default=[])


def _object(value: Any) -> Any:
    """Checked when the graph is made of it, in another thread."""
    if not isinstance(value, dict) or "nodes" not in value:
        raise PydanticCustomError(
            "graph_type", "expected an object with nodes and edges, or with the id of a stored graph"
        )
    return value


def _constraint(value: Any) -> Any:
    if not isinstance(value, str | dict):
        raise PydanticCustomError("constraint_type", "expected a kind or an object")
    return value


InlineGraph = Annotated[dict[str, Any], PlainValidator(_object, json_schema_input_type=NodeLink)]


class StoredGraph(Body):
    """The part of a stored graph that the question is about, within a budget of tokens."""

    id: GraphName
    version: Version | None = Field(default=None, description="A number, or the label of a snapshot.")
    entities: Annotated[list[NodeId], Field(max_length=256)] | None = Field(
        default=None, description="Node ids to start from; by default what the question names is looked up."
    )
    hops: Hops = 2
    budget: Budget = 1024
    method: Method = "auto"


def _source(value: Any) -> Any:
    """A stored graph is checked here."""
    if isinstance(value, dict) and "id" in value and value.keys().isdisjoint(("nodes", "edges", "links")):
        return StoredGraph.model_validate(value)
    return _object(value)


GraphSourceField = Annotated[
    dict[str, Any] | StoredGraph,
    PlainValidator(_source, json_schema_input_type=NodeLink | StoredGraph),
]


class ConstraintFields(Body):
    """What an answer over a graph must be."""

    kind: str = Field(
        default="answer", description="answer, walk, mentions, json, or several of them joined by +."
    )
    types: list[str] = Field(default=[], description="Node types of the answer, or of where a walk ends.")
    candidates: list[str] = Field(default=[], description="Likewise, ids.")
    count: Annotated[int, Field(ge=1, le=256)] = 1
    min_count: Annotated[int, Field(ge=1, le=256)] | None = None
    separator: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    start: list[str] = Field(default=[], description="Ids where a walk may start.")
    min_hops: Annotated[int, Field(ge=0, le=16)] = 1
    max_hops: Annotated[int, Field(ge=1, le=16)] = 3
    relations: list[str] = Field(default=[], description="That a walk may take.")
    inverse: bool = Field(default=False, description="Walks may take edges against their direction.")
    json_schema: Any = Field(default=None, alias="schema", description="Of kind json, with x-graph bindings.")
    parts: list[dict[str, Any]] = Field(default=[], description="Of kind sequence.")
    of_walk: bool = False


class GraphFields(Body):
    """A graph that a request is about."""

    graph: GraphSourceField | None = Field(
        default=None, description="The graph itself, or which part of a stored one is read."
    )
    constraint: (
        Annotated[
            str | dict[str, Any],
            PlainValidator(_constraint, json_schema_input_type=str | ConstraintFields),
        ]
        | None
    ) = Field(default=None, description='What the answer must be, as in "answer", "walk" or "mentions".')
    graph_mode: GraphModeName | None = Field(
        default=None, description="How the graph is read; by default as the model was trained to."
    )
    return_graph: bool | None = Field(default=None, description="Answer with the graph that was read, too.")


# ---- what answers say


class NamedEntity(Answer):
    """An entity of the graph; `score` where entities were scored."""

    id: str
    name: str
    type: str
    score: float | None = None


class CitedEdge(Answer):
    """An edge of the graph."""

    source: str
    relation: str
    target: str


class RetrievedPart(Answer):
    """What the model was given to read; `left_out` says why something is missing, "" if nothing is."""

    nodes: int
    edges: int
    tokens: int
    left_out: str
    left_out_nodes: int


class GraphAnswer(Answer):
    """What an answer says of the graph.

    `answer`: the entities that it names, under a constraint. `evidence`: paths of edges from what the question names to
    them, or the walk that was taken. `citations`: ids of all nodes in both. `entities`: what the question names.
    `candidates`: the nodes that were retrieved, with their scores, the best first.
    """

    mode: Literal["spans", "sequential", "encoder", "classifier"]
    answer: list[NamedEntity]
    candidates: list[NamedEntity]
    evidence: list[list[CitedEdge]]
    citations: list[str]
    entities: list[NamedEntity]
    complete: bool
    value: Any = Field(default=None, description="The JSON value, under a json constraint.")
    retrieved: RetrievedPart
    cached_tokens: int
    graph: dict[str, Any] | None = Field(default=None, description="What was read, as node-link JSON.")
