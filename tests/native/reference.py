"""The naive twins of the native kernels: what they compute, said in numpy."""

from __future__ import annotations

import numpy as np

from vglm.model.layout import from_bf16, rotate, to_bf16


def round_bf16(x):
    return from_bf16(to_bf16(x)).reshape(x.shape)


def quantise_rows(x, group=None):
    """Symmetric int8 per row, or per group of `group` along a row; returns the values that the integers stand for."""
    rows, k = x.shape
    blocks = x.reshape(rows, -1, group or k)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return (np.rint(blocks * inverse) * (largest / np.float32(127))).reshape(rows, k)


def activations(kind, x):
    """What a row of activations is worth to weights of this kind."""
    if kind == "bf16":
        return round_bf16(x)
    return quantise_rows(x, 32) if kind == "int4" else quantise_rows(rotate(x))


def rmsnorm(x, weight, eps):
    return x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + eps) * weight


def silu(x):
    return x / (1 + np.exp(-x))


def swiglu(y):
    """Columns come in sixteens: gate, up, gate, up, ..."""
    rows, n = y.shape
    pairs = y.reshape(rows, n // 32, 2, 16)
    return (silu(pairs[:, :, 0]) * pairs[:, :, 1]).reshape(rows, n // 2)


def attention(q, k, v, limit, scale):
    out = np.zeros_like(q)
    for i, seen in enumerate(limit):
        scores = (k[:seen].astype(np.float64) @ q[i]) * scale
        p = np.exp(scores - scores.max())
        out[i] = (p / p.sum()) @ v[:seen]
    return out
