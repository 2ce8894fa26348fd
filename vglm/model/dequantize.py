"""ggml's quantised blocks as float32, bit for bit as llama.cpp's own Python package reads them.

That package would bring 17 MB of others into every installation; the tests compare with it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


def dequantize(raw: Bytes, kind: str) -> Float32:
    """Weights of whole blocks: uint8 [rows, bytes per row] to float32 [rows, weights per row].

    Raises KeyError for a format that is not in `FORMATS`.
    """
    block_bytes, read = FORMATS[kind]
    blocks = raw.reshape(-1, block_bytes)
    return read(blocks).reshape(raw.shape[0], -1)


def half(blocks: Bytes, byte: int) -> Float32:
    """The half-precision number at `byte` of each block, [blocks, 1]."""
    values = np.ascontiguousarray(blocks[:, byte : byte + 2]).view("<f2").astype(np.float32)
    return np.asarray(values, np.float32)


def nibbles(packed: Bytes) -> Bytes:
    """Low nibbles of a run of bytes, then its high ones: the weights' order in every 4-bit ggml block."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)


def scales_and_minimums(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minimums of 6 bits each from 12 bytes: the head of Q4_K and Q5_K blocks."""
    low, high, mixed = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (mixed & 15) | ((low >> 2) & 48)], axis=1)
    minimums = np.concatenate([high & 63, (mixed >> 4) | ((high >> 2) & 48)], axis=1)
    return scales, minimums


def _q4_0(blocks: Bytes) -> Float32:
    return half(blocks, 0) * (nibbles(blocks[:, 2:]).astype(np.float32) - np.float32(8))


def _q4_1(blocks: Bytes) -> Float32:
    return half(blocks, 0) * nibbles(blocks[:, 4:]).astype(np.float32) + half(blocks, 2)


def _five_bits(low: Bytes, high: Bytes) -> Float32:
    """32 weights: nibbles [blocks, 16], and the fifth bit of each from 4 bytes."""
    fifth = np.unpackbits(high, axis=1, bitorder="little")
    return (nibbles(low) | (fifth << np.uint8(4))).astype(np.float32)


def _q5_0(blocks: Bytes) -> Float32:
    return half(blocks, 0) * (_five_bits(blocks[:, 6:], blocks[:, 2:6]) - np.float32(16))


def _q5_1(blocks: Bytes) -> Float32:
    return half(blocks, 0) * _five_bits(blocks[:, 8:], blocks[:, 4:8]) + half(blocks, 2)


def _q8_0(blocks: Bytes) -> Float32:
    return half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _with_minimums(blocks: Bytes, weights: Float32) -> Float32:
    """weights [blocks, 8, 32] times their group's scale, less its minimum."""
    scales, minimums = scales_and_minimums(blocks[:, 4:16])
    scale = (half(blocks, 0) * scales.astype(np.float32))[..., None]
    minimum = (half(blocks, 2) * minimums.astype(np.float32))[..., None]
    return scale * weights - minimum


def _q4_k(blocks: Bytes) -> Float32:
    weights = nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _with_minimums(blocks, weights.astype(np.float32))


def _q5_k(blocks: Bytes) -> Float32:
    low = nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    return _with_minimums(blocks, (low | (fifth << np.uint8(4))).astype(np.float32))


def _q6_k(blocks: Bytes) -> Float32:
    """Two halves of 128 weights; sixteen groups of 16 with an int8 scale each."""
    low = nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 8, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = ((blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)).reshape(-1, 8, 32)
    weights = (low | (high << np.uint8(4))).astype(np.float32) - np.float32(32)
    scales = half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return scales[..., None] * weights.reshape(-1, 16, 16)


#: Bytes of a block and how it is read, by ggml's name.
FORMATS: dict[str, tuple[int, Callable[[Bytes], Float32]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}
