"""The engine on a simulated clock: a step takes as long as a model of a machine says, and load arrives at known times.

Everything else is real: the scheduler, the block pool, the controller, and a small transformer that computes the tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from engine_helpers import Clock, greedy, prompt
from tiny_model import HIDDEN, VOCAB, TinyModel, TinyStorage

from vglm.bench.arrivals import gamma_arrivals
from vglm.bench.traces import fitted_lengths
from vglm.engine.block_pool import BlockPool
from vglm.engine.config import EngineConfig
from vglm.engine.core import EngineCore
from vglm.engine.step import StepBatch, StepResult

BLOCK = 16
MAX_MODEL_LEN = 512


@dataclass(frozen=True)
class Machine:
    """Seconds of a step = noise * (base + per_token * tokens of prompts + per_sequence * decoding sequences).

    `noise`: standard deviation of the logarithm of a step's time. `hiccups`: share of the steps that take ten times as
    long. `slowdown`: by what the machine is slower at a time, because of its neighbours.
    """

    base: float = 0.008
    per_token: float = 0.0004
    per_sequence: float = 0.0008
    noise: float = 0.05
    hiccups: float = 0.0
    slowdown: Callable[[float], float] = lambda now: 1.0

    def seconds(self, prompt_tokens: int, decoding: int, now: float, rng: np.random.Generator) -> float:
        time = self.base + self.per_token * prompt_tokens + self.per_sequence * decoding
        time *= float(np.exp(self.noise * rng.standard_normal())) * self.slowdown(now)
        return 10 * time if rng.random() < self.hiccups else time


class TimedModel(TinyModel):
    """The tiny model on such a machine: the clock goes on by what a step takes there."""

    def __init__(self, storage: TinyStorage, clock: Clock, machine: Machine, seed: int) -> None:
        super().__init__(storage)
        self._clock = clock
        self._machine = machine
        self._rng = np.random.default_rng(seed)

    def execute(self, batch: StepBatch) -> StepResult:
        decoding = int((np.diff(batch.query_start) == 1).sum())
        prompt_tokens = len(batch.token_ids) - decoding
        self._clock.now += self._machine.seconds(prompt_tokens, decoding, self._clock.now, self._rng)
        return super().execute(batch)


@dataclass(frozen=True)
class Arrival:
    """A request: when it comes, its prompt's tokens, and how many it generates."""

    at: float
    prompt: int
    output: int


@dataclass
class Outcome:
    """What the clients saw. Times are seconds of the simulated clock."""

    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)  # of each request, in order of arrival
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds

    def meets(self, itl: float, ttft: float) -> bool:
        """Whether the 95th percentiles are within targets in milliseconds."""
        return p95_ms(self.itl) <= itl and p95_ms(self.ttft) <= ttft


def p95_ms(seconds: list[float]) -> float:
    """The 95th percentile, in milliseconds."""
    return 1000 * float(np.quantile(seconds, 0.95))


def timed_engine(machine: Machine, clock: Clock, seed: int = 0, **config: object) -> EngineCore:
    """An engine on a machine. `config`: fields of EngineConfig."""
    limits = {"max_num_seqs": 64, "max_num_batched_tokens": 1024} | config
    settings = EngineConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        max_model_len=MAX_MODEL_LEN,
        max_wait=1e6,
        enable_prefix_caching=False,
        **limits,  # type: ignore[arg-type]
    )
    num_blocks = 64 * MAX_MODEL_LEN // BLOCK
    storage = TinyStorage(num_blocks, BLOCK)
    pool = BlockPool(num_blocks, BLOCK, storage)
    return EngineCore(TimedModel(storage, clock, machine, seed), pool, settings, clock)


def simulate(
    arrivals: Iterable[Arrival],
    machine: Machine,
    *,
    watch: Callable[[EngineCore], None] = lambda engine: None,
    seed: int = 0,
    **config: object,
) -> Outcome:
    """Serve the arrivals to the last token; `watch` is called after every step."""
    clock = Clock()
    engine = timed_engine(machine, clock, seed, **config)
    begin, waiting = clock.now, deque(sorted(arrivals, key=lambda arrival: arrival.at))
    stamps: list[tuple[float, list[float]]] = []
    requests = []
    while waiting or engine.has_unfinished:
        if not engine.has_unfinished:
            clock.now = max(clock.now, begin + waiting[0].at)
        while waiting and begin + waiting[0].at <= clock.now:
            arrival = waiting.popleft()
            times: list[float] = []
            stamps.append((begin + arrival.at, times))

            def stamp(index: int, token: int, times: list[float] = times) -> None:
                times.append(clock.now)

            number = len(requests)
            tokens = prompt(arrival.prompt, number)
            params = greedy(arrival.output, ignore_eos=True)
            requests.append(engine.add_request(str(number), tokens, params, on_token=stamp))
        engine.step()
        watch(engine)
    engine.check_integrity()
    assert not any(request.error for request in requests)
    return Outcome(
        [times[0] - at for at, times in stamps],
        [after - before for _, times in stamps for before, after in pairwise(times)],
        [request.sequences[0].output_token_ids for request in requests],
        clock.now - begin,
    )


def bursty_gamma(count: int, rate: float, burstiness: float, seed: int = 0) -> list[Arrival]:
    """Arrivals whose intervals follow a gamma distribution; lengths as in the Azure conversation trace, a sixteenth of them."""
    return _with_lengths(gamma_arrivals(count, rate, burstiness, seed).tolist(), seed)


def rushes(phases: Iterable[tuple[float, float]], seed: int = 0) -> list[Arrival]:
    """A day of a service in a minute: phases of (seconds, requests a second), each a Poisson process."""
    begin, times = 0.0, []
    rng = np.random.default_rng(seed)
    for seconds, rate in phases:
        count = rng.poisson(seconds * rate)
        times += (begin + np.sort(rng.random(count)) * seconds).tolist()
        begin += seconds
    return _with_lengths(times, seed)


def _with_lengths(times: list[float], seed: int) -> list[Arrival]:
    lengths = fitted_lengths(8 * len(times), seed).divided(16).fitting(MAX_MODEL_LEN, len(times))
    return [
        Arrival(at, tokens, output)
        for at, tokens, output in zip(times, lengths.prompts, lengths.outputs, strict=True)
    ]
