"""Traces: a real collector receives real OTLP, and one that is away costs nobody anything."""

from __future__ import annotations

import builtins
import gzip
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from engine_helpers import drain, greedy, make_engine, prompt

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from starlette.types import Receive, Scope, Send

from tests.serve.asgi_server import HANG, echo, running
from vglm.decode.sampling_params import SamplingParams
from vglm.errors import ConfigError
from vglm.serve.access_log import AccessLog
from vglm.serve.tracing import Tracing, traces_url

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Collector:
    """An OTLP collector: takes POST /v1/traces and keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        assert (scope["method"], scope["path"]) == ("POST", "/v1/traces")
        assert headers[b"content-type"] == b"application/x-protobuf"
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        if headers.get(b"content-encoding") == b"gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        for resource_spans in request.resource_spans:
            self.resource = values(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                self.spans.extend(scope_spans.spans)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def values(attributes: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(v) for v in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {attribute.key: plain(attribute.value) for attribute in attributes}


async def generating(scope: Scope, receive: Receive, send: Send) -> None:
    """Runs engine requests and answers; /fail answers 500, /error has a request that fails."""
    engine = make_engine()
    params = SamplingParams(max_tokens=5, temperature=0.5, top_p=0.9, n=2, seed=1)
    requests = [
        engine.add_request("a", prompt(9), params),
        engine.add_request("b", prompt(7, 1), greedy(3), priority=2),
    ]
    scope["state"]["record"].add(requests)
    engine.step()
    if scope["path"] == "/error":
        engine.fail_request(requests[1], "it broke")
    drain(engine)
    if scope["path"] == "/fail":
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    await echo(scope, receive, send)


@contextmanager
def traced(app: Any, model_name: str = "tiny") -> Iterator[tuple[httpx.Client, Collector]]:
    """A client of a traced app, and the collector; every span has arrived when the block is left."""
    collector = Collector()
    with running(collector) as collecting:
        tracing = Tracing(collecting.url, model_name)
        with running(AccessLog(app, [tracing])) as server, httpx.Client(base_url=server.url) as client:
            yield client, collector
        assert tracing.stop(HANG)


def test_a_span_says_what_the_request_was() -> None:
    before = time.time_ns()
    with traced(generating) as (client, collector):
        client.get("/v1/x", headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "r1"})
    (span,) = collector.spans
    assert span.name == "llm_request"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.trace_id.hex() == TRACE
    assert span.parent_span_id.hex() == PARENT
    assert before < span.start_time_unix_nano < span.end_time_unix_nano < time.time_ns()
    told = values(span.attributes)
    latencies = {name: told.pop(name) for name in list(told) if name.startswith("gen_ai.latency.")}
    assert told == {
        "gen_ai.request.id": "r1",
        "gen_ai.response.model": "tiny",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.n": 2,
        "gen_ai.usage.num_sequences": 3,
        "gen_ai.usage.prompt_tokens": 16,
        "gen_ai.usage.completion_tokens": 2 * 5 + 3,
        "gen_ai.usage.cached_tokens": 0,
        "gen_ai.response.finish_reasons": ["length"],
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.path": "/v1/x",
        "vglm.priority": 0,
    }
    assert set(latencies) == {
        "gen_ai.latency.e2e",
        "gen_ai.latency.time_to_first_token",
        "gen_ai.latency.time_in_queue",
        "gen_ai.latency.time_in_model_prefill",
        "gen_ai.latency.time_in_model_decode",
        "gen_ai.latency.time_in_model_inference",
    }
    assert all(0 < seconds <= latencies["gen_ai.latency.e2e"] for seconds in latencies.values())
    inference = latencies["gen_ai.latency.time_in_model_inference"]
    parts = (
        latencies["gen_ai.latency.time_in_model_prefill"] + latencies["gen_ai.latency.time_in_model_decode"]
    )
    assert parts == pytest.approx(inference)
    duration = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert duration == pytest.approx(latencies["gen_ai.latency.e2e"], abs=1e-6)
    assert [event.name for event in span.events] == ["scheduled", "first_token"]
    times = [event.time_unix_nano for event in span.events]
    assert span.start_time_unix_nano < times[0] < times[1] < span.end_time_unix_nano
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert collector.resource["service.name"] == "vglm"


def test_failures_probes_and_requests_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-service")
    with traced(generating) as (client, collector):
        for path in ("/health", "/metrics", "/fail", "/error", "/v1/x"):
            client.get(path)
    by_path = {values(span.attributes)["url.path"]: span for span in collector.spans}
    assert set(by_path) == {"/fail", "/error", "/v1/x"}
    assert by_path["/fail"].status.code == Status.STATUS_CODE_ERROR
    assert by_path["/error"].status.code == Status.STATUS_CODE_ERROR
    assert by_path["/error"].status.message == "it broke"
    assert len({span.trace_id for span in collector.spans}) == 3
    assert not any(span.parent_span_id for span in collector.spans)
    assert collector.resource["service.name"] == "my-service"


def test_a_client_that_does_not_want_to_be_traced() -> None:
    with traced(echo) as (client, collector):
        client.get("/v1/x", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        client.get("/v1/y", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert [values(span.attributes)["url.path"] for span in collector.spans] == ["/v1/y"]


def test_a_request_that_was_refused_has_a_span_too() -> None:
    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 429, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with traced(refusing) as (client, collector):
        client.get("/v1/x")
    told = values(collector.spans[0].attributes)
    assert told["http.response.status_code"] == 429
    assert "gen_ai.usage.prompt_tokens" not in told


def test_a_collector_that_is_away_holds_nobody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        tracing = Tracing(f"http://127.0.0.1:{silent.getsockname()[1]}", "tiny")
        with running(AccessLog(echo, [tracing])) as server, httpx.Client(base_url=server.url) as client:
            for _ in range(20):
                assert client.get("/v1/x").status_code == 200
        started = time.monotonic()
        assert not tracing.stop(0.2)
        assert time.monotonic() - started < HANG / 2
        assert any(thread.name == "vglm-traces-end" and thread.daemon for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://localhost:4318", "http://localhost:4318/v1/traces"),
        ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
        ("https://otel.example.org/v1/traces", "https://otel.example.org/v1/traces"),
        ("http://localhost:4318/custom", "http://localhost:4318/custom"),
    ],
)
def test_endpoints(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


@pytest.mark.parametrize(
    "endpoint", ["", "localhost:4318", "grpc://localhost:4317", "http://", "http:///v1/traces", "http://[::1"]
)
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="give a URL as in http:"):
        Tracing(endpoint, "tiny")


def test_without_the_packages_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(
        ConfigError, match=r"traces need the package opentelemetry.* pip install 'vglm\[otel\]'"
    ):
        Tracing("http://localhost:4318", "tiny")
