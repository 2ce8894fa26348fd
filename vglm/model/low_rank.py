"""A low-rank adapter beside 4-bit weights: y = W x + B (A x), where [W B] is one matrix of 4-bit blocks and A another.

Merged, an adapter would be lost: it moves weights by a few hundredths of a step of 4 bits. Beside them (the idea is that of
QLoRA, arXiv:2305.14314), A and B have blocks of their own, and what they add up to is off by a twelfth of itself only. Parts of
one matrix that have an A each, as q, k and v, have different columns of B.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vglm.model.checkpoint import LowRank, Q4Blocks
from vglm.model.layout import DEPTH, FloatArray, padded

_BLOCK = 32
_ZERO = 8  # the quant that stands for 0


def stack(parts: Sequence[LowRank | None], rows: Sequence[int]) -> tuple[FloatArray, list[FloatArray]]:
    """One A float32 [n, in] for all parts of a matrix, and a B float32 [rows of the part, n] for each; n is a multiple of 64.

    A part without an adapter has a B of zeros.
    """
    ranks = [len(part.a) if part is not None else 0 for part in parts]
    size = padded(sum(ranks), DEPTH)
    inner = next(part.a.shape[1] for part in parts if part is not None)
    a = np.zeros((size, inner), np.float32)
    columns = []
    start = 0
    for part, rank, count in zip(parts, ranks, rows, strict=True):
        b = np.zeros((count, size), np.float32)
        if part is not None:
            a[start : start + rank] = part.a
            b[:, start : start + rank] = part.b
        columns.append(b)
        start += rank
    return a, columns


def append_columns(blocks: Q4Blocks, b: FloatArray) -> Q4Blocks:
    """[W B]: the blocks of W up to a multiple of 64 columns, then those of B float32 [out, n]."""
    missing = padded(blocks.scale.shape[1] * _BLOCK, DEPTH) // _BLOCK - blocks.scale.shape[1]
    more = _symmetric_blocks(b)
    quants = np.pad(blocks.quants, ((0, 0), (0, missing), (0, 0)))
    scale, minimum = (np.pad(ends, ((0, 0), (0, missing))) for ends in (blocks.scale, blocks.minimum))
    return Q4Blocks(
        np.concatenate([quants, more.quants], axis=1),
        np.concatenate([scale, more.scale], axis=1),
        np.concatenate([minimum, more.minimum], axis=1),
    )


def _symmetric_blocks(b: FloatArray) -> Q4Blocks:
    """Blocks in which 0 stays 0, because a block may hold columns of several parts."""
    cut = b.reshape(len(b), -1, _BLOCK)
    scale = (np.abs(cut).max(axis=2) / np.float32(_ZERO - 0.5)).astype(np.float16).astype(np.float32)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    quants = np.clip(np.rint(cut * inverse[..., None]) + _ZERO, 0, 15)
    return Q4Blocks(quants.astype(np.uint8), scale, -_ZERO * scale)
