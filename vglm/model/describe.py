"""What a model is and what it needs: the data behind `vglm inspect`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from vglm.model.adapter import AdaptedCheckpoint
from vglm.model.bundle import read_card
from vglm.model.checkpoint import Checkpoint
from vglm.model.config import ModelConfig
from vglm.model.export import PACKED, open_exported
from vglm.model.names import canonical_shapes
from vglm.model.packing import layer_specs

_KV_BYTES = {"bf16": 2, "int8": 1}


@dataclass(frozen=True)
class ModelDescription:
    """Sizes in bytes, counts otherwise. `weight_bytes` and `kv_bytes_per_token` are keyed by dtype.

    `card` is what a model made of another one, or an exported one, says of itself (vglm/model/bundle.py), `graph` how it reads
    graphs; None if it says nothing. Of an adapter, `card` has the rank and the number of its parameters.
    """

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
    card: dict[str, Any] | None = None
    graph: dict[str, Any] | None = None

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
        weight_bytes={
            "bf16": _weight_bytes(config, shapes, "bf16"),
            "int8": _weight_bytes(config, shapes, "int8"),
            "int4": _weight_bytes(config, shapes, "int4") + _low_rank_bytes(checkpoint),
        },
        kv_bytes_per_token={dtype: kv_bytes_per_token(config, dtype) for dtype in _KV_BYTES},
        has_chat_template=checkpoint.chat_template is not None,
        layer_parameters=first_layer,
        card=_card(checkpoint),
        graph=asdict(checkpoint.graph_card) if checkpoint.graph_card else None,
    )


def describe_exported(path: Path) -> ModelDescription:
    """Describe an exported model. Its weights are mapped and their checksum is verified. Raises ModelError."""
    card = read_card(path)
    packed = open_exported(path, card.packed_dtype)
    config, shapes = packed.config, canonical_shapes(packed.config)
    return ModelDescription(
        path=str(path),
        architecture=config.architecture,
        parameters=sum(prod(shape) for shape in shapes.values()),
        config=config,
        tensor_formats={f"packed {card.packed_dtype}": len(shapes)},
        stored_bytes=(path / PACKED).stat().st_size,
        weight_bytes={card.packed_dtype: sum(array.nbytes for array in packed.arrays.values())},
        kv_bytes_per_token={dtype: kv_bytes_per_token(config, dtype) for dtype in _KV_BYTES},
        has_chat_template=packed.chat_template is not None,
        layer_parameters={
            name.removeprefix("layers.0."): prod(shape)
            for name, shape in shapes.items()
            if name.startswith("layers.0.")
        },
        card={"name": card.name, "version": card.version, "files": sorted(card.files)},
        graph=asdict(card.graph) if card.graph else None,
    )


def _card(checkpoint: Checkpoint) -> dict[str, Any] | None:
    if not isinstance(checkpoint, AdaptedCheckpoint):
        return None
    card, adapter = read_card(checkpoint.path), checkpoint.adapter
    known = {"name": card.name, "version": card.version, "base": card.base_model, "files": sorted(card.files)}
    if adapter is None:
        return known
    return known | {"adapter_rank": adapter.rank, "adapter_parameters": adapter.parameters}


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


def _low_rank_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of an adapter beside int4 weights; it is merged into others."""
    total = 0
    for index in range(checkpoint.config.num_layers):
        for spec in layer_specs(index):
            size = _padded(sum(checkpoint.rank(part) for part in spec.parts))
            rows = sum(checkpoint.shape(part)[0] for part in spec.parts)
            total += _matrix_bytes((size, checkpoint.shape(spec.parts[0])[1]), "int4") + _matrix_bytes(
                (rows, size), "int4"
            )
    return total


def _matrix_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """int8 has a float32 scale per row; int4 a half-precision scale and minimum for each 32 weights."""
    rows, weights = _padded(shape[0]), _padded(shape[0]) * _padded(shape[1])
    return {"bf16": 2 * weights, "int8": weights + 4 * rows, "int4": weights // 2 + weights // 8}[dtype]


def _padded(size: int) -> int:
    return -(-size // 64) * 64
