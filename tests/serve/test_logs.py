"""Logs: what a line says and does not say, and that nothing which happens to them reaches the server."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from engine_helpers import greedy, make_engine, prompt
from starlette.types import Receive, Scope, Send

from tests.serve.asgi_server import HANG, echo, running
from vglm.serve.access_log import AccessLog, RequestRecord
from vglm.serve.logs import LogWriter, configure_logging, log_event

log = logging.getLogger("tests.logs")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level


def lines_of(log_format: str, *calls: Any) -> list[str]:
    stream = io.StringIO()
    writer = configure_logging("debug", log_format, stream)
    for call in calls:
        call()
    assert writer.stop()
    return stream.getvalue().splitlines()


def failing() -> None:
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        log.exception("it failed")


AWKWARD = {
    "text": 'a "b"\n\x1b[31m c=d',
    "none": None,
    "empty": "",
    "é": "ü",
    "n": 3,
    "x": 0.123456789,
    "list": [1, "b"],
}


def test_json_lines() -> None:
    event, message, error = lines_of(
        "json",
        lambda: log_event(log, logging.INFO, "request", AWKWARD),
        lambda: log.warning("%d of %s", 3, "four\nfive"),
        failing,
    )
    entry = json.loads(event)
    assert entry["event"] == "request"
    assert entry["level"] == "info"
    assert entry["logger"] == "tests.logs"
    assert time.strptime(entry["ts"], "%Y-%m-%dT%H:%M:%S.%fZ")
    assert {name: entry[name] for name in AWKWARD if name in entry} == {
        name: value for name, value in AWKWARD.items() if value is not None
    }
    assert json.loads(message)["event"] == "3 of four\nfive"
    assert "ValueError: broken" in json.loads(error)["traceback"]


def test_text_lines_cannot_be_forged() -> None:
    lines = lines_of(
        "text",
        lambda: log_event(log, logging.INFO, "request", AWKWARD),
        lambda: log.warning("%s", "one\n2026-01-01T00:00:00.000Z INFO forged"),
        failing,
    )
    assert 'text="a \\"b\\"\\n\\u001b[31m c=d"' in lines[0]
    assert "none=" not in lines[0]
    assert 'empty=""' in lines[0]
    assert "x=0.123457" in lines[0]
    assert "one\\n2026-01-01" in lines[1]
    assert lines[2].endswith("it failed")
    assert all(line.startswith("    ") for line in lines[3:])
    assert any("ValueError: broken" in line for line in lines[3:])


def test_levels_and_libraries() -> None:
    stream = io.StringIO()
    writer = configure_logging("warning", "json", stream)
    log.info("quiet")
    log.warning("loud")
    logging.getLogger("uvicorn.access").info("quiet")
    logging.getLogger("uvicorn.error").error("loud too")
    writer.stop()
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud", "loud too"]


def test_what_cannot_be_formatted_is_still_told() -> None:
    class Strange:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    lines = lines_of(
        "json",
        lambda: log.warning("%d", "not a number"),
        lambda: log_event(log, logging.INFO, "e", {"a": Strange()}),
        lambda: log.warning("the next one"),
    )
    assert "not a number" in json.loads(lines[0])["event"]
    assert "could not be made" in json.loads(lines[1])["event"]
    assert json.loads(lines[2])["event"] == "the next one"


class Broken(io.StringIO):
    """A stream that fails for a while."""

    broken = True

    def write(self, text: str) -> int:
        if self.broken:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_full_disk_costs_lines_and_says_how_many() -> None:
    stream = Broken()
    writer = LogWriter(stream, "json")
    logger = logging.getLogger("tests.full")
    logger.propagate = False
    logger.handlers = [writer]
    for i in range(10):
        logger.warning("line %d", i)
    deadline = time.monotonic() + HANG
    while writer.dropped < 10:
        assert time.monotonic() < deadline
    stream.broken = False
    logger.warning("better")
    assert writer.stop()
    better, told = (json.loads(line)["event"] for line in stream.getvalue().splitlines())
    assert better == "better"
    assert told.endswith("log lines were dropped")
    assert int(told.split()[0]) >= 10


def test_a_closed_stream_is_survived() -> None:
    stream = io.StringIO()
    stream.close()
    writer = LogWriter(stream)
    writer.handle(logging.makeLogRecord({"msg": "lost"}))
    assert writer.stop()
    assert writer.dropped == 1


def test_a_blocked_stream_holds_nobody_up() -> None:
    """A pipe that nobody reads: the queue fills, lines are dropped, and the end does not wait for ever."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        writer = LogWriter(stream, "text", queue_size=100)
        for i in range(5000):
            writer.handle(logging.makeLogRecord({"msg": "x" * 1000 + str(i)}))
        assert writer.dropped >= 4000
        assert not writer.stop(timeout=0.2)
        reader = threading.Thread(target=drain, args=(read,))
        reader.start()
        assert writer.stop(HANG), "once somebody reads, everything is written"
    reader.join(HANG)


def drain(fd: int) -> None:
    with os.fdopen(fd, "rb") as file:
        file.read()


SERVER = """
import sys, logging
from tests.serve.asgi_server import echo, running
from vglm.serve.access_log import AccessLog
from vglm.serve.logs import configure_logging
import httpx
configure_logging("info", "json")
with running(AccessLog(echo)) as server, httpx.Client(base_url=server.url) as client:
    for _ in range(200):
        assert client.get("/").status_code == 200
print("served")
"""


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "2>/dev/null"])
def test_a_server_whose_stderr_is_gone_goes_on(stderr: str) -> None:
    command = f'exec "$0" -c "$1" {stderr}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, SERVER],
        capture_output=True,
        timeout=HANG,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("served\n", 0)


# ---- the access log -----------------------------------------------------------------------------------------


class Told:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.open = 0
        self.records: list[RequestRecord] = []

    def began(self, record: RequestRecord) -> None:
        self.open += 1

    def ended(self, record: RequestRecord) -> None:
        self.open -= 1
        self.records.append(record)


async def generating(scope: Scope, receive: Receive, send: Send) -> None:
    """Runs two engine requests and answers."""
    engine = make_engine()
    requests = [
        engine.add_request(str(i), prompt(9, i), greedy(4 + i, n=1 + i), priority=3) for i in range(2)
    ]
    scope["state"]["record"].add(requests)
    while engine.has_unfinished:
        engine.step()
    await echo(scope, receive, send)


def logged(
    app: Any, *requests: tuple[str, dict[str, str]], decode: Any = None
) -> tuple[list[Any], list[Any], Told]:
    """(log entries, responses, what an observer was told) of GET requests."""
    stream, told = io.StringIO(), Told()
    writer = configure_logging("info", "json", stream)
    with running(AccessLog(app, [told], decode)) as server, httpx.Client(base_url=server.url) as client:
        answers = [client.get(path, headers=headers) for path, headers in requests]
    assert writer.stop()
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [entry for entry in entries if entry["event"] == "request"], answers, told


def test_a_request_is_one_line() -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    (entry,), (answer,), told = logged(
        generating, ("/v1/x?key=secret", {"x-request-id": "my id", "traceparent": trace})
    )
    assert answer.headers["x-request-id"] == "my id"
    assert answer.json()["state"]["request_id"] == "my id"
    assert entry["request_id"] == "my id"
    assert entry["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert (entry["method"], entry["path"], entry["status"]) == ("GET", "/v1/x", 200)
    assert entry["prompt_tokens"] == 18
    assert entry["completion_tokens"] == 4 + 2 * 5
    assert entry["finish_reason"] == "length"
    assert entry["priority"] == 3
    assert 0 < entry["ttft_ms"] < entry["e2e_ms"]
    assert entry["client"].startswith("127.0.0.1:")
    assert "secret" not in json.dumps(entry)
    assert told.open == 0
    assert [record.status for record in told.records] == [200]


def test_prompts_are_logged_only_when_asked_for() -> None:
    (entry,), _, _ = logged(generating, ("/v1/x", {}))
    assert not {"prompts", "outputs"} & set(entry)
    (entry,), _, _ = logged(generating, ("/v1/x", {}), decode=lambda ids: f"<{len(ids)}>")
    assert entry["prompts"] == ["<9>", "<9>"]
    assert entry["outputs"] == ["<4>", "<5>", "<5>"]


@pytest.mark.parametrize("own", ["", " ", "x" * 129, "a\tb", "é", "a\x7fb"])
def test_an_id_that_is_not_sane_is_replaced(own: str) -> None:
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"x-request-id", own.encode("latin-1"))],
    }
    sent = sent_by(AccessLog(echo), scope)
    made = dict(sent[0]["headers"])[b"x-request-id"]
    assert len(made) == 32
    assert int(made, 16)


@pytest.mark.parametrize(
    "trace",
    [
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
    ],
)
def test_a_trace_parent_that_is_malformed_is_ignored(trace: str) -> None:
    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"traceparent", trace.encode())],
    }
    sent_by(AccessLog(echo), scope)
    assert scope["state"]["record"].trace_id is None


def sent_by(app: Any, scope: Any) -> list[Any]:
    import asyncio

    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


def test_probes_failures_and_clients_that_leave() -> None:
    async def failing_app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/gone":
            return
        if scope["path"] != "/health":
            raise ValueError("secret prompt")
        await echo(scope, receive, send)

    told = Told()
    stream = io.StringIO()
    writer = configure_logging("info", "json", stream)
    app = AccessLog(failing_app, [told])
    for path in ("/health", "/gone", "/v1/x"):
        scope: Scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        try:
            sent_by(app, scope)
        except ValueError:
            assert path == "/v1/x"
    assert writer.stop()
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(entry["path"], entry["status"], entry["level"]) for entry in entries] == [
        ("/gone", 499, "info"),
        ("/v1/x", 500, "error"),
    ]
    assert [record.status for record in told.records] == [200, 499, 500]
    assert told.open == 0
