"""Limits of a request: the size, time and shape of its body, and the time that it may take in all (ASGI).

What concerns connections and headers is in `protocol`.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vglm.serve.errors import ApiError
from vglm.serve.json_depth import nested_deeper_than
from vglm.serve.protocol import abort_connection
from vglm.serve.refusal import refuse, refuse_body
from vglm.serve.sse import error_event_of

log = logging.getLogger("vglm.serve.limits")

SLOW_CLIENT_SECONDS = 1.0  # that a client whose request has timed out gets to take the news


class BodyLimits:
    """Reads each body whole before the application sees it, and refuses those that are too large, slow or deep.

    Besides the size of one body the sum of all that are held at once is limited: many bodies of a size that is allowed must
    not fill the memory.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_bytes: int = 32 << 20,
        timeout: float = 60.0,
        max_depth: int = 64,
        max_total_bytes: int | None = None,
    ) -> None:
        """`timeout`: seconds from the head to the body's last byte. `max_total_bytes`: None is 16 bodies, at least 512 MiB."""
        self.app = app
        self.max_bytes = max_bytes
        self.timeout = timeout
        self.max_depth = max_depth
        self.max_total_bytes = max(16 * max_bytes, 512 << 20) if max_total_bytes is None else max_total_bytes
        self.held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with the body, or answer 400, 408, 413 or 503 (ASGI)."""
        declared = _declared_length(scope) if scope["type"] == "http" else 0
        if declared == 0:
            await self.app(scope, receive, send)
            return
        if declared is not None and declared > self.max_bytes:
            await refuse_body(receive, send, *self._too_large(declared))
            return
        body = _Body(self)
        try:
            refusal = await self._read(body, receive)
            if refusal is not None:
                await refuse_body(receive, send, *refusal)
            elif body.complete:
                await self._pass_on(scope, body, receive, send)
        finally:
            self.held_bytes -= body.size

    async def _read(self, body: _Body, receive: Receive) -> tuple[int, str, str] | None:
        """Read a body; returns the refusal when it passes a limit."""
        try:
            async with asyncio.timeout(self.timeout):
                return await body.read(receive)
        except TimeoutError:
            reason = f"the body did not arrive within {self.timeout:g} s; send it faster"
            return 408, reason, "body_timeout"

    async def _pass_on(self, scope: Scope, body: _Body, receive: Receive, send: Send) -> None:
        content = body.take()
        if (reason := self._malformed(content)) is not None:
            await refuse(send, 400, reason)
            return
        message: Message | None = {"type": "http.request", "body": content, "more_body": False}

        async def replay() -> Message:
            nonlocal message
            if message is not None:
                first, message = message, None
                return first
            return await receive()

        await self.app(scope, replay, send)

    def _malformed(self, body: bytes) -> str | None:
        """What is wrong with a body that no parser should see, or None."""
        try:
            if not body.isascii():
                body.decode("utf-8")
        except UnicodeDecodeError as error:
            return f"the body is not valid UTF-8 at byte {error.start}"
        if (position := body.find(0)) >= 0:
            return f"the body has a NUL byte at {position}; send JSON in UTF-8"
        if nested_deeper_than(self.max_depth, body):
            return f"the body's JSON is nested more than {self.max_depth} deep; flatten it"
        return None

    def _too_large(self, size: int | None) -> tuple[int, str, str]:
        has = "more" if size is None else f"{size} bytes"
        return 413, f"the body has {has}, but this server takes at most {self.max_bytes}", "body_too_large"


class _Body:
    """A body that is being read; what has arrived counts in `limits.held_bytes` until the owner takes it off."""

    def __init__(self, limits: BodyLimits) -> None:
        self.size = 0
        self.complete = False
        self._limits = limits
        self._chunks: list[bytes] = []

    async def read(self, receive: Receive) -> tuple[int, str, str] | None:
        """Read to the end, or until the client is gone; returns the refusal when a limit is passed."""
        limits = self._limits
        while not self.complete:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            if self.size + len(chunk) > limits.max_bytes:
                return limits._too_large(None)
            if limits.held_bytes + len(chunk) > limits.max_total_bytes:
                log.warning("bodies of %d bytes are held: one more is refused", limits.held_bytes)
                return 503, "the server holds as many large requests as it can; try again later", "overloaded"
            self.size += len(chunk)
            limits.held_bytes += len(chunk)
            self._chunks.append(chunk)
            self.complete = not message.get("more_body", False)
        return None

    def take(self) -> bytes:
        """The whole body; it is not kept here."""
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        return body


def _declared_length(scope: Scope) -> int | None:
    """Content-Length; 0 when there is no body, None when it is chunked."""
    length = 0
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length" and value.isdigit():
            length = int(value)
    return length


class RequestTimeout:
    """Ends requests that take too long, from the end of their head to the end of their answer.

    The client gets 408 when its body is what takes so long, 504 when the answer has not begun, and an error event in a
    stream of events; any other answer that has begun is cut off.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; when the time is over, cancel what stands behind and tell the client (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        exchange = _Exchange(scope, receive, send)
        try:
            async with asyncio.timeout(self.seconds) as deadline:
                await self.app(scope, exchange.receive, exchange.send)
        except TimeoutError:
            if not deadline.expired():
                raise  # somebody else's
            await self._tell(scope, exchange)

    async def _tell(self, scope: Scope, exchange: _Exchange) -> None:
        if not (exchange.received or exchange.started):
            reason = f"the request did not arrive within {self.seconds:g} s; send it faster"
            await refuse_body(exchange.receive, exchange.send, 408, reason, "request_timeout")
            return
        error = ApiError(
            504,
            f"the request took more than {self.seconds:g} s and was ended; ask for less, or try again later",
            code="request_timeout",
        )
        try:
            async with asyncio.timeout(SLOW_CLIENT_SECONDS):
                if not exchange.started:
                    close = [(b"connection", b"close")]
                    await refuse(exchange.send, error.status, error.message, error.code, close)
                elif exchange.is_event_stream and not exchange.complete:
                    event = error_event_of(scope)(error)
                    await exchange.send({"type": "http.response.body", "body": event, "more_body": False})
        except TimeoutError:
            log.info("a client that reads nothing has timed out")
        if not exchange.complete:
            abort_connection(scope)


class _Exchange:
    """How far a request has been received, and its answer sent."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.received = _declared_length(scope) == 0
        self.started = False
        self.complete = False
        self.is_event_stream = False
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        """Receive a message and remember whether it was the last of the body (ASGI)."""
        message = await self._receive()
        self.received = self.received or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message and remember it (ASGI)."""
        if message["type"] == "http.response.start":
            self.started = True
            types = [value for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
            self.is_event_stream = any(value.startswith(b"text/event-stream") for value in types)
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True
