"""The relational encoder's weights: read from a safetensors file that may be hostile, and laid out for use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from vglm.encoder.relational_structure import NUM_INTERACTIONS, Floats
from vglm.errors import ModelError

FORMAT = "vglm-relational-1"
_LIMITS = {"width": 256, "relation_layers": 16, "entity_layers": 16}
_MAX_BYTES = 64_000_000
EPSILON = 1e-5  # of the layer norms


@dataclass(frozen=True)
class RelationalShape:
    """Widths and depths of the encoder."""

    width: int = 32
    relation_layers: int = 3
    entity_layers: int = 5


@dataclass(frozen=True)
class Affine:
    """x @ weight + bias; weight float32[in, out]."""

    weight: Floats
    bias: Floats

    def __call__(self, x: Floats) -> Floats:
        y = x @ self.weight
        y += self.bias
        return y


@dataclass(frozen=True)
class Mix:
    """A step's dense part: state += relu(norm(inputs @ weight + bias) * gain + shift), the norm over each row.

    The rows of `weight`, and `bias`, sum to 0, which the mean of a layer norm would see to otherwise.
    """

    weight: Floats
    bias: Floats
    gain: Floats
    shift: Floats


@dataclass(frozen=True)
class EntityLayer:
    """One step over the entities: the network from relation vectors to the weights of edges, and the mix."""

    hidden: Affine
    weight: Affine
    mix: Mix


@dataclass(frozen=True)
class Score:
    """The network that scores an entity's state together with the query's vector."""

    states: Floats
    query: Affine
    out: Floats
    out_bias: float


@dataclass(frozen=True)
class RelationalWeights:
    """All of the encoder, ready for use."""

    width: int
    relation_query: Floats
    entity_start: Floats
    relation: list[Mix]
    entity: list[EntityLayer]
    score: Score


def tensor_shapes(shape: RelationalShape) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a file."""
    d = shape.width
    shapes: dict[str, tuple[int, ...]] = {"relation_query": (d,), "entity_start": (d,)}

    def linear(name: str, inner: int, outer: int) -> None:
        shapes.update({f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)})

    for i in range(shape.relation_layers):
        linear(f"relation_mix.{i}", d * (1 + NUM_INTERACTIONS), d)
        shapes.update({f"relation_norm.{i}.weight": (d,), f"relation_norm.{i}.bias": (d,)})
    for i in range(shape.entity_layers):
        linear(f"edge_hidden.{i}", d, d)
        linear(f"edge_weight.{i}", d, d)
        linear(f"entity_mix.{i}", 3 * d, d)
        shapes.update({f"entity_norm.{i}.weight": (d,), f"entity_norm.{i}.bias": (d,)})
    linear("score_hidden", 2 * d, 2 * d)
    linear("score", 2 * d, 1)
    return shapes


def read_weights(path: Path) -> RelationalWeights:
    """Read and check a file. Raises ModelError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelError(f"{path}: larger than {_MAX_BYTES:,} bytes; this is no relational encoder")
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ModelError(f"{path}: not a relational encoder (its metadata lack format={FORMAT})")
            shape = _shape(metadata.get("shape", ""), path)
            expected = tensor_shapes(shape)
            names = set(file.keys())
            if names != set(expected):
                raise ModelError(f"{path}: tensors missing or unknown: {min(names ^ set(expected))!r}")
            tensors = {name: _tensor(file, name, size, path) for name, size in expected.items()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors ({error})") from None
    return arranged(shape, tensors)


def _shape(text: str, path: Path) -> RelationalShape:
    try:
        values = json.loads(text)
        sizes = {name: values[name] for name in _LIMITS}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModelError(
            f"{path}: its metadata do not say the encoder's shape ({', '.join(_LIMITS)})"
        ) from None
    for name, size in sizes.items():
        if type(size) is not int or not 1 <= size <= _LIMITS[name]:
            raise ModelError(f"{path}: {name} must be a whole number from 1 to {_LIMITS[name]}")
    if sizes["width"] % 16:
        raise ModelError(f"{path}: width must be a multiple of 16, found {sizes['width']}")
    return RelationalShape(**sizes)


def _tensor(file: Any, name: str, shape: tuple[int, ...], path: Path) -> Floats:
    part = file.get_slice(name)
    if tuple(part.get_shape()) != shape or part.get_dtype() != "F32":
        found = f"{part.get_dtype()} {list(part.get_shape())}"
        raise ModelError(f"{path}: tensor {name!r} must be F32 {list(shape)}, found {found}")
    tensor: Floats = file.get_tensor(name)
    if not np.isfinite(tensor).all():
        raise ModelError(f"{path}: tensor {name!r} holds values that are no numbers")
    return tensor


def arranged(shape: RelationalShape, tensors: Mapping[str, Floats]) -> RelationalWeights:
    """The tensors of `tensor_shapes` as the network uses them."""

    def affine(name: str) -> Affine:
        return Affine(np.ascontiguousarray(tensors[f"{name}.weight"].T), tensors[f"{name}.bias"])

    def mix(kind: str, i: int) -> Mix:
        plain = affine(f"{kind}_mix.{i}")
        weight = plain.weight - plain.weight.mean(axis=1, keepdims=True)
        norm = f"{kind}_norm.{i}"
        return Mix(weight, plain.bias - plain.bias.mean(), tensors[f"{norm}.weight"], tensors[f"{norm}.bias"])

    entity = [
        EntityLayer(affine(f"edge_hidden.{i}"), affine(f"edge_weight.{i}"), mix("entity", i))
        for i in range(shape.entity_layers)
    ]
    hidden, out = affine("score_hidden"), affine("score")
    of_states, of_query = np.split(hidden.weight, 2)
    return RelationalWeights(
        shape.width,
        tensors["relation_query"],
        tensors["entity_start"],
        [mix("relation", i) for i in range(shape.relation_layers)],
        entity,
        Score(of_states, Affine(of_query, hidden.bias), out.weight[:, 0].copy(), float(out.bias[0])),
    )
