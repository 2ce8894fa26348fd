"""What a load has measured, as tables, JSON and one line for each request."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vglm.bench.figures import (
    LATENCIES,
    PERCENTILES,
    by_priority,
    e2el,
    failures,
    latencies,
    summary,
    throughput,
    tpot,
    ttft,
)
from vglm.bench.load import Record, Run
from vglm.bench.report import Report, Table
from vglm.bench.serve import Measured, ServeLoad

_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}
_MEANING = (
    "TTFT: from sending to the first output. TPOT: mean of a request's tokens after the first. ITL: between two messages "
    "of a stream. E2EL: from sending to the end."
)


def report(work: ServeLoad, measured: Measured, targets: Mapping[str, float]) -> Report:
    """Tables and figures of a load."""
    run = measured.run
    figures = throughput(run, targets)
    summaries = {name: summary(latencies(run.records, name)) for name in LATENCIES}
    tables = [_requests(figures, run, targets), _tokens(figures, run), _latencies(run, summaries)]
    if classes := by_priority(run, targets):
        tables.append(_priorities(classes, bool(targets)))
    if failed := failures(run.records):
        columns = [("reason", "reason", ""), ("requests", "requests", ",d"), ("example", "first one", "")]
        tables.append(Table("failures", columns, failed))
    if work.metrics:
        tables.append(_server(measured.server))
        figures |= {f"server_{name}": value for name, value in measured.server.items()}
        tables[-1].notes += measured.notes
    for name, values in summaries.items():
        figures |= {f"{key}_{name}_ms": value for key, value in values.items()}
        figures[f"median_{name}_ms"] = values["p50"]
    figures |= {"goodput_targets_ms": dict(targets), "client_processor_seconds": run.processor_seconds}
    return Report("serve", _settings(work, measured), tables, figures)


def _settings(work: ServeLoad, measured: Measured) -> dict[str, Any]:
    lengths = (
        {"prompts": f"{_range(work.input_len)} tokens", "outputs": f"{_range(work.output_len)} tokens"}
        if work.trace is None
        else {"lengths": "of the trace" + (f" / {work.trace_scale}" if work.trace_scale != 1 else "")}
    )
    return {
        "server": work.base_url,
        "endpoint": work.path,
        "model": measured.model,
        "load": measured.load,
        **lengths,
        "shared prefix": work.prefix_len or None,
        "streamed": "yes" if work.stream else "no",
        "seed": work.seed,
    }


def _range(limits: tuple[int, int]) -> str:
    return str(limits[0]) if limits[0] == limits[1] else f"{limits[0]}-{limits[1]}"


def _requests(figures: dict[str, Any], run: Run, targets: Mapping[str, float]) -> Table:
    columns = [
        ("completed", "succeeded", ",d"),
        ("failed", "failed", ",d"),
        ("success_rate", "success", ".2%"),
        ("duration", "seconds", ",.2f"),
        ("request_throughput", "requests/s", ",.2f"),
        ("request_goodput", "goodput, requests/s", ",.2f"),
        ("max_concurrent_requests", "most at once", ",d"),
        ("retries", "retries", ",d"),
    ]
    if not targets:
        columns = [column for column in columns if column[0] != "request_goodput"]
    notes = []
    if targets:
        wanted = ", ".join(f"{_NAMES[name]} {value:g} ms" for name, value in targets.items())
        notes.append(f"goodput: requests within {wanted}")
    if run.interrupted:
        notes.append(f"stopped early: {len(run.records):,} of {run.planned:,} requests had ended")
    if run.dead is not None:
        notes.append(
            f"the server went away ({run.dead}): {len(run.records):,} of {run.planned:,} requests were sent"
        )
    return Table("requests", columns, [{key: figures[key] for key, _, _ in columns}], notes)


def _tokens(figures: dict[str, Any], run: Run) -> Table:
    columns = [
        ("total_input_tokens", "input tokens", ",d"),
        ("total_output_tokens", "output tokens", ",d"),
        ("input_throughput", "input tokens/s", ",.1f"),
        ("output_throughput", "output tokens/s", ",.1f"),
        ("total_token_throughput", "all tokens/s", ",.1f"),
    ]
    busy = run.processor_seconds / run.seconds if run.seconds else 0.0
    note = f"the load generator took {run.processor_seconds:.2f} s of processor time ({busy:.0%} of one processor"
    if tokens := figures["total_output_tokens"]:
        note += f", {1e6 * run.processor_seconds / tokens:.1f} us per output token"
    return Table("tokens", columns, [{key: figures[key] for key, _, _ in columns}], [note + ")"])


def _latencies(run: Run, summaries: Mapping[str, Mapping[str, float | None]]) -> Table:
    keys = ["mean", *(f"p{p}" for p in PERCENTILES), "max"]
    columns = [("figure", "figure", ""), *((key, key, ",.2f") for key in keys)]
    rows = [
        {"figure": _NAMES[name], **{key: values[key] for key in keys}} for name, values in summaries.items()
    ]
    notes = [_MEANING]
    late = np.array([r.sent - r.due for r in run.records])
    if len(late) and late.max() > 1e-3:
        p50, p99 = np.percentile(late, (50, 99)) * 1e3
        notes.append(
            f"sent after they were due, by the bound on concurrency or by the client: p50 {p50:,.1f} ms, p99 {p99:,.1f} ms"
        )
    return Table("latency, milliseconds", columns, rows, notes)


def _priorities(rows: list[dict[str, Any]], goodput: bool) -> Table:
    columns = [
        ("priority", "priority", ""),
        ("requests", "requests", ",d"),
        ("success_rate", "success", ".2%"),
        *([("request_goodput", "goodput/s", ",.2f")] if goodput else []),
        *(
            (f"{key}_{name}_ms", f"{_NAMES[name]} {key}", ",.1f")
            for name in ("ttft", "tpot", "e2el")
            for key in ("mean", "p50", "p99")
        ),
    ]
    return Table("by priority, milliseconds", columns, rows)


def _server(figures: dict[str, Any]) -> Table:
    columns = [
        ("scheduler_mean_ms", "scheduler per step, mean ms", ".3f"),
        ("scheduler_p99_ms", "p99 ms", ".3f"),
        ("scheduler_steps", "steps", ",d"),
        ("peak_resident_megabytes", "peak memory, MB", ",.1f"),
        ("preemptions", "preemptions", ",d"),
        ("span_cache_hit_rate", "span-cache hits", ".1%"),
    ]
    peak = figures.get("peak_resident_bytes")
    row = {**figures, "peak_resident_megabytes": None if peak is None else peak / 1e6}
    return Table("the server's own metrics", columns, [{key: row.get(key) for key, _, _ in columns}])


def save_requests(records: list[Record], path: Path) -> None:
    """One JSON object for each request, in order of their indices; times in milliseconds except `sent` and `due`."""
    with path.open("w", encoding="utf-8") as lines:
        for record in sorted(records, key=lambda r: r.index):
            lines.write(json.dumps(_as_dict(record)) + "\n")


def _as_dict(record: Record) -> dict[str, Any]:
    return {
        "index": record.index,
        "priority": record.priority,
        "ok": record.ok,
        "reason": record.reason,
        "detail": record.detail,
        "due": round(record.due, 6),
        "sent": round(record.sent, 6),
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "retries": record.retries,
        "ttft_ms": _milliseconds(ttft(record)),
        "tpot_ms": _milliseconds(tpot(record)),
        "e2el_ms": _milliseconds(e2el(record)),
        "itl_ms": [round(1e3 * gap, 3) for gap in record.gaps],
    }


def _milliseconds(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(1e3 * seconds, 3)
