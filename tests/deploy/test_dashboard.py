"""The dashboard and the alerts: every query runs in a real Prometheus that scrapes real servers with traffic."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.serve.server_process import MODEL, ServerProcess

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
sys.path.insert(0, str(GRAFANA))

import make_dashboard  # noqa: E402

HANG = 120.0  # seconds after which data that has not come does not come
PREFIXES = ("vglm", "vllm")
SUBSTITUTES = {
    "$job": ".*",
    "$instance": ".*",
    "$model_name": MODEL,
    "$__rate_interval": "30s",
    "$__range": "30s",
}
METRIC = re.compile(r"\b(?:vglm:|vllm:|process_|python_|http_)[a-z0-9_]+")


def queries(prefix: str) -> list[str]:
    """Every expression of the dashboard."""
    panels = make_dashboard.dashboard(prefix)["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def test_the_dashboard_is_what_its_source_says() -> None:
    assert json.loads((GRAFANA / "vglm.json").read_text()) == make_dashboard.dashboard(), (
        "run: python deploy/grafana/make_dashboard.py"
    )


def test_panels_have_places_and_say_what_they_show() -> None:
    panels = make_dashboard.dashboard()["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < make_dashboard.WIDTH
        taken |= cells
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"].endswith(".")
            assert panel["targets"]
    titles = [panel["title"] for panel in panels]
    assert len(set(titles)) == len(titles)


# ---- against a real Prometheus ------------------------------------------------------------------------------


class Traffic:
    """Requests of every kind to a server, until it is stopped."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.stopped = threading.Event()
        self.failure: Exception | None = None
        work = (self._complete, self._complete, self._stream, self._flood, self._mistakes, self._garbage)
        self.threads = [threading.Thread(target=self._repeat, args=(one, i)) for i, one in enumerate(work)]

    def _repeat(self, one: Callable[[httpx.Client, int], None], number: int) -> None:
        try:
            with httpx.Client(base_url=self.server.url, timeout=HANG) as client:
                while not self.stopped.wait(0.02):
                    one(client, number)
        except Exception as error:
            self.failure = error

    def _complete(self, client: httpx.Client, number: int) -> None:
        priority = ("high", "normal", "low")[int(time.monotonic() * 10) % 3]
        body = {
            "prompt": "The graph of all " * 20,
            "max_tokens": 12,
            "n": 1 + number % 2,
            "priority": priority,
        }
        client.post("/v1/completions", json=body).raise_for_status()

    def _stream(self, client: httpx.Client, number: int) -> None:
        body = {
            "prompt": f"Numbers: {time.monotonic()}",
            "max_tokens": 30,
            "stream": True,
            "ignore_eos": True,
        }
        with client.stream("POST", "/v1/completions", json=body) as answer:
            for _ in answer.iter_lines():
                continue

    def _flood(self, client: httpx.Client, number: int) -> None:
        body = {"prompt": [f"Once {i}" for i in range(40)], "max_tokens": 8}
        client.post("/v1/completions", json=body)
        time.sleep(0.5)

    def _mistakes(self, client: httpx.Client, number: int) -> None:
        assert client.post("/v1/completions", json={"prompt": 1.5}).status_code == 400
        assert client.get("/made/up").status_code == 404
        time.sleep(0.2)

    def _garbage(self, client: httpx.Client, number: int) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=HANG) as sock:
            sock.sendall(b"NONSENSE\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 400")
        time.sleep(0.5)

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(HANG)


class Prometheus:
    """Prometheus with the configuration that ships, at other addresses and with shorter intervals."""

    def __init__(self, binary: str, folder: Path, targets: list[str]) -> None:
        config = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
        for old, new in (
            ('"127.0.0.1:8000"', ", ".join(f'"{target}"' for target in targets)),
            ("scrape_interval: 5s", "scrape_interval: 1s"),
            ("evaluation_interval: 15s", "evaluation_interval: 1s"),
            ("rules.yml", str(ROOT / "deploy/prometheus/rules.yml")),
        ):
            assert config.count(old) == 1, f"prometheus.yml no longer says {old}"
            config = config.replace(old, new)
        (folder / "prometheus.yml").write_text(config)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.client = httpx.Client(base_url=f"http://{self.address}/api/v1", timeout=HANG)
        self.traffic: tuple[Traffic, ...] = ()
        self.log = (folder / "prometheus.log").open("w+")
        self.process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={self.address}",
            ],
            stdout=self.log,
            stderr=self.log,
        )

    def ready(self) -> bool:
        """Whether it answers."""
        assert self.process.poll() is None, Path(self.log.name).read_text()
        try:
            return httpx.get(f"http://{self.address}/-/ready").status_code == 200
        except httpx.ConnectError:
            return False

    def query(self, expression: str) -> list[Any]:
        """The series of an expression, now. A malformed one is an AssertionError."""
        answer = self.client.get("/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        found: list[Any] = answer["data"]["result"]
        return found

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(HANG)
        self.client.close()
        self.log.close()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, ServerProcess]]:
    """A server for each prefix of metrics."""
    options = ("--max-queue", "60", "--ttft-target-ms", "500", "--itl-target-ms", "50", "--threads", "1")
    vglm = ServerProcess(*options, "--metrics-prefix", "vglm")
    with vglm, ServerProcess(*options, "--metrics-prefix", "vllm") as vllm:
        yield {"vglm": vglm, "vllm": vllm}


@pytest.fixture(scope="module")
def prometheus(
    servers: dict[str, ServerProcess], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Prometheus, while it scrapes servers that have traffic."""
    binary = shutil.which("prometheus")
    if binary is None:
        message = "Prometheus is not installed (Debian: apt-get install prometheus)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    targets = [f"127.0.0.1:{server.port}" for server in servers.values()]
    made = Prometheus(binary, tmp_path_factory.mktemp("prometheus"), targets)
    try:
        wait_until(made.ready, "Prometheus does not start")
        with Traffic(servers["vglm"]) as one, Traffic(servers["vllm"]) as other:
            made.traffic = (one, other)
            yield made
    finally:
        made.stop()


def substituted(expression: str) -> str:
    for name, value in SUBSTITUTES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, f"a variable is left in {expression}"
    return expression


def await_data(prometheus: Prometheus, expressions: Iterable[str]) -> None:
    """Until every expression gives a number."""
    deadline = time.monotonic() + HANG
    empty = list(expressions)
    while empty := [query for query in empty if not has_data(prometheus.query(substituted(query)))]:
        assert time.monotonic() < deadline, "no data for:\n" + "\n".join(empty)
        for traffic in prometheus.traffic:
            assert traffic.failure is None, f"the server does not do its work: {traffic.failure!r}"
        time.sleep(0.5)


def has_data(found: list[Any]) -> bool:
    return any(series["value"][1] != "NaN" for series in found)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_query_has_data(prefix: str, prometheus: Prometheus, servers: dict[str, ServerProcess]) -> None:
    wanted = dict.fromkeys(queries(prefix))
    assert len(wanted) > 60
    await_data(prometheus, wanted)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_metric_of_the_dashboard_is_exposed(prefix: str, servers: dict[str, ServerProcess]) -> None:
    exposed = httpx.get(servers[prefix].url + "/metrics").text
    names = {line.split("{")[0].split(" ")[0] for line in exposed.splitlines() if not line.startswith("#")}
    asked = {name for query in queries(prefix) for name in METRIC.findall(query)} - {f"{prefix}:controller_"}
    assert len(asked) > 50
    assert asked - names == set()


def test_every_metric_is_explained(servers: dict[str, ServerProcess]) -> None:
    exposed = httpx.get(servers["vglm"].url + "/metrics").text
    names = set(re.findall(r"^# HELP vglm:(\S+)", exposed, re.MULTILINE))
    explained = set(re.findall(r"`([a-z0-9_*]+)`", (ROOT / "docs" / "operations.md").read_text()))
    assert len(names) > 40
    assert {name for name in names - explained if not name.startswith("controller_")} == set()


def test_the_variables_of_the_dashboard(prometheus: Prometheus, servers: dict[str, ServerProcess]) -> None:
    def instances() -> set[str]:
        found = prometheus.query('{__name__=~"v[gl]lm:num_requests_running"}')
        assert all(series["metric"]["job"] == "vglm" for series in found)
        assert all(series["metric"]["model_name"] == MODEL for series in found)
        return {series["metric"]["instance"] for series in found}

    wait_until(lambda: len(instances()) == 2, "both servers are scraped")
    assert instances() == {f"127.0.0.1:{server.port}" for server in servers.values()}


def test_alerts_are_evaluated_and_quiet(prometheus: Prometheus) -> None:
    def rules() -> list[Any]:
        groups = prometheus.client.get("/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] == "ok" for rule in rules()), "every rule is evaluated")
    assert len(rules()) == 6
    for rule in rules():
        assert not rule.get("lastError")
        assert rule["state"] != "firing", rule["name"]
        metrics = METRIC.findall(rule["query"])
        assert metrics or "up{" in rule["query"]
        for name in metrics:
            assert prometheus.query(name), f"{name} of the alert {rule['name']} does not exist"


#: The shapes of vLLM's own dashboards: the labels they select and group by.
VLLM_QUERIES = [
    'histogram_quantile(0.9, sum by(le) (rate(vllm:e2e_request_latency_seconds_bucket{model_name="$model_name"}[1m])))',
    'rate(vllm:time_to_first_token_seconds_sum{model_name="$model_name"}[$__rate_interval])',
    'sum by(finished_reason) (increase(vllm:request_success_total{model_name="$model_name"}[$__rate_interval]))',
    'sum by(le) (increase(vllm:request_prompt_tokens_bucket{model_name="$model_name"}[$__rate_interval]))',
    'vllm:num_requests_waiting{model_name="$model_name"}',
    'vllm:gpu_cache_usage_perc{model_name="$model_name"}',
    'max by (instance, engine) (vllm:kv_cache_usage_perc{job=~"$job", engine=~".*"})',
    'sum(vllm:num_requests_waiting_by_reason{reason="capacity"})',
    'sum(rate(vllm:time_to_first_token_seconds_bucket{le="0.25"}[$__rate_interval]))',
    'sum(rate(vllm:request_time_per_output_token_seconds_bucket{le="0.05"}[$__rate_interval]))',
    'sum(rate(vllm:prompt_tokens_by_source_total{source="local_compute"}[$__rate_interval]))',
    '(2 - (max(vllm:engine_sleep_state{sleep_state="awake"}) == bool 0)) == 2',
    'sum by (status) (rate(http_requests_total{job=~"$job"}[$__rate_interval]))',
    'sum by (handler) (rate(http_request_duration_seconds_sum{handler="/v1/completions"}[$__rate_interval]))',
]  # fmt: skip


def test_queries_of_vllms_dashboards(prometheus: Prometheus) -> None:
    await_data(prometheus, VLLM_QUERIES)
