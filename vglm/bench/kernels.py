"""How near each kernel of each instruction set comes to what this machine can do."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vglm import _native
from vglm.bench.report import Report, Table
from vglm.console import progress_bar
from vglm.errors import ConfigError
from vglm.model import layout
from vglm.model.checkpoint import open_checkpoint
from vglm.model.config import ModelConfig
from vglm.model.layout import ByteArray, FloatArray, PackedLinear, padded
from vglm.model.pull import resolve_model

TYPES = ("bf16", "int8", "int4")
_SECONDS = 0.25  # of repetitions of one measurement
_MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Instruction sets (None: all that this machine has), row counts, weight types, threads."""

    isas: tuple[str, ...] | None = None
    rows: tuple[int, ...] = (1, 8, 64, 512)
    types: tuple[str, ...] = TYPES
    threads: int | None = None
    megabytes: int = 256  # weights of the M = 1 measurement, at least twice the last-level cache


@dataclass(frozen=True, slots=True)
class Peak:
    """Limits of one instruction set: operations/s by weight type, bytes/s of memory (all threads, one)."""

    ops: dict[str, float]
    bandwidth: float
    bandwidth_one: float


def run(model: str, work: Kernels) -> Report:
    """Measure peaks, then every kernel against them."""
    available = _native.available_isas()
    isas = work.isas or tuple(available)
    if unknown := sorted(set(isas) - set(available)):
        raise ConfigError(
            f"instruction set {', '.join(unknown)} is not available; this machine has {', '.join(available)}"
        )
    if unknown := sorted(set(work.types) - set(TYPES)):
        raise ConfigError(f"weight type {', '.join(unknown)} is unknown; choose from {', '.join(TYPES)}")
    config = open_checkpoint(resolve_model(model)).config
    threads = work.threads or len(os.sched_getaffinity(0))
    megabytes = min(max(work.megabytes, 2 * _last_level_cache() // _MEGABYTE), 1024)
    jobs = len(isas) * (1 + len(work.types) * len(work.rows) + 2)
    with progress_bar("peaks", jobs) as bar:
        peaks = {}
        for isa in isas:
            peaks[isa] = _peak(isa, threads, megabytes)
            bar.advance(what=f"peaks {isa}")
        tables = [_peak_table(peaks)]
        for kind in work.types:
            tables.append(_matmul_table(config, kind, work.rows, peaks, threads, megabytes, bar))
        tables.append(_attention_table(config, peaks, bar))
    settings = {"shapes of": model, "threads": threads, "M = 1 weights": f"{megabytes} MB"}
    return Report("kernels", settings, tables)


def _peak(isa: str, threads: int, megabytes: int) -> Peak:
    ops = {kind: _native.peak_ops(isa, kind, threads, _SECONDS) for kind in ("bf16", "int8")}
    return Peak(
        ops | {"int4": ops["int8"]},
        _native.read_bandwidth(isa, threads, megabytes, 5),
        _native.read_bandwidth(isa, 1, megabytes, 5),
    )


def _peak_table(peaks: dict[str, Peak]) -> Table:
    rows = [
        {
            "isa": isa,
            "bf16": p.ops["bf16"] / 1e9,
            "int8": p.ops["int8"] / 1e9,
            "gb_per_second": p.bandwidth / 1e9,
            "gb_per_second_one_thread": p.bandwidth_one / 1e9,
        }
        for isa, p in peaks.items()
    ]
    columns = [
        ("isa", "instruction set", ""),
        ("bf16", "bf16 GFLOP/s", ",.0f"),
        ("int8", "int8 GOP/s", ",.0f"),
        ("gb_per_second", "memory GB/s", ".1f"),
        ("gb_per_second_one_thread", "one thread GB/s", ".1f"),
    ]
    notes = [
        "peaks: dot products that stay in registers; a read of memory. A set without bf16 products: float's"
    ]
    return Table("measured peaks of this machine", columns, rows, notes)


def _matmul_table(
    config: ModelConfig,
    kind: str,
    rows: tuple[int, ...],
    peaks: dict[str, Peak],
    threads: int,
    megabytes: int,
    bar: Any,
) -> Table:
    table = Table(
        f"matrix multiplication, {kind} weights",
        [
            ("isa", "instruction set", ""),
            ("m", "M", ",d"),
            ("n", "N", ",d"),
            ("k", "K", ",d"),
            ("gops", "GOP/s", ",.0f"),
            ("peak_ops", "of peak", ".0%"),
            ("gb_per_second", "GB/s", ".1f"),
            ("peak_bandwidth", "of bandwidth", ".0%"),
        ],
        notes=["M = 1 reads weights that no cache holds; N is what makes them that large"],
    )
    for m in rows:
        for n, k in _shapes(config, kind, m, megabytes):
            weight = _weight(kind, n, k)
            x = aligned((m, k), np.float32)
            x[...] = np.random.default_rng(m).standard_normal((m, k), np.float32)
            out = aligned((m, n), np.float32)
            for isa, peak in peaks.items():

                def once(
                    repeats: int, isa: str = isa, w: PackedLinear = weight, x: Any = x, out: Any = out
                ) -> float:
                    return _native.matmul(
                        isa, w.type, w.n, w.k, w.data, w.scale, None, x, out, "f32", threads, repeats
                    )

                seconds = _best(once)
                ops, read = 2.0 * m * n * k / seconds, weight.data.nbytes / seconds
                row = {"isa": isa, "m": m, "n": n, "k": k, "seconds": seconds, "gops": ops / 1e9}
                if m == 1:
                    row |= {"gb_per_second": read / 1e9, "peak_bandwidth": read / peak.bandwidth}
                else:
                    row |= {"peak_ops": ops / peak.ops[kind]}
                table.rows.append(row)
        bar.advance(len(peaks), what=f"matmul {kind} M={m}")
    table.rows.sort(key=lambda row: list(peaks).index(row["isa"]))
    return table


def _attention_table(config: ModelConfig, peaks: dict[str, Peak], bar: Any) -> Table:
    group, dim = config.num_heads // config.num_kv_heads, padded(config.head_dim, 16)
    slots = -(-2 * max(_last_level_cache(), 16 * _MEGABYTE) // (4 * dim) // 1024) * 1024
    rng = np.random.default_rng(0)
    q = rng.standard_normal((group, dim), np.float32)
    k, v = (rng.standard_normal((slots, dim), np.float32) for _ in range(2))
    limit = np.full(group, slots, np.int32)
    out = np.zeros((group, dim), np.float32)
    table = Table(
        f"attention in decode, one thread: {group} queries of one KV head over {slots:,} tokens",
        [
            ("isa", "instruction set", ""),
            ("kv", "KV", ""),
            ("gb_per_second", "GB/s", ".1f"),
            ("peak_bandwidth", "of bandwidth", ".0%"),
        ],
    )
    for isa, peak in peaks.items():
        for kind in ("bf16", "int8"):
            is_int8 = kind == "int8"

            def once(repeats: int, isa: str = isa, is_int8: bool = is_int8) -> float:
                return _native.attention(isa, q, k, v, limit, dim**-0.5, is_int8, out, repeats)

            read = slots * (2 * dim + 8 if is_int8 else 4 * dim) / _best(once)
            row = {
                "isa": isa,
                "kv": kind,
                "gb_per_second": read / 1e9,
                "peak_bandwidth": read / peak.bandwidth_one,
            }
            table.rows.append(row)
            bar.advance(what=f"attention {isa}")
    return table


def _best(once: Callable[[int], float]) -> float:
    """The best seconds, with as many repetitions as fit into the time for one measurement."""
    first = once(1)
    if first > 4 * _SECONDS:
        return first
    return min(first, once(max(3, min(int(_SECONDS / first), 1000))))


def _shapes(config: ModelConfig, kind: str, rows: int, megabytes: int) -> list[tuple[int, int]]:
    """(N, K) of the model's matrices; for one row, each K with columns that make the weights that large."""
    hidden, mlp = padded(config.hidden_size), padded(config.intermediate_size)
    if rows > 1:
        return [(2 * mlp, hidden), (hidden, mlp), (padded(config.vocab_size), hidden)]
    per_weight = {"bf16": 2.0, "int8": 1.0, "int4": 0.625}[kind]
    return [(int(megabytes * _MEGABYTE / (per_weight * k)) // 64 * 64, k) for k in (hidden, mlp)]


def _weight(kind: str, n: int, k: int) -> PackedLinear:
    """A packed matrix: 64 random columns, repeated, in memory that starts at a cache line."""
    w = np.random.default_rng(n + k).standard_normal((64, k), np.float32)
    if kind == "bf16":
        small = layout.pack_bf16(w)
    elif kind == "int8":
        small = layout.pack_int8(*layout.quantise_int8(w))
    else:
        small = layout.pack_int4(*layout.quantise_int4(w))
    data: ByteArray = aligned((n // 64, small.data.size), np.uint8)
    data[...] = small.data
    scale: FloatArray | None = None if small.scale is None else np.tile(small.scale, n // 64)
    return PackedLinear(kind, n, k, data.reshape(-1), scale)


def aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> Any:
    """An array of zeros that starts at a multiple of 64 bytes."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(count + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + count].view(dtype).reshape(shape)


def _last_level_cache() -> int:
    """Bytes of the largest cache of the first processor; 32 MB when the system does not tell."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text[:-1].isdigit() and text[-1] in "KM":
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20}[text[-1]])
    return max(sizes, default=32 * _MEGABYTE)
