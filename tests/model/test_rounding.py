"""Rounding that passes its errors on: against the textbook's form of it, and against rounding weights one by one."""

from __future__ import annotations

import numpy as np
import pytest

from vglm.model.rounding import DAMPING, error_factor, round_to_grid


def problem(seed: int, out: int = 8, size: int = 96, n: int = 200) -> tuple[np.ndarray, ...]:
    """Weights that lie a little beside a 4-bit grid, the grid, and correlated inputs."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.05, 0.2, (out, size // 32)).astype(np.float32)
    minimum = rng.uniform(-1.5, -0.5, (out, size // 32)).astype(np.float32)
    quants = rng.integers(0, 16, (out, size // 32, 32))
    grid = quants * scale[..., None] + minimum[..., None]
    moved = grid.reshape(out, size) + 0.03 * rng.normal(size=(out, 2)) @ rng.normal(size=(2, size))
    inputs = rng.normal(size=(n, 6)) @ rng.normal(size=(6, size)) + 0.3 * rng.normal(size=(n, size))
    return moved.astype(np.float32), scale, minimum, inputs.astype(np.float32)


def one_by_one(weight: np.ndarray, scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    blocks = weight.reshape(*scale.shape, 32)
    return np.clip(np.rint((blocks - minimum[..., None]) / scale[..., None]), 0, 15)


def textbook(weight: np.ndarray, scale: np.ndarray, minimum: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Optimal brain quantisation in the order of the columns, its inverse updated by elimination, in float64."""
    x = inputs.astype(np.float64)
    moments = x.T @ x / len(x)
    moments += np.eye(len(moments)) * (DAMPING * np.mean(np.diag(moments)) + 1e-12)
    inverse = np.linalg.inv(moments)
    rest = weight.astype(np.float64)
    chosen = np.zeros(weight.shape)
    for j in range(weight.shape[1]):
        step, low = scale[:, j // 32], minimum[:, j // 32]
        chosen[:, j] = np.clip(np.rint((rest[:, j] - low) / step), 0, 15)
        error = (rest[:, j] - chosen[:, j] * step - low) / inverse[j, j]
        rest[:, j:] -= error[:, None] * inverse[j, j:]
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return chosen.reshape(*scale.shape, 32)


@pytest.mark.parametrize("seed", range(4))
def test_quants_are_the_textbook_s(seed: int) -> None:
    weight, scale, minimum, inputs = problem(seed)
    quants = round_to_grid(weight, scale, minimum, error_factor(inputs))
    assert quants.dtype == np.uint8
    same = quants == textbook(weight, scale, minimum, inputs)
    assert same.mean() > 0.99  # what lies in the middle of two steps may fall to either


@pytest.mark.parametrize("seed", range(4))
def test_outputs_are_closer_than_with_weights_rounded_one_by_one(seed: int) -> None:
    weight, scale, minimum, inputs = problem(seed)

    def error(quants: np.ndarray) -> float:
        rounded = (quants * scale[..., None] + minimum[..., None]).reshape(weight.shape)
        return float(np.linalg.norm((rounded - weight) @ inputs.T))

    assert error(round_to_grid(weight, scale, minimum, error_factor(inputs))) < 0.5 * error(
        one_by_one(weight, scale, minimum)
    )


def test_what_lies_on_the_grid_stays() -> None:
    _, scale, minimum, inputs = problem(0)
    quants = np.random.default_rng(1).integers(0, 16, (*scale.shape, 32)).astype(np.uint8)
    weight = (quants * scale[..., None] + minimum[..., None]).astype(np.float32).reshape(len(scale), -1)
    assert np.array_equal(round_to_grid(weight, scale, minimum, error_factor(inputs)), quants)


def test_inputs_that_say_nothing() -> None:
    """Dead channels, and fewer inputs than channels: every value stays finite and on the grid."""
    weight, scale, minimum, inputs = problem(0)
    inputs[:, 10:40] = 0
    for given in (inputs, inputs[:3], np.zeros_like(inputs)):
        quants = round_to_grid(weight, scale, minimum, error_factor(given))
        assert quants.max() <= 15
    scale[:] = 0
    assert not round_to_grid(weight, scale, minimum, error_factor(inputs)).any()
