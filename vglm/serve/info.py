"""What the server tells about itself: models, health, load, version, paths."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from vglm import __version__
from vglm.serve.errors import ApiError
from vglm.serve.schemas.common import served
from vglm.serve.schemas.info import Health, Index, Load, ModelCard, ModelList, Version
from vglm.serve.serving import Serving, answer, of

router = APIRouter(tags=["info"])


@router.get("/v1/models", response_model=ModelList)
async def models(http: HttpRequest) -> Response:
    """The models that are served: one, under each of its names."""
    serving = of(http)
    return answer(ModelList(object="list", data=[_card(serving, name) for name in serving.model_names]))


@router.get("/v1/models/{model:path}", response_model=ModelCard)
async def model(
    model: Annotated[str, Path(json_schema_extra=served("model_name"))], http: HttpRequest
) -> Response:
    """One of the models."""
    serving = of(http)
    return answer(_card(serving, serving.check_model(model)))


def _card(serving: Serving, name: str) -> ModelCard:
    return ModelCard(
        id=name,
        object="model",
        created=int(serving.started),
        owned_by="vglm",
        root=serving.llm.model,
        parent=None,
        max_model_len=serving.llm.engine.config.max_model_len,
    )


@router.get("/health", response_model=Health)
async def health(http: HttpRequest) -> Response:
    """Whether requests are served; 503 says why not."""
    serving = of(http)
    if serving.draining:
        raise ApiError(503, "the server is shutting down", code="draining")
    if not serving.engine.alive:
        raise ApiError(
            503, f"the engine has stopped ({serving.engine.error or 'shutting down'})", code="engine_dead"
        )
    return answer(Health(status="ok"))


@router.api_route("/ping", methods=["GET"], response_model=Health)
@router.api_route("/ping", methods=["POST"], response_model=Health, operation_id="ping_post")
async def ping(http: HttpRequest) -> Response:
    """The same as /health, where other servers have it."""
    return await health(http)


@router.get("/load", response_model=Load)
async def load(http: HttpRequest) -> Response:
    """Answers in the making, and what the engine is busy with."""
    serving = of(http)
    stats = serving.engine.stats()
    return answer(
        Load(
            server_load=serving.num_active,
            num_requests_running=stats.num_requests_running,
            num_requests_waiting=stats.num_requests_waiting,
            max_num_seqs=serving.llm.options.max_num_seqs,
            kv_cache_usage=stats.kv_cache_usage,
            draining=serving.draining,
        )
    )


@router.get("/version", response_model=Version)
async def version() -> Response:
    """vGLM's version."""
    return answer(Version(version=__version__))


@router.get("/", response_model=Index)
async def index(http: HttpRequest) -> Response:
    """What the server offers; /openapi.json describes it."""
    paths = {
        path: sorted(method.upper() for method in methods)
        for path, methods in http.app.openapi()["paths"].items()
    }
    return answer(Index(name="vGLM", version=__version__, models=list(of(http).model_names), paths=paths))
