"""Metrics: names and labels that dashboards know, numbers that are the engine's own, and reading while they change."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from engine_helpers import drain, generate, greedy, make_engine, prompt
from prometheus_client.parser import text_string_to_metric_families

from tests.serve.asgi_server import echo, running
from vglm.engine.core import EngineCore
from vglm.engine.metrics import Histogram
from vglm.serve.access_log import AccessLog
from vglm.serve.admission import Admission
from vglm.serve.engine_thread import EngineThread
from vglm.serve.http_metrics import HttpMetrics
from vglm.serve.metrics import EngineCollector, new_registry, render

#: What vLLM's dashboards query (grafana.json, overview, KV cache, query and performance statistics, service status), without
#: what only speculative decoding, KV transfer and multimodal models have.
VLLM_NAMES = [
    "cache_config_info", "e2e_request_latency_seconds_bucket", "e2e_request_latency_seconds_count",
    "e2e_request_latency_seconds_sum", "engine_sleep_state", "generation_tokens_total",
    "gpu_cache_usage_perc", "inter_token_latency_seconds_bucket", "inter_token_latency_seconds_count",
    "inter_token_latency_seconds_sum", "iteration_tokens_total_bucket", "iteration_tokens_total_count",
    "iteration_tokens_total_sum", "kv_cache_usage_perc", "num_preemptions_total", "num_requests_running",
    "num_requests_waiting", "num_requests_waiting_by_reason", "prefix_cache_hits_total",
    "prefix_cache_queries_total", "prompt_tokens_by_source_total", "prompt_tokens_cached_total",
    "prompt_tokens_total", "request_decode_time_seconds_count", "request_decode_time_seconds_sum",
    "request_generation_tokens_bucket", "request_generation_tokens_count", "request_generation_tokens_sum",
    "request_inference_time_seconds_bucket", "request_max_num_generation_tokens_sum",
    "request_params_max_tokens_bucket", "request_params_n_bucket", "request_prefill_time_seconds_count",
    "request_prefill_time_seconds_sum", "request_prompt_tokens_bucket", "request_prompt_tokens_count",
    "request_prompt_tokens_sum", "request_queue_time_seconds_bucket", "request_queue_time_seconds_count",
    "request_queue_time_seconds_sum", "request_success_total",
    "request_time_per_output_token_seconds_bucket", "time_per_output_token_seconds_bucket",
    "time_to_first_token_seconds_bucket", "time_to_first_token_seconds_count",
    "time_to_first_token_seconds_sum",
]  # fmt: skip


def collector(engine: EngineCore, prefix: str = "vglm", **options: Any) -> EngineCollector:
    options.setdefault("stats", engine.stats)
    return EngineCollector(
        model_name="tiny",
        prefix=prefix,
        metrics=lambda: engine.metrics,
        alive=lambda: True,
        **options,
    )


Samples = dict[str, list[tuple[dict[str, str], float]]]


def scrape(*collectors: Any) -> Samples:
    """Sample name -> [(labels, value)], through the text and a parser of it."""
    body, _ = render(new_registry(*collectors))
    samples: Samples = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    (found,) = [v for own, v in samples[name] if labels.items() <= own.items()]
    return found


@pytest.fixture
def busy_engine() -> Iterator[EngineCore]:
    """An engine that has finished some requests and has others in every state."""
    engine = make_engine(max_num_seqs=2, max_num_batched_tokens=16)
    generate(engine, [prompt(9), prompt(20, 1), prompt(9)], greedy(5))
    for i in range(5):
        engine.add_request(f"open{i}", prompt(9, 5 + i), greedy(8), priority="low" if i > 2 else "normal")
    engine.abort("open0")
    for _ in range(3):
        engine.step()
    yield engine
    drain(engine)


def test_every_name_that_vllm_dashboards_query(busy_engine: EngineCore) -> None:
    samples = scrape(collector(busy_engine, "vllm", facts={"block_size": "4"}))
    missing = [name for name in VLLM_NAMES if f"vllm:{name}" not in samples]
    assert missing == []
    for name in VLLM_NAMES:
        for labels, _ in samples[f"vllm:{name}"]:
            assert labels["model_name"] == "tiny"
            assert labels["engine"] == "0"
    for name in ("process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"):
        assert value(samples, name) > 0
    assert value(samples, "vllm:engine_sleep_state", sleep_state="awake") == 1
    assert {labels["reason"] for labels, _ in samples["vllm:num_requests_waiting_by_reason"]} == {
        "capacity",
        "deferred",
    }


def test_numbers_are_the_engines(busy_engine: EngineCore) -> None:
    engine, samples = busy_engine, scrape(collector(busy_engine))
    metrics, stats = engine.metrics, engine.stats()
    assert not [name for name in samples if name.startswith("vllm")]
    assert value(samples, "vglm:num_requests_running") == stats.num_requests_running == 2
    assert value(samples, "vglm:num_requests_waiting") == stats.num_requests_waiting == 2
    by_class = {labels["class"]: v for labels, v in samples["vglm:num_requests_waiting_by_class"]}
    assert by_class == stats.num_waiting_by_class
    assert sum(by_class.values()) == 2
    assert value(samples, "vglm:generation_tokens_total") == metrics.generation_tokens
    assert value(samples, "vglm:prompt_tokens_total") == metrics.prompt_tokens + metrics.prompt_tokens_cached
    assert (
        value(samples, "vglm:prompt_tokens_by_source_total", source="local_compute") == metrics.prompt_tokens
    )
    assert value(samples, "vglm:request_success_total", finished_reason="length") == 3
    assert value(samples, "vglm:request_success_total", finished_reason="abort") == 1
    assert value(samples, "vglm:request_success_total", finished_reason="error") == 0
    assert value(samples, "vglm:prefix_cache_hits_total") == engine.cache.stats.hits
    assert value(samples, "vglm:engine_steps_total") == metrics.num_steps
    assert value(samples, "vglm:engine_step_seconds_total", phase="execute") == metrics.execute_time
    blocks = {labels["state"]: v for labels, v in samples["vglm:kv_cache_blocks"]}
    assert sum(blocks.values()) == engine.pool.num_blocks
    assert value(samples, "vglm:kv_cache_usage_perc") == blocks["active"] / engine.pool.num_blocks
    assert 0 < value(samples, "vglm:kv_cache_internal_fragmentation") < 1
    by_class_time = samples["vglm:request_queue_time_by_class_seconds_count"]
    assert sum(v for _, v in by_class_time) == value(samples, "vglm:request_queue_time_seconds_count")


def test_a_histogram_is_told_as_prometheus_wants_it(busy_engine: EngineCore) -> None:
    histogram = Histogram((0.01, 0.5, 2.0))
    for seconds in (0.001, 0.01, 0.4, 1.0, 9.0, 9.0):
        histogram.observe(seconds)
    busy_engine.metrics.time_to_first_token = histogram
    samples = scrape(collector(busy_engine))
    buckets = [(labels["le"], v) for labels, v in samples["vglm:time_to_first_token_seconds_bucket"]]
    assert buckets == [("0.01", 2), ("0.5", 3), ("2.0", 4), ("+Inf", 6)]
    assert value(samples, "vglm:time_to_first_token_seconds_count") == 6
    assert value(samples, "vglm:time_to_first_token_seconds_sum") == pytest.approx(19.411)


def test_the_controllers_state(busy_engine: EngineCore) -> None:
    state = {"token_budget": 512, "max_running": 8.0, "ttft_target_seconds": None}
    samples = scrape(collector(busy_engine, controller=lambda: state))
    assert value(samples, "vglm:controller_token_budget") == 512
    assert value(samples, "vglm:controller_max_running") == 8
    assert "vglm:controller_ttft_target_seconds" not in samples


def test_reading_while_the_engine_runs() -> None:
    """Histograms stay consistent and counters never go back, whatever the engine's thread does meanwhile."""
    engine = make_engine(num_blocks=256, max_num_seqs=8)
    stop = threading.Event()

    def run() -> None:
        i = 0
        while not stop.is_set():
            while len(engine.requests) < 20:
                engine.add_request(f"{i}", prompt(5 + i % 7, i % 3), greedy(3), priority=i % 5)
                i += 1
            engine.step()

    thread = threading.Thread(target=run)
    thread.start()
    last: dict[str, float] = {}
    try:
        source = collector(engine, stats=EngineThread(engine).stats)
        deadline = time.monotonic() + 2.0
        scrapes = 0
        while time.monotonic() < deadline:
            scrapes += 1
            for family in source.collect():
                for sample in family.samples:
                    key = f"{sample.name}{sorted(sample.labels.items())}"
                    if family.type in ("counter", "histogram"):
                        assert sample.value >= last.get(key, 0.0), key
                        last[key] = sample.value
                    if sample.name.endswith("_bucket") and sample.labels["le"] == "+Inf":
                        top = sample.value
                    if family.type == "histogram" and sample.name.endswith("_count"):
                        assert sample.value == top
    finally:
        stop.set()
        thread.join()
    assert scrapes > 3
    assert last["vglm:generation_tokens_total[('engine', '0'), ('model_name', 'tiny')]"] > 0


def http_metrics(prefix: str = "vglm", **options: Any) -> HttpMetrics:
    return HttpMetrics(prefix=prefix, paths={"/v1/completions", "/health"}, **options)


def test_http_requests_by_path_and_status() -> None:
    metrics = http_metrics("vllm")
    with running(AccessLog(echo, [metrics])) as server, httpx.Client(base_url=server.url) as client:
        for path in ("/v1/completions", "/v1/completions", "/health", "/made/up/1", "/made/up/2"):
            client.get(path)
        client.post("/v1/completions", json={})
    samples = scrape(metrics)
    by_path = {(o["method"], o["path"], o["status"]): v for o, v in samples["vllm:http_requests_total"]}
    assert by_path == {
        ("GET", "/v1/completions", "200"): 2,
        ("POST", "/v1/completions", "200"): 1,
        ("GET", "/health", "200"): 1,
        ("GET", "other", "200"): 2,
    }
    assert value(samples, "vllm:http_request_duration_seconds_count", path="/v1/completions") == 3
    assert value(samples, "http_requests_total", handler="/v1/completions", method="GET", status="2xx") == 2
    assert value(samples, "http_request_duration_seconds_count", handler="/v1/completions") == 3
    assert not [own for own, _ in samples["http_requests_total"] if own["handler"] == "/health"]
    assert value(samples, "vllm:http_requests_open") == 0
    assert value(samples, "vllm:build_info") == 1


def test_requests_and_streams_that_are_open() -> None:
    metrics = http_metrics()
    seen: list[tuple[float, float]] = []

    async def streaming(scope: Any, receive: Any, send: Any) -> None:
        def look() -> None:
            samples = scrape(metrics)
            seen.append((value(samples, "vglm:http_requests_open"), value(samples, "vglm:http_streams_open")))

        look()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        look()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    with running(AccessLog(streaming, [metrics])) as server:
        assert httpx.get(server.url).text == "a"
    samples = scrape(metrics)
    assert [*seen, (value(samples, "vglm:http_requests_open"), value(samples, "vglm:http_streams_open"))] == [
        (1, 0),
        (1, 1),
        (0, 0),
    ]


def test_what_stands_around_the_endpoints() -> None:
    admission = Admission(2, 3)
    tickets = [admission.admit() for _ in range(4)]
    admission.refused["queue_full"] = 7
    metrics = http_metrics(
        admission=admission,
        connections=lambda: 11,
        refused_connections={503: 2, 408: 1},
        held_body_bytes=lambda: 1234,
        dropped_log_lines=lambda: 5,
    )
    samples = scrape(metrics)
    assert value(samples, "vglm:requests_refused_total", reason="queue_full") == 7
    assert value(samples, "vglm:requests_admitted") == len(tickets)
    assert value(samples, "vglm:requests_admitted_max") == 5
    assert value(samples, "vglm:draining") == 0
    assert value(samples, "vglm:connections_open") == 11
    assert value(samples, "vglm:connections_refused_total", status="503") == 2
    assert value(samples, "vglm:http_body_bytes_held") == 1234
    assert value(samples, "vglm:log_lines_dropped_total") == 5


def test_the_text_is_of_a_kind_that_every_scraper_reads() -> None:
    body, content_type = render(new_registry(collector(make_engine())))
    assert content_type.startswith("text/plain; version=0.0.4")
    assert b"# TYPE vglm:num_requests_running gauge\n" in body
    assert b"# TYPE vglm:generation_tokens_total counter\n" in body
    assert b"# TYPE vglm:iteration_tokens_total histogram\n" in body
