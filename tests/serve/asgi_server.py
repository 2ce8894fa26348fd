"""A real uvicorn on 127.0.0.1 around a small application, and raw sockets to talk to it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from vglm.serve.protocol import ConnectionLimits, LimitedProtocol, limited_protocol

HANG = 60.0  # seconds after which a test that waits has failed


class Running:
    """A server in a thread of its own."""

    def __init__(self, app: ASGIApp, limits: ConnectionLimits | None = None, loop: str = "uvloop") -> None:
        protocol: Any = limited_protocol(limits or ConnectionLimits())
        config = uvicorn.Config(
            app,
            http=protocol,
            loop=loop,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            backlog=4096,
        )
        self.server = uvicorn.Server(config)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.started = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self.server.config.get_loop_factory()) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.started.set()
        await self.server.serve(sockets=[self.listener])

    @property
    def connections(self) -> set[LimitedProtocol]:
        """What the server has open."""
        return self.server.server_state.connections  # type: ignore[return-value]

    def connect(self, data: bytes = b"") -> socket.socket:
        """A connection on which `data` has been sent."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=HANG)
        sock.sendall(data)
        return sock


@contextmanager
def running(app: ASGIApp, limits: ConnectionLimits | None = None, loop: str = "uvloop") -> Iterator[Running]:
    """Serve `app` until the block ends; it must end without a task or a connection left."""
    server = Running(app, limits, loop)
    server.thread.start()
    assert server.started.wait(HANG)
    while not server.server.started:
        assert server.thread.is_alive()
    try:
        yield server
    finally:
        server.server.should_exit = True
        server.thread.join(HANG)
        assert not server.thread.is_alive(), "the server does not stop"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what the request was: method, path, state, the body's length."""
    assert scope["type"] == "http"
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    state = {key: value for key, value in scope["state"].items() if isinstance(value, (str, int))}
    body = json.dumps(
        {"path": scope["path"], "method": scope["method"], "size": size, "state": state}
    ).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def read_all(sock: socket.socket) -> bytes:
    """Everything until the server closes; a reset counts as the end."""
    data = b""
    try:
        while piece := sock.recv(1 << 16):
            data += piece
    except ConnectionResetError:
        data += b"<reset>"
    return data


def read_answer(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of one answer with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(1 << 16)
        assert piece, f"the connection ended after {data!r}"
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    status_line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += sock.recv(1 << 16)
    return int(status_line.split()[1]), headers, body


def parse_answer(data: bytes) -> tuple[int, Any]:
    """(status, JSON) of an answer that ended with the connection."""
    head, body = data.split(b"\r\n\r\n", 1)
    return int(head.split()[1]), json.loads(body)
