"""Refusing a request before the application sees it: the answer, and what becomes of a body that nobody wants."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from starlette.types import Receive, Send

from vglm.serve.errors import error_body

Headers = Iterable[tuple[bytes, bytes]]

LINGER_SECONDS = (
    2.0  # that the rest of an unwanted body is read and dropped, so that the client reads its answer
)
LINGER_BYTES = 8 << 20


async def refuse(
    send: Send, status: int, message: str, code: str | None = None, headers: Headers = (), more: bool = False
) -> None:
    """Answer with an error in OpenAI's shape. With `more` the answer is complete but not ended (ASGI's more_body)."""
    body = error_body(status, message, code=code)
    start = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def refuse_body(
    receive: Receive, send: Send, status: int, message: str, code: str | None = None
) -> None:
    """Refuse a request whose body has not been read, and close the connection.

    A socket that is closed with unread bytes resets the connection, and the answer may be lost with it. So the answer goes
    out first; then some of the body is read and dropped, until the client has stopped or enough was done for it.
    """
    await refuse(send, status, message, code, [(b"connection", b"close")], more=True)
    with suppress(TimeoutError):  # a client that goes on sending has had its chance
        async with asyncio.timeout(LINGER_SECONDS):
            await _drop_body(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drop_body(receive: Receive) -> None:
    dropped = 0
    while dropped < LINGER_BYTES:
        message = await receive()
        dropped += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
