"""The load generator against `vglm serve` itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.test_serve_command import run
from tests.serve.server_process import ServerProcess


@pytest.fixture(scope="module")
def server(model: str) -> Iterator[ServerProcess]:
    with ServerProcess("--kv-cache-memory", "100M", "--max-model-len", "1024", model=model) as process:
        yield process
        assert process.alive, process.errors()


def measured(server: ServerProcess, *arguments: str) -> dict[str, Any]:
    status, out, err = run("--base-url", server.url, "--json", "-", *arguments)
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    assert found["figures"]["success_rate"] == 1.0, found["tables"]
    return found


def test_streams_with_every_token_and_the_servers_own_metrics(server: ServerProcess) -> None:
    found = measured(
        server, "--num-requests", "40", "--concurrency", "8", "--input-len", "2:20", "--output-len", "1:12",
        "--prefix-len", "64", "--check-tokens", "--metrics", "--priority-mix", "high:1,normal:1,low:1,7:1",
        "--goodput", "e2el:600000",
    )  # fmt: skip
    figures = found["figures"]
    assert figures["completed"] == 40
    assert figures["request_goodput"] == figures["request_throughput"]
    assert 0 < figures["mean_ttft_ms"] <= figures["mean_e2el_ms"]
    assert figures["server_scheduler_steps"] > 10
    assert 0 < figures["server_scheduler_mean_ms"] < figures["mean_e2el_ms"]
    assert figures["server_peak_resident_bytes"] > 10e6
    assert figures["server_span_cache_hit_rate"] > 0.5
    assert figures["server_preemptions"] >= 0
    classes = next(table["rows"] for table in found["tables"] if table["title"].startswith("by priority"))
    assert [row["priority"] for row in classes] == ["high", "normal", "low", "7"]


@pytest.mark.parametrize("arguments", [(), ("--no-stream",)], ids=["stream", "whole"])
def test_chat(server: ServerProcess, arguments: tuple[str, ...]) -> None:
    found = measured(
        server,
        "--endpoint",
        "chat",
        "--num-requests",
        "6",
        "--input-len",
        "5",
        "--output-len",
        "4",
        *arguments,
    )
    assert found["figures"]["total_output_tokens"] == 24
    assert found["figures"]["total_input_tokens"] >= 30  # with what the template adds


def test_a_mooncake_trace(server: ServerProcess, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 100 * i, "input_length": 700, "output_length": 3, "hash_ids": [0, i + 1]}
        for i in range(5)
    ]
    trace.write_text("\n".join(json.dumps(row) for row in rows))
    figures = measured(server, "--trace", str(trace), "--metrics")["figures"]
    assert (figures["completed"], figures["total_input_tokens"]) == (5, 3500)
    assert (
        figures["server_span_cache_hit_rate"] > 0.5
    )  # the first block of 512 tokens is that of all requests


def test_what_the_server_refuses_is_said(server: ServerProcess) -> None:
    status, _, err = run("--base-url", server.url, "--input-len", "5000")
    assert status == 2
    assert err.startswith(f"error: {server.url}: the first request, to /v1/completions, failed: HTTP 400: ")
    assert "1024" in err or "1,024" in err
    status, _, err = run("--base-url", server.url, "-m", "another")
    assert "there is no model 'another'" in err
