"""schemathesis against the server: its whole OpenAPI document, all phases, all checks, no filters.

VGLM_FUZZ_EXAMPLES is the number of examples for each operation and phase: the default keeps CI short.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.serve.server_process import ServerProcess, wait_until
from vglm.serve.openapi import EVENTS

KEY = "sk-schemathesis"
EXAMPLES = os.environ.get("VGLM_FUZZ_EXAMPLES", "25")
CONFIG = Path(__file__).with_name("schemathesis.toml")
#: Short contexts and few sequences, so that what is generated ends soon; the document says so.
OPTIONS = ("--max-model-len", "1024", "--max-num-seqs", "16", "--kv-cache-memory", "100M", "--api-key", KEY)
TOWNS = {
    "nodes": [
        {"id": "c", "name": "Chill", "type": "disease"},
        {"id": "p", "name": "Paris"},
        {"id": "f", "name": "France"},
        {"id": "s", "name": "Shivering", "type": "phenotype"},
    ],
    "edges": [
        {"source": "c", "relation": "has phenotype", "target": "s"},  # the first one: examples are made of it
        {"source": "p", "relation": "is in", "target": "f"},
    ],
}


def schemathesis(url: str, report: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{url}/openapi.json",
        "--header", f"Authorization: Bearer {KEY}", "--checks", "all", "--mode", "all", "--max-examples", EXAMPLES,
        "--continue-on-failure", "--generation-database", "none", "--no-color", "--report", "har",
        "--report-har-path", str(report),
    ]  # fmt: skip
    environment = os.environ | {"VGLM_TEST_KEY": KEY}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=3600, cwd=report.parent
    )


def answers_in(report: Path, document: dict[str, Any]) -> Counter[tuple[str, str, int, str]]:
    """How often each (path, method, status, media type) was seen."""
    seen: Counter[tuple[str, str, int, str]] = Counter()
    for entry in json.loads(report.read_text())["log"]["entries"]:
        request, response = entry["request"], entry["response"]
        path = httpx.URL(request["url"]).path
        path = _documented(path, document)
        media_type = response["content"].get("mimeType", "").split(";")[0]
        seen[path, request["method"], response["status"], media_type] += 1
    return seen


def _documented(path: str, document: dict[str, Any]) -> str:
    """The path as the document writes it."""
    if path in document["paths"]:
        return path
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    _, _, task = path.removeprefix("/v1/graphs/").partition("/")
    pattern = "/v1/graphs/{graph}" + (f"/{task}" if task else "")
    return pattern if path.startswith("/v1/graphs/") and pattern in document["paths"] else path


def test_the_document_is_true(tmp_path: Path) -> None:
    report, graph = tmp_path / "requests.har", tmp_path / "towns.json"
    graph.write_text(json.dumps(TOWNS))
    names = (f"--graph={name}={graph}" for name in ("towns", "spare"))
    graphs = ("--graph-store", str(tmp_path / "graphs.db"), *names)
    with ServerProcess(*OPTIONS, *graphs) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        http.headers["authorization"] = f"Bearer {KEY}"
        document = http.get("/openapi.json").json()
        done = schemathesis(server.url, report)
        assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
        operations = sum(len(methods) for methods in document["paths"].values())
        assert f"Tested: {operations}" in done.stdout, done.stdout
        for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
            assert f"✅ {phase}" in done.stdout, done.stdout
        seen = answers_in(report, document)
        for path, methods in document["paths"].items():
            for method in methods:
                assert any(seen[path, method.upper(), 200, kind] for kind in _kinds(path)), (method, path)
        for path in EVENTS:
            assert seen[path, "POST", 200, "text/event-stream"], f"{path} was never streamed"
            assert seen[path, "POST", 200, "application/json"], f"{path} was only streamed"
        assert not any(status >= 500 for _, _, status, _ in seen)
        assert server.alive
        assert http.get("/health").json() == {"status": "ok"}
        wait_until(lambda: http.get("/load").json()["num_requests_running"] == 0, what="an idle engine")
        assert http.get("/load").json()["kv_cache_usage"] == 0


def _kinds(path: str) -> tuple[str, ...]:
    return ("text/plain",) if path == "/metrics" else ("application/json",)
