"""Connections: heads that come late, never, or without end; too many of them; clients that do not read."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tests.serve.asgi_server import HANG, Running, echo, parse_answer, read_all, read_answer, running
from vglm.serve.protocol import RESERVE, ConnectionLimits

HEAD = b"GET /a HTTP/1.1\r\nhost: x\r\n"


def wait_until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_two_thousand_connections_that_send_nothing(loop: str) -> None:
    """They are closed after the header timeout, and a request among them is answered meanwhile."""
    with running(echo, ConnectionLimits(header_timeout=2.0), loop) as server:
        idle = [server.connect() for _ in range(2000)]
        assert httpx.get(server.url + "/alive").json()["path"] == "/alive"
        assert all(read_all(sock) == b"" for sock in idle)
        wait_until(lambda: len(server.connections) == 0, "none is left")
        for sock in idle:
            sock.close()


def test_a_head_that_drips_is_refused_in_time() -> None:
    with running(echo, ConnectionLimits(header_timeout=0.5)) as server:
        sock = server.connect()
        sent = threading.Thread(target=drip, args=(sock, HEAD + b"x: y\r\n" * 100))
        sent.start()
        status, body = parse_answer(read_all(sock))
        sock.close()
        sent.join()
        assert status == 408
        assert body["error"]["type"] == "timeout_error"


def drip(sock: socket.socket, data: bytes) -> None:
    """Send a byte every 20 ms."""
    try:
        for i in range(len(data)):
            sock.sendall(data[i : i + 1])
            time.sleep(0.02)
    except OSError:
        return  # closed


@pytest.mark.parametrize("kept_alive", [False, True])
@pytest.mark.parametrize("begun", [b"\r\n", b"G", HEAD])
def test_each_head_has_a_time_of_its_own(begun: bytes, kept_alive: bool) -> None:
    """Bytes after an answer start the clock again: a connection that is kept alive by a few of them ends too."""
    with running(echo, ConnectionLimits(header_timeout=0.5)) as server:
        sock = server.connect(HEAD + b"\r\n" if kept_alive else b"")
        if kept_alive:
            assert read_answer(sock)[0] == 200
        sock.sendall(begun)
        answer = read_all(sock)
        assert answer == b"" if begun == b"\r\n" else parse_answer(answer)[0] == 408


def test_an_answer_may_take_longer_than_a_head() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        import asyncio

        await asyncio.sleep(0.6)
        await echo(scope, receive, send)

    with running(slow, ConnectionLimits(header_timeout=0.2)) as server:
        sock = server.connect(HEAD + b"\r\n" + HEAD[:9])  # the head of another request has begun already
        assert read_answer(sock)[0] == 200
        assert parse_answer(read_all(sock))[0] == 408


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (HEAD + b"x: " + b"y" * 300_000, 431, "more than 65536 bytes"),  # no end of the line
        (HEAD + b"x: " + b"y" * 70_000 + b"\r\n\r\n", 431, "more than 65536 bytes"),
        (HEAD + (b"n" * 600 + b": v\r\n") * 120 + b"\r\n", 431, "more than 65536 bytes"),
        (HEAD + b"x: y\r\n" * 200 + b"\r\n", 431, "more than 128 headers"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, "more than 8192 bytes"),
        (b"GET /" + b"a" * 9000, 414, "more than 8192 bytes"),
        (b"GET /?" + b"a=b&" * 3000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, "more than 8192 bytes"),
        (b"NONSENSE\r\n\r\n", 400, "not a valid HTTP request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "not a valid HTTP request"),  # TLS
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "not a valid HTTP request"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400, "not a valid HTTP request"),
        (
            b"POST / HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nab",
            400,
            "not a valid HTTP request",
        ),
        (
            b"POST / HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "not a valid",
        ),
        (b"CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\n", 400, "CONNECT is not supported"),
    ],
)
def test_heads_that_are_refused(data: bytes, status: int, reason: str) -> None:
    with running(echo) as server:
        sock = server.connect()
        sender = threading.Thread(target=send_some, args=(sock, data))
        sender.start()
        got, body = parse_answer(read_all(sock))
        sender.join()
        assert got == status
        assert reason in body["error"]["message"]
        assert httpx.get(server.url).status_code == 200


def send_some(sock: socket.socket, data: bytes) -> None:
    try:
        for i in range(0, len(data), 10_000):
            sock.sendall(data[i : i + 10_000])
    except OSError:
        return  # refused in the middle


def test_heads_within_the_limits_pass_however_they_are_cut() -> None:
    head = HEAD + (b"n" * 500 + b": v\r\n") * 120 + b"\r\n"
    with running(echo) as server:
        for size in (1, 7, 1000, len(head)):
            sock = server.connect()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for i in range(0, len(head), size) if size > 1 else (0,):
                sock.sendall(head[i : i + size] if size > 1 else head)
            assert read_answer(sock)[0] == 200
            sock.close()


def test_a_flood_of_chunk_extensions_is_refused() -> None:
    with running(echo) as server:
        sock = server.connect(b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1;")
        for _ in range(200):
            try:
                sock.sendall(b"x" * 1000)
            except OSError:
                break
        answer = read_all(sock)
        assert answer in (b"", b"<reset>"), "an answer was not due yet: the connection just ends"
        wait_until(lambda: not server.connections, "the connection is gone")


def test_garbage_behind_a_request_does_not_get_into_its_answer() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        import asyncio

        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(5):
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    with running(slow) as server:
        sock = server.connect(HEAD + b"\r\n")
        sock.recv(16)
        sock.sendall(b"NONSENSE\r\n\r\n")
        assert b"400" not in read_all(sock)


def test_one_connection_too_many() -> None:
    with running(echo, ConnectionLimits(max_connections=5)) as server:
        kept = [server.connect(HEAD) for _ in range(5)]
        wait_until(lambda: len(server.connections) == 5, "five are connected")
        more = server.connect(HEAD + b"\r\n")
        head = read_all(more)
        status, body = parse_answer(head)
        assert status == 503
        assert b"retry-after: " in head
        assert body["error"]["type"] == "service_unavailable"
        more.close()
        kept.pop().close()
        wait_until(lambda: len(server.connections) < 5, "there is room again")
        assert httpx.get(server.url).status_code == 200
        kept[0].sendall(b"\r\n")
        assert read_answer(kept[0])[0] == 200, "those who had a place keep it"


def test_far_too_many_connections_are_closed_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vglm.serve.protocol.LINGER_SECONDS", HANG)
    with running(echo, ConnectionLimits(max_connections=1)) as server:
        socks = [server.connect() for _ in range(RESERVE + 50)]
        wait_until(lambda: len(server.connections) <= RESERVE + 1, "the excess is gone")
        answers = [read_all(sock) for sock in socks[1:]]
        assert sum(answer.startswith(b"HTTP/1.1 503") for answer in answers) >= RESERVE // 2
        assert sum(not answer.startswith(b"HTTP") for answer in answers) >= 1
        for sock in socks:
            sock.close()


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends 64 MB, as fast as the client reads."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(1024):
        await send({"type": "http.response.body", "body": b"x" * (64 << 10), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def test_a_client_that_reads_nothing_is_given_up() -> None:
    with running(endless, ConnectionLimits(write_timeout=0.3)) as server:
        sock = server.connect(HEAD + b"\r\n")
        wait_until(lambda: len(server.connections) == 1, "it is connected")
        wait_until(lambda: not server.connections, "its connection ends")
        wait_until(lambda: not server.server.server_state.tasks, "its request ends")
        sock.close()


def test_a_client_that_reads_slowly_is_not() -> None:
    with running(endless, ConnectionLimits(write_timeout=2.0)) as server:
        sock = server.connect(HEAD + b"\r\n")
        size = reads = 0
        started = time.monotonic()
        while size < 64 << 20:
            piece = sock.recv(1 << 18)
            assert piece, f"the connection ended after {size} bytes"
            size, reads = size + len(piece), reads + 1
            time.sleep(0.02)
        sock.close()
        assert time.monotonic() - started > 4.0, "of the write timeout, twice"


def test_an_answer_that_nobody_takes_does_not_keep_a_closed_connection() -> None:
    """Less than the high-water mark is unsent and the answer is complete: only a look at the buffer finds it."""

    async def big(scope: Scope, receive: Receive, send: Send) -> None:
        body = b"x" * (8 << 20)
        headers = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    with running(big, ConnectionLimits(write_timeout=0.3)) as server:
        sock = server.connect(HEAD + b"\r\n")
        wait_until(lambda: len(server.connections) == 1, "it is connected")
        wait_until(lambda: not server.connections, "its connection ends")
        sock.close()


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.mark.parametrize("cut", [0, 1, 40, 130, 190])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_asks_for_http2_gets_its_answer(chunked: bool, cut: int) -> None:
    """Java's HttpClient and curl --http2 ask for h2c with every request; its body must not be lost."""
    body = b"5\r\nhello\r\n0\r\n\r\n" if chunked else b"hello"
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: 5"
    data = b"POST /v1 HTTP/1.1\r\nhost: x\r\n" + UPGRADE + framing + b"\r\n\r\n" + body
    with running(echo) as server:
        sock = server.connect()
        for _ in range(2):  # the connection goes on as one of HTTP/1.1
            sock.sendall(data[:cut])
            time.sleep(0.02)
            sock.sendall(data[cut:])
            status, _, answer = read_answer(sock)
            assert status == 200
            assert json.loads(answer)["size"] == 5
        sock.close()


def test_curl_with_http2(running_curl: Running) -> None:
    command = ["curl", "-s", "--http2", "--data", "hello", running_curl.url + "/v1"]
    answer = subprocess.run(command, capture_output=True, timeout=HANG, check=True)
    assert json.loads(answer.stdout)["size"] == 5


@pytest.fixture
def running_curl() -> Any:
    if subprocess.run(["sh", "-c", "command -v curl"], capture_output=True).returncode:
        pytest.skip("curl is not installed")
    with running(echo) as server:
        yield server
