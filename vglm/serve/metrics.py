"""Prometheus metrics, under the names and labels that vLLM's dashboards query.

Nothing is counted here: collectors read the engine's own counters when somebody asks. The engine's thread goes on
meanwhile, so lists are copied before they are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vglm.engine.metrics import EngineMetrics, EngineStats, Histogram
from vglm.engine.span_store import StoreStats

PREFIXES = ("vglm", "vllm")
FINISH_REASONS = ("stop", "length", "abort", "error")  # told from the start, so that rates begin at 0


def new_registry(*collectors: Collector) -> CollectorRegistry:
    """A registry with these collectors and the process's own metrics (memory, processor time, open files)."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry) -> tuple[bytes, str]:
    """(body, content type) of the answer to a scraper.

    Always in the text format, which every scraper accepts: in the OpenMetrics format prometheus_client (0.26) writes the
    colon of a name as an underscore, and no dashboard would find it.
    """
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


class Families:
    """Makes metrics that share a prefix and labels."""

    def __init__(self, prefix: str, labels: Mapping[str, str]) -> None:
        self.prefix = prefix
        self._names = list(labels)
        self._values = list(labels.values())

    def gauge(self, name: str, text: str, value: float) -> Metric:
        """A value that goes up and down."""
        return self._family(GaugeMetricFamily, name, text, {(): value})

    def gauges(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        """Such a value for each value of a label."""
        by_label = {(key,): value for key, value in values.items()}
        return self._family(GaugeMetricFamily, name, text, by_label, [label])

    def counter(self, name: str, text: str, value: float) -> Metric:
        """A value that only grows; its name gets the ending _total."""
        return self._family(CounterMetricFamily, name, text, {(): value})

    def counters(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        """Such a value for each value of a label."""
        by_label = {(key,): value for key, value in values.items()}
        return self._family(CounterMetricFamily, name, text, by_label, [label])

    def table(self, name: str, text: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
        """A counter for each combination of labels."""
        return self._family(CounterMetricFamily, name, text, values, labels)

    def info(self, name: str, text: str, facts: Mapping[str, str]) -> Metric:
        """Facts as labels of a gauge that is always 1."""
        return self._family(GaugeMetricFamily, name, text, {tuple(facts.values()): 1.0}, list(facts))

    def _family(
        self,
        kind: Any,
        name: str,
        text: str,
        values: Mapping[Any, float],
        labels: Iterable[str] = (),
    ) -> Metric:
        family = kind(f"{self.prefix}:{name}", text, labels=[*self._names, *labels])
        for key, value in values.items():
            family.add_metric([*self._values, *key], value)
        made: Metric = family
        return made

    def histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        """A distribution."""
        return self.histograms(name, text, None, {"": histogram})

    def histograms(
        self, name: str, text: str, label: str | None, histograms: Mapping[str, Histogram]
    ) -> Metric:
        """A distribution for each value of a label."""
        labels = [*self._names, *([label] if label else [])]
        family = HistogramMetricFamily(f"{self.prefix}:{name}", text, labels=labels)
        for key, histogram in histograms.items():
            family.add_metric(
                [*self._values, *([key] if label else [])], buckets_of(histogram), histogram.total
            )
        return family


def buckets_of(histogram: Histogram) -> list[tuple[str, float]]:
    """[(upper bound, values up to it)]; the last one is how many there are, whatever is added meanwhile."""
    counts = histogram.counts.copy()
    buckets = []
    seen = 0
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), counts, strict=True):
        seen += count
        buckets.append((bound, float(seen)))
    return buckets


class EngineCollector(Collector):
    """The engine's metrics and state.

    `metrics` and `stats` give them; `controller` gives the latency controller's numbers by name. `facts` are told as
    labels of cache_config_info. With the prefix "vllm" some names that vLLM has given up are told too, for old dashboards.
    """

    def __init__(
        self,
        *,
        model_name: str,
        prefix: str,
        metrics: Callable[[], EngineMetrics],
        stats: Callable[[], EngineStats],
        alive: Callable[[], bool],
        integrity_errors: Callable[[], int] | None = None,
        controller: Callable[[], Mapping[str, float | None]] | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        self._make = Families(prefix, {"model_name": model_name, "engine": "0"})
        self._metrics = metrics
        self._stats = stats
        self._alive = alive
        self._integrity_errors = integrity_errors
        self._controller = controller
        self._facts = dict(facts or {})

    def collect(self) -> Iterator[Metric]:
        """Every metric as it is now."""
        metrics, stats = self._metrics(), self._stats()
        yield from self._requests(stats, metrics)
        yield from self._tokens(metrics)
        yield from self._cache(stats)
        yield from self._latencies(metrics)
        yield from self._lengths(metrics)
        yield from self._steps(metrics)
        yield from self._state()
        if self._make.prefix == "vllm":
            yield from self._former_names(stats)

    def _requests(self, stats: EngineStats, metrics: EngineMetrics) -> Iterator[Metric]:
        make = self._make
        finished = dict.fromkeys(FINISH_REASONS, 0) | metrics.requests_finished.copy()
        waiting, by_class = stats.num_requests_waiting, stats.num_waiting_by_class
        yield make.gauge("num_requests_running", "Sequences that run.", stats.num_requests_running)
        yield make.gauge("num_requests_waiting", "Sequences that wait to run.", waiting)
        yield make.gauges(
            "num_requests_waiting_by_class", "The same, by class of priority.", "class", by_class
        )
        by_reason = {"capacity": waiting, "deferred": 0}
        yield make.gauges(
            "num_requests_waiting_by_reason", "The same, by what they wait for.", "reason", by_reason
        )
        yield make.counters("request_success", "Requests that have ended.", "finished_reason", finished)
        yield make.counter("num_preemptions", "Sequences that had to make room.", stats.num_preemptions)

    def _tokens(self, metrics: EngineMetrics) -> Iterator[Metric]:
        make = self._make
        computed, cached = metrics.prompt_tokens, metrics.prompt_tokens_cached
        sources = {"local_compute": computed, "local_cache_hit": cached, "external_kv_transfer": 0}
        yield make.counter("prompt_tokens", "Prompt tokens, cached ones included.", computed + cached)
        yield make.counter("prompt_tokens_cached", "Prompt tokens whose KV was cached.", cached)
        yield make.counters("prompt_tokens_by_source", "Where their KV came from.", "source", sources)
        yield make.counter("generation_tokens", "Generated tokens.", metrics.generation_tokens)

    def _cache(self, stats: EngineStats) -> Iterator[Metric]:
        make, pool, cache = self._make, stats.pool, stats.cache
        blocks = {
            "active": pool.used - stats.num_idle_blocks,
            "cached": stats.num_idle_blocks,
            "free": pool.free,
        }
        yield make.gauge("kv_cache_usage_perc", "Blocks that requests hold, 0 to 1.", stats.kv_cache_usage)
        yield make.gauges("kv_cache_blocks", "Blocks by what they are used for.", "state", blocks)
        yield make.gauge("kv_cache_blocks_committed", "Blocks that have memory behind them.", pool.committed)
        yield make.gauge("kv_cache_tokens", "Tokens whose KV is held.", pool.tokens_valid)
        yield make.gauge(
            "kv_cache_internal_fragmentation",
            "Slots of used blocks that hold no token, 0 to 1.",
            pool.internal_fragmentation,
        )
        yield make.gauge(
            "kv_cache_external_fragmentation",
            "Committed blocks that nobody uses, 0 to 1.",
            pool.external_fragmentation,
        )
        yield make.counter("prefix_cache_queries", "Tokens looked up in the span cache.", cache.queries)
        yield make.counter("prefix_cache_hits", "Tokens found in the span cache.", cache.hits)
        yield make.counter("span_cache_inserted", "Spans that were put into the cache.", cache.inserted)
        yield make.counter("span_cache_evicted", "Spans that were evicted from the cache.", cache.evicted)
        if cache.disk is not None:
            yield from self._disk(cache.disk)

    def _disk(self, disk: StoreStats) -> Iterator[Metric]:
        make = self._make
        yield make.gauge("span_store_spans", "Spans on disk.", disk.num_spans)
        yield make.gauge("span_store_bytes", "Bytes that they take there.", disk.num_bytes)
        yield make.counter("span_store_hits", "Spans that came from disk.", disk.hits)
        yield make.counter("span_store_hit_tokens", "Tokens of those.", disk.hit_tokens)
        yield make.counter("span_store_read_bytes", "Bytes of those.", disk.bytes_read)
        yield make.counter("span_store_written", "Spans that were written.", disk.written)
        yield make.counter("span_store_written_bytes", "Bytes of those.", disk.bytes_written)
        yield make.counter("span_store_dropped", "Spans that were not: no room.", disk.dropped)
        yield make.counter("span_store_errors", "Damaged spans, and failed writes.", disk.errors)

    def _latencies(self, metrics: EngineMetrics) -> Iterator[Metric]:
        histogram = self._make.histogram
        between = metrics.inter_token_latency
        mean = metrics.request_time_per_output_token
        yield histogram("time_to_first_token_seconds", "Arrival to first token.", metrics.time_to_first_token)
        yield histogram("inter_token_latency_seconds", "Between two tokens of a sequence.", between)
        yield histogram("time_per_output_token_seconds", "The same, under its former name.", between)
        yield histogram(
            "request_time_per_output_token_seconds", "The same, as the mean of each request.", mean
        )
        yield histogram("e2e_request_latency_seconds", "Arrival to last token.", metrics.e2e_request_latency)
        yield histogram("request_queue_time_seconds", "Arrival to first step.", metrics.request_queue_time)
        yield histogram(
            "request_inference_time_seconds", "First step to end.", metrics.request_inference_time
        )
        yield histogram(
            "request_prefill_time_seconds", "First step to first token.", metrics.request_prefill_time
        )
        yield histogram("request_decode_time_seconds", "First token to end.", metrics.request_decode_time)
        yield self._make.histograms(
            "request_queue_time_by_class_seconds",
            "Arrival to first step, by class of priority.",
            "class",
            metrics.queue_time_by_class,
        )

    def _lengths(self, metrics: EngineMetrics) -> Iterator[Metric]:
        histogram = self._make.histogram
        longest = metrics.request_max_generation_tokens
        yield histogram("request_prompt_tokens", "Prompt tokens of a request.", metrics.request_prompt_tokens)
        yield histogram(
            "request_generation_tokens", "Its generated tokens.", metrics.request_generation_tokens
        )
        yield histogram("request_max_num_generation_tokens", "Those of its longest sequence.", longest)
        yield histogram("request_params_max_tokens", "Its max_tokens.", metrics.request_params_max_tokens)
        yield histogram("request_params_n", "Its n.", metrics.request_params_n)

    def _steps(self, metrics: EngineMetrics) -> Iterator[Metric]:
        make = self._make
        phases = {
            "schedule": metrics.schedule_time,
            "execute": metrics.execute_time,
            "apply": metrics.apply_time,
        }
        yield make.histogram("iteration_tokens_total", "Tokens of a step.", metrics.iteration_tokens)
        yield make.histogram(
            "scheduler_step_seconds",
            "Processor time of deciding who runs in a step.",
            metrics.schedule_seconds,
        )
        yield make.counter("engine_steps", "Steps of the engine.", metrics.num_steps)
        yield make.counters("engine_step_seconds", "Time in steps, by what it was spent on.", "phase", phases)

    def _state(self) -> Iterator[Metric]:
        make = self._make
        yield make.gauge("engine_alive", "Whether the engine's thread works on requests.", self._alive())
        if self._integrity_errors is not None:
            text = "How often the idle engine found its accounting broken."
            yield make.counter("integrity_errors", text, self._integrity_errors())
        if self._facts:
            yield make.info("cache_config_info", "How the KV cache is set up.", self._facts)
        for name, value in (self._controller() if self._controller else {}).items():
            if value is not None:
                text = f"The latency controller's {name.replace('_', ' ')}."
                yield make.gauge(f"controller_{name}", text, value)

    def _former_names(self, stats: EngineStats) -> Iterator[Metric]:
        make = self._make
        awake = self._alive()
        states = {"awake": awake, "weights_offloaded": False, "discard_all": False}
        yield make.gauges("engine_sleep_state", "Whether the engine serves.", "sleep_state", states)
        yield make.gauge("gpu_cache_usage_perc", "Former name of kv_cache_usage_perc.", stats.kv_cache_usage)
        yield make.counter("gpu_prefix_cache_queries", "Former name.", stats.cache.queries)
        yield make.counter("gpu_prefix_cache_hits", "Former name.", stats.cache.hits)
