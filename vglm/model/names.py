"""Canonical tensor names, and where each one is found in a Hugging Face or a GGUF file.

The engine knows one naming and one rotary order (half-split). A `Recipe` says which stored tensor holds a
canonical one, which of its rows (fused projections), and whether to permute them from interleaved order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vglm.errors import ModelError
from vglm.model.config import ModelConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """How to cut a canonical tensor out of a stored one: rows [start, stop), then `permute` of those."""

    source: str
    start: int
    stop: int
    permute: npt.NDArray[np.int64] | None = None


def canonical_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor that a model of this config has, with its shape ([out, in] for matrices)."""
    hidden = config.hidden_size
    shapes: dict[str, Shape] = {"embed_tokens": (config.vocab_size, hidden), "final_norm": (hidden,)}
    if not config.tie_embeddings:
        shapes["lm_head"] = (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        shapes.update({f"layers.{layer}.{name}": shape for name, shape in _layer_shapes(config).items()})
    return shapes


def _layer_shapes(config: ModelConfig) -> dict[str, Shape]:
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, Shape] = {"attn_norm": (hidden,)}
    for name, rows in (("q", config.q_size), ("k", config.kv_size), ("v", config.kv_size)):
        shapes[f"{name}_proj"] = (rows, hidden)
        if config.qkv_bias:
            shapes[f"{name}_bias"] = (rows,)
    shapes["o_proj"] = (hidden, config.q_size)
    if config.o_bias:
        shapes["o_bias"] = (hidden,)
    if config.qk_norm:
        shapes["q_norm"] = shapes["k_norm"] = (config.head_dim,)
    shapes["mlp_norm"] = (hidden,)
    for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        shapes[f"{name}_proj"] = shape
        if config.mlp_bias:
            shapes[f"{name}_bias"] = shape[:1]
    if config.post_norms:
        shapes["attn_post_norm"] = shapes["mlp_post_norm"] = (hidden,)
    return shapes


_HF_TOP = {
    "embed_tokens": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
}
_HF_LAYER = {
    "attn_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "attn_post_norm": "post_self_attn_layernorm.weight",
    "mlp_post_norm": "post_mlp_layernorm.weight",
    "qkv_proj": "self_attn.qkv_proj.weight",
    "gate_up_proj": "mlp.gate_up_proj.weight",
    **{f"{n}_proj": f"self_attn.{n}_proj.weight" for n in "qkvo"},
    **{f"{n}_bias": f"self_attn.{n}_proj.bias" for n in "qkvo"},
    **{f"{n}_proj": f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")},
    **{f"{n}_bias": f"mlp.{n}_proj.bias" for n in ("gate", "up", "down")},
}
_GGUF_TOP = {
    "embed_tokens": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "lm_head": "output.weight",
}
_GGUF_LAYER = {
    "attn_norm": "attn_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "attn_post_norm": "post_attention_norm.weight",
    "mlp_post_norm": "post_ffw_norm.weight",
    "qkv_proj": "attn_qkv.weight",
    "qkv_bias": "attn_qkv.bias",
    # llama.cpp stores a fused gate and up under the name of up; it counts only when ffn_gate is absent.
    "gate_up_proj": "ffn_up.weight",
    **{f"{n}_proj": f"attn_{s}.weight" for n, s in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output"))},
    **{f"{n}_bias": f"attn_{s}.bias" for n, s in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output"))},
    **{f"{n}_proj": f"ffn_{n}.weight" for n in ("gate", "up", "down")},
    **{f"{n}_bias": f"ffn_{n}.bias" for n in ("gate", "up", "down")},
}
# Buffers that some converters store; nothing is computed from them.
_IGNORABLE = re.compile(
    r"(rotary_emb\.inv_freq|rope_freqs\.weight|attn\.(masked_)?bias|rotary_pos_emb\.inv_freq)$"
)


class NameMap:
    """Resolves canonical names against the tensors that a file really has."""

    def __init__(
        self, config: ModelConfig, stored: Mapping[str, Shape], style: str, interleaved: bool
    ) -> None:
        self.config = config
        self.stored = stored
        self.top, self.layer = (_HF_TOP, _HF_LAYER) if style == "hf" else (_GGUF_TOP, _GGUF_LAYER)
        self.prefix = "model.layers.{}." if style == "hf" else "blk.{}."
        self.interleaved = interleaved

    def recipes(self) -> dict[str, Recipe]:
        """A recipe for every canonical tensor; ModelError names missing, mis-shaped and unknown ones."""
        problems: list[str] = []
        recipes: dict[str, Recipe] = {}
        for name, shape in canonical_shapes(self.config).items():
            recipe = self._recipe(name, shape)
            if isinstance(recipe, Recipe):
                recipes[name] = recipe
            else:
                problems.append(recipe)
        problems += self._unknown({recipe.source for recipe in recipes.values()})
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise ModelError(f"the model's tensors do not fit its config: {shown}")
        return recipes

    def _recipe(self, name: str, shape: Shape) -> Recipe | str:
        source, start, total = self._locate(name, shape[0])
        if source not in self.stored:
            return f"tensor {source!r} ({name}) is missing"
        expected = (total, *shape[1:])
        if self.stored[source] != expected:
            return (
                f"tensor {source!r} has shape {list(self.stored[source])}, the config needs {list(expected)}"
            )
        return Recipe(source, start, start + shape[0], self._permutation(name))

    def _locate(self, name: str, rows: int) -> tuple[str, int, int]:
        """Stored name, first row, and the number of rows that the stored tensor must have."""
        if name in self.top:
            return self.top[name], 0, rows
        _, layer, part = name.split(".", 2)
        prefix = self.prefix.format(layer)
        kind, _, suffix = part.partition("_")
        fused = prefix + self.layer.get(f"qkv_{suffix}", "-")
        if kind in ("q", "k", "v") and suffix in ("proj", "bias") and fused in self.stored:
            q, kv = self.config.q_size, self.config.kv_size
            return fused, {"q": 0, "k": q, "v": q + kv}[kind], q + 2 * kv
        if part in ("gate_proj", "up_proj") and prefix + self.layer["gate_proj"] not in self.stored:
            fused = prefix + self.layer["gate_up_proj"]
            if fused in self.stored:
                return fused, 0 if part == "gate_proj" else rows, 2 * rows
        return prefix + self.layer[part], 0, rows

    def _permutation(self, name: str) -> npt.NDArray[np.int64] | None:
        """Row order that turns rotary pairs (0,1),(2,3).. into half-split pairs (0,r/2),(1,r/2+1).."""
        part = name.rpartition(".")[2]
        if not self.interleaved or part not in ("q_proj", "k_proj", "q_bias", "k_bias", "q_norm", "k_norm"):
            return None
        heads = {"q": self.config.num_heads, "k": self.config.num_kv_heads}[part[0]]
        if part.endswith("norm"):
            heads = 1
        rotary, head_dim = self.config.rope.rotary_dim, self.config.head_dim
        one = np.concatenate([np.arange(0, rotary, 2), np.arange(1, rotary, 2), np.arange(rotary, head_dim)])
        order: npt.NDArray[np.int64] = (np.arange(heads)[:, None] * head_dim + one).reshape(-1)
        return order

    def _unknown(self, used: Iterable[str]) -> list[str]:
        """Tensors of the model's own layers that nothing reads: their model would compute something else."""
        used = set(used)
        layer_prefix = self.prefix.split("{}")[0]
        unknown = []
        for name in self.stored:
            if name in used or _IGNORABLE.search(name):
                continue
            layer = name.removeprefix(layer_prefix).partition(".")[0] if name.startswith(layer_prefix) else ""
            if layer.isdecimal() and len(layer) < 8 and int(layer) < self.config.num_layers:
                unknown.append(f"tensor {name!r} is not part of a {self.config.architecture!r} model")
        return unknown
