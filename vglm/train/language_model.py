"""A Llama-like language model in torch with a low-rank adapter, under any attention mask: the model that vGLM serves, to train.

The base is frozen, in bfloat16; the adapter (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021) is kept in
float32 and multiplied in bfloat16. Tensors are canonical, as `vglm.model.checkpoint.Checkpoint.tensor` gives them: rotary
embeddings in half-split order, so that an adapter means the same to the engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vglm.errors import ModelError
from vglm.model.checkpoint import Checkpoint
from vglm.model.config import ModelConfig

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LowRank(nn.Module):
    """A frozen matrix [out, in] and its low-rank addition: y = x W' + (alpha / rank) x A' B'."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.lora_a = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.lora_b = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.scale = alpha / rank
        self.active = True

    def forward(self, x: Tensor) -> Tensor:
        """x bfloat16 [..., in] -> [..., out]."""
        y = F.linear(x, self.weight)  # type: ignore[arg-type]
        if not self.active:
            return y
        inner = F.linear(x, self.lora_a.to(x.dtype))
        return y + F.linear(inner, (self.scale * self.lora_b).to(x.dtype))


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, checkpoint: Checkpoint, index: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.config = checkpoint.config
        prefix = f"layers.{index}."
        for name in PROJECTIONS:
            weight = torch.from_numpy(checkpoint.tensor(prefix + name)).bfloat16()
            self.add_module(name, LowRank(weight, rank, alpha))
        for name in ("attn_norm", "mlp_norm"):
            self.register_buffer(
                name, torch.from_numpy(checkpoint.tensor(prefix + name).copy()).bfloat16(), persistent=False
            )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x [batch, tokens, hidden]; cos, sin [batch, 1, tokens, head_dim]; mask additive [batch, 1, tokens, tokens]."""
        config = self.config
        inner = F.rms_norm(x, (config.hidden_size,), self.attn_norm, config.norm_eps)  # type: ignore[arg-type]
        q, k, v = (
            self.project(name, inner).view(*x.shape[:2], -1, config.head_dim).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = config.num_heads // config.num_kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)  # faster than broadcast products
        seen = attend(q, k, v, mask, config.attn_scale)
        x = x + self.project("o_proj", seen.transpose(1, 2).flatten(2))
        inner = F.rms_norm(x, (config.hidden_size,), self.mlp_norm, config.norm_eps)  # type: ignore[arg-type]
        gated = F.silu(self.project("gate_proj", inner)) * self.project("up_proj", inner)
        return x + self.project("down_proj", gated)

    def project(self, name: str, x: Tensor) -> Tensor:
        """One of the PROJECTIONS of x [..., in]."""
        projected: Tensor = getattr(self, name)(x)
        return projected


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Softmax attention, [batch, heads, tokens, head_dim]; written out, because torch's fused backward pass is slower here."""
    scores = torch.matmul(q * scale, k.transpose(-1, -2)) + mask
    return torch.matmul(scores.softmax(-1), v)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in half-split order; x [batch, heads, tokens, head_dim]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class LanguageModel(nn.Module):
    """The model; only the adapter has gradients."""

    def __init__(self, checkpoint: Checkpoint, rank: int = 16, alpha: float = 32.0) -> None:
        """Raises ModelError for an architecture that cannot be trained here."""
        super().__init__()
        config = checkpoint.config
        _check_plain(config)
        self.config, self.rank, self.alpha = config, rank, alpha
        embedding = torch.from_numpy(checkpoint.tensor("embed_tokens")).bfloat16()
        self.register_buffer("embedding", embedding, persistent=False)
        head = (
            embedding if config.tie_embeddings else torch.from_numpy(checkpoint.tensor("lm_head")).bfloat16()
        )
        self.register_buffer("head", head, persistent=False)
        norm = torch.from_numpy(checkpoint.tensor("final_norm").copy()).bfloat16()
        self.register_buffer("final_norm", norm, persistent=False)
        inv_freq = torch.from_numpy(config.rope.inv_freq()).float()
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.layers = nn.ModuleList(
            Layer(checkpoint, index, rank, alpha) for index in range(config.num_layers)
        )

    def hidden(self, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Output of the final norm, bfloat16 [batch, tokens, hidden].

        tokens, positions int64 [batch, tokens]; visible bool [batch, tokens, tokens], of which every row sees something.
        """
        x = F.embedding(tokens, self.embedding)  # type: ignore[arg-type]
        angles = positions[:, None, :, None].float() * self.inv_freq  # type: ignore[operator]
        angles = torch.cat((angles, angles), -1)
        cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
        mask = torch.zeros(visible.shape, dtype=torch.bfloat16).masked_fill_(~visible, -torch.inf)[:, None]
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return F.rms_norm(x, (self.config.hidden_size,), self.final_norm, self.config.norm_eps)  # type: ignore[arg-type]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden bfloat16 [n, hidden] -> float32 [n, vocab]."""
        return F.linear(hidden, self.head).float()  # type: ignore[arg-type]

    def low_rank(self) -> Iterator[tuple[str, LowRank]]:
        """The adapted matrices with their canonical names."""
        for index, layer in enumerate(self.layers):
            for name in PROJECTIONS:
                yield f"layers.{index}.{name}", getattr(layer, name)

    def adapter(self) -> dict[str, Tensor]:
        """The adapter's tensors by name: `<matrix>.lora_a` [rank, in], `<matrix>.lora_b` [out, rank]; shared, not copies."""
        return {
            f"{name}.{part}": getattr(matrix, part).data
            for name, matrix in self.low_rank()
            for part in ("lora_a", "lora_b")
        }

    def load_adapter(self, tensors: dict[str, Tensor]) -> None:
        """Take the values of `adapter`. Raises ModelError when they do not fit."""
        mine = self.adapter()
        if tensors.keys() != mine.keys():
            raise ModelError(f"adapter: expected {len(mine)} tensors of this model, found {len(tensors)}")
        for name, value in tensors.items():
            if value.shape != mine[name].shape:
                raise ModelError(
                    f"adapter: {name} is {tuple(value.shape)}, expected {tuple(mine[name].shape)}"
                )
            mine[name].copy_(value)

    def use_adapter(self, active: bool) -> None:
        """With `active` false the model is its base."""
        for _, matrix in self.low_rank():
            matrix.active = active


def _check_plain(config: ModelConfig) -> None:
    plain = not (config.qkv_bias or config.o_bias or config.mlp_bias or config.qk_norm or config.post_norms)
    multipliers = (config.embedding_multiplier, config.residual_multiplier, config.logit_multiplier)
    if not plain or multipliers != (1.0, 1.0, 1.0) or config.sliding_window:
        raise ModelError("training an adapter is supported for models of the Llama architecture")
