"""What a server's own metrics (Prometheus text at /metrics) say about a load: scraped before, during and after it."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vglm.bench.answers import RequestFailure
from vglm.bench.client import Client
from vglm.errors import ConfigError

_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?[0-9]+)?")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_RESIDENT = "process_resident_memory_bytes"
_INTERVAL = 1.0  # seconds between two samples of memory


class Metrics:
    """One scrape. Series of a name that differ in other labels than a histogram's `le` are added up."""

    def __init__(self, text: str) -> None:
        """Lines that are no samples (comments, exemplars) are left out."""
        self.values: dict[str, float] = defaultdict(float)
        self.buckets: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
        for line in text.splitlines():
            match = _LINE.fullmatch(line.partition(" # ")[0].strip())
            if match is None or (value := _number(match[3])) is None:
                continue
            name, labels = match[1], dict(_LABEL.findall(match[2] or ""))
            bound = _number(labels["le"]) if "le" in labels else None
            if name.endswith("_bucket") and bound is not None:
                self.buckets[name.removesuffix("_bucket")][bound] += value
            else:
                self.values[name] += value

    def find(self, *names: str) -> str | None:
        """The first of these names, with a prefix of vGLM or vLLM or none, that there is."""
        for name in names:
            for full in (f"vglm:{name}", f"vllm:{name}", name):
                if full in self.values or full in self.buckets:
                    return full
        return None


@dataclass(slots=True)
class Watch:
    """Scrapes before and after a load; the largest resident memory in between, in bytes (None: not told)."""

    client: Client
    before: Metrics | None = None
    after: Metrics | None = None
    peak_resident: float | None = None
    missed: int = 0
    _task: asyncio.Task[None] | None = field(default=None, repr=False)

    async def start(self) -> None:
        """Scrape, and go on looking at the memory. Raises ConfigError when there are no metrics."""
        try:
            self.before = await self._scrape()
        except RequestFailure as failure:
            raise ConfigError(f"--metrics: GET /metrics: {failure}") from None
        if not self.before.values:
            raise ConfigError(
                "--metrics: GET /metrics answers, but not with metrics in Prometheus' text format"
            )
        self._task = asyncio.create_task(self._sample())

    async def stop(self) -> None:
        """Scrape for the last time; a server that is gone leaves `after` None."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        try:
            async with asyncio.timeout(10):
                self.after = await self._scrape()
        except (RequestFailure, TimeoutError):
            self.missed += 1

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                await self._scrape()
            except RequestFailure:  # counted, and shown with the figures
                self.missed += 1

    async def _scrape(self) -> Metrics:
        answer = await self.client.get("/metrics")
        answer.check_status()
        metrics = Metrics(answer.text())
        if (resident := metrics.values.get(_RESIDENT)) is not None:
            self.peak_resident = max(self.peak_resident or 0.0, resident)
        return metrics

    def figures(self) -> dict[str, Any]:
        """What happened in between; figures that the server does not have are left out."""
        found: dict[str, Any] = {}
        if self.peak_resident is not None:
            found["peak_resident_bytes"] = self.peak_resident
        if self.before is not None and self.after is not None:
            found |= _scheduler(self.before, self.after)
            found |= _counters(self.before, self.after)
        return found


def _scheduler(before: Metrics, after: Metrics) -> dict[str, Any]:
    name = after.find("scheduler_step_seconds")
    if name is None or not after.buckets[name]:
        return {}
    counts = {le: n - before.buckets[name].get(le, 0.0) for le, n in after.buckets[name].items()}
    steps = after.values[f"{name}_count"] - before.values.get(f"{name}_count", 0.0)
    total = after.values[f"{name}_sum"] - before.values.get(f"{name}_sum", 0.0)
    return {
        "scheduler_steps": int(steps),
        "scheduler_mean_ms": 1e3 * total / steps if steps else None,
        "scheduler_p99_ms": _milliseconds(quantile(counts, 0.99)),
    }


def _counters(before: Metrics, after: Metrics) -> dict[str, Any]:
    def more(*names: str) -> float | None:
        name = after.find(*names)
        return None if name is None else after.values[name] - before.values.get(name, 0.0)

    found: dict[str, Any] = {}
    if (preemptions := more("num_preemptions_total")) is not None:
        found["preemptions"] = int(preemptions)
    queries = more("span_cache_queries_total", "prefix_cache_queries_total")
    hits = more("span_cache_hits_total", "prefix_cache_hits_total")
    if queries is not None and hits is not None:
        found["span_cache_hit_rate"] = hits / queries if queries else None
    return found


def quantile(counts: Mapping[float, float], q: float) -> float | None:
    """The q-quantile of a histogram of cumulative counts by upper bound, linear within a bucket, as Prometheus has it."""
    bounds = sorted(counts)
    total = counts[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    rank, low, below = q * total, 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= rank:
            if bound == float("inf"):
                return low
            inside = counts[bound] - below
            return low + (bound - low) * ((rank - below) / inside if inside else 1.0)
        low, below = bound, counts[bound]
    return low


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
