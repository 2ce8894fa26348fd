"""A small HTTP server over real sockets that speaks OpenAI's protocol, and misbehaves when a test tells it to."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


class Reset:
    """The connection is reset."""


class Close:
    """The connection is closed in an orderly way."""


# Bytes are sent as they are, a number of seconds is a pause.
Action = bytes | float | Reset | Close


@dataclass
class Received:
    """A request as it came: method, path, headers with lower-case names, and the JSON body."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Behaviour = Callable[[int, Received], list[Action]]


@dataclass
class Peer:
    """The running server: what it has received and how it answers requests to /completions endpoints."""

    behave: Behaviour
    port: int = 0
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    open_now: int = 0
    most_open: int = 0
    metrics: str | None = None
    models: bytes | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    kill: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, request: Received) -> list[Action]:
        if request.path == "/v1/models":
            body = self.models or json.dumps({"object": "list", "data": [{"id": "peer-model"}]}).encode()
            return [plain(200, body)]
        if request.path == "/metrics" and self.metrics is not None:
            return [plain(200, self.metrics.encode(), "text/plain")]
        if request.path.endswith("/completions"):
            self.requests.append(request)
            return self.behave(len(self.requests) - 1, request)
        return [plain(404, b'{"detail": "Not Found"}')]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            while (request := await _read(reader)) is not None:
                if not await _act(writer, self.answer(request)):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the client has gone, as some tests want it to
        finally:
            self.open_now -= 1
            self.writers.discard(writer)
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Received | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(method, path, headers, json.loads(body) if body else {})


async def _act(writer: asyncio.StreamWriter, actions: list[Action]) -> bool:
    """Whether the connection goes on."""
    for action in actions:
        if isinstance(action, bytes):
            writer.write(action)
            await writer.drain()
        elif isinstance(action, Reset):
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        elif isinstance(action, Close):
            return False
        else:
            await asyncio.sleep(action)
    return True


def plain(status: int, body: bytes, kind: str = "application/json", extra: str = "") -> bytes:
    """A whole response with Content-Length."""
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def head(kind: str = "text/event-stream", extra: str = "") -> bytes:
    """The head of a chunked response."""
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}; charset=utf-8\r\ntransfer-encoding: chunked\r\n{extra}\r\n".encode()


def chunk(body: bytes) -> bytes:
    """One chunk; an empty one ends the response."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def event(value: Any) -> bytes:
    """An event with a JSON document, or with the text itself."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"data: {text}\n\n".encode()


def choice(
    text: str, *, chat: bool, finish: str | None = None, index: int = 0, **more: Any
) -> dict[str, Any]:
    """An event's document with one choice."""
    content = {"delta": {"content": text}} if chat else {"text": text}
    return {"id": "x", "choices": [{"index": index, **content, "finish_reason": finish, **more}]}


def usage(prompt: int, output: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def events(request: Received, tokens: int | None = None) -> list[bytes]:
    """The events of a correct streamed answer."""
    body = request.body
    count = body["max_tokens"] if tokens is None else tokens
    chat = "messages" in body
    ids = (lambda i: {"token_ids": [i]}) if body.get("return_token_ids") else (lambda i: {})
    found = [event(choice(f" t{i}", chat=chat, **ids(i))) for i in range(count - 1)]
    found.append(event(choice(f" t{count - 1}", chat=chat, finish="length", **ids(count - 1))))
    found.append(event({"id": "x", "choices": [], "usage": usage(prompt_tokens(body), count)}))
    return [*found, event("[DONE]")]


def prompt_tokens(body: dict[str, Any]) -> int:
    prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
    return len(prompt.split()) if isinstance(prompt, str) else len(prompt)


def stream(parts: list[bytes], pause: float | None = None) -> list[Action]:
    """A chunked response of these parts, each in a chunk of its own."""
    actions: list[Action] = [head()]
    for part in parts:
        actions += [chunk(part)] if pause is None else [chunk(part), pause]
    return [*actions, chunk(b"")]


def correct(number: int, request: Received) -> list[Action]:
    """What a good server does."""
    if request.body["stream"]:
        return stream(events(request))
    count = request.body["max_tokens"]
    chat = "messages" in request.body
    text = {"message": {"content": "text"}} if chat else {"text": "text"}
    document = {
        "choices": [{"index": 0, **text, "finish_reason": "length"}],
        "usage": usage(prompt_tokens(request.body), count),
    }
    return [plain(200, json.dumps(document).encode())]


@contextmanager
def running(behave: Behaviour = correct, **fields: Any) -> Iterator[Peer]:
    """A peer in a thread of its own."""
    peer = Peer(behave, **fields)
    loop = asyncio.new_event_loop()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(lambda r, w: peer.serve(r, w), "127.0.0.1", 0, backlog=4096)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    peer.port = server.sockets[0].getsockname()[1]

    async def stop() -> None:
        server.close()
        for connection in peer.writers:
            connection.transport.abort()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    peer.kill = lambda: asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
    try:
        yield peer
    finally:
        peer.kill()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
