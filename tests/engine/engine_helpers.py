"""What the engine's tests share: an engine over the tiny model, and running requests to their end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from tiny_model import HIDDEN, VOCAB, TinyModel, TinyStorage

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.block_pool import BlockPool
from vglm.engine.config import EngineConfig
from vglm.engine.core import EngineCore
from vglm.engine.request import Request


def make_engine(
    num_blocks: int = 64,
    block_size: int = 4,
    *,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    max_model_len: int | None = None,
    eos: tuple[int, ...] = (),
    prefix_caching: bool = True,
    max_wait: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> EngineCore:
    storage = TinyStorage(num_blocks, block_size)
    config = EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len or num_blocks * block_size,
        max_wait=max_wait,
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        eos_token_ids=eos,
        model_id="tiny",
        enable_prefix_caching=prefix_caching,
    )
    return EngineCore(TinyModel(storage), BlockPool(num_blocks, block_size, storage), config, clock)


class Clock:
    """A clock that stands still until it is moved; EngineCore takes 0.0 for "not yet"."""

    def __init__(self) -> None:
        self.now = 1.0

    def __call__(self) -> float:
        return self.now


def model_of(engine: EngineCore) -> TinyModel:
    assert isinstance(engine.executor, TinyModel)
    return engine.executor


def greedy(max_tokens: int = 8, **kwargs: object) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **kwargs)  # type: ignore[arg-type]


def prompt(length: int, seed: int = 0) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(1, VOCAB, length).tolist()
    return tokens


def drain(engine: EngineCore, check: bool = True, limit: int = 10_000) -> None:
    """Run until nothing is left, checking the engine's integrity after every step."""
    steps = 0
    while engine.has_unfinished:
        engine.step()
        steps += 1
        assert steps < limit, "the engine makes no progress"
        if check:
            engine.check_integrity()
    engine.check_integrity()


def generate(
    engine: EngineCore, prompts: Iterable[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
) -> list[Request]:
    prompts = list(prompts)
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    base = engine.metrics.num_steps
    requests = [
        engine.add_request(f"{base}-{i}", p, q) for i, (p, q) in enumerate(zip(prompts, each, strict=True))
    ]
    drain(engine)
    return requests


def tokens_of(requests: Iterable[Request]) -> list[list[list[int]]]:
    return [[s.output_token_ids for s in request.sequences] for request in requests]


def assert_empty(engine: EngineCore) -> None:
    """Nothing runs, and every block is free or belongs to an idle span."""
    assert not engine.has_unfinished
    assert not engine.scheduler.has_unfinished
    assert engine.pool.num_used == engine.cache.num_idle_blocks
    engine.check_integrity()
    engine.cache.clear()
    assert engine.pool.num_used == 0
