"""A connection that carries one request after another."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn

from vglm.serve.protocol import ConnectionLimits, limited_protocol

KEEP_ALIVE = 1  # second


async def slow_app(scope: Any, receive: Any, send: Any) -> None:
    """Answers at /slow after the keep-alive time of a connection, and elsewhere at once."""
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
        if scope["path"] == "/slow":
            await asyncio.sleep(1.5 * KEEP_ALIVE)
        await send({"type": "http.response.body", "body": b"k", "more_body": False})


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> bytes:
    writer.write(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path.encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    return await reader.readexactly(2)


def test_an_answer_that_outlasts_the_idle_time_of_the_one_before_it_is_complete() -> None:
    async def go() -> list[bytes]:
        config = uvicorn.Config(
            slow_app,
            port=0,
            http=limited_protocol(ConnectionLimits()),
            timeout_keep_alive=KEEP_ALIVE,
            log_config=None,
            lifespan="off",
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answers = [await ask(reader, writer, path) for path in ("/", "/slow", "/")]
        writer.close()
        server.should_exit = True
        await task
        return answers

    assert asyncio.run(asyncio.wait_for(go(), 60)) == [b"ok"] * 3
