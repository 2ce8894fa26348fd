"""Large bodies are parsed in another thread, so that the event loop goes on with everybody else's requests.

The parser is C and keeps the interpreter to itself until it is done, in whatever thread it runs; but it calls a function
for every object that it has read, and there another thread may go on.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

log = logging.getLogger("vglm.serve")
LARGE = 1 << 15  # bytes; what is smaller is parsed where it is


class JSONBodyRequest(Request):
    """A request that parses a large body elsewhere."""

    async def json(self) -> Any:
        """The body, parsed once."""
        if not hasattr(self, "_json"):
            try:
                self._json = await _parse(await self.body())
            except MemoryError as error:  # no fault of the client's, as which FastAPI would report it
                raise HTTPException(503, "there is no memory to read the request; try again later") from error
        return self._json


async def _parse(body: bytes) -> Any:
    if len(body) >= LARGE:
        try:
            return await asyncio.to_thread(_loads, body)
        except RuntimeError:  # no thread can be started: the system has no memory for it
            log.warning("no thread could be started to parse a body of %d bytes", len(body))
    return json.loads(body)


def _loads(body: bytes) -> Any:
    return json.loads(body, object_hook=_give_way)


def _give_way(value: dict[str, Any]) -> dict[str, Any]:
    return value


class JSONBodyRoute(APIRoute):
    """A route whose bodies may be large."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, given such a request (FastAPI)."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(JSONBodyRequest(request.scope, request.receive))

        return handle
