"""/v1/graphs: the stored graphs, made, read, changed and deleted. Every look at the store is in another thread."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from vglm.errors import GraphError, RequestError
from vglm.graph.graph import Graph
from vglm.graph.store_names import GraphInfo, checked_name
from vglm.serve.errors import ApiError
from vglm.serve.graph_errors import graph_errors
from vglm.serve.json_body import JSONBodyRoute
from vglm.serve.schemas.stored_graphs import (
    STORED_NAME,
    GraphCreate,
    GraphDeleted,
    GraphDetails,
    GraphPatch,
    GraphVersion,
    GraphVersions,
    NodeLinkAnswer,
    StoredGraphCard,
    StoredGraphList,
)
from vglm.serve.serving import Serving, answer, of

MAX_VERSIONS = 1000  # in one list

router = APIRouter(tags=["graphs"], route_class=JSONBodyRoute)
GraphId = Annotated[str, Path(description="The graph's name.", json_schema_extra=STORED_NAME)]
AnyGraphId = Annotated[str, Path(description="The graph's name.")]
VersionQuery = Annotated[
    str | None,
    Query(max_length=200, description="A number, or the label of a snapshot; the current one by default."),
]


@router.post("/v1/graphs", response_model=StoredGraphCard)
async def create_graph(body: GraphCreate, http: HttpRequest) -> Response:
    """Store a graph under a new name; 409 when the name is taken."""
    serving = of(http)
    if (body.graph is None) == (body.data is None):
        raise RequestError("give the graph either as graph or as data with its format", "graph")
    if (body.data is None) != (body.format is None):
        raise RequestError("data and format come together", "format")
    return answer(_card(await serving.graphs.run(_create, serving, body)))


def _create(serving: Serving, body: GraphCreate) -> GraphInfo:
    from vglm.graph.retrieval import prepare

    with graph_errors("name"):
        name = checked_name(body.name)
    if body.graph is not None:
        with graph_errors("graph"):
            graph = Graph.from_dict(body.graph)
    else:
        with graph_errors("data", within=""):
            graph = _read(body.data or "", body.format or "json")
    with graph_errors("name"):
        store = serving.graphs.store
        store.create(name, graph)
        prepare(store.get(name))
        return store.info(name)


def _read(data: str, format: str) -> Graph:
    from vglm.graph.formats.files import read
    from vglm.graph.formats.source import Source
    from vglm.graph.limits import DEFAULT_LIMITS

    try:
        return read(Source.of(data, format, DEFAULT_LIMITS.bytes), format, DEFAULT_LIMITS, {})
    except GraphError as error:
        raise ApiError(400, str(error), param="data") from error
    except UnicodeEncodeError as error:
        raise ApiError(400, f"data is not valid Unicode at character {error.start}", param="data") from error


@router.get("/v1/graphs", response_model=StoredGraphList)
async def list_graphs(http: HttpRequest) -> Response:
    """The stored graphs, by name."""
    serving = of(http)

    def graphs() -> list[GraphInfo]:
        with graph_errors("graph"):
            return serving.graphs.store.graphs()

    found = await serving.graphs.run(graphs)
    return answer(StoredGraphList(object="list", data=[_card(info) for info in found]))


@router.get("/v1/graphs/{graph}", response_model=GraphDetails | NodeLinkAnswer)
async def read_graph(
    graph: GraphId,
    http: HttpRequest,
    version: VersionQuery = None,
    format: Annotated[
        Literal["stats", "node-link"], Query(description="What it consists of, or all of it.")
    ] = "stats",
) -> Response:
    """A version of a graph: what it consists of, or all of it as node-link JSON."""
    serving = of(http)
    return await serving.graphs.run(_read_stored, serving, graph, version, format)


def _read_stored(serving: Serving, graph: str, version: str | None, format: str) -> Response:
    from vglm.graph.stats import graph_stats

    with graph_errors("version" if version is not None else "graph"):
        stored = serving.graphs.store.read(known_name(graph), version_of(version))
        if format == "node-link":
            return Response(stored.graph.to_json(), media_type="application/json")
        stats = graph_stats(stored.graph).as_dict()
    return answer(GraphDetails(id=stored.name, object="graph", version=stored.version, **stats))


@router.get("/v1/graphs/{graph}/versions", response_model=GraphVersions)
async def list_versions(graph: GraphId, http: HttpRequest) -> Response:
    """The versions of a graph, the newest first, at most 1000."""
    serving = of(http)

    def versions() -> list[GraphVersion]:
        with graph_errors("graph"):
            return [
                GraphVersion(
                    version=one.number,
                    kind=one.kind,
                    created=int(one.created),
                    nodes=one.nodes,
                    edges=one.edges,
                )
                for one in serving.graphs.store.versions(known_name(graph), MAX_VERSIONS)
            ]

    return answer(GraphVersions(object="list", data=await serving.graphs.run(versions)))


@router.patch("/v1/graphs/{graph}", response_model=StoredGraphCard)
async def change_graph(graph: GraphId, body: GraphPatch, http: HttpRequest) -> Response:
    """Change a graph, all or nothing, which makes a new version; 409 when it is not at `expected_version`."""
    serving = of(http)

    def change() -> GraphInfo:
        with graph_errors("graph", within=""):
            store, name = serving.graphs.store, known_name(graph)
            store.patch(
                name,
                upsert_nodes=body.upsert_nodes,
                delete_nodes=body.delete_nodes,
                upsert_edges=body.upsert_edges,
                delete_edges=body.delete_edges,
                expected_version=body.expected_version,
            )
            return store.info(name)

    return answer(_card(await serving.graphs.run(change)))


@router.delete("/v1/graphs/{graph}", response_model=GraphDeleted)
async def delete_graph(graph: AnyGraphId, http: HttpRequest) -> Response:
    """Delete a graph with all its versions. Requests that read it meanwhile are answered."""
    serving = of(http)

    def delete() -> str:
        with graph_errors("graph"):
            name = known_name(graph)
            serving.graphs.store.delete(name)
            return name

    return answer(GraphDeleted(id=await serving.graphs.run(delete), object="graph", deleted=True))


def known_name(name: str) -> str:
    """A name in a path, as the store writes it. Raises ApiError (404) for one that no graph can have."""
    try:
        return checked_name(name)
    except GraphError as error:
        raise ApiError(
            404, f"there is no such graph: {error}", param="graph", code="graph_not_found"
        ) from error


def version_of(text: Any) -> int | str | None:
    """A version in a query: a number, or the label of a snapshot."""
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 16:
        return int(text)
    version: int | str | None = text
    return version


def _card(info: GraphInfo) -> StoredGraphCard:
    return StoredGraphCard(
        id=info.name,
        object="graph",
        version=info.version,
        nodes=info.nodes,
        edges=info.edges,
        updated=int(info.updated),
        bytes=info.bytes,
    )
