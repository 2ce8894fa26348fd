"""What the dashboard shows: rows of panels, each with its queries. make_dashboard.py turns it into Grafana's JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ENGINE = 'job=~"$job", instance=~"$instance", model_name=~"$model_name"'
SERVER = 'job=~"$job", instance=~"$instance"'
QUANTILES = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))


@dataclass(frozen=True)
class Panel:
    """One panel. `queries` are (expression, legend); `P:` in an expression stands for the prefix."""

    title: str
    text: str
    queries: list[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    top: float | None = None  # of the axis
    red_above: float | None = None
    red_below: float | None = None


@dataclass(frozen=True)
class Row:
    """A titled row of panels."""

    title: str
    panels: list[Panel] = field(default_factory=list)


def rate(name: str, labels: str = ENGINE, by: str = "") -> str:
    """The summed rate of a counter."""
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}(rate(P:{name}{{{labels}}}[$__rate_interval]))"


def mean(name: str, labels: str = ENGINE, by: str = "") -> str:
    """The mean of a histogram; nothing while there is none."""
    return f"{rate(name + '_sum', labels, by)} / ({rate(name + '_count', labels, by)} > 0)"


def quantile(q: float, name: str, labels: str = ENGINE, by: str = "") -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({q}, {rate(name + '_bucket', labels, ', '.join(filter(None, ['le', by])))})"


def quantiles(name: str) -> list[tuple[str, str]]:
    """Quantiles and the mean of a histogram."""
    return [*((quantile(q, name), legend) for q, legend in QUANTILES), (mean(name), "mean")]


def gauge(name: str, labels: str = ENGINE, how: str = "sum", by: str = "") -> str:
    """A gauge over all servers that are chosen."""
    grouped = f"{how} by ({by}) " if by else how
    return f"{grouped}(P:{name}{{{labels}}})"


HIT_RATE = f"{rate('prefix_cache_hits_total')} / ({rate('prefix_cache_queries_total')} > 0)"
FAILED = f'status=~"5..", {SERVER}'
FAILURE_RATE = (
    f"({rate('http_requests_total', FAILED)} or vector(0)) / ({rate('http_requests_total', SERVER)} > 0)"
)


def stat(title: str, text: str, query: str, unit: str = "short", **options: Any) -> Panel:
    """A number."""
    return Panel(title, text, [(query, title)], unit, "stat", 3, 4, **options)


ROWS = [
    Row(
        "Now",
        [
            stat("Servers up", "Servers that Prometheus reaches.", f"sum(up{{{SERVER}}})"),
            stat("Engines alive", "Servers whose engine works.", gauge("engine_alive"), red_below=1),
            stat("Requests", "Requests that end in a second.", rate("request_success_total"), "reqps"),
            stat("Output tokens", "Generated in a second.", rate("generation_tokens_total")),
            stat(
                "TTFT p95",
                "95 % get their first token sooner.",
                quantile(0.95, "time_to_first_token_seconds"),
                "s",
            ),
            stat(
                "ITL p95",
                "95 % of the gaps between tokens are shorter.",
                quantile(0.95, "inter_token_latency_seconds"),
                "s",
            ),
            stat(
                "KV in use",
                "Blocks that requests hold.",
                gauge("kv_cache_usage_perc", how="max"),
                "percentunit",
                red_above=0.95,
            ),
            stat(
                "Failures", "Share of answers with status 5xx.", FAILURE_RATE, "percentunit", red_above=0.01
            ),
        ],
    ),
    Row(
        "Latency",
        [
            Panel(
                "Time to first token",
                "From arrival to the first token.",
                quantiles("time_to_first_token_seconds"),
                "s",
            ),
            Panel(
                "Inter-token latency",
                "Between two tokens of a sequence.",
                quantiles("inter_token_latency_seconds"),
                "s",
            ),
            Panel(
                "End to end", "From arrival to the last token.", quantiles("e2e_request_latency_seconds"), "s"
            ),
            Panel(
                "Time per output token",
                "The mean of each request after its first token.",
                quantiles("request_time_per_output_token_seconds"),
                "s",
            ),
            Panel(
                "Where requests spend their time",
                "Means of the phases; together they are the end-to-end latency.",
                [(mean(f"request_{phase}_time_seconds"), phase) for phase in ("queue", "prefill", "decode")],
                "s",
                stacked=True,
            ),
            Panel(
                "Time to first token, distribution",
                "Requests a second in each bucket.",
                [(rate("time_to_first_token_seconds_bucket", by="le"), "{{le}}")],
                "s",
                "heatmap",
            ),
        ],
    ),
    Row(
        "Throughput",
        [
            Panel(
                "Tokens",
                "A second: prompt tokens that were computed or found in the cache, and generated ones.",
                [
                    (
                        rate("prompt_tokens_by_source_total", f'source="local_compute", {ENGINE}'),
                        "prompt, computed",
                    ),
                    (
                        rate("prompt_tokens_by_source_total", f'source="local_cache_hit", {ENGINE}'),
                        "prompt, cached",
                    ),
                    (rate("generation_tokens_total"), "generated"),
                ],
            ),
            Panel(
                "Requests by how they ended",
                "stop: a stop token or string. length: max_tokens. abort: the client left. error: see the log.",
                [(rate("request_success_total", by="finished_reason"), "{{finished_reason}}")],
                "reqps",
                stacked=True,
            ),
            Panel("Tokens of a step", "Prefill and decode together.", quantiles("iteration_tokens_total")),
            Panel(
                "Prompt length",
                "Tokens of the prompts that were answered.",
                quantiles("request_prompt_tokens"),
            ),
            Panel("Output length", "Tokens that requests generated.", quantiles("request_generation_tokens")),
            Panel(
                "Sequences of a request, and what they may generate",
                "Means of n and max_tokens.",
                [(mean("request_params_n"), "n"), (mean("request_params_max_tokens"), "max_tokens")],
            ),
        ],
    ),
    Row(
        "Scheduling",
        [
            Panel(
                "Queue",
                "Sequences that run, and that wait by class of priority.",
                [
                    (gauge("num_requests_running"), "running"),
                    (gauge("num_requests_waiting_by_class", by="class"), "waiting, {{class}}"),
                ],
            ),
            Panel(
                "Wait by class",
                "99 % of each class wait less before their first step.",
                [(quantile(0.99, "request_queue_time_by_class_seconds", by="class"), "{{class}}")],
                "s",
            ),
            Panel(
                "Preemptions",
                "Sequences that had to make room, a second. Many: the KV cache is too small for the load.",
                [(rate("num_preemptions_total"), "preemptions")],
            ),
            Panel(
                "Scheduler", "Time to decide who runs in a step.", quantiles("scheduler_step_seconds"), "s"
            ),
            Panel(
                "Where the engine spends its time",
                "Share of a second: the rest is idle.",
                [(rate("engine_step_seconds_total", by="phase"), "{{phase}}")],
                "percentunit",
                stacked=True,
            ),
            Panel(
                "Latency controller",
                "What it allows now, and what it aims at; needs --ttft-target-ms or --itl-target-ms.",
                [(f'{{__name__=~"P:controller_.*", {ENGINE}}}', "{{__name__}}")],
            ),
        ],
    ),
    Row(
        "KV cache",
        [
            Panel(
                "Blocks",
                "active: requests hold them. cached: spans that nobody uses now. free: can be allocated.",
                [(gauge("kv_cache_blocks", by="state"), "{{state}}")],
                stacked=True,
            ),
            Panel(
                "Fragmentation",
                "internal: slots of used blocks without a token. external: committed blocks that nobody uses.",
                [
                    (gauge("kv_cache_internal_fragmentation", how="max"), "internal"),
                    (gauge("kv_cache_external_fragmentation", how="max"), "external"),
                ],
                "percentunit",
                top=1.0,
            ),
            Panel(
                "Memory of the cache",
                "Blocks that have memory behind them, and tokens that are in them.",
                [(gauge("kv_cache_blocks_committed"), "blocks"), (gauge("kv_cache_tokens"), "tokens")],
            ),
            Panel(
                "Span-cache hits",
                "Share of the tokens looked up.",
                [(HIT_RATE, "hit rate")],
                "percentunit",
                top=1.0,
            ),
            Panel(
                "Spans",
                "That came into the cache and left it, a second.",
                [
                    (rate("span_cache_inserted_total"), "inserted"),
                    (rate("span_cache_evicted_total"), "evicted"),
                ],
            ),
            Panel(
                "Use",
                "Share of the blocks that requests hold, by server.",
                [(gauge("kv_cache_usage_perc", how="max", by="instance"), "{{instance}}")],
                "percentunit",
                top=1.0,
            ),
        ],
    ),
    Row(
        "HTTP",
        [
            Panel(
                "Requests by status",
                "A second. 429: refused for want of room. 499: the client left before its answer began.",
                [(rate("http_requests_total", SERVER, "status"), "{{status}}")],
                "reqps",
                stacked=True,
            ),
            Panel(
                "Requests by path",
                "A second.",
                [(rate("http_requests_total", SERVER, "path"), "{{path}}")],
                "reqps",
            ),
            Panel(
                "Duration by path",
                "95 % are shorter, streams to their end included.",
                [(quantile(0.95, "http_request_duration_seconds", SERVER, "path"), "{{path}}")],
                "s",
            ),
            Panel(
                "Open",
                "Requests, streams and connections now.",
                [
                    (gauge("http_requests_open", SERVER), "requests"),
                    (gauge("http_streams_open", SERVER), "streams"),
                    (gauge("connections_open", SERVER), "connections"),
                ],
            ),
            Panel(
                "Refused",
                "A second: requests by reason, connections by status (0: without an answer).",
                [
                    (rate("requests_refused_total", SERVER, "reason"), "{{reason}}"),
                    (rate("connections_refused_total", SERVER, "status"), "connection, {{status}}"),
                ],
            ),
            Panel(
                "Admission",
                "Sequences admitted, and how many may be.",
                [
                    (gauge("requests_admitted", SERVER), "admitted"),
                    (gauge("requests_admitted_max", SERVER), "limit"),
                ],
            ),
        ],
    ),
    Row(
        "Process",
        [
            Panel(
                "Memory",
                "Resident memory by server, and request bodies in it.",
                [
                    (f"sum by (instance) (process_resident_memory_bytes{{{SERVER}}})", "{{instance}}"),
                    (gauge("http_body_bytes_held", SERVER), "request bodies"),
                ],
                "bytes",
            ),
            Panel(
                "Processors",
                "Processors that each server keeps busy.",
                [
                    (
                        f"sum by (instance) (rate(process_cpu_seconds_total{{{SERVER}}}[$__rate_interval]))",
                        "{{instance}}",
                    )
                ],
            ),
            Panel(
                "Open files",
                "And how many there may be.",
                [
                    (f"sum by (instance) (process_open_fds{{{SERVER}}})", "{{instance}}"),
                    (f"min(process_max_fds{{{SERVER}}})", "limit"),
                ],
            ),
            Panel(
                "Garbage collections",
                "Of Python, a second, by generation.",
                [
                    (
                        f"sum by (generation) (rate(python_gc_collections_total{{{SERVER}}}[$__rate_interval]))",
                        "{{generation}}",
                    )
                ],
            ),
            Panel(
                "Log lines dropped",
                "A second: the log's disk is full, or nobody reads it.",
                [(rate("log_lines_dropped_total", SERVER), "dropped")],
            ),
            Panel(
                "Versions",
                "Servers by version.",
                [(gauge("build_info", SERVER, "count", "version"), "{{version}}")],
            ),
        ],
    ),
]
