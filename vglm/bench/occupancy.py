"""How much of the KV memory holds tokens: static reservation against page tables.

A static reservation is a page table whose page is as long as the longest sequence allowed. So both strategies
run through the same scheduler, block pool and accounting, over the same memory, and differ in the block size
alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vglm.bench.traces import Lengths
from vglm.bench.workload import fixed_length, random_prompts
from vglm.engine.block_pool import BlockPool, IntArray
from vglm.engine.config import EngineConfig
from vglm.engine.core import EngineCore
from vglm.engine.executor import NativeExecutor
from vglm.engine.step import StepBatch, StepResult
from vglm.llm import LLM
from vglm.options import choose_isa

_MAX_SEQUENCES = 512
_TOKENS_PER_STEP = 2048
_VOCABULARY = 1 << 16
_LARGEST_PAGE = 256  # of the native KV cache


class _NoMemory:
    """Block storage for accounting alone."""

    def copy_blocks(self, src: IntArray, dst: IntArray) -> None:
        """Nothing is stored, so nothing is copied."""

    def release(self, blocks: IntArray) -> None:
        """Nothing is stored, so nothing is given back."""


class _NoModel:
    """Answers every row with token 0: the accounting depends on how many tokens there are, not on which."""

    def execute(self, batch: StepBatch) -> StepResult:
        """One token for each output row."""
        rows = len(batch.sample_rows)
        return StepResult(np.zeros(rows, np.int32), np.zeros(rows, np.float32))


@dataclass(slots=True)
class _Reserving:
    """Runs batches whose pages are reservations of `pages` consecutive native blocks each."""

    executor: NativeExecutor
    pages: int
    page_size: int

    def execute(self, batch: StepBatch) -> StepResult:
        """The same step over native blocks."""
        counts = -(-batch.table_valid // self.page_size)
        ends = np.cumsum(counts)
        within = np.arange(ends[-1], dtype=np.int32) - np.repeat(ends - counts, counts).astype(np.int32)
        blocks = np.repeat(batch.table_block * self.pages, counts) + within
        valid = np.minimum(np.repeat(batch.table_valid, counts) - within * self.page_size, self.page_size)
        starts = np.concatenate([[0], ends])[batch.table_start]
        native = replace(
            batch,
            table_start=starts.astype(np.int32),
            table_block=blocks.astype(np.int32),
            table_valid=valid.astype(np.int32),
        )
        return self.executor.execute(native)


@dataclass(slots=True)
class Use:
    """Means over the steps in which requests waited for memory."""

    kv_tokens: int
    steps: int = 0
    used: float = 0.0  # sum over steps of valid tokens / slots of used blocks
    whole: float = 0.0  # sum over steps of valid tokens / all slots
    running: int = 0

    def observe(self, engine: EngineCore) -> None:
        """Take one step's accounting in."""
        pool = engine.pool
        if pool.num_used and engine.scheduler.waiting:
            self.steps += 1
            self.used += pool.tokens_valid / (pool.num_used * pool.block_size)
            self.whole += pool.tokens_valid / self.kv_tokens
            self.running += len(engine.scheduler.running)

    def row(self) -> dict[str, Any]:
        """The means."""
        steps = self.steps or 1
        return {
            "used_slots_valid": self.used / steps,
            "memory_valid": self.whole / steps,
            "concurrent": self.running / steps,
            "pressed_steps": self.steps,
        }


def replay(
    lengths: Lengths, block_size: int, kv_tokens: int, max_model_len: int, on_step: Callable[[int], None]
) -> dict[str, Any]:
    """Run the lengths through scheduler and pool without a model; `on_step` gets how many requests ended."""
    blocks, sequences = _pool_size(block_size, kv_tokens, max_model_len)
    engine = EngineCore(
        _NoModel(),
        BlockPool(blocks, block_size, _NoMemory()),
        _config(max_model_len, sequences, _VOCABULARY, 64),
    )
    prompts = [[1] * n for n in lengths.prompts]
    use, steps = _drain(engine, prompts, lengths.outputs, kv_tokens, on_step)
    engine.check_integrity()
    return {
        "block_size": block_size,
        **use.row(),
        "steps": steps,
        "preemptions": engine.scheduler.num_preemptions,
    }


def measure(
    llm: LLM,
    lengths: Lengths,
    block_size: int,
    kv_tokens: int,
    max_model_len: int,
    threads: int,
    on_step: Callable[[int], None],
) -> dict[str, Any]:
    """The same with the real model: sequences per second."""
    packed = llm._packed
    page_size = min(block_size, _LARGEST_PAGE)
    executor = NativeExecutor(
        packed,
        max_model_len=max_model_len,
        block_size=page_size,
        num_blocks=kv_tokens // page_size,
        kv_cache_dtype=llm.options.kv_dtype,
        threads=threads,
        isa=choose_isa(),
    )
    blocks, sequences = _pool_size(block_size, kv_tokens, max_model_len)
    config = _config(max_model_len, sequences, packed.config.vocab_size, packed.config.hidden_size)
    pool = BlockPool(blocks, block_size, _NoMemory())
    engine = EngineCore(_Reserving(executor, block_size // page_size, page_size), pool, config)
    tokens = random_prompts(llm, 1, max(lengths.prompts))[0]
    begin = time.perf_counter()
    use, steps = _drain(engine, [tokens[:n] for n in lengths.prompts], lengths.outputs, kv_tokens, on_step)
    seconds = time.perf_counter() - begin
    return {
        "block_size": block_size,
        **use.row(),
        "steps": steps,
        "seconds": seconds,
        "sequences_per_second": len(lengths) / seconds,
        "resident_kv_bytes": executor.kv.resident_bytes(),
        "preemptions": engine.scheduler.num_preemptions,
    }


def _pool_size(block_size: int, kv_tokens: int, max_model_len: int) -> tuple[int, int]:
    """Blocks of the pool, and sequences at once.

    The scheduler keeps one block per running sequence in reserve. A reservation never needs a second block;
    for that strategy the reserve is on top of the memory: it is as large, and is never touched.
    """
    blocks = kv_tokens // block_size
    return (2 * blocks, blocks) if block_size == max_model_len else (blocks, _MAX_SEQUENCES)


def _config(max_model_len: int, sequences: int, vocabulary: int, hidden: int) -> EngineConfig:
    return EngineConfig(
        max_num_seqs=sequences,
        max_num_batched_tokens=_TOKENS_PER_STEP,
        max_model_len=max_model_len,
        vocab_size=vocabulary,
        hidden_size=hidden,
        enable_prefix_caching=False,
    )


def _drain(
    engine: EngineCore,
    prompts: list[list[int]],
    outputs: list[int],
    kv_tokens: int,
    on_step: Callable[[int], None],
) -> tuple[Use, int]:
    """Run everything, all requests waiting from the start."""
    use, steps, left = Use(kv_tokens), 0, len(prompts)
    for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        engine.add_request(str(i), prompt, fixed_length(output))
    try:
        while engine.has_unfinished:
            engine.step()
            use.observe(engine)
            steps += 1
            on_step(left - len(engine.requests))
            left = len(engine.requests)
    finally:
        engine.abort_all()
    return use, steps
