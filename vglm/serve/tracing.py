"""OpenTelemetry traces: a span for each request, with vLLM's attributes, sent to a collector over OTLP (http/protobuf).

The packages are an extra. Spans are made when a request has ended, from times that were taken anyway, so that an untraced
request costs nothing and a traced one 40 microseconds; a thread of the exporter's sends them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vglm import __version__
from vglm.engine.request import Request
from vglm.errors import ConfigError
from vglm.serve.access_log import PROBES, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger("vglm.serve.tracing")

Attributes = Iterator[tuple[str, Any]]
STOP_TIMEOUT = 3.0  # seconds that the end of the server waits for the last spans
TRACES_PATH = "/v1/traces"
SPAN_NAME = "llm_request"


class Tracing:
    """Makes and sends a span for each HTTP request that is no probe (an observer of the access log)."""

    def __init__(self, endpoint: str, model_name: str) -> None:
        """`endpoint`: see `traces_url`. Other settings come from OpenTelemetry's own variables: OTEL_SERVICE_NAME,
        OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and so on. Raises ConfigError for a malformed endpoint, or when the
        packages are missing.
        """
        url = traces_url(endpoint)
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"traces need the package {error.name}, which is not installed: pip install 'vglm[otel]'"
            ) from error
        exporter: SpanExporter = OTLPSpanExporter(url)
        # shutdown_on_exit would hold up the end of the process for half a minute when the collector is away.
        self._provider = TracerProvider(resource=Resource.create(_service()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("vglm", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._model_name = model_name

    def began(self, record: RequestRecord) -> None:
        """A request is being served; its span is made when it has ended."""

    def ended(self, record: RequestRecord) -> None:
        """Make the span of a request, as part of the client's trace if there is one."""
        if record.path in PROBES:
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode

        carrier = {"traceparent": record.traceparent, "tracestate": record.tracestate}
        parent = self._propagator.extract({name: value for name, value in carrier.items() if value})
        attributes = {name: value for name, value in self._attributes(record) if value is not None}
        span = self._tracer.start_span(
            SPAN_NAME, parent, SpanKind.SERVER, attributes, start_time=record.started_ns
        )
        for name, seconds in _events(record):
            span.add_event(name, timestamp=record.wall_clock(seconds))
        error = next((request.error for request in record.requests if request.error), None)
        if error is not None or record.status >= 500:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(record.wall_clock(record.ended))

    def stop(self, timeout: float = STOP_TIMEOUT) -> bool:
        """Send what is left; False when that takes longer than `timeout` seconds, as with a collector that is away."""
        thread = threading.Thread(target=self._provider.shutdown, name="vglm-traces-end", daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            log.warning("the last traces could not be sent within %g s", timeout)
        return not thread.is_alive()

    def _attributes(self, record: RequestRecord) -> Attributes:
        yield "gen_ai.request.id", record.request_id
        yield "gen_ai.response.model", self._model_name
        yield "http.request.method", record.method
        yield "http.response.status_code", record.status
        yield "url.path", record.path
        yield "vglm.api_key_name", record.api_key_name
        yield "gen_ai.latency.e2e", record.seconds
        if record.requests:
            yield from _usage(record)
            yield from _latencies(record.requests)


def _usage(record: RequestRecord) -> Attributes:
    request = record.requests[0]
    yield "gen_ai.request.max_tokens", request.max_tokens
    yield "gen_ai.request.temperature", request.params.temperature
    yield "gen_ai.request.top_p", request.params.top_p
    yield "gen_ai.request.n", request.params.n
    yield "gen_ai.usage.num_sequences", sum(len(r.sequences) for r in record.requests)
    yield "gen_ai.usage.prompt_tokens", record.prompt_tokens
    yield "gen_ai.usage.completion_tokens", record.completion_tokens
    yield "gen_ai.usage.cached_tokens", record.cached_tokens
    yield "gen_ai.response.finish_reasons", (record.finish_reason or "").split(",")
    yield "gen_ai.latency.time_to_first_token", record.seconds_to_first_token
    yield "vglm.priority", request.priority


def _latencies(requests: list[Request]) -> Attributes:
    """Of the requests together: from when the first one enters a phase to when the last one leaves it."""
    arrived = min(request.arrival_time for request in requests)
    scheduled = [request.scheduled_time for request in requests if request.scheduled_time]
    first_tokens = [request.first_token_time for request in requests if request.first_token_time]
    finished = max(request.finished_time for request in requests)
    if not scheduled or not finished:
        return
    yield "gen_ai.latency.time_in_queue", min(scheduled) - arrived
    yield "gen_ai.latency.time_in_model_inference", finished - min(scheduled)
    if first_tokens:
        yield "gen_ai.latency.time_in_model_prefill", min(first_tokens) - min(scheduled)
        yield "gen_ai.latency.time_in_model_decode", finished - min(first_tokens)


def _events(record: RequestRecord) -> Iterator[tuple[str, float]]:
    for name in ("scheduled_time", "first_token_time"):
        times = [time for request in record.requests if (time := getattr(request, name))]
        if times:
            yield name.removesuffix("_time"), min(times)


def traces_url(endpoint: str) -> str:
    """Where spans are sent: a collector's address gets OTLP's path, any other URL is taken as it is. Raises ConfigError."""
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"otlp_endpoint is {endpoint!r}; give a URL as in http://127.0.0.1:4318")
    return endpoint.rstrip("/") + TRACES_PATH if parts.path in ("", "/") else endpoint


def _service() -> dict[str, str]:
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    return {"service.version": __version__} | ({} if named else {"service.name": "vglm"})
