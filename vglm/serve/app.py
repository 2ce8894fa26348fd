"""What answers which path, and what stands around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial

from fastapi import FastAPI

from vglm import __version__
from vglm.serve import completions, embeddings, info, score, tokens
from vglm.serve.errors import install_error_handlers
from vglm.serve.no_route import install_no_route_handlers
from vglm.serve.openapi import document
from vglm.serve.serving import Serving

ROUTERS = (completions.router, embeddings.router, score.router, tokens.router, info.router)


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
    install_error_handlers(app)
    install_no_route_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = cache(partial(document, app, serving))  # type: ignore[method-assign]  # as FastAPI advises
    return app
