"""What the records of a load say: throughput, percentiles of latency, goodput under targets, reasons of failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.bench.load import Record, Run
from vglm.errors import ConfigError

PERCENTILES = (50, 90, 95, 99)
LATENCIES = ("ttft", "tpot", "itl", "e2el")
TARGETS = ("ttft", "tpot", "e2el")
Floats = npt.NDArray[np.float64]


def ttft(record: Record) -> float:
    """Seconds from sending to the first message with output; nan when there was none."""
    return record.first - record.sent


def tpot(record: Record) -> float:
    """Mean seconds of an output token after the first; nan with fewer than two."""
    tokens = record.output_tokens - 1
    return (record.last - record.first) / tokens if tokens > 0 else float("nan")


def e2el(record: Record) -> float:
    """Seconds from sending to the end of the answer."""
    return record.end - record.sent


_OF = {"ttft": ttft, "tpot": tpot, "e2el": e2el}


def latencies(records: Sequence[Record], figure: str) -> Floats:
    """Every value of one of LATENCIES of the requests that succeeded, in milliseconds."""
    good = [r for r in records if r.ok]
    if figure == "itl":
        values = np.concatenate([np.asarray(r.gaps, np.float64) for r in good] or [np.zeros(0)])
    else:
        values = np.array([_OF[figure](r) for r in good], np.float64)
    kept: Floats = values[~np.isnan(values)] * 1e3
    return kept


def summary(values: Floats) -> dict[str, float | None]:
    """Mean, standard deviation, percentiles and largest; None when there is no value."""
    names = ["mean", "std", *(f"p{p}" for p in PERCENTILES), "max"]
    if not len(values):
        return dict.fromkeys(names)
    figures = [values.mean(), values.std(), *np.percentile(values, PERCENTILES), values.max()]
    return {name: float(value) for name, value in zip(names, figures, strict=True)}


def meets(record: Record, targets: Mapping[str, float]) -> bool:
    """Whether a request succeeded within every target (milliseconds). What does not exist is no miss."""
    return record.ok and not any(_OF[name](record) * 1e3 > most for name, most in targets.items())


def throughput(run: Run, targets: Mapping[str, float]) -> dict[str, Any]:
    """Counts and rates, named as in the results of `vllm bench serve`."""
    good = [r for r in run.records if r.ok]
    failed = len(run.records) - len(good)
    prompt, output = sum(r.prompt_tokens for r in good), sum(r.output_tokens for r in good)
    seconds = run.seconds
    return {
        "duration": seconds,
        "completed": len(good),
        "failed": failed,
        "unfinished": run.unfinished,
        "success_rate": len(good) / len(run.records) if run.records else None,
        "retries": sum(r.retries for r in run.records),
        "total_input_tokens": prompt,
        "total_output_tokens": output,
        "request_throughput": _rate(len(good), seconds),
        "request_goodput": _rate(sum(meets(r, targets) for r in good), seconds) if targets else None,
        "input_throughput": _rate(prompt, seconds),
        "output_throughput": _rate(output, seconds),
        "total_token_throughput": _rate(prompt + output, seconds),
        "max_concurrent_requests": run.peak_concurrency,
    }


def by_priority(run: Run, targets: Mapping[str, float]) -> list[dict[str, Any]]:
    """The same figures for each priority class."""
    rows = []
    for name in sorted({r.priority for r in run.records if r.priority is not None}, key=_rank):
        records = [r for r in run.records if r.priority == name]
        good = [r for r in records if r.ok]
        row: dict[str, Any] = {
            "priority": name,
            "requests": len(records),
            "success_rate": len(good) / len(records),
            "request_goodput": _rate(sum(meets(r, targets) for r in good), run.seconds) if targets else None,
        }
        for figure in ("ttft", "tpot", "e2el"):
            found = summary(latencies(good, figure))
            row |= {f"{key}_{figure}_ms": found[key] for key in ("mean", "p50", "p99")}
        rows.append(row)
    return rows


def failures(records: Iterable[Record]) -> list[dict[str, Any]]:
    """How often each reason occurred, with the detail of its first occurrence."""
    failed = [r for r in records if not r.ok]
    counts = Counter(r.reason for r in failed)
    example = {r.reason: r.detail for r in reversed(failed)}
    return [
        {"reason": reason, "requests": count, "example": example[reason]}
        for reason, count in counts.most_common()
    ]


def parse_goodput(options: Sequence[str]) -> dict[str, float]:
    """Targets in milliseconds, from ttft:500, tpot:50, e2el:2000, each its own option or with commas."""
    targets: dict[str, float] = {}
    for part in ",".join(options).split(",") if options else ():
        name, _, text = part.strip().partition(":")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if name not in TARGETS or not 0 < value < float("inf"):
            raise ConfigError(
                f"--goodput {part}: write a figure ({', '.join(TARGETS)}) and milliseconds, as in ttft:500"
            )
        if name in targets:
            raise ConfigError(f"--goodput {part}: {name} has a target already")
        targets[name] = value
    return targets


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _rank(priority: str) -> tuple[int, int, str]:
    """High before normal before low; then integers in order; then whatever else."""
    names = ("high", "normal", "low")
    if priority in names:
        return (0, names.index(priority), "")
    number = priority.lstrip("-").isdigit()
    return (1, int(priority) if number else 0, "") if number else (2, 0, priority)
