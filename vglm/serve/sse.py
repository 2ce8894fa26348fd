"""A stream as server-sent events, and what happens when its client goes away.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vglm.errors import VGLMError
from vglm.serve.errors import ApiError, as_api_error, error_body

log = logging.getLogger("vglm.serve")

DONE = b"data: [DONE]\n\n"
ErrorEvent = Callable[[ApiError], bytes]
_STATE = "error_event"  # where the state of a request has its stream's ErrorEvent


def event(data: Any, name: str | None = None) -> bytes:
    """One event: JSON data, and a name where the protocol has one."""
    body = b"data: " + (data if isinstance(data, bytes) else orjson.dumps(data)) + b"\n\n"
    return body if name is None else b"event: " + name.encode() + b"\n" + body


class EventStream(Response):
    """Answers with events as they come.

    A client that disconnects calls `cancel`; `close` is called at the end, whatever happens. An error in the middle is
    sent as an event, since the status has gone out already.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        cancel: Callable[[], None],
        close: Callable[[], None],
        error_event: ErrorEvent | None = None,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._cancel = cancel
        self._close = close
        self._error_event = error_event or _error_event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events (ASGI)."""
        scope.setdefault("state", {})[_STATE] = self._error_event
        try:
            async with cancelled_on_disconnect(receive, self._cancel):
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(start)
                async for body in self._safely():
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._cancel()
            self._close()

    async def _safely(self) -> AsyncIterator[bytes]:
        try:
            async for body in self._events:
                yield body
        except Exception as error:
            if not isinstance(error, (ApiError, VGLMError)):
                log.error("a stream has failed: %s", error, exc_info=error)
            yield self._error_event(as_api_error(error))
        finally:
            await self._events.aclose()


def error_event_of(scope: Scope) -> ErrorEvent:
    """What ends the stream that answers a request, for those around the application who have to end it."""
    found: ErrorEvent = scope.get("state", {}).get(_STATE, _error_event)
    return found


def _error_event(error: ApiError) -> bytes:
    return event(error_body(error.status, error.message, error.param, error.code)) + DONE


@asynccontextmanager
async def cancelled_on_disconnect(receive: Receive, cancel: Callable[[], None]) -> AsyncIterator[None]:
    """Call `cancel` as soon as the client goes away; the body must have been read before."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        watcher.cancel()
