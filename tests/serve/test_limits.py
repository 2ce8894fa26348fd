"""Limits of a request: bodies that are large, slow, deep or no text; requests that take too long."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from tests.serve.asgi_server import HANG, Running, echo, parse_answer, read_all, read_answer, running
from vglm.serve.json_depth import nested_deeper_than
from vglm.serve.limits import BodyLimits, RequestTimeout
from vglm.serve.protocol import ConnectionLimits
from vglm.serve.sse import EventStream

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30
POST = b"POST /v1 HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


# ---- nesting ------------------------------------------------------------------------------------------------


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


TEXT = st.text(st.sampled_from('ab"\\[]{}\n\u2028é😀 '), max_size=12)
VALUES = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=30,
)


@given(VALUES, st.booleans(), st.integers(0, 12))
@settings(max_examples=400, deadline=None)
def test_depth_is_the_depth_of_the_parsed_value(value: Any, ascii_only: bool, limit: int) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert nested_deeper_than(limit, body) == (depth_of(value) > limit)


def test_depth_across_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)

    def value(depth: int) -> Any:
        if not depth:
            return rng.choice(['"[', "{}{", 'x\\"', 1])
        return [value(depth - 1), rng.choice([{"a]": []}, "]]", []])]

    bodies = [json.dumps([value(depth) for _ in range(5)]).encode() for depth in range(1, 9)]
    for piece in (1, 2, 3, 7, 64):
        monkeypatch.setattr("vglm.serve.json_depth._PIECE", piece)
        for body in bodies:
            depth = depth_of(json.loads(body))
            assert not nested_deeper_than(depth, body)
            assert nested_deeper_than(depth - 1, body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * MB,
        b"[[" + b"[]," * (MB // 3) + b"[]]]",
        b'["' + b'","' * (MB // 3) + b'"]' + b"[]" * 100,
        b'{"p": "' + b'\\"[' * (MB // 3) + b'"' + b"[]" * 100,
        b'{"p": "' + b"\\\\" * (MB // 2) + b'"' + b"{}" * 100,
    ],
    ids=["deep", "wide", "quotes", "escapes", "backslashes"],
)
def test_the_scan_of_a_megabyte_costs_no_more_than_a_few_parses(body: bytes) -> None:
    plain = json.dumps({"p": "hello world " * (MB // 12), "a": [[1, 2]] * 1000}).encode()
    parse = min(timed(json.loads, plain) for _ in range(5))
    scan = min(timed(nested_deeper_than, 64, body) for _ in range(5))
    assert scan < 100 * parse, "a loop in Python would take several hundred times as long"


def timed(function: Any, *args: Any) -> float:
    started = time.perf_counter()
    function(*args)
    return time.perf_counter() - started


# ---- bodies -------------------------------------------------------------------------------------------------


def test_bodies_within_the_limits_arrive_as_they_were_sent() -> None:
    with running(BodyLimits(echo, max_bytes=MB)) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/a").json()["size"] == 0
        assert client.post("/a").json()["size"] == 0
        for size in (2, 1000, 70 * KB, MB - 2):
            body = b'"' + b"x" * (size - 2) + b'"'
            assert client.post("/a", content=body).json()["size"] == size
            pieces = (body[i : i + 5000] for i in range(0, size, 5000))
            assert client.post("/a", content=pieces).json()["size"] == size
        assert client.post("/a", content='{"é😀": "\\u0000"}'.encode()).status_code == 200
        assert client.request("DELETE", "/a", content=b"{}").json()["size"] == 2


class Flood:
    """Sends an endless body in a thread, and counts what the server took."""

    def __init__(self, server: Running, head: bytes, piece: bytes) -> None:
        self.sent = 0
        self.sock = server.connect(head)
        self.piece = piece
        self.thread = threading.Thread(target=self._send)
        self.thread.start()

    def _send(self) -> None:
        try:
            while self.sent < 2 * GB:
                self.sock.sendall(self.piece)
                self.sent += len(self.piece)
        except OSError:
            return

    def answer(self) -> tuple[int, Any]:
        data = read_all(self.sock)
        self.thread.join(HANG)
        assert not self.thread.is_alive()
        return parse_answer(data.removesuffix(b"<reset>"))


@pytest.mark.parametrize(
    ("framing", "piece"),
    [
        (b"content-length: 1073741824", b"x" * 64 * KB),
        (b"transfer-encoding: chunked", b"%x\r\n%s\r\n" % (64 * KB, b"x" * 64 * KB)),
        (b"transfer-encoding: chunked", b"40000000\r\n" + b"x" * 64 * KB),
    ],
    ids=["declared", "chunked", "one-chunk"],
)
def test_a_body_of_a_gigabyte_is_refused_without_reading_it(framing: bytes, piece: bytes) -> None:
    limits = BodyLimits(echo, max_bytes=MB)
    with running(limits) as server:
        flood = Flood(server, POST + framing + b"\r\n\r\n", piece)
        status, body = flood.answer()
        flood.sock.close()
        assert status == 413
        assert body["error"]["code"] == "body_too_large"
        assert "1048576" in body["error"]["message"]
        assert flood.sent < 64 * MB
        assert limits.held_bytes == 0
        assert httpx.get(server.url).status_code == 200


def test_a_client_that_waits_for_100_continue_need_not_send_it() -> None:
    with running(BodyLimits(echo, max_bytes=MB)) as server:
        sock = server.connect(POST + b"content-length: 1073741824\r\nexpect: 100-continue\r\n\r\n")
        status, headers, _ = read_answer(sock)
        assert status == 413
        assert headers["connection"] == "close"
        sock.close()
        sock = server.connect(POST + b"content-length: 4\r\nexpect: 100-continue\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"true")
        assert read_answer(sock)[0] == 200
        sock.close()


def test_a_client_that_sends_everything_first_reads_its_answer() -> None:
    with running(BodyLimits(echo, max_bytes=64 * KB)) as server:
        for size in (65 * KB, 300 * KB, 4 * MB):
            assert httpx.post(server.url, content=b"x" * size).status_code == 413


def test_bodies_together_are_limited_too() -> None:
    limits = BodyLimits(echo, max_bytes=MB, max_total_bytes=2 * MB + 100 * KB)
    head = POST + b"content-length: %d\r\n\r\n" % MB
    with running(limits) as server:
        held = [server.connect(head + b'"' + b"x" * (MB - 2)) for _ in range(2)]
        wait_until(lambda: limits.held_bytes == 2 * MB - 2)
        refused = httpx.post(server.url, content=b"x" * 200 * KB)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        assert httpx.post(server.url, content=b"1" * 1000).status_code == 200, "a small one still has room"
        held[0].close()
        wait_until(lambda: limits.held_bytes == MB - 1)
        assert httpx.post(server.url, content=b"1" * 200 * KB).status_code == 200
        held[1].sendall(b'"')
        assert read_answer(held[1])[0] == 200
        held[1].close()
        wait_until(lambda: limits.held_bytes == 0)


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.01)


def test_a_body_that_comes_too_slowly() -> None:
    limits = BodyLimits(echo, timeout=0.4)
    with running(limits) as server:
        sock = server.connect(POST + b"content-length: 100\r\n\r\n")
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.05):
                try:
                    sock.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        status, body = parse_answer(read_all(sock).removesuffix(b"<reset>"))
        stop.set()
        thread.join()
        assert status == 408
        assert body["error"]["code"] == "body_timeout"
        sock.close()
        wait_until(lambda: not server.connections)
        assert limits.held_bytes == 0


def test_a_client_that_leaves_in_the_middle_of_its_body() -> None:
    limits = BodyLimits(echo)
    with running(limits) as server:
        sock = server.connect(POST + b"content-length: 100\r\n\r\nabc")
        wait_until(lambda: limits.held_bytes == 3)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # with a reset
        sock.close()
        wait_until(lambda: not server.server.server_state.tasks)
        assert limits.held_bytes == 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[" * 100_000, "nested more than 64 deep"),
        (b"[" * 65 + b"]" * 65, "nested more than 64 deep"),
        (b'{"a":' * 80 + b"1" + b"}" * 80, "nested more than 64 deep"),
        (b'{"a": "\xff"}', "not valid UTF-8 at byte 7"),
        (b'{"a": "\xc3', "not valid UTF-8 at byte 7"),
        (b'{"a": "\xed\xa0\x80"}', "not valid UTF-8 at byte 7"),  # a surrogate
        ('{"a": 1}'.encode("utf-16-le"), "NUL byte at 1"),
        (b'{"a": "\x00"}', "NUL byte at 7"),
    ],
)
def test_bodies_that_no_parser_should_see(body: bytes, reason: str) -> None:
    with running(BodyLimits(echo)) as server:
        answer = httpx.post(server.url, content=body)
        assert answer.status_code == 400
        assert reason in answer.json()["error"]["message"]
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_the_deepest_that_is_allowed() -> None:
    with running(BodyLimits(echo)) as server:
        assert httpx.post(server.url, content=b"[" * 64 + b"]" * 64).status_code == 200
        assert httpx.post(server.url, content=b'{"a": "' + b"[{" * 500 + b'"}').status_code == 200


# ---- time ---------------------------------------------------------------------------------------------------


class Slow:
    """Answers after `seconds`, or streams for as long; remembers that it was cancelled."""

    def __init__(self, seconds: float, stream: bytes | None = None, size: int = 1) -> None:
        self.seconds = seconds
        self.stream = stream
        self.size = size
        self.cancelled = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self.stream is None:
                await asyncio.sleep(self.seconds)
                await echo(scope, receive, send)
                return
            headers = [(b"content-type", self.stream)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for _ in range(int(self.seconds / 0.02)):
                event = b"data: {}\n\n" * self.size
                await send({"type": "http.response.body", "body": event, "more_body": True})
                await asyncio.sleep(0.02)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def test_a_request_that_takes_too_long_gets_504() -> None:
    app = Slow(HANG)
    with running(RequestTimeout(app, 0.2)) as server:
        answer = httpx.get(server.url, timeout=HANG)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "request_timeout"
        assert answer.json()["error"]["type"] == "timeout_error"
        assert app.cancelled.wait(HANG)
        app.seconds = 0.0
        assert httpx.get(server.url).status_code == 200


def test_a_stream_that_takes_too_long_ends_with_an_error_event() -> None:
    app = Slow(HANG, b"text/event-stream; charset=utf-8")
    with running(RequestTimeout(app, 0.3)) as server:
        answer = httpx.get(server.url, timeout=HANG)
        assert answer.status_code == 200
        *events, error, done, rest = answer.text.split("\n\n")
        assert events
        assert set(events) == {"data: {}"}
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "request_timeout"
        assert done == "data: [DONE]"
        assert rest == ""
        assert app.cancelled.is_set()


def test_another_answer_that_has_begun_is_cut_off() -> None:
    """There is no way to tell within it: the connection must break, so that the client does not take it for whole."""
    app = Slow(HANG, b"application/json")
    with running(RequestTimeout(app, 0.2)) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(server.url, timeout=HANG)
        assert app.cancelled.is_set()
        wait_until(lambda: not server.connections)


def test_a_stream_that_nobody_reads_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vglm.serve.limits.SLOW_CLIENT_SECONDS", 0.2)
    app = Slow(HANG, b"text/event-stream", size=200_000)
    with running(RequestTimeout(app, 0.5), ConnectionLimits(write_timeout=HANG)) as server:
        sock = server.connect(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert app.cancelled.wait(HANG)
        wait_until(lambda: not server.connections)
        assert not server.server.server_state.tasks
        sock.close()


def test_the_time_for_the_body_counts() -> None:
    app = Slow(HANG)
    with running(RequestTimeout(BodyLimits(app, timeout=HANG), 2.0)) as server:
        sock = server.connect(POST + b"content-length: 4\r\n\r\ntr")
        time.sleep(1.5)
        sock.sendall(b"ue")
        begun = time.monotonic()
        status, _, body = read_answer(sock)
        waited = time.monotonic() - begun
        sock.close()
        assert status == 504
        assert json.loads(body)["error"]["code"] == "request_timeout"
        assert waited < 2.0, "the time began with the body's end"
        assert app.cancelled.wait(HANG)


def test_a_body_that_takes_all_the_time_there_is() -> None:
    limits = BodyLimits(echo, timeout=HANG)
    with running(RequestTimeout(limits, 0.3)) as server:
        for framing in (b"content-length: 100\r\n\r\nabc", b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"):
            sock = server.connect(POST + framing)
            status, body = parse_answer(read_all(sock).removesuffix(b"<reset>"))
            sock.close()
            assert status == 408
            assert body["error"]["code"] == "request_timeout"
        wait_until(lambda: not server.connections)
        assert limits.held_bytes == 0
        assert httpx.post(server.url, content=b"true").status_code == 200


def test_a_stream_may_say_itself_how_it_ends() -> None:
    async def endless() -> AsyncGenerator[bytes, None]:
        while True:
            yield b"event: beat\ndata: {}\n\n"
            await asyncio.sleep(0.02)

    calls: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = EventStream(
            endless(),
            lambda: calls.append("cancel"),
            lambda: calls.append("close"),
            lambda error: b"event: failed\ndata: %d\n\n" % error.status,
        )
        await stream(scope, receive, send)

    with running(RequestTimeout(app, 0.3)) as server:
        text = httpx.get(server.url, timeout=HANG).text
    assert text.startswith("event: beat\n")
    assert text.endswith("data: {}\n\nevent: failed\ndata: 504\n\n")
    assert calls == ["cancel", "close"]


def test_a_timeout_of_somebody_else_stays_what_it_is() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError("the disk")

    with running(RequestTimeout(failing, HANG)) as server:
        assert httpx.get(server.url).status_code == 500


def test_timeouts_do_not_pile_up() -> None:
    app = Slow(0.0)
    with running(RequestTimeout(app, 1.0)) as server, httpx.Client(base_url=server.url) as client:
        for _ in range(50):
            assert client.get("/").status_code == 200
        time.sleep(1.1)
        assert client.get("/").status_code == 200, "a timer of an earlier request must not hit this one"
