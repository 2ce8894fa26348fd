"""KV memory: static reservation against pages, and the block pool against malloc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vglm.bench import allocators, occupancy
from vglm.bench.report import Report, Table
from vglm.bench.traces import Lengths, fitted_lengths, read_trace
from vglm.console import progress_bar, size
from vglm.engine.executor import block_bytes
from vglm.errors import ConfigError
from vglm.llm import LLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """`requests` requests of the trace, none over `max_model_len`, with `kv_tokens` slots of KV memory.

    The run with the real model takes `measured` requests with every length divided by `scale`.
    """

    trace: Path | None = None
    requests: int = 1000
    max_model_len: int = 8192
    kv_tokens: int = 131072
    measured: int = 256
    scale: int = 8
    block_sizes: tuple[int, ...] = (16, 32, 64)


def run(model: str, work: Memory, options: dict[str, Any]) -> Report:
    """Both tables. Raises ConfigError when the sizes do not divide."""
    if work.kv_tokens < work.max_model_len or work.max_model_len % (256 * work.scale):
        raise ConfigError(
            f"max_model_len ({work.max_model_len}) must be a multiple of 256 x the scale ({work.scale}), and "
            f"the KV memory ({work.kv_tokens} tokens) must hold one sequence of it"
        )
    lengths = read_trace(work.trace) if work.trace else fitted_lengths(2 * work.requests)
    chosen = lengths.fitting(work.max_model_len, work.requests)
    llm = LLM(model, **options)
    small = chosen.fitting(work.max_model_len, work.measured).divided(work.scale)
    total = (1 + len(work.block_sizes)) * len(chosen) + 2 * len(small) + 2
    with progress_bar("memory", total) as bar:
        replayed = _replay(work, chosen, bar)
        measured = _measure(work, small, llm, bar)
        tables = [replayed, measured, *_allocators(llm, chosen, bar)]
    settings = {
        "model": model,
        "lengths": chosen.source,
        "requests": len(chosen),
        "mean prompt": round(sum(chosen.prompts) / len(chosen)),
        "mean output": round(sum(chosen.outputs) / len(chosen)),
        "KV memory": f"{work.kv_tokens:,} tokens",
        "longest": f"{work.max_model_len:,} tokens",
    }
    return Report("memory", settings, tables)


_COLUMNS = [
    ("strategy", "strategy", ""),
    ("block_size", "block", ",d"),
    ("used_slots_valid", "reserved slots in use", ".2%"),
    ("memory_valid", "KV memory in use", ".2%"),
    ("concurrent", "sequences at once", ".1f"),
    ("preemptions", "preemptions", ",d"),
    ("steps", "steps", ",d"),
]


def _replay(work: Memory, lengths: Lengths, bar: Any) -> Table:
    table = Table(
        f"static reservation against pages: {len(lengths)} requests through scheduler and pool, no model",
        _COLUMNS,
        notes=["in use: holds a computed token; means over the steps in which requests waited for memory"],
    )
    for block_size in (work.max_model_len, *work.block_sizes):
        row = occupancy.replay(lengths, block_size, work.kv_tokens, work.max_model_len, bar.advance)
        table.rows.append({"strategy": _strategy(block_size, work.max_model_len), **row})
    return table


def _measure(work: Memory, lengths: Lengths, llm: LLM, bar: Any) -> Table:
    longest, kv_tokens = work.max_model_len // work.scale, work.kv_tokens // work.scale
    threads = llm.options.threads or len(os.sched_getaffinity(0))
    table = Table(
        f"the same with the model: {len(lengths)} requests, lengths and memory divided by {work.scale}",
        [*_COLUMNS, ("sequences_per_second", "sequences/s", ".2f"), ("speedup", "against static", ".2f")],
        notes=["pages of 16 tokens waste more here, because sequences are shorter and pages are not"],
    )
    for block_size in (longest, 16):
        row = occupancy.measure(llm, lengths, block_size, kv_tokens, longest, threads, bar.advance)
        table.rows.append({"strategy": _strategy(block_size, longest), **row})
    static = table.rows[0]["sequences_per_second"]
    for row in table.rows:
        row["speedup"] = row["sequences_per_second"] / static
    return table


def _strategy(block_size: int, longest: int) -> str:
    return "static reservation" if block_size == longest else "paged"


def _allocators(llm: LLM, lengths: Lengths, bar: Any) -> list[Table]:
    bytes_ = block_bytes(llm._packed, 16, llm.options.kv_dtype)
    latency = Table(
        f"one block of {size(bytes_)}: allocate and release",
        [("allocator", "allocator", ""), ("nanoseconds", "ns", ",.0f")],
        allocators.latency_table(bytes_),
        ["everything is called from Python; the last row is what the calls into libc cost by themselves"],
    )
    bar.advance(what="allocators")
    totals = [p + o for p, o in zip(lengths.prompts, lengths.outputs, strict=True)]
    fragmentation = Table(
        "fragmentation after 20,000 random ends and starts of sequences, 64 alive",
        [
            ("allocator", "allocator", ""),
            ("external", "free inside the heap", ".1%"),
            ("usable", "of that, usable by the longest", ".1%"),
            ("internal", "internal", ".2%"),
            ("after_compaction", "free after compaction", ".1%"),
        ],
        allocators.fragmentation_table(totals, 64, 20000),
    )
    bar.advance()
    return [latency, fragmentation]
