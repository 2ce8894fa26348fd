"""ModelConfig from the metadata of a GGUF file."""

from __future__ import annotations

from typing import Any

import numpy as np

from vglm.errors import ModelError
from vglm.model.config import ModelConfig, RopeConfig, parse_rope_scaling
from vglm.model.config_hf import Fields
from vglm.model.gguf_header import GGUFHeader

# general.architecture -> the architecture that the engine runs
GGUF_ARCHITECTURES = {
    "llama": "llama",
    "granite": "llama",
    "phi3": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "chatglm": "glm",
    "glm4": "glm4",
}
# Whether llama.cpp stores the queries and keys of an architecture in interleaved rotary order.
INTERLEAVED = {
    "llama": True,
    "granite": True,
    "phi3": False,
    "qwen2": False,
    "qwen3": False,
    "chatglm": True,
    "glm4": True,
}
# Control tokens that end a turn or a text in the supported families' vocabularies, besides the declared ones.
_END_TOKENS = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>"}
_GLM_END_TOKENS = {"<|user|>", "<|observation|>"}
_CONTROL = 3


def config_from_gguf(header: GGUFHeader) -> ModelConfig:
    """Build the config. Raises ModelError for an unknown architecture, missing key or unsupported feature."""
    name = header.get("general.architecture")
    if not isinstance(name, str) or name not in GGUF_ARCHITECTURES:
        known = ", ".join(GGUF_ARCHITECTURES)
        raise ModelError(f"GGUF architecture {name!r} is not supported; vGLM runs {known}")
    fields = _fields(header, name)
    _refuse_unsupported(header, fields)
    hidden, heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    if heads < 1:
        raise ModelError(f"GGUF metadata: attention.head_count is {heads}; it must be at least 1")
    head_dim = fields.integer("attention.key_length", hidden // heads)
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise ModelError("GGUF metadata: keys and values of different lengths are not supported")
    max_position = fields.integer("context_length", 2048)
    present = header.tensors
    return ModelConfig(
        architecture=GGUF_ARCHITECTURES[name],
        num_layers=fields.integer("block_count"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=fields.integer("feed_forward_length"),
        vocab_size=_vocab_size(header),
        max_position=max_position,
        norm_eps=fields.number("attention.layer_norm_rms_epsilon", 1e-5),
        rope=_rope(header, fields, head_dim, max_position),
        tie_embeddings="output.weight" not in present,
        qkv_bias="blk.0.attn_q.bias" in present or "blk.0.attn_qkv.bias" in present,
        o_bias="blk.0.attn_output.bias" in present,
        mlp_bias="blk.0.ffn_up.bias" in present,
        qk_norm=name == "qwen3",
        post_norms=name == "glm4",
        sliding_window=_sliding_window(fields, max_position),
        bos_token_id=_token_id(header, "tokenizer.ggml.bos_token_id"),
        eos_token_ids=_end_tokens(header, name),
        attn_scale=fields.number("attention.scale", head_dim**-0.5 if head_dim > 0 else 1.0),
        embedding_multiplier=fields.number("embedding_scale", 1.0),
        residual_multiplier=fields.number("residual_scale", 1.0),
        logit_multiplier=1.0 / (fields.number("logit_scale", 1.0) or float("inf")),
    )


def _fields(header: GGUFHeader, name: str) -> Fields:
    """The architecture's own keys without their prefix; a constant per-layer list becomes one value."""
    values: dict[str, Any] = {}
    prefix = f"{name}."
    for key in header.keys:
        if not key.startswith(prefix):
            continue
        value = header.get(key)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        values[key.removeprefix(prefix)] = value
    return Fields(values, "GGUF metadata")


def _refuse_unsupported(header: GGUFHeader, fields: Fields) -> None:
    if fields.raw.get("expert_count"):
        raise ModelError("GGUF metadata: mixture-of-experts models are not supported")
    if fields.raw.get("nextn_predict_layers"):
        raise ModelError("GGUF metadata: models with next-token-prediction layers are not supported")
    parts = header.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ModelError(
            f"the model is split over {parts} GGUF files; join them with `llama-gguf-split --merge`"
        )
    for name in ("rope_factors_long.weight", "rope_factors_short.weight"):
        if name in header.tensors:
            raise ModelError("rope type 'longrope' is not supported; vGLM runs default, linear, llama3, yarn")
    if fields.raw.get("rope.dimension_sections"):
        raise ModelError("rope type 'mrope' is not supported; vGLM runs default, linear, llama3, yarn")


def _vocab_size(header: GGUFHeader) -> int:
    embeddings = header.tensors.get("token_embd.weight")
    if embeddings is None:
        raise ModelError("tensor 'token_embd.weight' (embed_tokens) is missing")
    return embeddings.shape[0]


def _rope(header: GGUFHeader, fields: Fields, head_dim: int, max_position: int) -> RopeConfig:
    rotary_dim = fields.integer("rope.dimension_count", head_dim)
    theta = fields.number("rope.freq_base", 10000.0)
    kind = fields.raw.get("rope.scaling.type", "none")
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 1.0))
    factors = header.tensors.get("rope_freqs.weight")
    if factors is not None:
        if factors.format != "F32" or len(factors.shape) != 1:
            raise ModelError("tensor 'rope_freqs.weight' must be an F32 vector")
        return RopeConfig(theta, rotary_dim, {"rope_type": "freq_factors", "factors": header.floats(factors)})
    if kind == "none" and factor != 1.0:
        kind = "linear"
    raw: dict[str, Any] = {"rope_type": "default" if kind == "none" else kind, "factor": factor}
    if kind == "yarn":
        raw["original_max_position_embeddings"] = fields.raw.get("rope.scaling.original_context_length")
        raw["beta_fast"] = fields.raw.get("rope.scaling.yarn_beta_fast")
        raw["beta_slow"] = fields.raw.get("rope.scaling.yarn_beta_slow")
        extra = fields.number("rope.scaling.attn_factor", 1.0)
        if factor > 0:
            raw["attention_factor"] = extra * (1.0 + 0.1 * float(np.log(max(factor, 1.0))))
    return RopeConfig(theta, rotary_dim, parse_rope_scaling(raw, max_position))


def _sliding_window(fields: Fields, max_position: int) -> int | None:
    window = fields.integer("attention.sliding_window", 0)
    return window if 0 < window < max_position else None


def _token_id(header: GGUFHeader, key: str) -> int | None:
    value = header.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _end_tokens(header: GGUFHeader, name: str) -> tuple[int, ...]:
    declared = [_token_id(header, f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    ids = [token for token in declared if token is not None]
    kinds, texts = header.get("tokenizer.ggml.token_type", []), header.get("tokenizer.ggml.tokens", [])
    endings = _END_TOKENS | (_GLM_END_TOKENS if name in ("chatglm", "glm4") else set())
    if isinstance(kinds, list) and isinstance(texts, list) and len(kinds) == len(texts):
        ids += [i for i, kind in enumerate(kinds) if kind == _CONTROL and texts[i] in endings]
    return tuple(dict.fromkeys(ids))
