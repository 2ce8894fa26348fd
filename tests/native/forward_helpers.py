"""Tiny models on the native core, without the engine: pack, run a batch, compare with the fp32 reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.reference import Reference
from vglm.engine.executor import NativeExecutor
from vglm.model.checkpoint import LowRank, Q4Blocks
from vglm.model.config import ModelConfig, RopeConfig
from vglm.model.packed_file import PackedModel, aligned
from vglm.model.packing import pack_model

Float32 = npt.NDArray[np.float32]
BLOCK = 16


@dataclass
class TinyCheckpoint:
    """A checkpoint that lives in memory."""

    config: ModelConfig
    tensors: dict[str, Float32]
    fingerprint: str = "tiny"
    graph_card: None = None
    adapter: dict[str, LowRank] = field(default_factory=dict)

    def names(self) -> list[str]:
        return list(self.tensors)

    def tensor(self, name: str) -> Float32:
        return self.tensors[name]

    def blocks(self, name: str) -> Q4Blocks | None:
        return None

    def unadapted(self) -> TinyCheckpoint:
        return self

    def low_rank(self, name: str) -> LowRank | None:
        return self.adapter.get(name)

    def tokenizer(self) -> _Bytes:
        return _Bytes()


class _Bytes:
    """A tokenizer for the calibration text: its bytes."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


def random_checkpoint(seed: int = 0, **sizes: Any) -> TinyCheckpoint:
    """A random Llama whose weights are bf16 values, so that packing to bf16 loses nothing."""
    sizes = {"num_layers": 2, "hidden_size": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16,
             "intermediate_size": 96, "vocab_size": 101, "max_position": 4096} | sizes  # fmt: skip
    rope = RopeConfig(10000.0, sizes["head_dim"])
    config = ModelConfig("llama", norm_eps=1e-5, rope=rope, **sizes)
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> Float32:
        values = rng.standard_normal((rows, columns)).astype(np.float32) / np.float32(columns**0.5)
        return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    hidden, head, mlp = config.hidden_size, config.head_dim, config.intermediate_size
    tensors = {
        "embed_tokens": matrix(config.vocab_size, hidden),
        "lm_head": matrix(config.vocab_size, hidden),
    }
    tensors["final_norm"] = np.ones(hidden, np.float32)
    for i in range(config.num_layers):
        p = f"layers.{i}."
        tensors |= {
            p + "attn_norm": np.ones(hidden, np.float32),
            p + "mlp_norm": np.ones(hidden, np.float32),
            p + "q_proj": matrix(config.num_heads * head, hidden),
            p + "k_proj": matrix(config.num_kv_heads * head, hidden),
            p + "v_proj": matrix(config.num_kv_heads * head, hidden),
            p + "o_proj": matrix(hidden, config.num_heads * head),
            p + "gate_proj": matrix(mlp, hidden),
            p + "up_proj": matrix(mlp, hidden),
            p + "down_proj": matrix(hidden, mlp),
        }
    return TinyCheckpoint(config, tensors)


def packed(checkpoint: Any, dtype: str) -> PackedModel:
    """The packed model in memory; no cache is read or written."""
    arrays = {name: aligned(array) for name, array in pack_model(checkpoint, dtype, lambda _: None)}
    return PackedModel(checkpoint.config, arrays, "", None, "tiny")


def executor(
    model: PackedModel,
    isa: str,
    kv: str = "bf16",
    threads: int = 1,
    blocks: int = 64,
    block_size: int = BLOCK,
    max_len: int = 4096,
) -> NativeExecutor:
    """The native core with a KV cache of its own."""
    return NativeExecutor(
        model,
        max_model_len=max_len,
        block_size=block_size,
        num_blocks=blocks,
        kv_cache_dtype=kv,
        threads=threads,
        isa=isa,
    )


@dataclass
class Rows:
    """Rows of one sequence in a step: the last len(tokens) slots of its page table."""

    tokens: Sequence[int]
    positions: Sequence[int]
    table: Sequence[tuple[int, int]]  # (block, valid slots)
    outputs: Sequence[int] = field(
        default_factory=lambda: [-1]
    )  # rows whose logits are wanted, from 0 or from the end


def table_of(blocks: Sequence[int], length: int, block_size: int = BLOCK) -> list[tuple[int, int]]:
    """Page table of `length` slots in full blocks and a last one."""
    return [
        (b, min(block_size, length - i * block_size)) for i, b in enumerate(blocks) if i * block_size < length
    ]


def step(
    native: NativeExecutor, sequences: Sequence[Rows], embeds: dict[int, Float32] | None = None
) -> Float32:
    """One forward pass; logits of the wanted rows of all sequences, in order."""
    ints = lambda values: np.array(values, np.int32)  # noqa: E731
    starts = np.cumsum([0, *(len(s.tokens) for s in sequences)])
    entries = np.cumsum([0, *(len(s.table) for s in sequences)])
    outputs = [starts[i] + r % len(s.tokens) for i, s in enumerate(sequences) for r in s.outputs]
    extra = {}
    if embeds is not None:
        extra = {
            "embed_rows": ints(list(embeds)),
            "embeds": np.stack(list(embeds.values())).astype(np.float32),
        }
    out: Float32 = native.model.logits(
        native.kv,
        ints([t for s in sequences for t in s.tokens]),
        ints([p for s in sequences for p in s.positions]),
        ints(starts),
        ints(entries),
        ints([b for s in sequences for b, _ in s.table]),
        ints([v for s in sequences for _, v in s.table]),
        ints(outputs),
        **extra,
    )
    return out


def prompt_rows(tokens: Sequence[int], rows: Sequence[int], first_block: int = 0) -> Rows:
    """A whole prompt in one step, in blocks from `first_block` on."""
    blocks = range(first_block, first_block + -(-len(tokens) // BLOCK))
    return Rows(tokens, range(len(tokens)), table_of(blocks, len(tokens)), rows)


def reference(checkpoint: Any) -> Reference:
    return Reference(checkpoint.config, checkpoint.tensor)


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def mean_kl(expected: Float32, got: Float32) -> float:
    """Mean KL divergence in nats of softmax(got) from softmax(expected)."""
    p, q = log_softmax(expected), log_softmax(got)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())
