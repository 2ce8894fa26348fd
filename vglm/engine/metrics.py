"""Counters and timings of the engine, under the names that vLLM's dashboards know."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from vglm.engine.block_pool import PoolStats
from vglm.engine.span_cache import CacheStats

#: Upper bounds of the histogram buckets in seconds; a last bucket takes what is above.
SECONDS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    60.0,
)


@dataclass(slots=True)
class Histogram:
    """A distribution of durations in seconds, in fixed buckets: O(1) memory however long the engine runs."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0
    count: int = 0

    def observe(self, seconds: float) -> None:
        """Add one duration."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds
        self.count += 1

    @property
    def mean(self) -> float:
        """Seconds; 0 when nothing was observed."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """The upper bound of the bucket that holds the q-quantile (0..1); 0 when nothing was observed."""
        rank = q * self.count
        seen = 0
        for bound, count in zip((*SECONDS, float("inf")), self.counts, strict=True):
            seen += count
            if count and seen >= rank:
                return bound
        return 0.0


@dataclass(slots=True)
class EngineMetrics:
    """What the engine has done since it started. Counts are monotonic, times are seconds."""

    num_steps: int = 0
    prompt_tokens: int = 0  # prompt (and recomputed) tokens that were computed
    generation_tokens: int = 0
    requests_finished: dict[str, int] = field(default_factory=dict)  # by finish reason
    time_to_first_token: Histogram = field(default_factory=Histogram)
    inter_token_latency: Histogram = field(default_factory=Histogram)
    e2e_request_latency: Histogram = field(default_factory=Histogram)
    request_queue_time: Histogram = field(default_factory=Histogram)
    schedule_time: float = 0.0  # deciding and building batches
    execute_time: float = 0.0  # inside the executor
    apply_time: float = 0.0  # taking over results

    @property
    def overhead_per_step(self) -> float:
        """Mean seconds that a step spends outside the executor."""
        return (self.schedule_time + self.apply_time) / self.num_steps if self.num_steps else 0.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine's state."""

    num_requests_running: int
    num_requests_waiting: int
    num_preemptions: int
    pool: PoolStats
    cache: CacheStats
    num_idle_blocks: int  # of cached spans that nobody uses

    @property
    def kv_cache_usage(self) -> float:
        """Share of the blocks that running requests hold, 0..1; idle spans do not count."""
        return (self.pool.used - self.num_idle_blocks) / self.pool.num_blocks
