"""Engine options as a user writes them, checked and turned into an engine for a model on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType

from vglm.engine.block_pool import BlockPool
from vglm.engine.config import EngineConfig
from vglm.engine.core import EngineCore
from vglm.errors import ConfigError, ModelError
from vglm.model.bundle import is_exported, read_card
from vglm.model.packed_file import PackedModel
from vglm.model.weight_cache import load_packed

DTYPES = ("auto", "bf16", "int8", "int4")
KV_DTYPES = ("auto", "bf16", "int8")
BLOCK_SIZES = (16, 32, 64, 128, 256)
GRAPH_MODES = ("auto", "spans", "sequential")
DEFAULT_MODEL_LEN = 8192  # unless the model's own limit is lower
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What a user may choose.

    Args:
        dtype: weights: "bf16"; "int8" (activations in int8 too); "int4" (a file's own 4-bit blocks). "auto" is int8.
        kv_cache_dtype: "bf16" or "int8" (a scale per token and head); "auto" is bf16 with bf16 weights, else int8.
        max_model_len: longest prompt plus output in tokens; None: the model's limit, at most 8192.
        max_num_seqs: sequences in one step.
        max_num_batched_tokens: tokens in one step, shared by prefill and decode.
        kv_cache_memory: limit of the KV cache in bytes, or as in "512M" or "2G"; committed as it is used. None: enough for
            max_num_seqs sequences of max_model_len, at most a quarter of the machine's memory.
        block_size: tokens in a block of the KV cache.
        threads: processors to use; None: all that this process may run on.
        enable_prefix_caching: whether requests share the KV of equal prefixes.
        seed: what requests without a seed of their own draw from.
        max_wait: seconds after which a waiting request gets its turn although better ones wait.
        span_cache_dir: directory in which computed spans survive a restart; None: they do not.
        span_cache_size: limit of that directory in bytes, or as in "512M" or "2G".
        ttft_target_ms, itl_target_ms: targets for the 95th percentile of the time to the first token and between tokens,
            in milliseconds; steps are then as large as the targets allow. None: no target.
        graph_mode: how graphs in prompts are read: "spans", each part cached for itself, whatever the order; "sequential",
            as text; "auto": spans if the model was trained so.
    """

    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    kv_cache_memory: int | str | None = None
    block_size: int = 16
    threads: int | None = None
    enable_prefix_caching: bool = True
    seed: int = 0
    max_wait: float = 10.0
    ttft_target_ms: float | None = None
    itl_target_ms: float | None = None
    graph_mode: str = "auto"
    span_cache_dir: str | Path | None = None
    span_cache_size: int | str = "1G"

    def __post_init__(self) -> None:
        _choice("dtype", self.dtype, DTYPES)
        _choice("kv_cache_dtype", self.kv_cache_dtype, KV_DTYPES)
        _choice("block_size", self.block_size, BLOCK_SIZES)
        _choice("graph_mode", self.graph_mode, GRAPH_MODES)
        _whole("max_num_seqs", self.max_num_seqs, 1, 65536)
        _whole("max_num_batched_tokens", self.max_num_batched_tokens, 1, 1 << 20)
        _whole("seed", self.seed, 0, (1 << 64) - 1)
        if not isinstance(self.enable_prefix_caching, bool):
            raise ConfigError(
                f"enable_prefix_caching is {self.enable_prefix_caching!r}; choose True or False"
            )
        if self.max_model_len is not None:
            _whole("max_model_len", self.max_model_len, 2, 1 << 24)
        if self.threads is not None:
            _whole("threads", self.threads, 1, 512)
        for name in ("max_wait", "ttft_target_ms", "itl_target_ms"):
            _duration(name, getattr(self, name), optional=name != "max_wait")
        if self.kv_cache_memory is not None:
            parse_bytes("kv_cache_memory", self.kv_cache_memory)
        if not isinstance(self.span_cache_dir, (str, Path, NoneType)) or self.span_cache_dir == "":
            raise ConfigError(f"span_cache_dir is {self.span_cache_dir!r}; give the path of a directory")
        parse_bytes("span_cache_size", self.span_cache_size)

    @property
    def weight_dtype(self) -> str:
        """The dtype that "auto" stands for."""
        return "int8" if self.dtype == "auto" else self.dtype

    def for_model(self, path: Path) -> EngineOptions:
        """These options with the dtype that "auto" stands for in a model: an exported one has weights of one dtype only."""
        exported = self.dtype == "auto" and is_exported(path)
        return replace(self, dtype=read_card(path).packed_dtype) if exported else self

    @property
    def kv_dtype(self) -> str:
        """The KV dtype that "auto" stands for."""
        if self.kv_cache_dtype != "auto":
            return self.kv_cache_dtype
        return "bf16" if self.weight_dtype == "bf16" else "int8"


def build_engine(
    path: Path, options: EngineOptions, progress: Callable[[float], None] = lambda _: None
) -> tuple[EngineCore, PackedModel]:
    """Load a model file or directory and build the engine around it.

    `progress` gets the fraction done while weights are packed for the first time. Raises ModelError or ConfigError.
    """
    from vglm.engine.executor import NativeExecutor, block_bytes, kv_identity
    from vglm.engine.span_store import SpanStore

    isa = choose_isa()
    packed = load_packed(path, options.weight_dtype, progress)
    config = packed.config
    limit = min(config.max_position, config.sliding_window or config.max_position)
    max_model_len = options.max_model_len or min(limit, DEFAULT_MODEL_LEN)
    if max_model_len > limit:
        reason = "sliding window" if config.sliding_window else "trained context"
        raise ConfigError(f"max_model_len {max_model_len} is over the model's {reason} of {limit} tokens")
    size = block_bytes(packed, options.block_size, options.kv_dtype)
    num_blocks, max_model_len = _pool_size(options, size, max_model_len)
    try:
        executor = NativeExecutor(
            packed,
            max_model_len=max_model_len,
            block_size=options.block_size,
            num_blocks=num_blocks,
            kv_cache_dtype=options.kv_dtype,
            threads=options.threads or len(os.sched_getaffinity(0)),
            isa=isa,
        )
    except ValueError as error:
        raise ModelError(f"{path}: the native core cannot run this model: {error}") from error
    except (MemoryError, RuntimeError) as error:
        reason = str(error) or "out of memory"
        raise ConfigError(
            f"no room for {num_blocks * size} bytes of KV cache and the threads ({reason}); "
            "lower kv_cache_memory or threads"
        ) from error
    engine_config = EngineConfig(
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=max(options.max_num_batched_tokens, options.max_num_seqs),
        max_model_len=max_model_len,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        eos_token_ids=config.eos_token_ids,
        model_id=packed.fingerprint,
        kv_cache_dtype=options.kv_dtype,
        enable_prefix_caching=options.enable_prefix_caching,
        seed=options.seed,
        max_wait=options.max_wait,
        ttft_target_ms=options.ttft_target_ms,
        itl_target_ms=options.itl_target_ms,
    )
    engine = EngineCore(executor, BlockPool(num_blocks, options.block_size, executor.kv), engine_config)
    if options.span_cache_dir is not None:
        identity = kv_identity(packed, options.block_size, options.kv_dtype, isa)
        limit = parse_bytes("span_cache_size", options.span_cache_size)
        engine.cache.attach(
            SpanStore(Path(options.span_cache_dir).expanduser(), identity, executor.kv, limit)
        )
    return engine, packed


def choose_isa() -> str:
    """The best instruction set of this machine, or the one that VGLM_ISA asks for."""
    from vglm import _native

    available = _native.available_isas()
    wanted = os.environ.get("VGLM_ISA")
    if not wanted:
        return available[0]
    if wanted not in (*available, "amx_simulated"):
        raise ConfigError(
            f"VGLM_ISA={wanted} is not available on this machine; it has {', '.join(available)}"
        )
    return wanted


def _pool_size(options: EngineOptions, size: int, max_model_len: int) -> tuple[int, int]:
    """Blocks of the KV pool, and max_model_len, lowered to what fits when the user has set neither."""
    per_sequence = -(-max_model_len // options.block_size)
    if options.kv_cache_memory is not None:
        num_blocks = parse_bytes("kv_cache_memory", options.kv_cache_memory) // size
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        num_blocks = min(per_sequence * options.max_num_seqs, memory // 4 // size)
    num_blocks = min(num_blocks, (1 << 31) - 1)
    if num_blocks < per_sequence:
        if options.max_model_len is not None or num_blocks < 1:
            raise ConfigError(
                f"kv_cache_memory has room for {num_blocks * options.block_size} tokens, less than max_model_len "
                f"{max_model_len}; give at least {per_sequence * size} bytes, or lower max_model_len"
            )
        max_model_len = num_blocks * options.block_size
    return num_blocks, max_model_len


def parse_bytes(name: str, value: int | str) -> int:
    """Bytes from a number or from text as in "512M", "1.5G" (powers of 1024)."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", value.lower())
        number = float(match[1]) * _UNITS[match[2]] if match else 0.0
    else:
        number = value if isinstance(value, int) and not isinstance(value, bool) else 0.0
    if not 1 <= number < 1 << 46:  # the address space of a process
        raise ConfigError(f"{name} is {value!r}; give bytes, or a size as in '512M' or '2G'")
    return int(number)


def _choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(type(value) is type(a) and value == a for a in allowed):
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(map(str, allowed))}")


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")


def _duration(name: str, value: object, optional: bool) -> None:
    if value is None and optional:
        return
    low = 0.0 if name == "max_wait" else 1e-3
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= 1e9:
        raise ConfigError(f"{name} is {value!r}; it must be a number from {low:g} to 1e9")
