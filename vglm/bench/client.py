"""A lean HTTP/1.1 client for many connections in one event loop.

A load generator shares the machine with the server that it measures, so what it costs per message matters: bytes go
straight from the transport into the parsers, with no task switch until the response is complete. With 1,500 streams
that is 7 microseconds for a token on uvloop (9 on asyncio's own loop), of which 3 are Python; aiohttp takes 9 and 24.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from vglm.bench.answers import Answer, RequestFailure
from vglm.bench.http_parser import ProtocolError, ResponseParser
from vglm.errors import ConfigError

# Servers close connections that are idle for some seconds (uvicorn: 5). One that has been idle for less is surely open.
_MAX_IDLE = 2.0


class Refused(RequestFailure):
    """Nobody listens at the server's address (any more)."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is: host, port, whether TLS is spoken, and the path that all of its endpoints begin with."""

    host: str
    port: int
    tls: bool
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """From a base URL, with or without the final /v1. Raises ConfigError."""
        example = "write it as in http://127.0.0.1:8000"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"--base-url {url}: {error}; {example}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--base-url {url}: no http:// or https:// address; {example}")
        if parts.query or parts.fragment or parts.username is not None or not url.isprintable() or " " in url:
            raise ConfigError(f"--base-url {url}: only a host, a port and a path are expected; {example}")
        tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), tls, prefix)

    @property
    def netloc(self) -> str:
        """Host and port as they appear in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Connection(asyncio.Protocol):
    """One connection, which carries one request at a time."""

    def __init__(self) -> None:
        self.closed = False
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser = ResponseParser()
        self._answer: Answer | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._received = 0

    async def exchange(self, request: bytes, answer: Answer) -> None:
        """Send a request; returns when `answer` has got its whole response. Raises RequestFailure."""
        if self.closed or self._transport is None:
            raise RequestFailure("connection closed before the answer", "before anything was sent")
        self._parser = ResponseParser()
        self._answer = answer
        self._received = 0
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._waiter
        finally:
            if self._waiter.cancelled():
                self.close()
            self._waiter = self._answer = None

    @property
    def reusable(self) -> bool:
        """Whether another request can be sent on it."""
        return not self.closed and self._parser.complete and self._parser.keep_alive

    def close(self) -> None:
        """Close at once."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # ---- called by the event loop ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        answer, parser = self._answer, self._parser
        if answer is None:  # nobody asked: this connection cannot be trusted any more
            self.close()
            return
        now = time.perf_counter()
        self._received += len(data)
        try:
            begun = parser.status
            body = parser.feed(data)
            if not begun and parser.status:
                answer.begin(parser.status, parser.headers)
            if body:
                answer.feed(body, now)
        except ProtocolError as error:
            self._end(RequestFailure("malformed HTTP", str(error)))
        except RequestFailure as failure:
            self._end(failure)
        else:
            if parser.complete:
                self._end(None)

    def eof_received(self) -> bool:
        return False  # close

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._parser.eof():
            self._end(None)
            return
        reason = "connection reset" if isinstance(exc, ConnectionError) else "connection closed"
        where = "within the answer" if self._parser.status else "before the answer"
        self._end(RequestFailure(f"{reason} {where}", f"after {self._received:,} bytes"))

    def _end(self, failure: RequestFailure | None) -> None:
        if failure is not None:
            self.close()
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            if failure is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(failure)


class Client:
    """Requests to one server; connections are kept open and used again."""

    def __init__(self, address: Address, headers: Mapping[str, str] | None = None) -> None:
        """`headers` are sent with every request."""
        self.address = address
        self.connections_opened = 0
        self._idle: list[Connection] = []
        self._peer: tuple[str, int] | None = None
        self._tls = ssl.create_default_context() if address.tls else None
        fields = {"host": address.netloc, "user-agent": "vglm-bench", **(headers or {})}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode("latin-1")

    async def resolve(self) -> None:
        """Look the host up, once for all connections. Raises ConfigError."""
        host, port = self.address.host, self.address.port
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConfigError(f"the host {host!r} is not known: {error.strerror}") from None
        ip = found[0][4]
        self._peer = (str(ip[0]), int(ip[1]))

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The bytes of a request."""
        line = f"{method} {self.address.prefix}{path} HTTP/1.1\r\n".encode("latin-1")
        if body is None:
            return line + self._head + b"\r\n"
        return b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
            line,
            self._head,
            len(body),
            body,
        )

    async def exchange(self, request: bytes, answer: Answer) -> None:
        """Send a request and read its response into `answer`. Raises RequestFailure."""
        connection = self._take_idle() or await self._connect()
        await connection.exchange(request, answer)
        if connection.reusable:
            connection.idle_since = time.perf_counter()
            self._idle.append(connection)
        else:
            connection.close()

    async def get(self, path: str) -> Answer:
        """The response to a GET. Raises RequestFailure."""
        answer = Answer()
        await self.exchange(self.request("GET", path), answer)
        return answer

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()

    def _take_idle(self) -> Connection | None:
        oldest = time.perf_counter() - _MAX_IDLE
        while self._idle:
            connection = self._idle.pop()  # the one that was used last
            if not connection.closed and connection.idle_since >= oldest:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        if self._peer is None:
            await self.resolve()
        assert self._peer is not None
        name = self.address.host if self._tls else None
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                Connection, *self._peer, ssl=self._tls, server_hostname=name
            )
        except ConnectionRefusedError:
            raise Refused("connection refused", self.address.netloc) from None
        except OSError as error:
            raise RequestFailure("cannot connect", _why(error)) from None
        self.connections_opened += 1
        return connection


def _why(error: OSError) -> str:
    if error.errno == errno.EMFILE:
        return "too many open files; raise the limit (ulimit -n) or lower --concurrency"
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error))
