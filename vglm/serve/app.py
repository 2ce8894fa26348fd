"""What answers which path, and what stands around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from vglm import __version__
from vglm.serve import completions
from vglm.serve.errors import install_error_handlers
from vglm.serve.schemas.common import ErrorAnswer
from vglm.serve.serving import Serving

ROUTERS = (completions.router,)
REFUSALS = {400: "the request is malformed", 404: "there is no such model"}


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
    )
    app.state.serving = serving
    install_error_handlers(app)
    responses = {status: {"model": ErrorAnswer, "description": text} for status, text in REFUSALS.items()}
    for router in ROUTERS:
        app.include_router(router, responses=responses)  # type: ignore[arg-type]  # int keys are fine
    return app
