"""ModelConfig from a Hugging Face `config.json` (the layouts of transformers 4 and 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vglm.errors import ModelError
from vglm.model.config import ACTIVATIONS, ModelConfig, RopeConfig, parse_rope_scaling


@dataclass(frozen=True)
class Family:
    """How an `architectures` entry differs from Llama; `interleaved` is its weights' rotary order."""

    architecture: str
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    interleaved: bool = False
    partial_rotary: float = 1.0
    head_dim: int | None = None
    sliding: bool = False
    default_window: int | None = None


# A bias given as a string is the name of the config field that switches it.
FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("llama", "attention_bias", "attention_bias", "mlp_bias"),
    "MistralForCausalLM": Family("llama", sliding=True, default_window=4096),
    "MinistralForCausalLM": Family("llama", sliding=True, default_window=4096),
    "Phi3ForCausalLM": Family("llama", sliding=True),
    "GraniteForCausalLM": Family("llama", "attention_bias", "attention_bias", "mlp_bias"),
    "SeedOssForCausalLM": Family("llama", "attention_bias", "attention_out_bias", "mlp_bias", head_dim=128),
    "HeliumForCausalLM": Family("llama", "attention_bias", False, "mlp_bias", interleaved=True, head_dim=128),
    "Ernie4_5ForCausalLM": Family(
        "llama", "use_bias", "use_bias", "use_bias", interleaved=True, head_dim=128
    ),
    "Qwen2ForCausalLM": Family("qwen2", True, sliding=True),
    "Qwen3ForCausalLM": Family("qwen3", "attention_bias", "attention_bias", head_dim=128, sliding=True),
    "GlmForCausalLM": Family("glm", "attention_bias", interleaved=True, partial_rotary=0.5, head_dim=128),
    "Glm4ForCausalLM": Family("glm4", "attention_bias", interleaved=True, partial_rotary=0.5, head_dim=128),
}
_MOE_FIELDS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def family_of(raw: Mapping[str, Any]) -> Family:
    """The family named by `architectures`; ModelError names an unknown one and lists those that run."""
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name is None:
        by_type = {n.removesuffix("ForCausalLM").lower(): n for n in FAMILIES}
        name = by_type.get(str(raw.get("model_type", "")).lower().replace("_", ""), raw.get("model_type"))
    if not isinstance(name, str) or name not in FAMILIES:
        raise ModelError(
            f"config.json: architecture {name!r} is not supported; vGLM runs {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def config_from_hf(raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Build the config from `config.json` and, for the end tokens, `generation_config.json`."""
    family = family_of(raw)
    _refuse_unsupported(raw)
    fields = Fields(raw, "config.json")
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if heads < 1:
        raise ModelError(f"config.json: num_attention_heads is {heads}; it must be at least 1")
    head_dim = fields.integer("head_dim", family.head_dim or hidden // heads)
    max_position = fields.integer("max_position_embeddings", 2048)
    sliding_window, max_position = _sliding_window(raw, family, fields, max_position)
    generation = generation or {}
    bos = generation.get("bos_token_id", raw.get("bos_token_id"))
    return ModelConfig(
        architecture=family.architecture,
        num_layers=fields.integer("num_hidden_layers"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        max_position=max_position,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=_rope(raw, family, head_dim, max_position),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=_bias(fields, family.qkv_bias),
        o_bias=_bias(fields, family.o_bias),
        mlp_bias=_bias(fields, family.mlp_bias),
        qk_norm=family.architecture == "qwen3",
        post_norms=family.architecture == "glm4",
        sliding_window=sliding_window,
        bos_token_id=bos if isinstance(bos, int) and not isinstance(bos, bool) else None,
        eos_token_ids=token_ids(generation.get("eos_token_id"), raw.get("eos_token_id")),
        attn_scale=fields.number("attention_multiplier", head_dim**-0.5 if head_dim > 0 else 1.0),
        embedding_multiplier=fields.number("embedding_multiplier", 1.0),
        residual_multiplier=fields.number("residual_multiplier", 1.0),
        logit_multiplier=1.0 / (fields.number("logits_scaling", 1.0) or float("inf")),
    )


class Fields:
    """Typed access to a config mapping; a wrong or missing value raises ModelError naming the key."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self.where = where

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelError(f"{self.where}: {key} is {value!r}; it must be a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise ModelError(f"{self.where}: {key} is {value!r}; it must be a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ModelError(f"{self.where}: {key} is {value!r}; it must be true or false")
        return value

    def _value(self, key: str, default: object) -> object:
        value = self.raw.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"{self.where}: the field {key!r} is missing")
        return value


def token_ids(*candidates: object) -> tuple[int, ...]:
    """The first candidate that holds token ids (one id or a list of them), as a tuple."""
    for value in candidates:
        values = value if isinstance(value, list) else [value]
        ids = [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]
        if ids:
            return tuple(dict.fromkeys(ids))
    return ()


def _bias(fields: Fields, rule: bool | str) -> bool:
    return fields.flag(rule, False) if isinstance(rule, str) else rule


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    activation = raw.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise ModelError(
            f"config.json: activation {activation!r} is not supported; vGLM runs {', '.join(ACTIVATIONS)}"
        )
    for key in _MOE_FIELDS:
        if raw.get(key):
            raise ModelError(
                f"config.json: {key} is {raw[key]!r}; mixture-of-experts models are not supported"
            )
    if raw.get("quantization_config"):
        quantization = raw["quantization_config"]
        method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else "?"
        raise ModelError(
            f"config.json: the weights are quantised with {method!r}; vGLM reads plain F32, F16 or BF16 "
            "safetensors and quantised GGUF files"
        )


def _sliding_window(
    raw: Mapping[str, Any], family: Family, fields: Fields, max_position: int
) -> tuple[int | None, int]:
    """The window that all layers share, and the longest context that is exact.

    When only some layers slide, the context is limited to the window: up to there, sliding and full attention
    are the same, so the model stays exact.
    """
    # A config may leave the field out, which is not the same as null: then the family's own window holds.
    declared = raw.get("sliding_window", family.default_window)
    if not family.sliding or declared is None:
        return None, max_position
    if family.architecture.startswith("qwen") and not raw.get("use_sliding_window"):
        return None, max_position
    window = fields.integer("sliding_window", family.default_window)
    if window >= max_position:
        return None, max_position
    kinds = raw.get("layer_types")
    if isinstance(kinds, list):
        if "sliding_attention" not in kinds:
            return None, max_position
        mixed = any(kind != "sliding_attention" for kind in kinds)
    else:
        first = fields.integer("max_window_layers", 0) if family.architecture.startswith("qwen") else 0
        if first >= fields.integer("num_hidden_layers"):
            return None, max_position
        mixed = first > 0
    return (None, window) if mixed else (window, max_position)


def _rope(raw: Mapping[str, Any], family: Family, head_dim: int, max_position: int) -> RopeConfig:
    """Both layouts: `rope_theta` with `rope_scaling` (transformers 4), `rope_parameters` (transformers 5)."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise ModelError(f"config.json: rope parameters must be a mapping, found {parameters!r}")
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    if nested:
        if any(value != nested[0] for value in nested[1:]):
            raise ModelError("config.json: rope parameters that differ between layers are not supported")
        parameters = nested[0]
    known = Fields({**raw, **{k: v for k, v in parameters.items() if v is not None}}, "config.json")
    rotary_dim = int(head_dim * known.number("partial_rotary_factor", family.partial_rotary))
    scaling = dict(parameters)
    if raw.get("original_max_position_embeddings") is not None:
        scaling["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    positions = raw.get("max_position_embeddings")
    declared = positions if isinstance(positions, int) else max_position
    return RopeConfig(known.number("rope_theta", 10000.0), rotary_dim, parse_rope_scaling(scaling, declared))
