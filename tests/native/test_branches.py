"""Many short continuations of one prompt in a step: shared pages are read once, and no bit changes; several tokens
of a row are scored.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.native.forward_helpers import (
    BLOCK,
    Float32,
    Rows,
    executor,
    log_softmax,
    packed,
    prompt_rows,
    random_checkpoint,
    step,
    table_of,
)
from vglm import _native
from vglm.engine.executor import NativeExecutor

VOCAB, BRANCHES = 101, 90
ISAS = _native.available_isas()


def ids(count: int, seed: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, VOCAB, count).tolist()
    return tokens


def branches(length: int) -> list[Rows]:
    """Continuations of 1 to 5 tokens of a prompt in blocks 0 to length / 16, its last page copied for each."""
    shared, partial = divmod(length, BLOCK)
    found = []
    block = shared + 1
    for i in range(BRANCHES):
        rows = 1 + i % 5
        own = -(-(partial + rows) // BLOCK)
        blocks = [*range(shared), *range(block, block + own)]
        block += own
        found.append(
            Rows(
                ids(rows, 100 + i), range(length, length + rows), table_of(blocks, length + rows), range(rows)
            )
        )
    return found


def fill(native: NativeExecutor, length: int) -> None:
    """Compute the prompt, and copy its last page to where each branch goes on in it."""
    step(native, [prompt_rows(ids(length, 1), [-1])])
    if length % BLOCK:
        targets = np.array([branch.table[length // BLOCK][0] for branch in branches(length)], np.int32)
        native.kv.copy_blocks(np.full(len(targets), length // BLOCK, np.int32), targets)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dtype", "kv"), [("bf16", "bf16"), ("int8", "int8"), ("int8", "bf16")])
@pytest.mark.parametrize("length", [5, 16, 100, 256, 300, 512, 600])
def test_branches_together_get_the_bits_of_each_alone(isa: str, dtype: str, kv: str, length: int) -> None:
    model = packed(random_checkpoint(), dtype)
    alone = executor(model, isa, kv, blocks=400)
    fill(alone, length)
    wanted = np.concatenate([step(alone, [branch]) for branch in branches(length)])
    for threads in (1, 2):
        native = executor(model, isa, kv, threads=threads, blocks=400)
        fill(native, length)
        together: Float32 = step(native, branches(length))
        assert np.array_equal(together, wanted)


def test_branches_on_the_simulated_tile_unit() -> None:
    model, length = packed(random_checkpoint(), "int8"), 270
    alone, native = (executor(model, "amx_simulated", "int8", threads=t, blocks=400) for t in (1, 2))
    fill(alone, length)
    fill(native, length)
    wanted = np.concatenate([step(alone, [branch]) for branch in branches(length)])
    assert np.array_equal(step(native, branches(length)), wanted)


def test_branches_between_other_sequences() -> None:
    """A prompt before them, one of the same pages with many rows, and one with other pages after them."""
    model, length = packed(random_checkpoint(), "int8"), 300
    many = Rows(ids(70, 7), range(256, 326), table_of([*range(16), *range(300, 305)], 326), range(70))
    other = Rows(ids(40, 8), range(40), table_of(range(310, 313), 40), range(40))
    before = Rows(ids(33, 9), range(33), table_of(range(320, 323), 33), range(33))
    sequences = [before, *branches(length)[:40], many, *branches(length)[40:], other]
    wanted, native = (executor(model, ISAS[0], "int8", threads=2, blocks=400) for _ in range(2))
    fill(wanted, length)
    fill(native, length)
    alone = np.concatenate([step(wanted, [rows]) for rows in sequences])
    assert np.array_equal(step(native, sequences), alone)


# ---- rows that score several tokens


@pytest.fixture(scope="module", params=[1, 2])
def native(request: pytest.FixtureRequest) -> NativeExecutor:
    return executor(packed(random_checkpoint(), "bf16"), ISAS[0], threads=request.param)


def forward(native: NativeExecutor, kinds: list[int], targets: list[int], **extra: Any) -> tuple[Any, ...]:
    """The answers of the last rows of one sequence of five tokens."""
    rows = len(kinds)
    ints = partial(np.array, dtype=np.int32)
    zeros, ones, none = np.zeros(rows, np.float32), np.ones(rows, np.float32), np.zeros(0, np.int32)
    return native.model.forward(
        native.kv, ints(range(5)), ints(range(5)), ints([0, 5]), ints([0, 1]), ints([0]), ints([5]),
        ints(range(5 - rows, 5)), np.array(kinds, np.uint8), ints(targets), ints([-1] * rows), zeros, ones,
        ints([0] * rows), zeros, ones, zeros, zeros, np.zeros(rows, np.uint64), ints([0] * rows),
        np.zeros(rows + 1, np.int32), none, none.astype(np.float32), np.zeros(rows + 1, np.int32), none,
        ints([0] * rows), **extra,
    )  # fmt: skip


def ragged(*lists: list[int]) -> dict[str, npt.NDArray[np.int32]]:
    starts = np.cumsum([0, *map(len, lists)]).astype(np.int32)
    return {"score_start": starts, "score_ids": np.array([i for ids in lists for i in ids], np.int32)}


def test_a_row_scores_many_tokens(native: NativeExecutor) -> None:
    everything = list(range(VOCAB))
    out = forward(native, [3, 0, 3], [-1, -1, -1], **ragged(everything, [], [5, 5, 100]))
    scores = out[6]
    logits = step(native, [Rows(range(5), range(5), [(0, 5)], [2, 4])])
    wanted = log_softmax(logits)
    np.testing.assert_allclose(scores[:VOCAB], wanted[0], atol=1e-5)
    np.testing.assert_allclose(scores[VOCAB:], wanted[1][[5, 5, 100]], atol=1e-5)
    greedy = forward(native, [0], [-1])
    assert out[0].tolist()[::2] == [0, 0]
    assert greedy[6] is None


def test_scores_have_the_bits_of_target_rows(native: NativeExecutor) -> None:
    targets = forward(native, [1, 1, 1], [7, 8, 9])[1]
    scores = forward(native, [3, 3, 3], [-1, -1, -1], **ragged([7, 1], [8], [2, 9]))[6]
    assert scores[[0, 2, 4]].tolist() == targets.tolist()


@pytest.mark.parametrize(
    ("kinds", "lists", "message"),
    [
        ([3], [[VOCAB]], "token to score out of range"),
        ([3], [[-1]], "token to score out of range"),
        ([3], [[]], "have tokens to score"),
        ([0], [[1]], "have tokens to score"),
        ([3, 3], [[1]], "not a ragged index"),
        ([4], [[1]], "have tokens to score"),
    ],
)
def test_wrong_scores_are_refused(
    native: NativeExecutor, kinds: list[int], lists: list[list[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        forward(native, kinds, [-1] * len(kinds), **ragged(*lists))
    with pytest.raises(ValueError, match="score_ids are missing"):
        forward(native, [3], [-1])
