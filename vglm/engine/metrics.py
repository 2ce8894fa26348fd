"""Counters and timings of the engine, under the names that vLLM's dashboards know."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from functools import partial

from vglm.engine.block_pool import PoolStats
from vglm.engine.request import Request, RequestKind
from vglm.engine.span_cache import CacheStats
from vglm.engine.waiting import PRIORITY_CLASSES

#: Upper bounds of the buckets of durations, in seconds; a last bucket takes what is above. Every bound that vLLM's
#: dashboards use as a latency target is among them, and finer ones for models that answer in milliseconds.
SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.075,
    0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 40.0,
    50.0, 60.0, 80.0, 120.0, 160.0, 240.0, 480.0, 640.0, 960.0, 1920.0, 2560.0, 7680.0,
)  # fmt: skip
TOKENS = tuple(digit * 10.0**power for power in range(6) for digit in (1, 2, 5))  # of a request: 1 to 500,000
STEP_TOKENS = (1.0, *(float(1 << power) for power in range(3, 17)))  # of a step: 1, 8 to 65,536
DECISIONS = tuple(
    digit * 10.0**power for power in range(-6, -1) for digit in (1, 2, 5)
)  # seconds: 1 us to 50 ms
CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # sequences of a request


@dataclass(slots=True)
class Histogram:
    """A distribution in fixed buckets: O(1) memory however long the engine runs.

    `bounds` are the buckets' upper bounds, durations in seconds unless told otherwise; `counts` has one entry more.
    """

    bounds: tuple[float, ...] = SECONDS
    counts: list[int] = field(init=False)
    total: float = 0.0
    count: int = 0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Add one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        self.count += 1

    @property
    def mean(self) -> float:
        """0 when nothing was observed."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """The upper bound of the bucket that holds the q-quantile (0..1); 0 when nothing was observed."""
        rank = q * self.count
        seen = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            if count and seen >= rank:
                return bound
        return 0.0


@dataclass(slots=True)
class EngineMetrics:
    """What the engine has done since it started. Counts are monotonic, times are seconds."""

    num_steps: int = 0
    prompt_tokens: int = 0  # prompt (and recomputed) tokens that were computed
    prompt_tokens_cached: int = 0  # prompt tokens whose KV was in the cache when their request started
    generation_tokens: int = 0
    requests_finished: dict[str, int] = field(default_factory=dict)  # by finish reason
    time_to_first_token: Histogram = field(default_factory=Histogram)
    inter_token_latency: Histogram = field(default_factory=Histogram)
    e2e_request_latency: Histogram = field(default_factory=Histogram)
    request_queue_time: Histogram = field(default_factory=Histogram)
    request_prefill_time: Histogram = field(default_factory=Histogram)  # first scheduled to first token
    request_decode_time: Histogram = field(default_factory=Histogram)  # first token to the end
    request_inference_time: Histogram = field(default_factory=Histogram)  # both
    request_time_per_output_token: Histogram = field(default_factory=Histogram)  # mean of each request
    request_prompt_tokens: Histogram = field(default_factory=partial(Histogram, TOKENS))
    request_generation_tokens: Histogram = field(default_factory=partial(Histogram, TOKENS))
    request_max_generation_tokens: Histogram = field(default_factory=partial(Histogram, TOKENS))
    request_params_max_tokens: Histogram = field(default_factory=partial(Histogram, TOKENS))
    request_params_n: Histogram = field(default_factory=partial(Histogram, CHOICES))
    iteration_tokens: Histogram = field(default_factory=partial(Histogram, STEP_TOKENS))
    queue_time_by_class: dict[str, Histogram] = field(  # request_queue_time by class of priority
        default_factory=lambda: {name: Histogram() for name in PRIORITY_CLASSES}
    )
    schedule_seconds: Histogram = field(default_factory=partial(Histogram, DECISIONS))  # processor time
    schedule_time: float = 0.0  # deciding and building batches
    execute_time: float = 0.0  # inside the executor
    apply_time: float = 0.0  # taking over results

    def count_finished(self, request: Request, reason: str) -> None:
        """Count a request that has just ended, under its last sequence's finish reason."""
        self.requests_finished[reason] = self.requests_finished.get(reason, 0) + 1
        self.e2e_request_latency.observe(request.finished_time - request.arrival_time)
        self.request_prompt_tokens.observe(len(request.prompt_token_ids))
        lengths = [len(sequence.output_token_ids) for sequence in request.sequences]
        if request.kind is RequestKind.GENERATE:
            self.request_params_n.observe(len(request.sequences))
            self.request_params_max_tokens.observe(request.max_tokens)
            self.request_generation_tokens.observe(sum(lengths))
            self.request_max_generation_tokens.observe(max(lengths))
        if not request.scheduled_time:
            return  # it ended in the queue
        decoding = request.finished_time - request.first_token_time if request.first_token_time else 0.0
        inference = request.finished_time - request.scheduled_time
        self.request_inference_time.observe(inference)
        self.request_prefill_time.observe(inference - decoding)
        self.request_decode_time.observe(decoding)
        if max(lengths) > 1:
            self.request_time_per_output_token.observe(decoding / (max(lengths) - 1))

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
    num_waiting_by_class: dict[str, int]  # keys "high", "normal", "low"

    @property
    def kv_cache_usage(self) -> float:
        """Share of the blocks that running requests hold, 0..1; idle spans do not count."""
        return (self.pool.used - self.num_idle_blocks) / self.pool.num_blocks
