"""From a checkpoint's tensors to the weights that the native core reads.

Three dtypes: `bf16`; `int8`, with activations in int8 too, both balanced (vglm/model/calibration.py) and then rotated by a
Hadamard transform of every 64 inputs; `int4`, the file's own 4-bit blocks where it has them, with activations in int8 per
group of 32, and an adapter beside them (vglm/model/low_rank.py); otherwise adapters are merged into the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vglm.errors import ModelError
from vglm.model import layout
from vglm.model.calibration import Calibration, balance
from vglm.model.checkpoint import Checkpoint, Q4Blocks
from vglm.model.config import ModelConfig
from vglm.model.layout import FloatArray, PackedLinear, padded
from vglm.model.low_rank import append_columns, stack

Shard = Literal["column", "row"]
Array = np.ndarray[Any, np.dtype[Any]]
DTYPES = ("bf16", "int8", "int4")
HEAD_MULTIPLE = 16  # the kernels work on heads of a multiple of 16


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """One matrix of the engine: which canonical tensors it is made of, and how tensor-parallel ranks share it.

    `column`: each rank has some of the outputs (whole heads, or whole gate/up pairs); `row`: some of the inputs, and the
    ranks' results are added up.
    """

    name: str
    parts: tuple[str, ...]
    shard: Shard


def layer_specs(index: int) -> tuple[LinearSpec, ...]:
    """The four matrices of a transformer layer."""
    p = f"layers.{index}."
    return (
        LinearSpec(p + "qkv", (p + "q_proj", p + "k_proj", p + "v_proj"), "column"),
        LinearSpec(p + "o", (p + "o_proj",), "row"),
        LinearSpec(p + "gate_up", (p + "gate_proj", p + "up_proj"), "column"),
        LinearSpec(p + "down", (p + "down_proj",), "row"),
    )


LM_HEAD = LinearSpec("lm_head", ("lm_head",), "column")


def padded_head_dim(config: ModelConfig) -> int:
    """Head dimension as the KV cache and the kernels have it."""
    return padded(config.head_dim, HEAD_MULTIPLE)


def native_spec(config: ModelConfig, max_position: int) -> dict[str, int | float]:
    """The sizes that the native model wants; keys as in native/bindings.cpp."""
    return {
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": padded_head_dim(config),
        "norm_dim": config.head_dim,
        "vocab": config.vocab_size,
        "max_position": max_position,
        "rotary_dim": config.rope.rotary_dim,
        "eps": config.norm_eps,
        "attention_scale": config.attn_scale,
        "residual_scale": config.residual_multiplier,
        "embedding_scale": config.embedding_multiplier,
        "logit_scale": config.logit_multiplier,
    }


def rope_tables(config: ModelConfig, max_position: int) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines, float32 [max_position * rotary_dim / 2] each."""
    angles = np.arange(max_position, dtype=np.float64)[:, None] * config.rope.inv_freq()
    factor = config.rope.attention_factor
    cos, sin = np.cos(angles) * factor, np.sin(angles) * factor
    return cos.astype(np.float32).reshape(-1), sin.astype(np.float32).reshape(-1)


def pack_model(
    checkpoint: Checkpoint, dtype: str, progress: Callable[[float], None]
) -> Iterator[tuple[str, Array]]:
    """Yield (name, array) for every array of the packed model; `progress` gets the fraction done.

    A matrix `m` gives `m.<type>` (uint8 data) and, where it has them, `m.scale` and `m.bias`; `m.low_rank.int4` is the A of an
    adapter whose B is the last columns of `m.int4`. Norms are float32, padded; `embedding` is bfloat16 bits [vocab, padded
    hidden]. `final_norm` goes with lm_head, `hidden_norm` is as in the checkpoint.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    config = checkpoint.config
    packer = _Packer(checkpoint, dtype, Calibration(checkpoint) if dtype != "bf16" else None)
    for index in range(config.num_layers):
        packer.start_layer(index)
        for spec in layer_specs(index):
            for name, linear in packer.pack(spec):
                yield from _named(name, linear)
        yield from packer.norms(f"layers.{index}.")
        packer.end_layer(index)
        progress((index + 1) / (config.num_layers + 2))
    embedding = packer.tensor("embed_tokens")
    yield "embedding", layout.to_bf16(layout.pad_matrix(embedding)[: len(embedding)])
    progress((config.num_layers + 1) / (config.num_layers + 2))
    yield from packer.head(embedding)
    progress(1.0)


def _named(name: str, linear: PackedLinear) -> Iterator[tuple[str, Array]]:
    yield f"{name}.{linear.type}", linear.data
    if linear.scale is not None:
        yield f"{name}.scale", linear.scale
    if linear.bias is not None:
        yield f"{name}.bias", linear.bias


class _Packer:
    """Builds each matrix: parts stacked, heads padded, gate and up interleaved, balanced, quantised, laid out."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, calibration: Calibration | None) -> None:
        self.checkpoint, self.dtype, self.config = checkpoint, dtype, checkpoint.config
        self.tensor = checkpoint.tensor if calibration is None else calibration.weight
        self._calibration = calibration
        self._names = set(checkpoint.names())
        self._scales: dict[
            str, FloatArray
        ] = {}  # by canonical name: what the columns are multiplied with, or norms divided by
        self._rows: dict[str, FloatArray] = {}  # what rows (and biases) are divided by

    def start_layer(self, index: int) -> None:
        """Run the layer on the calibration text and choose its scales."""
        if self._calibration is None:
            return
        rms = self._calibration.run_layer(index)
        if self.dtype != "int8":  # the blocks of a 4-bit file stay as they are
            return
        p = f"layers.{index}."
        for norm, source, readers in (
            ("attn_norm", "q", ("q_proj", "k_proj", "v_proj")),
            ("mlp_norm", "gate", ("gate_proj", "up_proj")),
        ):
            scale = balance(rms[source], *(self.tensor(p + reader) for reader in readers))
            self._scales |= {p + name: scale for name in (norm, *readers)}
        self._scales[p + "down_proj"] = self._rows[p + "up_proj"] = balance(
            rms["down"], self.tensor(p + "down_proj")
        )

    def end_layer(self, index: int) -> None:
        """Let the layer's tensors go."""
        self._scales.clear()
        self._rows.clear()
        if self._calibration is not None:
            self._calibration.forget_layer(index)

    def pack(self, spec: LinearSpec) -> Iterator[tuple[str, PackedLinear]]:
        """One matrix of a layer, and what belongs to it, with their names."""
        kind = spec.name.rsplit(".", 1)[1]
        bias = self._arranged_bias(kind, [self._bias(part) for part in spec.parts])
        if self.dtype != "int4":
            weights = [self._columns(kind, self._balanced(part)) for part in spec.parts]
            yield spec.name, self._pack(_arrange_rows(kind, weights, self.config), bias)
            return
        blocks = [self._blocks(part, kind) for part in spec.parts]
        added = [self.checkpoint.low_rank(part) for part in spec.parts]
        if any(added):
            a, columns = stack(added, [len(part.scale) for part in blocks])
            blocks = [append_columns(part, b) for part, b in zip(blocks, columns, strict=True)]
            yield f"{spec.name}.low_rank", layout.pack_int4(*layout.quantise_int4(self._columns(kind, a)))
        quants, scale, minimum = (
            _arrange_rows(kind, list(arrays), self.config)
            for arrays in zip(*((part.quants, part.scale, part.minimum) for part in blocks), strict=True)
        )
        yield spec.name, layout.pack_int4(quants, scale, minimum, bias)

    def head(self, embedding: FloatArray) -> Iterator[tuple[str, Array]]:
        """The output projection and the norms before it; 4 bits are too few for it, so int4 keeps it in int8."""
        weight = self.tensor("lm_head") if "lm_head" in self._names else embedding
        yield "hidden_norm", self.padded_norm("final_norm")
        if self._calibration is not None:
            scale = balance(self._calibration.output_rms(), weight)
            self._scales["final_norm"] = scale
            weight = weight * scale
        yield "final_norm", self.padded_norm("final_norm")
        yield from _named("lm_head", self._pack(weight, None))

    def _balanced(self, part: str) -> FloatArray:
        weight = self.tensor(part)
        if part in self._scales:
            weight = weight * self._scales[part]
        return weight / self._rows[part][:, None] if part in self._rows else weight

    def _pack(self, weight: FloatArray, bias: FloatArray | None) -> PackedLinear:
        if self.dtype == "bf16":
            return layout.pack_bf16(weight, bias)
        quants, scale = layout.quantise_int8(layout.rotate(weight))
        return layout.pack_int8(quants, scale, bias)

    def norms(self, prefix: str) -> Iterator[tuple[str, Array]]:
        """The layer's norm weights that exist."""
        for name in ("attn_norm", "mlp_norm", "attn_post_norm", "mlp_post_norm"):
            if prefix + name in self._names:
                yield prefix + name, self.padded_norm(prefix + name)
        for name in ("q_norm", "k_norm"):
            if prefix + name in self._names:
                yield prefix + name, self.tensor(prefix + name)

    def padded_norm(self, name: str) -> FloatArray:
        """A norm's weight, balanced, with zeros up to the padded hidden size."""
        weight = self.tensor(name)
        if name in self._scales:
            weight = weight / self._scales[name]
        out = layout.pad_vector(weight, padded(self.config.hidden_size))
        assert out is not None
        return out

    def _bias(self, part: str) -> FloatArray | None:
        name = part.removesuffix("_proj") + "_bias"
        if name not in self._names:
            return None
        bias = self.tensor(name)
        return bias / self._rows[part] if part in self._rows else bias

    def _arranged_bias(self, kind: str, biases: list[FloatArray | None]) -> FloatArray | None:
        present = [b[:, None] for b in biases if b is not None]
        if not present:
            return None
        return _arrange_rows(kind, present, self.config)[:, 0]

    def _columns(self, kind: str, weight: FloatArray) -> FloatArray:
        """Inputs of `o` are heads: pad each to the kernels' head size."""
        head, wide = self.config.head_dim, padded_head_dim(self.config)
        if kind != "o" or head == wide:
            return weight
        out = np.zeros((len(weight), self.config.num_heads, wide), np.float32)
        out[:, :, :head] = weight.reshape(len(weight), self.config.num_heads, head)
        return out.reshape(len(weight), -1)

    def _blocks(self, part: str, kind: str) -> Q4Blocks:
        source = self.checkpoint.unadapted()
        blocks = source.blocks(part)
        if blocks is not None and (kind != "o" or self.config.head_dim == padded_head_dim(self.config)):
            return blocks
        return Q4Blocks(*layout.quantise_int4(self._columns(kind, source.tensor(part))))


def _arrange_rows(kind: str, parts: list[Array], config: ModelConfig) -> Array:
    """Stack the parts' rows: q, k, v with padded heads; gate and up in alternating sixteens."""
    if kind == "qkv":
        return np.concatenate([_pad_heads(part, config) for part in parts])
    if kind == "gate_up":
        size = padded(len(parts[0]))
        wide = [np.zeros((size, *part.shape[1:]), part.dtype) for part in parts]
        for target, part in zip(wide, parts, strict=True):
            target[: len(part)] = part
        pairs = np.stack([w.reshape(size // layout.GROUP, layout.GROUP, *w.shape[1:]) for w in wide], axis=1)
        return pairs.reshape(2 * size, *parts[0].shape[1:])
    return parts[0]


def _pad_heads(part: Array, config: ModelConfig) -> Array:
    head, wide = config.head_dim, padded_head_dim(config)
    if head == wide:
        return part
    heads = len(part) // head
    out = np.zeros((heads, wide, *part.shape[1:]), part.dtype)
    out[:, :head] = part.reshape(heads, head, *part.shape[1:])
    return out.reshape(heads * wide, *part.shape[1:])
