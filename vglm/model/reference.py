"""The reference forward pass: numpy, fp32 (angles in fp64), dense causal attention, nothing fused.

Every fast path of the engine is compared with this one (tests, `vglm bench accuracy`), and this one with
`transformers` (tests/model).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from vglm.model.config import ModelConfig

Float32 = npt.NDArray[np.float32]
GetTensor = Callable[[str], Float32]


def rms_norm(x: Float32, weight: Float32, eps: float) -> Float32:
    """x [..., n] scaled to unit root mean square over the last axis, times weight [n]."""
    scale = 1.0 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps))
    return np.asarray(x * scale * weight, np.float32)


def silu(x: Float32) -> Float32:
    """x * sigmoid(x), without overflow for large negative x."""
    return np.asarray(x / (1.0 + np.exp(-np.maximum(x, np.float32(-80.0)))), np.float32)


def rotate(x: Float32, positions: npt.NDArray[np.int64], config: ModelConfig) -> Float32:
    """Rotary embedding in half-split order of x [tokens, heads, head_dim] at positions [tokens]."""
    rotary = config.rope.rotary_dim
    angles = positions[:, None].astype(np.float64) * config.rope.inv_freq()[None, :]
    factor = config.rope.attention_factor
    cos = (np.cos(angles) * factor).astype(np.float32)[:, None, :]
    sin = (np.sin(angles) * factor).astype(np.float32)[:, None, :]
    first, second, rest = x[..., : rotary // 2], x[..., rotary // 2 : rotary], x[..., rotary:]
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    return np.concatenate(turned, axis=-1, dtype=np.float32)


def attend(q: Float32, k: Float32, v: Float32, scale: float, visible: npt.NDArray[np.bool_]) -> Float32:
    """Softmax attention: q [n, heads, d]; k, v [m, kv_heads, d]; visible [n, m]; returns [n, heads, d]."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.matmul(q.transpose(1, 0, 2), k.transpose(1, 2, 0)) * np.float32(scale)
    scores = np.where(visible[None], scores, np.float32(-np.inf))
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = scores / scores.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("hnm,mhd->nhd", weights, v), np.float32)


def causal_mask(tokens: int, window: int | None) -> npt.NDArray[np.bool_]:
    """[tokens, tokens]: a row sees itself and what is before it, at most `window` tokens in all."""
    distance = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    return (distance >= 0) & (distance < (window or tokens))


class Reference:
    """A model in fp32. `get_tensor` yields tensors by canonical name, as `Checkpoint.tensor` does."""

    def __init__(self, config: ModelConfig, get_tensor: GetTensor) -> None:
        self.config = config
        self._get_tensor = get_tensor
        self._cache: dict[str, Float32] = {}

    def weight(self, name: str) -> Float32:
        """A tensor, read once."""
        if name not in self._cache:
            self._cache[name] = np.asarray(self._get_tensor(name), np.float32)
        return self._cache[name]

    def embed(self, token_ids: Sequence[int]) -> Float32:
        """Embedding rows [tokens, hidden] as the first layer gets them."""
        rows = self.weight("embed_tokens")[np.asarray(token_ids, np.int64)]
        return rows * np.float32(self.config.embedding_multiplier)

    def hidden_states(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int] | None = None,
        embeds: Float32 | None = None,
        visible: npt.NDArray[np.bool_] | None = None,
    ) -> Float32:
        """Output of the final norm [tokens, hidden].

        positions default to 0..; `embeds` [tokens, hidden] replaces the embedding rows (multiplier included);
        `visible` [tokens, tokens] replaces the causal mask.
        """
        x = self.embed(token_ids) if embeds is None else np.asarray(embeds, np.float32)
        tokens = x.shape[0]
        where = np.arange(tokens) if positions is None else np.asarray(positions, np.int64)
        mask = causal_mask(tokens, self.config.sliding_window) if visible is None else visible
        for layer in range(self.config.num_layers):
            x = self._layer(layer, x, where, mask)
        return rms_norm(x, self.weight("final_norm"), self.config.norm_eps)

    def logits(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int] | None = None,
        embeds: Float32 | None = None,
        visible: npt.NDArray[np.bool_] | None = None,
    ) -> Float32:
        """Logits of every token [tokens, vocab]; arguments as for `hidden_states`."""
        hidden = self.hidden_states(token_ids, positions, embeds, visible)
        head = self.weight("embed_tokens" if self.config.tie_embeddings else "lm_head")
        return hidden @ head.T * np.float32(self.config.logit_multiplier)

    def greedy(self, token_ids: Sequence[int], steps: int) -> list[int]:
        """The next `steps` tokens by highest logit, recomputing everything for each."""
        ids = list(token_ids)
        for _ in range(steps):
            ids.append(int(np.argmax(self.logits(ids)[-1])))
        return ids[len(token_ids) :]

    def _linear(self, layer: int, name: str, x: Float32) -> Float32:
        y = x @ self.weight(f"layers.{layer}.{name}_proj").T
        kind = "qkv_bias" if name in ("q", "k", "v") else "o_bias" if name == "o" else "mlp_bias"
        return y + self.weight(f"layers.{layer}.{name}_bias") if getattr(self.config, kind) else y

    def _norm(self, layer: int, name: str, x: Float32) -> Float32:
        return rms_norm(x, self.weight(f"layers.{layer}.{name}"), self.config.norm_eps)

    def _layer(
        self, layer: int, x: Float32, positions: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]
    ) -> Float32:
        config = self.config
        attended = self._attention(layer, self._norm(layer, "attn_norm", x), positions, mask)
        if config.post_norms:
            attended = self._norm(layer, "attn_post_norm", attended)
        x = np.asarray(x + attended * config.residual_multiplier, np.float32)
        inner = self._norm(layer, "mlp_norm", x)
        gated = silu(self._linear(layer, "gate", inner)) * self._linear(layer, "up", inner)
        out = self._linear(layer, "down", gated)
        if config.post_norms:
            out = self._norm(layer, "mlp_post_norm", out)
        return np.asarray(x + out * config.residual_multiplier, np.float32)

    def _attention(
        self, layer: int, x: Float32, positions: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]
    ) -> Float32:
        config, tokens = self.config, x.shape[0]
        q, k, v = (self._linear(layer, n, x).reshape(tokens, -1, config.head_dim) for n in ("q", "k", "v"))
        if config.qk_norm:
            q, k = self._norm(layer, "q_norm", q), self._norm(layer, "k_norm", k)
        q, k = rotate(q, positions, config), rotate(k, positions, config)
        return self._linear(layer, "o", attend(q, k, v, config.attn_scale, mask).reshape(tokens, -1))
