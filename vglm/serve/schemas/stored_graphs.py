"""Bodies of /v1/graphs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from vglm.serve.schemas.common import Answer, Body, Whole, served
from vglm.serve.schemas.graphs import AnyId, EdgeItem, GraphName, InlineGraph, NodeItem

STORED_NAME = served("graph_name")


def _items(value: Any) -> Any:
    if not isinstance(value, list):
        raise PydanticCustomError("list_type", "expected a list")
    return value


class GraphCreate(Body):
    """A new graph: node-link JSON in `graph`, or the text of a file in `data` with its `format`."""

    name: GraphName
    graph: InlineGraph | None = None
    data: str | None = None
    format: Literal["json", "tsv", "csv", "turtle", "ntriples", "jsonld", "graphml", "obo"] | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": ["graph"]}, {"required": ["data", "format"]}],
            "examples": [
                {
                    "name": "medicine",
                    "graph": {
                        "nodes": [
                            {"id": "d1", "name": "Marfan syndrome", "type": "disease"},
                            {"id": "p1", "name": "Tall stature", "type": "phenotype"},
                        ],
                        "edges": [{"source": "d1", "relation": "has phenotype", "target": "p1"}],
                    },
                },
                {"name": "towns", "format": "tsv", "data": "Paris\tcapital of\tFrance\n"},
            ],
        }
    )


NodeItems = Annotated[list[Any], PlainValidator(_items, json_schema_input_type=list[NodeItem])]
EdgeItems = Annotated[list[Any], PlainValidator(_items, json_schema_input_type=list[EdgeItem])]
NodeIds = Annotated[list[Any], PlainValidator(_items, json_schema_input_type=list[AnyId])]


class GraphPatch(Body):
    """A change, all or nothing: edges go, then nodes with their edges, then nodes come, then edges."""

    upsert_nodes: NodeItems = Field(default=[], description="A node replaces the one of its id.")
    delete_nodes: NodeIds = Field(default=[])
    upsert_edges: EdgeItems = Field(default=[])
    delete_edges: EdgeItems = Field(
        default=[], description="Without attributes an edge stands for all parallel ones."
    )
    expected_version: Annotated[int, Field(ge=1, le=2**53), Whole] | None = Field(
        default=None, description="Change this version, or nothing (409)."
    )

    model_config = ConfigDict(
        json_schema_extra={"example": {"upsert_nodes": [{"id": "n1", "name": "New node", "type": "thing"}]}}
    )


class StoredGraphCard(Answer):
    """A stored graph at its current version."""

    id: str
    object: Literal["graph"] = "graph"
    version: int
    nodes: int
    edges: int
    updated: int = Field(description="Unix seconds.")
    bytes: int = Field(description="On disk, with all versions.")


class StoredGraphList(Answer):
    """The stored graphs, by name."""

    object: Literal["list"] = "list"
    data: list[StoredGraphCard]


class GraphDetails(Answer):
    """What a version of a graph consists of: nodes by type, edges by relation, the most frequent first."""

    id: str
    object: Literal["graph"] = "graph"
    version: int
    nodes: int
    edges: int
    types: dict[str, int]
    relations: dict[str, int]
    isolated: int
    loops: int
    mean_degree: float
    max_degree: int
    hub: str | None
    memory_bytes: int


class NodeLinkAnswer(Answer):
    """A graph as node-link JSON, in canonical order."""

    nodes: list[dict[str, Any]]
    edges: list[dict[str, Any]]


class GraphVersion(Answer):
    """How a version came to be, and its size."""

    version: int
    kind: str
    created: int
    nodes: int
    edges: int


class GraphVersions(Answer):
    """The versions of a graph, the newest first."""

    object: Literal["list"] = "list"
    data: list[GraphVersion]


class GraphDeleted(Answer):
    """A graph is no more."""

    id: str
    object: Literal["graph"] = "graph"
    deleted: Literal[True] = True
