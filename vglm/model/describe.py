"""What a model is and what it needs: the data behind `vglm inspect`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from vglm.model.checkpoint import Checkpoint
from vglm.model.config import ModelConfig

_KV_BYTES = {"bf16": 2, "int8": 1}


@dataclass(frozen=True)
class ModelDescription:
    """Sizes in bytes, counts otherwise. `weight_bytes` and `kv_bytes_per_token` are keyed by dtype."""

    path: str
    architecture: str
    parameters: int
    config: ModelConfig
    tensor_formats: dict[str, int]
    stored_bytes: int
    weight_bytes: dict[str, int]
    kv_bytes_per_token: dict[str, int]
    has_chat_template: bool
    layer_parameters: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The description as plain values, ready for JSON."""
        return asdict(self)


def describe_model(checkpoint: Checkpoint) -> ModelDescription:
    """Describe a model from its config and tensor table, without reading any weight."""
    config = checkpoint.config
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
    formats = Counter(checkpoint.source_format(name) for name in shapes)
    first_layer = {
        n.removeprefix("layers.0."): prod(s) for n, s in shapes.items() if n.startswith("layers.0.")
    }
    return ModelDescription(
        path=str(checkpoint.path),
        architecture=config.architecture,
        parameters=sum(prod(shape) for shape in shapes.values()),
        config=config,
        tensor_formats=dict(formats.most_common()),
        stored_bytes=sum(checkpoint.source_bytes(name) for name in shapes),
        weight_bytes={dtype: _weight_bytes(config, shapes, dtype) for dtype in ("bf16", "int8", "int4")},
        kv_bytes_per_token={dtype: kv_bytes_per_token(config, dtype) for dtype in _KV_BYTES},
        has_chat_template=checkpoint.chat_template is not None,
        layer_parameters=first_layer,
    )


def kv_bytes_per_token(config: ModelConfig, dtype: str) -> int:
    """Bytes of keys and values of one token in all layers; int8 has a float32 scale per head for each."""
    per_head = config.head_dim * _KV_BYTES[dtype] + (4 if dtype == "int8" else 0)
    return 2 * config.num_layers * config.num_kv_heads * per_head


def _weight_bytes(config: ModelConfig, shapes: dict[str, tuple[int, ...]], dtype: str) -> int:
    """Bytes of the weights in memory: matrices padded to 64, embeddings bfloat16, output projection packed.

    Tied models hold that projection too, as the kernels read another layout than the embedding lookup.
    """
    total = 2 * config.vocab_size * _padded(config.hidden_size)
    total += _matrix_bytes((config.vocab_size, config.hidden_size), "bf16" if dtype == "bf16" else "int8")
    for name, shape in shapes.items():
        if name not in ("embed_tokens", "lm_head"):
            total += 4 * _padded(shape[0]) if len(shape) == 1 else _matrix_bytes(shape, dtype)
    return total


def _matrix_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """int8 has a float32 scale per row; int4 a half-precision scale and minimum for each 32 weights."""
    rows, weights = _padded(shape[0]), _padded(shape[0]) * _padded(shape[1])
    return {"bf16": 2 * weights, "int8": weights + 4 * rows, "int4": weights // 2 + weights // 8}[dtype]


def _padded(size: int) -> int:
    return -(-size // 64) * 64
