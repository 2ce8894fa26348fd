"""What answers which path, and what stands around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from vglm import __version__
from vglm.serve import chat, completions, embeddings, info, responses, score, tokens
from vglm.serve.auth import OPEN_PATHS, ApiKeys, Authentication
from vglm.serve.errors import install_error_handlers
from vglm.serve.limits import BodyLimits, RequestTimeout
from vglm.serve.no_route import install_no_route_handlers
from vglm.serve.openapi import document
from vglm.serve.options import ServeOptions
from vglm.serve.serving import Serving

ROUTERS = (
    completions.router,
    chat.router,
    responses.router,
    embeddings.router,
    score.router,
    tokens.router,
    info.router,
)


def create_app(serving: Serving) -> FastAPI:
    """The ASGI application of a model. The engine thread runs from the application's start to its end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        serving.engine.start()
        try:
            yield
        finally:
            await serving.engine.stop()

    app = FastAPI(
        title="vGLM",
        version=__version__,
        summary="Inference for graph language models, with OpenAI's interface",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.serving = serving
    _surround(app, serving.options)
    install_error_handlers(app)
    install_no_route_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = cache(partial(document, app, serving))  # type: ignore[method-assign]  # as FastAPI advises
    return app


def _surround(app: FastAPI, options: ServeOptions) -> None:
    """Put the middlewares around the endpoints; the last one added is the first that a request meets."""
    if options.request_timeout is not None:
        app.add_middleware(RequestTimeout, seconds=options.request_timeout)
    app.add_middleware(
        BodyLimits,
        max_bytes=options.max_body_bytes,
        timeout=options.body_timeout,
        max_depth=options.max_json_depth,
    )
    if options.api_keys or options.api_key_file is not None:
        open_paths = OPEN_PATHS | {"/metrics"} if options.metrics_open else OPEN_PATHS
        keys = ApiKeys(options.api_keys, options.api_key_file)
        app.add_middleware(Authentication, keys=keys, open_paths=open_paths)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=options.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
