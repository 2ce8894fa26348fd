"""The sampler once more, naively: sorts, float64, one row at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm import _native
from vglm.decode.sampling_params import GREEDY_BELOW

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
NEAR = 1e-5


@dataclass
class Row:
    """The arguments of one row."""

    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    step: int = 0
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    bias: dict[int, float] = field(default_factory=dict)
    allowed: list[int] | None = None
    num_logprobs: int = 0
    target: int = -1
    need_logprob: bool = False


SCALARS: dict[str, Any] = {
    "temperature": np.float32,
    "top_p": np.float32,
    "min_p": np.float32,
    "top_k": np.int32,
    "repetition_penalty": np.float32,
    "presence_penalty": np.float32,
    "frequency_penalty": np.float32,
    "seed": np.uint64,
    "step": np.uint64,
    "num_logprobs": np.int32,
    "target": np.int32,
    "need_logprob": np.bool_,
}


def sample(logits: Float32, rows: list[Row]) -> tuple[npt.NDArray[Any], ...]:
    """The native sampler on logits [len(rows), vocab]."""
    arguments: dict[str, Any] = {
        name: np.array([getattr(row, name) for row in rows], dtype) for name, dtype in SCALARS.items()
    }
    for name in ("prompt", "output"):
        lists = [getattr(row, name) for row in rows]
        arguments[f"{name}_tokens"] = np.array([token for tokens in lists for token in tokens], np.int32)
        arguments[f"{name}_start"] = starts([len(tokens) for tokens in lists])
    arguments["bias_tokens"] = np.array([token for row in rows for token in row.bias], np.int32)
    arguments["bias_values"] = np.array([value for row in rows for value in row.bias.values()], np.float32)
    arguments["bias_start"] = starts([len(row.bias) for row in rows])
    if any(row.allowed is not None for row in rows):
        arguments["allowed_mask"] = np.stack([mask(row.allowed, logits.shape[1]) for row in rows])
    return _native.sample(logits, **arguments)


def starts(lengths: list[int]) -> npt.NDArray[np.int32]:
    """Row starts of lists that are stored one after the other."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def mask(allowed: list[int] | None, vocab: int) -> npt.NDArray[np.uint32]:
    """One bit per token."""
    words = np.zeros((vocab + 31) // 32, np.uint32)
    for token in range(vocab) if allowed is None else allowed:
        words[token // 32] |= np.uint32(1) << np.uint32(token % 32)
    return words


def changed(logits: Float32, row: Row) -> Float32:
    """Logits after bias, mask and penalties, in float32 as the model gives them."""
    x = logits.copy()
    for token, value in row.bias.items():
        x[token] += np.float32(value)
    if row.allowed is not None:
        banned = np.ones(len(x), bool)
        banned[row.allowed] = False
        x[banned] = -np.inf
    repetition = np.float32(row.repetition_penalty)
    for token in {*row.prompt, *row.output}:
        x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
    for token in set(row.output):
        x[token] -= np.float32(row.frequency_penalty) * np.float32(row.output.count(token))
        x[token] -= np.float32(row.presence_penalty)
    return x


def logprobs(logits: Float32) -> Float64:
    """Log-softmax."""
    x = logits.astype(np.float64)
    return x - (x.max() + np.log(np.exp(x - x.max()).sum()))


def distribution(x: Float32, row: Row) -> tuple[Float64, bool]:
    """Probabilities [vocab] over the kept set, and whether rounding could change that set."""
    scaled = x.astype(np.float64) / np.float32(row.temperature)
    weights = np.exp(scaled - scaled.max())
    fragile = False
    if row.min_p > 0:
        fragile |= bool(np.any(np.abs(weights / row.min_p - 1) < NEAR) and row.min_p < 1)
        weights[weights < np.float32(row.min_p)] = 0
    if 0 < row.top_k < len(x):
        weights[x < np.sort(x)[-row.top_k]] = 0
    if row.top_p < 1:
        cut, near = nucleus(weights, float(np.float32(row.top_p)))
        fragile |= near
        weights[weights < cut] = 0
    return weights / weights.sum(), fragile


def nucleus(weights: Float64, top_p: float) -> tuple[float, bool]:
    """The lightest weight that top_p keeps (equal weights share one fate); whether that is a close call."""
    values, counts = np.unique(weights[weights > 0], return_counts=True)
    values, counts = values[::-1], counts[::-1]
    heavier = (np.cumsum(values * counts) - values * counts) / weights.sum()
    last = int(np.flatnonzero(heavier < top_p)[-1])
    near = bool(np.any(np.abs(heavier - top_p) < NEAR))
    twins = last + 1 < len(values) and values[last + 1] / values[last] > 1 - NEAR
    return float(values[last]), near or twins


def philox(seed: int, step: int) -> float:
    """Philox 4x32-10 of (seed, step) as a number in [0, 1)."""
    low = 0xFFFFFFFF
    a, b, c, d = step & low, step >> 32, 0, 0
    k0, k1 = seed & low, seed >> 32
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (right >> 32) ^ b ^ k0, right & low, (left >> 32) ^ d ^ k1, left & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return float(((a << 32 | b) >> 11) * 2.0**-53)


def choose(logits: Float32, row: Row) -> tuple[int, bool]:
    """The token (or -2 when all are banned), and whether rounding could have chosen another."""
    x = changed(logits, row)
    if x.max() == -np.inf:
        return -2, False
    if row.temperature < GREEDY_BELOW:
        return int(np.argmax(x)), False
    probabilities, fragile = distribution(x, row)
    edges = np.cumsum(probabilities)
    point = philox(row.seed, row.step)
    token = int(np.flatnonzero(edges > point * edges[-1])[0])
    between = np.abs(edges[:-1] - point)
    return token, fragile or bool(np.any(between < NEAR))
