"""The executor that runs the model in the native core: one call per step, the GIL released."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from vglm import __version__, _native
from vglm.engine.constraint import MaskArray, MaskFiller
from vglm.engine.request import IntArray
from vglm.engine.step import StepBatch, StepResult
from vglm.model.layout import FloatArray, int4_rows, padded
from vglm.model.packed_file import PackedModel
from vglm.model.packing import LM_HEAD, layer_specs, native_spec, padded_head_dim, rope_tables

_Answers = tuple[
    IntArray, FloatArray, IntArray, IntArray | None, FloatArray | None, FloatArray | None, FloatArray | None
]
_TYPES = ("int8", "bf16", "int4")


class NativeExecutor:
    """A packed model, its KV memory and the threads that work on them."""

    def __init__(
        self,
        packed: PackedModel,
        *,
        max_model_len: int,
        block_size: int,
        num_blocks: int,
        kv_cache_dtype: str,
        threads: int,
        isa: str,
    ) -> None:
        config = packed.config
        cos, sin = rope_tables(config, max_model_len)
        weights = native_weights(packed) | {"cos": cos, "sin": sin}
        self.config = config
        self.model = _native.Model(native_spec(config, max_model_len), weights, threads, isa)
        self.kv = _native.KVCache(
            config.num_layers,
            config.num_kv_heads,
            padded_head_dim(config),
            block_size,
            num_blocks,
            kv_cache_dtype,
        )
        self._filler = MaskFiller(config.vocab_size)

    def execute(self, batch: StepBatch) -> StepResult:
        """One forward pass over the batch; the answers of its output rows.

        Masks of constrained rows are filled meanwhile; where that fails, these rows have no token.
        """
        constraints = batch.sample_rows.constraints
        if not constraints:
            return StepResult(*self._forward(batch, None, None))
        masks = self._filler.start(constraints)
        try:
            answers = self._forward(batch, masks, self._filler.wait)
        finally:
            self._filler.finish()  # nobody may change a constraint while its mask is being filled
        return StepResult(*answers, mask_error=self._filler.error)

    def _forward(
        self, batch: StepBatch, masks: MaskArray | None, before_sampling: Callable[[], None] | None
    ) -> _Answers:
        r = batch.sample_rows
        scored = () if r.score_ids is None else (r.score_start, r.score_ids)
        return self.model.forward(
            self.kv, batch.token_ids, batch.positions, batch.query_start, batch.table_start, batch.table_block,
            batch.table_valid, batch.output_rows, r.kind, r.target, r.num_logprobs, r.temperature, r.top_p, r.top_k, r.min_p,
            r.repetition_penalty, r.presence_penalty, r.frequency_penalty, r.seed, r.index, r.bias_start, r.bias_id,
            r.bias_value, r.history_start, r.history, r.history_prompt, batch.embed_rows, batch.embeds,
            masks, r.mask_row, before_sampling, *scored,
        )  # fmt: skip

    def logits(self, batch: StepBatch) -> FloatArray:
        """Raw logits of the batch's output rows, float32 [R, vocab]: for checks against a reference."""
        out: FloatArray = self.model.logits(
            self.kv, batch.token_ids, batch.positions, batch.query_start, batch.table_start, batch.table_block,
            batch.table_valid, batch.output_rows, batch.embed_rows, batch.embeds,
        )  # fmt: skip
        return out


def block_bytes(packed: PackedModel, block_size: int, kv_cache_dtype: str) -> int:
    """Bytes of one block of the KV pool, all layers."""
    config = packed.config
    per_head = padded_head_dim(config) * (2 if kv_cache_dtype == "bf16" else 1) + (
        4 if kv_cache_dtype == "int8" else 0
    )
    return 2 * per_head * config.num_kv_heads * config.num_layers * block_size


def kv_identity(packed: PackedModel, block_size: int, kv_cache_dtype: str, isa: str) -> dict[str, str]:
    """Everything that the bits of a span's KV in the pool depend on besides the span's key, for spans on disk.

    Instruction sets round differently, and so may another build of the native core; numpy makes the rotary tables.
    """
    return {
        "vglm": __version__,
        "native": xxhash.xxh3_128_hexdigest(Path(_native.__file__).read_bytes()),
        "numpy": np.__version__,
        "isa": isa,
        "model": packed.fingerprint,
        "weights": packed.digest(),
        "kv_cache_dtype": kv_cache_dtype,
        "block_size": str(block_size),
    }


def native_weights(packed: PackedModel) -> dict[str, Any]:
    """The packed arrays in the form that native/bindings.cpp takes."""
    config, arrays = packed.config, packed.arrays
    hidden = padded(config.hidden_size)
    heads = (config.num_heads + 2 * config.num_kv_heads) * padded_head_dim(config)
    mlp = padded(config.intermediate_size)
    attention = padded(config.num_heads * padded_head_dim(config))
    sizes = {
        "qkv": (padded(heads), hidden),
        "o": (hidden, attention),
        "gate_up": (2 * mlp, hidden),
        "down": (hidden, mlp),
    }
    weights: dict[str, Any] = {}
    for index in range(config.num_layers):
        for spec in layer_specs(index):
            weights[spec.name] = _linear(arrays, spec.name, *sizes[spec.name.rsplit(".", 1)[1]])
    weights[LM_HEAD.name] = _linear(arrays, LM_HEAD.name, padded(config.vocab_size), hidden)
    for name, array in arrays.items():
        if name == "embedding" or name.endswith("norm"):
            weights[name] = array
    return weights


def _linear(arrays: dict[str, np.ndarray[Any, Any]], name: str, n: int, k: int) -> dict[str, Any]:
    kind = next(t for t in _TYPES if f"{name}.{t}" in arrays)
    linear: dict[str, Any] = {"type": kind, "n": n, "k": k, "data": arrays[f"{name}.{kind}"]}
    for extra in ("scale", "bias"):
        if f"{name}.{extra}" in arrays:
            linear[extra] = arrays[f"{name}.{extra}"]
    if (low_rank := arrays.get(f"{name}.low_rank.int4")) is not None:
        size = int4_rows(low_rank, k)
        linear["low_rank"] = {"type": "int4", "n": size, "k": k, "data": low_rank}
        linear["k"] = k + size
    return linear
