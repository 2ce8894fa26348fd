"""How one weight matrix lies in memory for the native kernels; native/kernels.hpp describes the layout.

Matrices are float32 [out, in], as in a Hugging Face checkpoint. `out` is padded to COLUMNS and `in` to DEPTH with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

GROUP = 16
COLUMNS = 64
DEPTH = 64
_BLOCK4_BYTES = 320  # 16 rows x 32 columns, with scales and minima


def padded(size: int, multiple: int = 64) -> int:
    """The least multiple of `multiple` that is not under `size`."""
    return -(-size // multiple) * multiple


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A matrix as the kernels read it: `data` uint8, `scale` float32 [n] for int8, `bias` float32 [n] or None."""

    type: str
    n: int
    k: int
    data: ByteArray
    scale: FloatArray | None = None
    bias: FloatArray | None = None


def pad_matrix(weight: FloatArray) -> FloatArray:
    """Zeros below and to the right, up to whole groups."""
    n, k = weight.shape
    if n % COLUMNS == 0 and k % DEPTH == 0:
        return weight
    out = np.zeros((padded(n, COLUMNS), padded(k, DEPTH)), np.float32)
    out[:n, :k] = weight
    return out


def pad_vector(vector: FloatArray | None, size: int) -> FloatArray | None:
    """Zeros behind, or None for None."""
    if vector is None:
        return None
    out = np.zeros(size, np.float32)
    out[: len(vector)] = vector
    return out


def to_bf16(values: FloatArray) -> npt.NDArray[np.uint16]:
    """Round to nearest even; the bits of bfloat16 as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def from_bf16(bits: npt.NDArray[np.uint16]) -> FloatArray:
    """The float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _interleave(values: npt.NDArray[np.generic], run: int) -> ByteArray:
    """[n, k] -> [n/16][k/run][16][run], as bytes."""
    n, k = values.shape
    grouped = values.reshape(n // GROUP, GROUP, k // run, run).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(grouped).reshape(-1).view(np.uint8)


def pack_bf16(weight: FloatArray, bias: FloatArray | None = None) -> PackedLinear:
    """bfloat16 weights."""
    matrix = pad_matrix(weight)
    n, k = matrix.shape
    return PackedLinear("bf16", n, k, _interleave(to_bf16(matrix), 2), None, pad_vector(bias, n))


def hadamard(size: int = 64) -> FloatArray:
    """The orthonormal Hadamard matrix (its own inverse), in the order of the fast transform; size a power of 2."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / np.float32(size**0.5)).astype(np.float32)


def rotate(weight: FloatArray) -> FloatArray:
    """Rotate every 64 inputs of a matrix, as the kernels rotate int8 activations (QuaRot, arXiv:2404.00456)."""
    matrix = pad_matrix(weight)[: len(weight)]
    blocks = matrix.reshape(len(matrix), -1, DEPTH) @ hadamard(DEPTH)
    return blocks.reshape(matrix.shape)


def quantise_int8(weight: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Symmetric int8 per output channel: weight ~ q * scale[:, None], |q| <= 127."""
    scale = (np.abs(weight).max(axis=1) / np.float32(127)).astype(np.float32)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.rint(weight * inverse[:, None]).astype(np.int8), scale


def pack_int8(
    quants: npt.NDArray[np.int8], scale: FloatArray, bias: FloatArray | None = None
) -> PackedLinear:
    """int8 weights [out, in] with a scale per output channel, stored with an offset of 128."""
    n, k = quants.shape
    stored = np.full((padded(n, COLUMNS), padded(k, DEPTH)), 128, np.uint8)
    stored[:n, :k] = quants.view(np.uint8) ^ np.uint8(128)
    size = len(stored)
    packed_scale = pad_vector(scale, size)
    return PackedLinear(
        "int8", size, stored.shape[1], _interleave(stored, 4), packed_scale, pad_vector(bias, size)
    )


def pack_int4(
    quants: ByteArray, scale: FloatArray, minimum: FloatArray, bias: FloatArray | None = None
) -> PackedLinear:
    """4-bit blocks of 32 along k: quants uint8 [out, k/32, 32] in 0..15, weight = scale * q + minimum ([out, k/32])."""
    rows, blocks, _ = quants.shape
    n, k = padded(rows, COLUMNS), padded(blocks * 32, DEPTH)
    q = np.zeros((n, k // 32, 32), np.uint8)
    q[:rows, :blocks] = quants
    ends = np.zeros((n, k // 32, 2), np.float16)
    ends[:rows, :blocks, 0] = scale
    ends[:rows, :blocks, 1] = minimum
    grouped = q.reshape(n // GROUP, GROUP, k // 32, 2, 4, 4).transpose(0, 2, 3, 4, 1, 5)
    nibbles = (grouped[:, :, 0] | (grouped[:, :, 1] << 4)).reshape(n // GROUP, k // 32, 256)
    tail = ends.reshape(n // GROUP, GROUP, k // 32, 2).transpose(0, 2, 3, 1)
    tail_bytes = np.ascontiguousarray(tail).view(np.uint8).reshape(n // GROUP, k // 32, 64)
    data = np.concatenate([nibbles, tail_bytes], axis=2).reshape(-1)
    return PackedLinear("int4", n, k, np.ascontiguousarray(data), None, pad_vector(bias, n))


def int4_rows(data: ByteArray, k: int) -> int:
    """How many rows of `k` columns `pack_int4` has put into `data`."""
    return data.nbytes * GROUP // (k // 32 * _BLOCK4_BYTES)


def quantise_int4(weight: FloatArray) -> tuple[ByteArray, FloatArray, FloatArray]:
    """Blocks of 32 with a scale and a minimum (the form of GGUF's Q4_1), both rounded to float16."""
    n = len(weight)
    blocks = pad_matrix(weight)[:n].reshape(n, -1, 32)
    minimum = blocks.min(axis=2).astype(np.float16).astype(np.float32)
    scale = ((blocks.max(axis=2) - minimum) / np.float32(15)).astype(np.float16).astype(np.float32)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    quants = np.clip(np.rint((blocks - minimum[..., None]) * inverse[..., None]), 0, 15)
    return quants.astype(np.uint8), scale, minimum
