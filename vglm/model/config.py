"""What a decoder-only transformer looks like, whatever file it came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.errors import ModelError

ARCHITECTURES = ("llama", "qwen2", "qwen3", "glm", "glm4")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
ACTIVATIONS = ("silu", "swish", "swiglu")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding over the first `rotary_dim` dimensions of a head, in half-split order.

    `scaling` is None or a dict with `rope_type` one of linear, llama3, yarn (keys as in Hugging Face configs)
    or `freq_factors` (key `factors`: one divisor per frequency, as GGUF files store them).
    """

    theta: float
    rotary_dim: int
    scaling: dict[str, Any] | None = None

    def inv_freq(self) -> Floats:
        """Angle per position of each rotated pair, radians, float64 [rotary_dim / 2], scaling applied."""
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float64) / self.rotary_dim
        frequencies: Floats = self.theta**-exponents
        if self.scaling is None:
            return frequencies
        return _SCALINGS[self.scaling["rope_type"]](frequencies, self, self.scaling)

    @property
    def attention_factor(self) -> float:
        """Factor on both cosine and sine (1.0 unless the scaling is yarn)."""
        if self.scaling is None or self.scaling["rope_type"] != "yarn":
            return 1.0
        explicit = self.scaling.get("attention_factor")
        if explicit is not None:
            return float(explicit)
        factor = float(self.scaling["factor"])
        mscale, mscale_all = self.scaling.get("mscale"), self.scaling.get("mscale_all_dim")
        if mscale and mscale_all:
            return _yarn_mscale(factor, float(mscale)) / _yarn_mscale(factor, float(mscale_all))
        return _yarn_mscale(factor, 1.0)


@dataclass(frozen=True)
class ModelConfig:
    """Everything the engine needs to know about a model but its weights. Sizes are counts, not bytes."""

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    norm_eps: float
    rope: RopeConfig
    tie_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    sliding_window: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = field(default=())
    attn_scale: float = 0.0
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_multiplier: float = 1.0

    def __post_init__(self) -> None:
        if self.attn_scale == 0.0 and self.head_dim > 0:
            object.__setattr__(self, "attn_scale", self.head_dim**-0.5)
        self._check()

    @property
    def q_size(self) -> int:
        """Rows of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key (and of the value) projection."""
        return self.num_kv_heads * self.head_dim

    def _check(self) -> None:
        """Refuse sizes no real model has: they would overflow or exhaust memory further on."""
        if self.architecture not in ARCHITECTURES:
            raise ModelError(
                f"architecture {self.architecture!r} is not supported; vGLM runs {', '.join(ARCHITECTURES)}"
            )
        for name, limit in _SIZE_LIMITS.items():
            value = getattr(self, name)
            if not 1 <= value <= limit:
                raise ModelError(f"model config: {name} is {value}; it must be between 1 and {limit}")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"model config: {self.num_heads} heads cannot evenly share {self.num_kv_heads} KV heads"
            )
        rotary = self.rope.rotary_dim
        if rotary % 2 or not 2 <= rotary <= self.head_dim:
            raise ModelError(
                f"model config: rotary dimension {rotary} must be even and within head_dim {self.head_dim}"
            )
        positive = {"norm_eps": self.norm_eps, "rope theta": self.rope.theta, "attn_scale": self.attn_scale}
        positive["logit multiplier"] = self.logit_multiplier
        for name, number in positive.items():
            if not (math.isfinite(number) and number > 0):
                raise ModelError(f"model config: {name} is {number}; it must be a positive finite number")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ModelError(f"model config: sliding window {self.sliding_window} must be at least 1")
        _check_rope(self.rope)


_SIZE_LIMITS = {
    "num_layers": 1024,
    "hidden_size": 1 << 17,
    "num_heads": 4096,
    "num_kv_heads": 4096,
    "head_dim": 4096,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 22,
    "max_position": 1 << 28,
}


def parse_rope_scaling(raw: Mapping[str, Any] | None, max_position: int) -> dict[str, Any] | None:
    """Normalise a `rope_scaling` / `rope_parameters` mapping; None when positions are not scaled.

    Raises ModelError for an unknown rope type or a missing or wrong number.
    """
    if not raw:
        return None
    rope_type = raw.get("rope_type") or raw.get("type") or "default"
    if rope_type == "default":
        return None
    if rope_type not in _REQUIRED_KEYS:
        raise ModelError(f"rope type {rope_type!r} is not supported; vGLM runs {', '.join(ROPE_TYPES)}")
    scaling: dict[str, Any] = {"rope_type": rope_type}
    for key in _REQUIRED_KEYS[rope_type] + _OPTIONAL_KEYS[rope_type]:
        if raw.get(key) is not None:
            scaling[key] = bool(raw[key]) if key == "truncate" else _number(key, raw[key])
    if rope_type in ("llama3", "yarn"):
        scaling.setdefault("original_max_position_embeddings", float(max_position))
    if rope_type == "yarn":
        scaling.setdefault("factor", max_position / scaling["original_max_position_embeddings"])
    for key in _REQUIRED_KEYS[rope_type]:
        if key not in scaling:
            raise ModelError(
                f"rope scaling {rope_type!r} needs {key!r}, which the model's config does not give"
            )
    return scaling


_REQUIRED_KEYS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_OPTIONAL_KEYS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "llama3": (),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e18:
        raise ModelError(f"rope scaling: {key} is {value!r}; it must be a non-negative number")
    return float(value)


def _check_rope(rope: RopeConfig) -> None:
    scaling = rope.scaling
    if scaling is None:
        return
    if scaling["rope_type"] == "freq_factors":
        factors = np.asarray(scaling["factors"], np.float64)
        if factors.shape != (rope.rotary_dim // 2,) or not np.all(np.isfinite(factors) & (factors > 0)):
            raise ModelError(f"rope frequency factors must be {rope.rotary_dim // 2} positive numbers")
        return
    for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
        if key in scaling and not scaling[key] > 0:
            raise ModelError(f"rope scaling: {key} is {scaling[key]}; it must be greater than 0")
    if scaling.get("low_freq_factor") == scaling.get("high_freq_factor", -1.0):
        raise ModelError("rope scaling: low_freq_factor and high_freq_factor must differ")
    if scaling["rope_type"] == "yarn" and rope.theta <= 1:
        raise ModelError(f"rope scaling: yarn needs a rope theta above 1, found {rope.theta}")


def _scale_linear(frequencies: Floats, _rope: RopeConfig, scaling: Mapping[str, Any]) -> Floats:
    return frequencies / float(scaling["factor"])


def _scale_freq_factors(frequencies: Floats, _rope: RopeConfig, scaling: Mapping[str, Any]) -> Floats:
    return frequencies / np.asarray(scaling["factors"], np.float64)


def _scale_llama3(frequencies: Floats, _rope: RopeConfig, scaling: Mapping[str, Any]) -> Floats:
    """Keep fast frequencies, divide slow ones by `factor`, blend those between (Llama 3.1)."""
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    rotations = float(scaling["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    blend = (rotations - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    return np.where(rotations > high, frequencies, np.where(rotations < low, frequencies / factor, blended))


def _scale_yarn(frequencies: Floats, rope: RopeConfig, scaling: Mapping[str, Any]) -> Floats:
    """Interpolate slow dimensions, keep fast ones, with a linear ramp between (YaRN)."""
    original = float(scaling["original_max_position_embeddings"])

    def dimension_of(rotations: float) -> float:
        return rope.rotary_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = dimension_of(float(scaling.get("beta_fast") or 32))
    high = dimension_of(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(rope.rotary_dim // 2, dtype=np.float64) - low) / (high - low), 0, 1)
    return frequencies / float(scaling["factor"]) * ramp + frequencies * (1 - ramp)


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


_SCALINGS = {
    "linear": _scale_linear,
    "freq_factors": _scale_freq_factors,
    "llama3": _scale_llama3,
    "yarn": _scale_yarn,
}
