"""Faults and hostile clients, against real servers: nothing hangs, nothing leaks, other requests are untouched."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.server_process import ServerProcess, wait_until

QUESTION = {"prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
LONG = {
    "prompt": "Once upon a time",
    "max_tokens": 3000,
    "temperature": 0,
    "ignore_eos": True,
    "stream": True,
}
TRICKLED = 400  # tokens of a stream that is read at a trickle
PATIENCE = 120.0  # seconds after which something hangs


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--header-timeout", "3", "--max-num-seqs", "16") as process:
        yield process


@pytest.fixture(scope="module")
def expected(server: ServerProcess) -> str:
    """What an undisturbed request gets."""
    return complete(server)


def complete(server: ServerProcess, **fields: Any) -> str:
    answer = httpx.post(f"{server.url}/v1/completions", json={**QUESTION, **fields}, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def request_bytes(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(content) + content


def connect(server: ServerProcess, receive_buffer: int | None = None) -> socket.socket:
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(PATIENCE)
    sock.connect(("127.0.0.1", server.port))
    return sock


def active(server: ServerProcess) -> int:
    load: int = httpx.get(f"{server.url}/load", timeout=PATIENCE).json()["server_load"]
    return load


def metric(server: ServerProcess, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text
    values = [
        line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith((name + "{", name + " "))
    ]
    assert values, f"no metric {name}"
    return sum(map(float, values))


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_client_that_goes_frees_its_blocks_long_before_its_answer_would_be_complete(
    server: ServerProcess, expected: str, how: str
) -> None:
    before = metric(server, "vglm:generation_tokens_total")
    with contextlib.ExitStack() as clients:
        socks = [clients.enter_context(contextlib.closing(connect(server))) for _ in range(8)]
        for sock in socks:
            sock.sendall(request_bytes(LONG))
        for sock in socks:
            assert b"200 OK" in sock.recv(4096)
        assert active(server) == 8
        for sock in socks:
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
    wait_until(lambda: active(server) == 0)
    wait_until(lambda: metric(server, "vglm:kv_cache_usage_perc") == 0)
    assert metric(server, "vglm:generation_tokens_total") - before < 8 * LONG["max_tokens"] / 2
    assert complete(server) == expected


def test_a_client_that_waits_for_a_whole_answer_and_goes_ends_it_too(server: ServerProcess) -> None:
    with connect(server) as sock:
        sock.sendall(request_bytes({**LONG, "stream": False}))
        wait_until(lambda: active(server) == 1)
    wait_until(lambda: active(server) == 0)
    wait_until(lambda: metric(server, "vglm:kv_cache_usage_perc") == 0)


def test_a_reader_that_trickles_holds_up_nobody_and_gets_everything(server: ServerProcess) -> None:
    body = {**LONG, "max_tokens": TRICKLED, "stream_options": {"include_usage": True}}
    whole = "".join(texts(httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE).text))
    with connect(server, receive_buffer=2048) as sock:
        sock.sendall(request_bytes(body))
        received = bytearray()
        for _ in range(20):  # a byte now and then, while others are served
            received += sock.recv(1)
            assert complete(server, max_tokens=2)
        # The engine does not wait for the reader.
        wait_until(lambda: metric(server, "vglm:num_requests_running") == 0, PATIENCE)
        wait_until(lambda: metric(server, "vglm:kv_cache_usage_perc") == 0)
        while b"data: [DONE]" not in received:
            part = sock.recv(65536)
            assert part, "the stream ended before its end"
            received += part
    assert "".join(texts(received.decode())) == whole


def texts(stream: str) -> list[str]:
    """The text of each event of a stream, chunked encoding or not."""
    events = [line[6:] for line in stream.splitlines() if line.startswith("data: {")]
    return [choice["text"] for event in events for choice in json.loads(event)["choices"]]


def test_ten_thousand_silent_connections_are_closed_and_others_are_served(
    server: ServerProcess, expected: str
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, hard - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 500), hard))
    files = server.open_files()
    memory = server.resident_bytes()
    try:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(server)) for _ in range(count)]
            assert complete(server) == expected
            assert server.resident_bytes() - memory < count * 40_000
            for sock in socks:
                answer = sock.recv(4096)  # told why, or just closed
                assert answer == b"" or answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 503"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_until(lambda: server.open_files() <= files + 10, what="closing of silent connections")
    assert complete(server) == expected


LARGE_STEP = {"prompt": [[7 + i] * 8000 for i in range(8)], "max_tokens": 1}  # one of 64,000 tokens


@contextlib.contextmanager
def memory_is_out(server: ServerProcess) -> Iterator[None]:
    """The server gets no more than another megabyte."""
    pid = server.process.pid
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * 4096
    unlimited = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (used + (1 << 20), unlimited[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_AS, unlimited)


def test_memory_that_cannot_be_had_fails_one_request_and_no_later_one(expected: str) -> None:
    with ServerProcess("--max-num-batched-tokens", "65536") as server:
        assert complete(server) == expected
        with memory_is_out(server):
            failed = httpx.post(f"{server.url}/v1/completions", json=LARGE_STEP, timeout=PATIENCE)
        assert failed.status_code >= 500, "the limit was too wide for this test to mean anything"
        assert failed.json()["error"]["message"]
        assert complete(server) == expected
        assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_a_stream_in_a_step_that_fails_ends_with_an_error(expected: str, path: str) -> None:
    body: dict[str, Any] = {"stream": True, "ignore_eos": True, "temperature": 0}
    if path == "/v1/responses":
        body |= {"input": "Once upon a time", "max_output_tokens": 3000}
    else:
        body |= {"prompt": "Once", "messages": [{"role": "user", "content": "Once"}], "max_tokens": 3000}
    with (
        ServerProcess("--max-num-batched-tokens", "65536") as server,
        httpx.stream("POST", f"{server.url}{path}", json=body, timeout=PATIENCE) as answer,
    ):
        lines = answer.iter_lines()
        seen = [next(lines) for _ in range(12)]
        with memory_is_out(server):
            failed = httpx.post(f"{server.url}/v1/completions", json=LARGE_STEP, timeout=PATIENCE)
        assert failed.status_code >= 500, "the limit was too wide for this test to mean anything"
        seen += list(lines)
        events = [json.loads(line[6:]) for line in seen if line.startswith("data: {")]
        if path == "/v1/responses":
            kinds = [event["type"] for event in events]
            assert kinds[-4:] == [
                *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
                "response.failed",
            ]
            response = events[-1]["response"]
            assert response["error"]["message"].startswith("the request failed: ")
            assert [item["status"] for item in response["output"]] == ["incomplete"]
            assert [event["sequence_number"] for event in events] == list(range(len(events)))
        else:
            assert events[-1]["error"]["message"].startswith("the request failed: ")
            assert [line for line in seen if line][-1] == "data: [DONE]"
        assert complete(server) == expected


def test_a_full_disk_under_the_log_stops_nothing(expected: str) -> None:
    with open("/dev/full", "w") as full, ServerProcess("--log-format", "json", stderr=full) as server:
        for _ in range(20):
            assert complete(server) == expected
        assert httpx.post(f"{server.url}/v1/completions", content=b"{").status_code == 400


HOSTILE: dict[str, dict[str, Any]] = {
    "a token id beyond the vocabulary": {"prompt": [1 << 30]},
    "a negative token id": {"prompt": [-1]},
    "a huge token id": {"prompt": [1 << 70]},
    "a prompt over the limit": {"prompt": [7] * 9000},
    "an absurd n": {"prompt": "x", "n": 1 << 40},
    "an n over the sequences at once": {"prompt": "x", "n": 100},
    "a temperature that is no number": {"prompt": "x", "temperature": "hot"},
    "a stop list of a thousand": {"prompt": "x", "stop": ["a"] * 1000},
    "an invalid regex": {"prompt": "x", "structured_outputs": {"regex": "(a"}},
    "a schema that refers to itself without end": {
        "prompt": "x",
        "structured_outputs": {"json": {"$ref": "#"}},
    },
    "lone surrogates": {"prompt": "\ud800"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_refused_with_a_reason(server: ServerProcess, expected: str, name: str) -> None:
    content = json.dumps(HOSTILE[name])  # escapes what is no UTF-8
    answer = httpx.post(f"{server.url}/v1/completions", content=content, timeout=PATIENCE)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert complete(server) == expected


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"\xff\xfe{}", 400),
        (b'{"prompt": "\xff"}', 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
        (b"null", 400),
        (b'{"prompt": "x", "temperature": NaN}', 400),
        (b'{"prompt": "x", "max_tokens": 1e400}', 400),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", 400),
        (b"x" * (33 << 20), 413),
    ],
)
def test_bytes_that_are_no_request(server: ServerProcess, expected: str, content: bytes, status: int) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", content=content, timeout=PATIENCE)
    assert answer.status_code == status, answer.text[:300]
    assert answer.json()["error"]["message"]
    assert complete(server) == expected


def test_a_body_of_a_gigabyte_is_refused_unread(server: ServerProcess, expected: str) -> None:
    memory = server.resident_bytes()
    with connect(server) as sock:
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 1000000000\r\n\r\n" + b" " * 100_000
        )
        assert sock.recv(4096).startswith(b"HTTP/1.1 413")
    with connect(server) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        sent = 0
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        with contextlib.suppress(OSError):  # it hangs up in the middle, as it should
            while sent < 1000:
                sock.sendall(chunk)
                sent += 1
        assert sent < 200
    assert server.resident_bytes() - memory < 100 << 20
    assert complete(server) == expected


def test_many_clients_at_once_disturb_nobody(server: ServerProcess, expected: str) -> None:
    """Equal requests among hostile ones: each gets exactly what it gets alone."""
    wrong: list[str] = []

    def ask() -> None:
        for _ in range(4):
            text = complete(server)
            if text != expected:
                wrong.append(text)

    def harm() -> None:
        for body in (LONG, {**LONG, "prompt": [1 << 30]}):
            with connect(server) as sock:
                sock.sendall(request_bytes(body))
                sock.recv(256)
                time.sleep(0.05)

    threads = [threading.Thread(target=f) for f in (ask, harm, ask, harm, ask, harm, ask, ask)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a request hangs"
    assert not wrong
    wait_until(lambda: active(server) == 0)
