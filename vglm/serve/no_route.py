"""Paths and methods that nothing answers: 404 and 405 in OpenAI's shape, saying what there is instead."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from vglm.serve.errors import ApiError, error_response

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def install_no_route_handlers(app: FastAPI) -> None:
    """Answer for the router where it has no answer."""

    async def answer(http: Request, _: Exception) -> Response:
        path, methods = http.url.path, _methods_of(app, http)
        if not methods:
            return error_response(ApiError(404, f"there is no path {path}; / lists the paths that there are"))
        allowed = ", ".join(methods)
        message = f"{http.method} is not allowed for {path}; use {' or '.join(methods)}"
        return error_response(ApiError(405, message, headers={"allow": allowed}))

    for status in (404, 405):
        app.add_exception_handler(status, answer)


def _methods_of(app: FastAPI, http: Request) -> list[str]:
    """The methods that the path of a request can be called with."""
    return [method for method in METHODS if _matches(app, {**http.scope, "method": method})]


def _matches(app: FastAPI, scope: Scope) -> bool:
    return any(route.matches(scope)[0] is Match.FULL for route in app.routes)
