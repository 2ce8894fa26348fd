"""`vglm bench serve` as a user runs it: a process of its own, against a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bench import peer
from tests.bench.peer import Action, Received, events, head, plain, stream
from vglm.bench import serve
from vglm.bench.serve import ServeLoad
from vglm.errors import ConfigError

COMMAND = [sys.executable, "-m", "vglm", "bench", "serve"]
SMALL = ("--num-requests", "12", "--concurrency", "3", "--input-len", "2:9", "--output-len", "2:5")


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    clean = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"}
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean | {"NO_COLOR": "1", "COLUMNS": "160"} | environment,
    )


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def refused(*arguments: str, **environment: str) -> str:
    """The one line that it ends with."""
    status, out, err = run(*arguments, **environment)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


def test_everything_at_once(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("a.json", "a.png", "a.jsonl")}
    metrics = "# HELP x y\nprocess_resident_memory_bytes 2.5e6\nvglm:num_preemptions_total 3\n"
    with peer.running(metrics=metrics) as running:
        status, out, err = run(
            *SMALL, "--base-url", running.url + "/v1/", "--goodput", "ttft:60000", "--goodput", "e2el:60000",
            "--priority-mix", "high:1,low:1", "--api-key", "secret", "--header", "X-Tenant=blue=1", "--metrics",
            "--json", str(files["a.json"]), "--plot", str(files["a.png"]), "--save-requests", str(files["a.jsonl"]),
            "--extra-body", '{"top_k": 5}', "--seed", "4", "--check-tokens",
        )  # fmt: skip
    assert (status, err) == (0, "")
    for text in ("100.00%", "TTFT", "TPOT", "ITL", "E2EL", "goodput", "high", "low", "peer-model"):
        assert text in out
    assert "secret" not in out
    assert len(running.requests) == 13  # one to warm up
    for request in running.requests:
        assert request.headers["authorization"] == "Bearer secret"
        assert request.headers["x-tenant"] == "blue=1"
        assert request.body["top_k"] == 5
    stored = json.loads(files["a.json"].read_text())
    assert "secret" not in files["a.json"].read_text()
    figures = stored["figures"]
    assert (figures["completed"], figures["failed"], figures["max_concurrent_requests"]) == (12, 0, 3)
    assert figures["request_goodput"] == figures["request_throughput"] > 0
    assert figures["p99_ttft_ms"] >= figures["median_ttft_ms"] > 0
    assert (figures["server_peak_resident_bytes"], figures["server_preemptions"]) == (2.5e6, 0)
    lines = [json.loads(line) for line in files["a.jsonl"].read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(12))
    assert sum(line["output_tokens"] for line in lines) == figures["total_output_tokens"]
    assert sum(r.body["max_tokens"] for r in running.requests[1:]) == figures["total_output_tokens"]
    assert all(len(line["itl_ms"]) == line["output_tokens"] - 1 for line in lines)
    assert files["a.png"].read_bytes().startswith(b"\x89PNG")


def test_failures_are_reported_by_reason_and_leave_a_status_of_success() -> None:
    def behave(number: int, request: Received) -> list[Action]:
        if number % 4 == 3:
            return [plain(500, b'{"error": {"message": "no luck"}}')]
        return stream(events(request)[:-1]) if number % 4 == 2 else stream(events(request))

    with peer.running(behave) as running:
        status, out, err = run(*SMALL, "--base-url", running.url, "--json", "-")
    assert (status, err) == (0, "")
    tables = {table["title"]: table["rows"] for table in json.loads(out)["tables"]}
    rows = {row["reason"]: (row["requests"], row["example"]) for row in tables["failures"]}
    assert rows == {"HTTP 500": (3, "no luck"), "no [DONE]": (3, "")}
    assert tables["requests"][0]["success_rate"] == 0.5


def test_all_failing_is_an_error() -> None:
    def behave(number: int, request: Received) -> list[Action]:
        return stream(events(request)) if number == 0 else [plain(503, b"draining", "text/plain")]

    with peer.running(behave) as running:
        status, out, err = run(*SMALL, "--base-url", running.url)
    assert status == 2
    assert err == "error: all 12 requests failed\n"
    assert "HTTP 503" in out
    assert "draining" in out


def test_ctrl_c_shows_what_was_measured_so_far() -> None:
    def behave(number: int, request: Received) -> list[Action]:
        return stream(events(request)) if number < 6 else [head(), 60.0]

    with peer.running(behave) as running:
        process = start(*SMALL, "--base-url", running.url)
        begin = time.monotonic()
        while len(running.requests) < 9 and time.monotonic() < begin + 60:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "stopped early: 5 of 12 requests had ended" in out
    assert "100.00%" in out


def test_a_server_that_dies_is_one_line_after_the_report() -> None:
    with peer.running(lambda _, r: stream(events(r), pause=0.05)) as running:
        process = start(*SMALL[2:], "--num-requests", "5000", "--base-url", running.url)
        begin = time.monotonic()
        while len(running.requests) < 9 and time.monotonic() < begin + 60:
            time.sleep(0.02)
        running.kill()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("error: the server went away after ")
    assert err.count("\n") == 1
    assert "the server went away" in out


def test_a_trace_is_replayed(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    rows = [{"timestamp": 1000 * i, "input_length": 10 * i + 10, "output_length": 4} for i in range(6)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with peer.running() as running:
        status, out, _ = run(
            "--base-url", running.url, "--trace", str(trace), "--trace-start", "1", "--trace-duration", "4",
            "--trace-speedup", "20", "--max-model-len", "50", "--trace-scale", "1", "--json", "-", "--warmups", "0",
        )  # fmt: skip
    assert status == 0
    assert [len(r.body["prompt"]) for r in running.requests] == [20, 30, 40]
    assert json.loads(out)["figures"]["completed"] == 3


def test_an_open_loop_and_words_and_whole_answers() -> None:
    with peer.running() as running:
        status, out, _ = run(
            "--base-url", running.url, "--endpoint", "chat", "--request-rate", "200", "--burstiness", "0.5",
            "--num-prompts", "8", "--max-concurrency", "2", "--no-stream", "--input-len", "5", "--json", "-",
            "--prefix-len", "3", "-m", "some-model",
        )  # fmt: skip
    assert status == 0
    found = json.loads(out)
    assert (found["figures"]["completed"], found["figures"]["total_input_tokens"]) == (8, 64)
    assert found["figures"]["mean_ttft_ms"] is None
    assert found["figures"]["mean_e2el_ms"] > 0
    assert {r.body["model"] for r in running.requests} == {"some-model"}
    assert {r.path for r in running.requests} == {"/v1/chat/completions"}


def test_a_server_that_is_not_there() -> None:
    with peer.running() as running:
        url = running.url
    assert "nobody listens there" in refused("--base-url", url)
    assert "nobody listens there" in refused("--base-url", url, "-m", "x")
    assert "is not known" in refused("--base-url", "http://no-such-host.invalid")


@pytest.mark.parametrize(
    ("fields", "arguments", "says"),
    [
        (
            {"models": b"<html>"},
            (),
            "GET /v1/models: no JSON: <html>; is this a server with OpenAI's interface?",
        ),
        ({"models": b"[1]"}, (), "lists no model"),
        ({"models": b'{"data": []}'}, (), "lists no model"),
        ({}, ("-m", "x", "--endpoint", "/wrong/completions/completions"), None),
        ({}, ("--metrics",), "--metrics: GET /metrics: HTTP 404"),
        ({"metrics": "hello"}, ("--metrics",), "not with metrics"),
    ],
)
def test_a_server_that_is_something_else(
    fields: dict[str, Any], arguments: tuple[str, ...], says: str | None
) -> None:
    with peer.running(**fields) as running:
        if says is None:
            running.behave = lambda _, r: [plain(404, b'{"detail": "Not Found"}')]
            says = "HTTP 404: Not Found; is this a server with OpenAI's interface?"
        assert says in refused("--base-url", running.url, *arguments)


def test_a_first_request_that_fails_says_why() -> None:
    with peer.running(lambda _, r: [plain(401, b'{"error": {"message": "bad key"}}')]) as running:
        assert "bad key; give a key with --api-key" in refused("--base-url", running.url)
    with peer.running(lambda _, r: [plain(400, b'{"error": {"message": "no ignore_eos"}}')]) as running:
        assert "the first request, to /v1/completions, failed: HTTP 400: no ignore_eos" in refused(
            "--base-url", running.url, OPENAI_API_KEY="k"
        )
        assert running.requests[0].headers["authorization"] == "Bearer k"
    with peer.running(lambda _, r: [head(), 60.0]) as running:
        assert "no answer within 0.3 s" in refused("--base-url", running.url, "--timeout", "0.3")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--base-url", "localhost:8000"), "no http:// or https:// address"),
        (("--endpoint", "embeddings"), "choose completions or chat"),
        (("--request-rate", "0"), "requests per second must be positive"),
        (("--request-rate", "1", "--burstiness", "-1"), "--burstiness -1"),
        (("--request-rate", "1", "--trace", "x"), "either --request-rate or --trace"),
        (("--trace", "/nonexistent/trace.csv"), "/nonexistent/trace.csv: No such file"),
        (("--trace-speedup", "0"), "--trace-speedup 0"),
        (("--trace-start", "-1"), "--trace-start -1"),
        (("--timeout", "-1"), "--timeout -1"),
        (("--input-len", "9:3"), "--input-len 9:3"),
        (("--output-len", "0"), "--output-len 0"),
        (("--goodput", "itl:3"), "--goodput itl:3"),
        (("--priority-mix", "high"), "--priority-mix high"),
        (("--extra-body", "[1]"), "--extra-body [1]: a JSON object"),
        (("--header", "x y=1"), "--header"),
        (("--api-key", "a\nb"), "--api-key"),
        (("--check-tokens", "--no-stream"), "--check-tokens"),
        (("--json", "/nonexistent/x"), "--json /nonexistent/x: cannot be written"),
        (("--plot", "/nonexistent/x.png"), "--plot /nonexistent/x.png: cannot be written"),
        (("--plot", "x.bmp"), "--plot x.bmp: the name must end in"),
        (("--save-requests", "/nonexistent/x"), "--save-requests /nonexistent/x: cannot be written"),
        (("--concurrency", "100000000", "--num-requests", "100000000"), "open files"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_options_are_refused_before_anything_is_sent(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused(*arguments)


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(name='matplotlib')")
    assert "pip install 'vglm[plot]'" in refused("--plot", str(tmp_path / "x.png"), PYTHONPATH=str(tmp_path))


def test_it_works_without_the_servers_packages(tmp_path: Path) -> None:
    """A core installation has neither uvloop nor orjson."""
    for name in ("uvloop", "orjson"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError(name='{name}')")
    with peer.running() as running:
        status, out, err = run(*SMALL, "--base-url", running.url, "--json", "-", PYTHONPATH=str(tmp_path))
    assert (status, err) == (0, "")
    assert json.loads(out)["figures"]["completed"] == 12


def test_what_a_load_is_called() -> None:
    with peer.running() as running:
        measured = serve.measure(ServeLoad(base_url=running.url, num_requests=3, output_len=(2, 2)))
        assert measured.load == "3 at once"
        assert measured.run.peak_concurrency == 3
        rate = serve.measure(
            ServeLoad(base_url=running.url, num_requests=3, request_rate=float("inf"), concurrency=2)
        )
        assert rate.load == "inf requests/s, burstiness 1, at most 2 at once"
    with pytest.raises(ConfigError, match="choose completions or chat"):
        ServeLoad(base_url=running.url, endpoint="x y")
