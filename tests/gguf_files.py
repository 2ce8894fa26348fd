"""Writes tiny GGUF files for tests: fixtures in llama.cpp's layout, random models in each tensor format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from vglm.model.config import ModelConfig
from vglm.model.safetensors_dir import open_directory

Array = npt.NDArray[Any]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Phi3ForCausalLM": "phi3"}
ARCHITECTURES |= {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3", "GraniteForCausalLM": "granite"}
ARCHITECTURES |= {"GlmForCausalLM": "chatglm", "Glm4ForCausalLM": "glm4"}

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def to_gguf_name(name: str) -> str:
    """llama.cpp's name of a Hugging Face tensor."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.{kind}"


def llama_cpp_permute(weights: Array, heads: int) -> Array:
    """What llama.cpp's converter does to the queries and keys of Llama models."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def add_sizes(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """The architecture's keys that every converter writes."""
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_rope_dimension_count(config.rope.rotary_dim)


def add_rope_scaling(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """llama3 scaling becomes a tensor of divisors; linear and yarn become metadata."""
    scaling = config.rope.scaling
    if scaling is None:
        return
    kind = scaling["rope_type"]
    if kind == "llama3":
        plain = config.rope.theta ** -(np.arange(0, config.rope.rotary_dim, 2) / config.rope.rotary_dim)
        writer.add_tensor("rope_freqs.weight", (plain / config.rope.inv_freq()).astype(np.float32))
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
    writer.add_rope_scaling_factor(scaling["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(scaling["original_max_position_embeddings"]))


def add_byte_tokenizer(writer: gguf.GGUFWriter, vocab_size: int, pre: str = "smollm") -> None:
    """The fixtures' tokenizer: control tokens, a token per byte, two merges; padded to the vocabulary."""
    from vglm.model.tokenizer import byte_level_alphabet

    tokens = [*CONTROL, *sorted(byte_level_alphabet()), "Ġt", "he"]
    kinds = [3] * len(CONTROL) + [1] * 258
    padding = max(0, vocab_size - len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list((tokens + [f"[PAD{i}]" for i in range(padding)])[:vocab_size])
    writer.add_token_types((kinds + [5] * padding)[:vocab_size])
    writer.add_token_merges(["Ġ t", "h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert_fixture(fixture: Path, path: Path, dtype: str = "F32", fuse_qkv: bool = False) -> Path:
    """Write a fixture directory as a GGUF file in F32, F16 or BF16, as llama.cpp's converter lays it out.

    `fuse_qkv` stacks queries, keys and values into one tensor, as in files of the first GLM-4 models.
    """
    raw = json.loads((fixture / "config.json").read_text())
    source = open_directory(fixture)
    config = source.config
    writer = gguf.GGUFWriter(path, ARCHITECTURES[raw["architectures"][0]])
    add_sizes(writer, config)
    add_rope_scaling(writer, config)
    if writer.arch == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attn_scale)
        writer.add_logit_scale(1.0 / config.logit_multiplier)
    if config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    add_byte_tokenizer(writer, config.vocab_size)
    stored = source._source
    tensors: dict[str, Array] = {n: stored.rows(n, 0, shape[0]) for n, shape in stored.shapes().items()}
    if fuse_qkv:
        for name in [name for name in tensors if ".q_proj." in name]:
            parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            tensors[name.replace("q_proj", "qkv_proj")] = np.concatenate(parts)
    for name, weights in tensors.items():
        if writer.arch in ("llama", "granite"):
            if ".q_proj" in name:
                weights = llama_cpp_permute(weights, config.num_heads)
            elif ".k_proj" in name:
                weights = llama_cpp_permute(weights, config.num_kv_heads)
        kind = "F32" if weights.ndim == 1 else dtype
        add_tensor(writer, to_gguf_name(name), weights, kind)
    finish(writer)
    return path


def add_tensor(writer: gguf.GGUFWriter, name: str, weights: Array, kind: str) -> None:
    """Add a tensor in the given format (K formats get random blocks of the right size instead)."""
    wanted = GGMLQuantizationType[kind]
    if kind in ("Q4_K", "Q5_K", "Q6_K"):
        data = random_blocks(kind, weights.shape)
    else:
        data = gguf.quants.quantize(np.ascontiguousarray(weights, np.float32), wanted)
    if kind in ("F32", "F16"):
        writer.add_tensor(name, data)
    else:
        writer.add_tensor(name, data, raw_dtype=wanted)


def random_blocks(kind: str, shape: tuple[int, ...]) -> Array:
    """Random bytes as blocks of a K format, with small finite scales."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // block, size), np.uint8)
    scale = rng.uniform(1e-3, 1e-2, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    if kind == "Q6_K":
        blocks[:, 208:210] = scale
    else:
        blocks[:, 0:2], blocks[:, 2:4] = scale, scale
    return blocks.reshape(shape[0], shape[1] // block * size)


def write_random_llama(path: Path, kind: str, hidden: int = 64, vocab: int = 261) -> Path:
    """A one-layer Llama with every matrix in the given format; `hidden` must be a multiple of its block."""
    rng = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "llama")
    heads, head_dim, inner = 4, hidden // 4, hidden
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    add_byte_tokenizer(writer, vocab)
    shapes = {"attn_q": (hidden, hidden), "attn_k": (2 * head_dim, hidden), "attn_v": (2 * head_dim, hidden)}
    shapes |= {"attn_output": (hidden, hidden), "ffn_gate": (inner, hidden)}
    shapes |= {"ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
    add_tensor(writer, "token_embd.weight", rng.normal(0, 0.3, (vocab, hidden)), kind)
    add_tensor(writer, "output_norm.weight", np.ones(hidden), "F32")
    for name, shape in shapes.items():
        add_tensor(writer, f"blk.0.{name}.weight", rng.normal(0, 0.2, shape), kind)
    for name in ("attn_norm", "ffn_norm"):
        add_tensor(writer, f"blk.0.{name}.weight", np.ones(hidden), "F32")
    finish(writer)
    return path
