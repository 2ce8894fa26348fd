"""What answers which path, and what stands around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from vglm import __version__
from vglm.serve import (
    chat,
    completions,
    embeddings,
    graph_suggest,
    graph_tasks,
    graphs,
    info,
    monitoring,
    responses,
    score,
    tokens,
)
from vglm.serve.access_log import AccessLog
from vglm.serve.auth import OPEN_PATHS, ApiKeys, Authentication
from vglm.serve.errors import install_error_handlers
from vglm.serve.limits import BodyLimits, RequestTimeout
from vglm.serve.monitoring import Monitoring
from vglm.serve.no_route import install_no_route_handlers
from vglm.serve.openapi import document
from vglm.serve.serving import Serving
from vglm.serve.ui.gate import PageGate, wanted
from vglm.serve.ui.visitor import Host

ROUTERS = (
    completions.router,
    chat.router,
    responses.router,
    embeddings.router,
    score.router,
    graphs.router,
    graph_tasks.router,
    graph_suggest.router,
    tokens.router,
    info.router,
    monitoring.router,
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
            await asyncio.to_thread(serving.graphs.close)

    app = FastAPI(
        title="vGLM",
        version=__version__,
        summary="Inference for graph language models, with OpenAI's interface",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.serving = serving
    install_error_handlers(app)
    install_no_route_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = cache(partial(document, app, serving))  # type: ignore[method-assign]  # as FastAPI advises
    return app


def surrounded(app: FastAPI, serving: Serving) -> ASGIApp:
    """The application as the server runs it: with limits, keys and the access log around it, from the inside out."""
    options = serving.options
    inner: ASGIApp
    inner = bodies = BodyLimits(
        app,
        max_bytes=options.max_body_bytes,
        timeout=options.body_timeout,
        max_depth=options.max_json_depth,
    )
    if options.request_timeout is not None:
        inner = RequestTimeout(inner, options.request_timeout)
    keys = None
    if options.api_keys or options.api_key_file is not None:
        open_paths = OPEN_PATHS | {"/metrics"} if options.metrics_open else OPEN_PATHS
        keys = ApiKeys(options.api_keys, options.api_key_file)
        inner = Authentication(inner, keys, open_paths)
    if options.cors_origins:
        inner = CORSMiddleware(
            inner,
            options.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
    app.state.monitoring = watch = Monitoring(app, serving, bodies)
    decode = serving.llm.tokenizer.decode if options.log_prompts else None
    inner = AccessLog(inner, watch.observers, decode)
    return PageGate(inner, Host(serving, keys, watch.observers, decode)) if wanted(options.ui) else inner
