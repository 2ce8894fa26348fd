"""Metrics of what stands in front of the engine: HTTP requests, connections, admission, logs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vglm import __version__
from vglm.engine.metrics import Histogram
from vglm.serve.access_log import PROBES, RequestRecord
from vglm.serve.admission import Admission
from vglm.serve.metrics import Families, buckets_of

REFUSALS = (0, 400, 408, 414, 431, 503)  # of connections, told from the start so that rates begin at 0
OTHER = "other"  # the label of a path that no endpoint has, so that labels are bounded whatever is asked for


class HttpMetrics(Collector):
    """Counts HTTP requests by method, path and status (an observer of the access log) and tells them.

    Besides its own it tells what it is given: admission, connections, bytes of bodies, lines of the log.
    """

    def __init__(
        self,
        *,
        prefix: str,
        paths: Collection[str],
        admission: Admission | None = None,
        connections: Callable[[], int] | None = None,
        refused_connections: Mapping[int, int] | None = None,
        held_body_bytes: Callable[[], int] | None = None,
        dropped_log_lines: Callable[[], int] | None = None,
    ) -> None:
        """`paths`: those of the endpoints; any other one is told as "other"."""
        self._make = Families(prefix, {})
        self._paths = frozenset(paths)
        self._admission = admission
        self._refused_connections = refused_connections
        self._gauges = {
            "connections_open": ("Open connections.", connections),
            "http_body_bytes_held": ("Bytes of request bodies in memory.", held_body_bytes),
        }
        self._dropped_log_lines = dropped_log_lines
        self._counts: dict[tuple[str, str, str], int] = {}
        self._seconds: dict[str, Histogram] = {}
        self._open: set[RequestRecord] = set()

    # ---- observer -----------------------------------------------------------------------------------------

    def began(self, record: RequestRecord) -> None:
        """A request is being served."""
        self._open.add(record)

    def ended(self, record: RequestRecord) -> None:
        """A request has been answered."""
        self._open.discard(record)
        path = self._path(record)
        key = (record.method, path, str(record.status))
        self._counts[key] = self._counts.get(key, 0) + 1
        if path not in self._seconds:
            self._seconds[path] = Histogram()
        self._seconds[path].observe(record.seconds)

    def _path(self, record: RequestRecord) -> str:
        if record.path in self._paths:
            return record.path
        return record.route if record.route is not None else OTHER

    # ---- collector ----------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """Every metric as it is now; called in the event loop, as the observer's side is."""
        make = self._make
        labels = ["method", "path", "status"]
        yield make.table("http_requests", "HTTP requests that were answered.", labels, self._counts)
        yield make.histograms(
            "http_request_duration_seconds", "Head to end of answer.", "path", self._seconds
        )
        yield make.gauge("http_requests_open", "HTTP requests being served.", len(self._open))
        streams = sum(record.streamed for record in self._open)
        yield make.gauge("http_streams_open", "Answers that are being streamed.", streams)
        yield make.info("build_info", "The server's version.", {"version": __version__})
        for name, (text, value) in self._gauges.items():
            if value is not None:
                yield make.gauge(name, text, value())
        if self._refused_connections is not None:
            refused = dict.fromkeys(REFUSALS, 0) | dict(self._refused_connections)
            by_status = {str(status): count for status, count in refused.items()}
            yield make.counters("connections_refused", "Refused connections.", "status", by_status)
        if self._dropped_log_lines is not None:
            yield make.counter(
                "log_lines_dropped", "Lines that could not be written.", self._dropped_log_lines()
            )
        if self._admission is not None:
            yield from self._of_admission(self._admission)
        if make.prefix == "vllm":
            yield from self._instrumentator()

    def _of_admission(self, admission: Admission) -> Iterator[Metric]:
        make = self._make
        yield make.counters("requests_refused", "Requests refused at once.", "reason", admission.refused)
        yield make.gauge("requests_admitted", "Sequences admitted and not ended.", admission.active)
        most = admission.max_running + admission.max_queue
        yield make.gauge("requests_admitted_max", "As many may be admitted at once.", most)
        yield make.gauge("draining", "Whether the server is shutting down.", admission.draining)

    def _instrumentator(self) -> Iterator[Metric]:
        """The two metrics that vLLM's dashboards have from prometheus-fastapi-instrumentator."""
        counts: dict[tuple[str, str, str], int] = {}
        for (method, path, status), count in self._counts.items():
            if path not in PROBES:
                key = (method, f"{status[0]}xx", path)
                counts[key] = counts.get(key, 0) + count
        requests = CounterMetricFamily(
            "http_requests", "HTTP requests by handler and status.", labels=["method", "status", "handler"]
        )
        for key, count in counts.items():
            requests.add_metric(key, count)
        yield requests
        seconds = HistogramMetricFamily(
            "http_request_duration_seconds", "Their duration by handler.", labels=["handler"]
        )
        for path, histogram in self._seconds.items():
            if path not in PROBES:
                seconds.add_metric([path], buckets_of(histogram), histogram.total)
        yield seconds
