"""Rounding to a grid that is given, so that what the rounding takes from one weight is made up for by others.

An adapter moves weights by a few hundredths of the step of a 4-bit grid: rounded one by one they fall back to where they were,
and the adapter is gone. Here the columns of a matrix are rounded one after the other, and the error of each goes to the columns
that are still to come, as much as they can make up for it where inputs are correlated as those of a calibration text are
(GPTQ, arXiv:2210.17323).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Quants = npt.NDArray[np.uint8]

DAMPING = 0.1  # of the mean variance of the inputs: the fewer inputs there are, the more of their correlation is chance
GROUP = 32
_COLUMNS = 64  # whose errors go to each other at once, and to all others in one product


def error_factor(inputs: Float32) -> Float32:
    """How errors are passed on: the upper triangle U float32 [in, in], where U^T U is the inverse of the damped second moments
    of `inputs` float32 [n, in]."""
    x = inputs.astype(np.float64)
    moments = x.T @ x / max(len(x), 1)
    moments[np.diag_indices_from(moments)] += DAMPING * np.mean(np.diag(moments)) + 1e-12
    # the Cholesky factor of the reversed matrix is an upper one of the matrix itself, and its inverse is U
    upper = np.linalg.cholesky(moments[::-1, ::-1])[::-1, ::-1]
    return np.ascontiguousarray(np.triu(np.linalg.inv(upper)), np.float32)


def round_to_grid(weight: Float32, scale: Float32, minimum: Float32, factor: Float32) -> Quants:
    """Quants uint8 [out, in/32, 32], 0..15, such that scale * quant + minimum (float32 [out, in/32] each) gives nearly what
    `weight` float32 [out, in] gives for inputs like those of the `error_factor`."""
    out, size = weight.shape
    rest = np.array(weight, np.float32)
    quants = np.zeros((out, size), np.uint8)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    for start in range(0, size, _COLUMNS):
        stop = min(start + _COLUMNS, size)
        block = np.ascontiguousarray(rest[:, start:stop].T)  # [columns, out]
        errors = np.zeros_like(block)
        for i in range(stop - start):
            column, group = start + i, (start + i) // GROUP
            chosen = np.clip(np.rint((block[i] - minimum[:, group]) * inverse[:, group]), 0, 15)
            quants[:, column] = chosen
            errors[i] = (block[i] - chosen * scale[:, group] - minimum[:, group]) / factor[column, column]
            block[i + 1 :] -= factor[column, column + 1 : stop, None] * errors[i]
        rest[:, stop:] -= errors.T @ factor[start:stop, stop:]
    return quants.reshape(out, size // GROUP, GROUP)
