"""Masks of the forward pass: what they allow, that they are filled while the layers run, and what goes wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.native.forward_helpers import executor, packed, random_checkpoint
from vglm import _native
from vglm.engine.executor import NativeExecutor

VOCAB = 101
WORDS = 4
Mask = npt.NDArray[np.uint32]


@pytest.fixture(scope="module", params=[1, 2])
def native(request: pytest.FixtureRequest) -> NativeExecutor:
    model = packed(random_checkpoint(), "bf16")
    return executor(model, _native.available_isas()[0], threads=request.param)


def forward(native: NativeExecutor, rows: int = 3, **extra: Any) -> list[int]:
    """Greedy tokens of the last rows of one sequence."""
    ints = lambda values: np.array(values, np.int32)  # noqa: E731
    zeros, ones = np.zeros(rows, np.float32), np.ones(rows, np.float32)
    none = np.zeros(0, np.int32)
    out = native.model.forward(
        native.kv, ints(range(5)), ints(range(5)), ints([0, 5]), ints([0, 1]), ints([0]), ints([5]),
        ints(range(5 - rows, 5)), np.zeros(rows, np.uint8), ints([-1] * rows), ints([-1] * rows), zeros, ones,
        ints([0] * rows), zeros, ones, zeros, zeros, np.zeros(rows, np.uint64), ints([0] * rows),
        np.zeros(rows + 1, np.int32), none, none.astype(np.float32), np.zeros(rows + 1, np.int32), none,
        ints([0] * rows), **extra,
    )  # fmt: skip
    tokens: list[int] = out[0].tolist()
    return tokens


def allowing(*tokens: int) -> Mask:
    mask = np.zeros(WORDS, np.uint32)
    for token in tokens:
        mask[token // 32] |= np.uint32(1 << token % 32)
    return mask


def rows_of(*rows: int) -> npt.NDArray[np.int32]:
    return np.array(rows, np.int32)


def test_a_row_samples_what_its_mask_allows(native: NativeExecutor) -> None:
    free = forward(native)
    masks = np.stack([allowing(7), allowing(*(t for t in range(VOCAB) if t not in free))])
    tokens = forward(native, allowed_masks=masks, mask_rows=rows_of(1, -1, 0))
    assert tokens[0] not in free
    assert tokens[1:] == [free[1], 7]
    assert forward(native, allowed_masks=masks, mask_rows=rows_of(0, 0, 0)) == [7, 7, 7]
    assert forward(native, allowed_masks=masks[:0], mask_rows=rows_of(-1, -1, -1)) == free
    assert forward(native, allowed_masks=np.zeros((1, WORDS), np.uint32), mask_rows=rows_of(-1, 0, -1)) == [
        free[0],
        -2,
        free[2],
    ]


def test_masks_may_be_filled_until_sampling(native: NativeExecutor) -> None:
    masks = np.zeros((1, WORDS), np.uint32)
    calls: list[int] = []

    def fill() -> None:
        calls.append(1)
        masks[0] = allowing(9)

    rows = {"allowed_masks": masks, "mask_rows": rows_of(0, 0, 0)}
    assert forward(native, **rows, before_sampling=fill) == [9, 9, 9]
    assert calls == [1]
    assert forward(native, rows=0, before_sampling=fill) == []
    assert calls == [1]  # nothing is sampled: nobody to wait for


@pytest.mark.parametrize("error", [RuntimeError("no masks"), KeyboardInterrupt()])
def test_what_the_callback_raises_ends_the_step(native: NativeExecutor, error: BaseException) -> None:
    free = forward(native)

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        forward(native, before_sampling=fail)
    assert raised.value is error
    assert forward(native) == free


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        ({"allowed_masks": np.zeros((1, WORDS), np.uint32)}, ValueError),
        ({"mask_rows": rows_of(0, 0, 0)}, ValueError),
        ({"allowed_masks": np.zeros((1, 3), np.uint32), "mask_rows": rows_of(0, 0, 0)}, ValueError),
        ({"allowed_masks": np.zeros((1, WORDS), np.uint32), "mask_rows": rows_of(0, 0)}, ValueError),
        ({"allowed_masks": np.zeros((1, WORDS), np.uint32), "mask_rows": rows_of(0, 1, 0)}, ValueError),
        ({"allowed_masks": np.zeros((1, WORDS), np.uint32), "mask_rows": rows_of(0, -2, 0)}, ValueError),
        ({"allowed_masks": np.zeros((1, WORDS), np.int32), "mask_rows": rows_of(0, 0, 0)}, TypeError),
        ({"before_sampling": 5}, TypeError),
    ],
)
def test_wrong_masks_are_refused(
    native: NativeExecutor, extra: dict[str, Any], error: type[Exception]
) -> None:
    free = forward(native)
    with pytest.raises(error):
        forward(native, **extra)
    assert forward(native) == free


def test_the_callback_runs_between_layers_and_sampling(native: NativeExecutor) -> None:
    """In it the keys and values of the step are there already: the cache has memory, and no token is known."""
    fresh = executor(packed(random_checkpoint(), "bf16"), _native.available_isas()[0])
    before = fresh.kv.resident_bytes()
    seen: list[int] = []
    forward(fresh, before_sampling=lambda: seen.append(fresh.kv.resident_bytes()))
    assert before < seen[0]
