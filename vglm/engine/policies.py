"""Latency targets: how many tokens a step may have, and how many sequences may run, so that targets are met."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from math import inf

from vglm.engine.scheduler import Scheduled, Scheduler

QUANTILE = 0.95  # of the time between two tokens: what a target means
SMALLEST_CHUNK = 16  # tokens of prompt that a step always has room for: who waits must get on
TTFT_STEPS = 4  # a step is at most this fraction of the TTFT target: who arrives waits for it to end
_WINDOW = 128  # steps that the percentile of the time between tokens looks back
_ERROR_WINDOW = 32  # and that of the model's errors: it learns about as fast itself
_PATIENCE = 16  # steps between two corrections: their effect must be seen first
_DECREASE, _INCREASE = 0.7, 2.0
_SMALL_MARGIN = 1.1  # what is left of the margin when somebody would be late
_NEARLY = 0.95  # of the ITL target: from there on, it is kept whole


@dataclass(frozen=True, slots=True)
class ControllerState:
    """What the controller does at the moment. Times are seconds."""

    token_budget: int
    max_running: int
    itl_p95: float  # of the last steps; 0 before the first
    decreases: int
    increases: int


class Quantile:
    """A quantile of the last values, exactly; a value of weight w counts as w equal ones."""

    def __init__(self, q: float, window: int) -> None:
        self._q = q
        self._window = window
        self._values: deque[tuple[float, int]] = deque()
        self._sorted: list[tuple[float, int]] = []
        self._weight = 0

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float, weight: int = 1) -> None:
        """Take a value in, and the oldest out when there are too many."""
        if len(self._values) == self._window:
            oldest = self._values.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
            self._weight -= oldest[1]
        self._values.append((value, weight))
        insort(self._sorted, (value, weight))
        self._weight += weight

    def clear(self) -> None:
        """Forget every value."""
        self._values.clear()
        self._sorted.clear()
        self._weight = 0

    def value(self, default: float) -> float:
        """The quantile, or `default` when there is no value."""
        below, rank = self._weight, int(self._q * (self._weight - 1) + 0.5)
        for value, weight in reversed(self._sorted):  # high quantiles are wanted: it ends soon
            below -= weight
            if below <= rank:
                return value
        return default


class StepTimeModel:
    """Seconds of a step = base + per_token * tokens of prompts + per_sequence * decoding sequences.

    Fitted online, by least squares of the relative errors, older steps weighing less and less. What the last
    steps say nothing about (the cost of a prompt token while nothing but decoding goes on) stays as it was.
    """

    FORGET = 0.98  # weight of a step against the one after it
    RIDGE = 1e-3  # weight of staying where we are

    def __init__(self) -> None:
        self.base = self.per_token = self.per_sequence = 0.0
        self.num_steps = 0
        self._gram = [
            [0.0] * 3 for _ in range(3)
        ]  # of features and of features with the target, both relative
        self._moment = [0.0] * 3

    def predict(self, prompt_tokens: int, sequences: int) -> float:
        """Seconds."""
        return self.base + self.per_token * prompt_tokens + self.per_sequence * sequences

    def observe(self, seconds: float, prompt_tokens: int, sequences: int) -> None:
        """Learn from a step."""
        if self.num_steps >= _PATIENCE:  # a hiccup of the machine is no property of the model
            seconds = min(seconds, 4 * self.predict(prompt_tokens, sequences))
        self.num_steps += 1
        # Units in which the three coefficients are of about the same size, so that one ridge suits all.
        x = (1e-3 / seconds, 1e-4 * prompt_tokens / seconds, 1e-4 * sequences / seconds)
        for i in range(3):
            self._moment[i] = self.FORGET * self._moment[i] + x[i]
            row = self._gram[i]
            for j in range(3):
                row[j] = self.FORGET * row[j] + x[i] * x[j]
        self._solve()

    def _solve(self) -> None:
        old = (self.base / 1e-3, self.per_token / 1e-4, self.per_sequence / 1e-4)
        gram, moment = self._gram, self._moment
        (a, b, c), (_, d, e), (_, _, f) = gram
        ridge = self.RIDGE * (a + d + f)
        a, d, f = a + ridge, d + ridge, f + ridge
        u, v, w = (m + ridge * o for m, o in zip(moment, old, strict=True))
        # Cramer's rule for the symmetric [[a, b, c], [b, d, e], [c, e, f]]
        aa, bb, cc = d * f - e * e, c * e - b * f, b * e - c * d
        dd, ee, ff = a * f - c * c, b * c - a * e, a * d - b * b
        det = a * aa + b * bb + c * cc
        self.base = 1e-3 * max(0.0, (aa * u + bb * v + cc * w) / det)
        self.per_token = 1e-4 * max(1e-4, (bb * u + dd * v + ee * w) / det)
        self.per_sequence = 1e-4 * max(1e-4, (cc * u + ee * v + ff * w) / det)


class LatencyController:
    """Keeps the time between tokens (ITL), and to the first one (TTFT), under targets where that is possible.

    A target is one for the 95th percentile. Every step, a model of the step's time, learned online, gives the
    most prompt tokens that keep it under the ITL target, with a margin for the model's own errors. A step in
    which nothing decodes may be as long as the TTFT target allows. `max_running` keeps the decoding itself
    under the target. A factor corrects what the model gets wrong: it falls when the measured percentile is over
    the target, and doubles again, up to 1, when it is under it and requests, or parts of prompts, wait. Requests
    that wait and would miss the TTFT target take most of the margin, unless the ITL target is nearly missed. A target
    that not even one sequence can meet counts as twice the time that one takes.
    """

    def __init__(self, itl_target: float | None, ttft_target: float | None) -> None:
        """Targets in seconds; None is no target."""
        self.itl_target = itl_target
        self.ttft_target = ttft_target
        self.model = StepTimeModel()
        self._itl = Quantile(QUANTILE, _WINDOW)
        self._errors = Quantile(QUANTILE, _ERROR_WINDOW)  # measured / predicted
        self._itl_p95 = 0.0
        self._factor = 1.0
        self._last_end = 0.0
        self._since_change = 0
        self._decreases = self._increases = 0
        self._applied = (0, 0)

    def state(self) -> ControllerState:
        """For metrics."""
        return ControllerState(*self._applied, self._itl_p95, self._decreases, self._increases)

    # ---- before a step ------------------------------------------------------------------------------------

    def apply(self, scheduler: Scheduler, now: float) -> None:
        """Set the scheduler's limits for the next step."""
        most_tokens, most_running = scheduler.config.max_num_batched_tokens, scheduler.config.max_num_seqs
        running = scheduler.running
        decoding = sum(sequence.num_tokens - sequence.num_computed == 1 for sequence in running)
        model = self.model
        if not model.num_steps:
            chunk, most = (SMALLEST_CHUNK if decoding else most_tokens), most_running
        else:
            step = self._step_limit(scheduler, now, decoding)
            chunk = int(min(max(step - model.predict(0, decoding), 0.0) / model.per_token, most_tokens))
            decode = self._itl_limit(scheduler, now) - model.predict(SMALLEST_CHUNK, 0)
            most = int(min(max(decode, 0.0) / model.per_sequence, most_running))
        budget = decoding + max(chunk, SMALLEST_CHUNK)
        scheduler.token_budget = min(max(budget, len(running)), most_tokens)
        scheduler.max_running = max(1, most)
        self._applied = (scheduler.token_budget, scheduler.max_running)

    def _step_limit(self, scheduler: Scheduler, now: float, decoding: int) -> float:
        """Seconds that the next step may take."""
        limit = self._itl_limit(scheduler, now) if decoding else inf
        if self.ttft_target is not None:
            shortest = self.model.predict(SMALLEST_CHUNK, decoding)
            limit = min(limit, max(self.ttft_target / TTFT_STEPS, 2 * shortest))
        return limit

    def _itl_limit(self, scheduler: Scheduler, now: float) -> float:
        """Seconds that a step may be predicted to take when sequences decode in it."""
        if self.itl_target is None:
            return inf
        margin = max(1.0, self._errors.value(1.0))
        if self._would_miss_ttft(scheduler, now) and self._itl_p95 <= _NEARLY * self.itl_target:
            margin = min(margin, _SMALL_MARGIN)
        return max(self.itl_target * self._factor / margin, 2 * self.model.predict(0, 1))

    def _would_miss_ttft(self, scheduler: Scheduler, now: float) -> bool:
        if self.ttft_target is None or not scheduler.waiting:
            return False
        return now - scheduler.waiting.longest_since > self.ttft_target / 2

    # ---- after a step -------------------------------------------------------------------------------------

    def observe(self, scheduled: Scheduled, started: float, ended: float, num_waiting: int) -> None:
        """Learn from a step that has run."""
        decoding = sum(count == 1 for _, count in scheduled)
        prompt_tokens = sum(count for _, count in scheduled) - decoding
        seconds = max(ended - started, 1e-6)
        if self.model.num_steps:
            self._errors.add(seconds / max(self.model.predict(prompt_tokens, decoding), 1e-6))
        self.model.observe(seconds, prompt_tokens, decoding)
        if decoding:
            # every sequence of the step has waited so long for its token: large steps count for more
            self._itl.add(ended - max(self._last_end, started - seconds), decoding)
            self._itl_p95 = self._itl.value(0.0)
        self._last_end = ended
        held_up = any(sequence.num_tokens - sequence.num_computed > 1 for sequence, _ in scheduled)
        self._correct(held_up or num_waiting > 0)

    def _correct(self, held_up: bool) -> None:
        self._since_change += 1
        if self.itl_target is None or self._since_change < _PATIENCE or len(self._itl) < _PATIENCE:
            return
        if self._itl_p95 > self.itl_target:
            self._factor = max(self._factor * _DECREASE, 0.1)
            self._decreases += 1
        elif self._factor < 1.0 and held_up and self._itl_p95 < 0.9 * self.itl_target:
            self._factor = min(self._factor * _INCREASE, 1.0)
            self._increases += 1
        else:
            return
        self._since_change = 0
        self._itl.clear()
