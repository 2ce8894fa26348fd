"""An adapter beside 4-bit weights gives what the sum of its parts gives, on every instruction set, in any batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.native.forward_helpers import (
    Float32,
    TinyCheckpoint,
    executor,
    mean_kl,
    packed,
    prompt_rows,
    random_checkpoint,
    reference,
    step,
)
from vglm import _native
from vglm.engine.executor import native_weights
from vglm.model import layout
from vglm.model.checkpoint import LowRank, Q4Blocks
from vglm.model.low_rank import append_columns, stack
from vglm.model.packing import native_spec

ISAS = _native.available_isas()
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def values(blocks: Q4Blocks) -> Float32:
    cut = blocks.quants * blocks.scale[..., None] + blocks.minimum[..., None]
    return cut.reshape(len(blocks.quants), -1).astype(np.float32)


def random_part(rng: np.random.Generator, rows: int, inner: int, rank: int) -> LowRank:
    a, b = rng.standard_normal((rank, inner)), rng.standard_normal((rows, rank))
    return LowRank(a.astype(np.float32), b.astype(np.float32))


def adapted(names: tuple[str, ...] = PROJECTIONS, rank: int = 3, **sizes: Any) -> TinyCheckpoint:
    checkpoint = random_checkpoint(**sizes)
    rng = np.random.default_rng(7)
    for name, weight in checkpoint.tensors.items():
        if name.endswith(names):
            part = random_part(rng, *weight.shape, rank)
            factor = np.float32(0.7 / (rank * weight.shape[1]) ** 0.5)
            checkpoint.adapter[name] = LowRank(part.a, factor * part.b)
    return checkpoint


def rounded(weight: Float32) -> Float32:
    """A matrix with the values that 4-bit packing gives it."""
    blocks = Q4Blocks(*layout.quantise_int4(weight))
    return np.ascontiguousarray(values(blocks)[:, : weight.shape[1]])


def merged(checkpoint: TinyCheckpoint) -> TinyCheckpoint:
    """The naive twin: everything rounded to 4 bits as it is packed, multiplied out, and added up."""
    tensors = {n: rounded(w) if n.endswith("_proj") else w for n, w in checkpoint.tensors.items()}
    for name, part in checkpoint.adapter.items():
        _, (b,) = stack([part], [len(part.b)])
        none = Q4Blocks(*(np.zeros((len(b), 0, *more), np.float32) for more in ((32,), (), ())))
        columns = values(append_columns(none, b))[:, : len(part.a)]
        tensors[name] = tensors[name] + columns @ rounded(part.a)
    return TinyCheckpoint(checkpoint.config, tensors)


# ---- packing


@pytest.mark.parametrize("inner", [1, 32, 64, 70, 130])
@pytest.mark.parametrize("ranks", [(1,), (16, 16, 16), (0, 5), (40, 0, 33)])
def test_stacked_parts_add_up_to_each_on_its_own(inner: int, ranks: tuple[int, ...]) -> None:
    rng = np.random.default_rng(inner)
    rows = [5 + 11 * i for i in range(len(ranks))]
    parts = [random_part(rng, n, inner, r) if r else None for n, r in zip(rows, ranks, strict=True)]
    a, columns = stack(parts, rows)
    assert len(a) % 64 == 0
    x = rng.standard_normal(inner).astype(np.float32)
    for part, b, n in zip(parts, columns, rows, strict=True):
        assert b.shape == (n, len(a))
        expected = part.b @ (part.a @ x) if part is not None else np.zeros(n)
        np.testing.assert_allclose(b @ (a @ x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inner", [1, 32, 64, 70, 96])
def test_columns_are_appended_behind_whole_blocks(inner: int) -> None:
    rng = np.random.default_rng(inner)
    weight = rng.standard_normal((9, inner)).astype(np.float32)
    b = rng.standard_normal((9, 64)).astype(np.float32)
    b[:, 20:50] = 0
    blocks = Q4Blocks(*layout.quantise_int4(weight))
    both = values(append_columns(blocks, b))
    start = layout.padded(inner)
    assert both.shape == (9, start + 64)
    assert np.array_equal(both[:, : values(blocks).shape[1]], values(blocks))
    assert not both[:, start + 20 : start + 50].any()
    step_of = np.abs(b).reshape(9, 2, 32).max(axis=2).repeat(32, axis=1) / 7.5
    assert (np.abs(both[:, start:] - b) <= 0.51 * step_of).all()


# ---- the forward pass


@pytest.mark.parametrize("isa", [*ISAS, "amx_simulated"])
@pytest.mark.parametrize(
    ("rank", "sizes"),
    [
        (3, {}),
        (16, {"hidden_size": 128, "intermediate_size": 200}),
        (30, {"head_dim": 64, "num_heads": 3, "num_kv_heads": 1, "hidden_size": 192}),
        (70, {"hidden_size": 66, "num_layers": 1}),
    ],
)
def test_logits_equal_the_merged_reference(isa: str, rank: int, sizes: dict[str, int]) -> None:
    checkpoint = adapted(rank=rank, **sizes)
    tokens = [(7 * i) % 101 for i in range(37)]
    expected = reference(merged(checkpoint)).logits(tokens)
    got = step(executor(packed(checkpoint, "int4"), isa), [prompt_rows(tokens, range(37))])
    assert mean_kl(expected, got) < 0.01
    without = TinyCheckpoint(checkpoint.config, checkpoint.tensors)
    plain = step(executor(packed(without, "int4"), isa), [prompt_rows(tokens, range(37))])
    assert mean_kl(expected, plain) > 0.1  # the adapter matters


@pytest.mark.parametrize(
    "names", [("k_proj",), ("o_proj",), ("up_proj",), ("down_proj",), ("q_proj", "gate_proj")]
)
def test_some_projections_alone(names: tuple[str, ...]) -> None:
    checkpoint = adapted(names)
    tokens = list(range(40))
    expected = reference(merged(checkpoint)).logits(tokens)
    got = step(executor(packed(checkpoint, "int4"), ISAS[0]), [prompt_rows(tokens, range(40))])
    assert mean_kl(expected, got) < 0.01


@pytest.mark.parametrize("isa", [*ISAS, "amx_simulated"])
def test_neighbours_do_not_change_a_bit(isa: str) -> None:
    model = packed(adapted(num_heads=6), "int4")
    rng = np.random.default_rng(4)
    for lengths in ([1, 2, 3, 5, 7, 12, 13], [1, 31, 90, 17, 150, 64]):
        prompts = [rng.integers(0, 101, n).tolist() for n in lengths]
        alone = [step(executor(model, isa), [prompt_rows(p, [-1])])[0] for p in prompts]
        rows = [prompt_rows(p, [-1], 10 * i) for i, p in enumerate(prompts)]
        assert np.array_equal(step(executor(model, isa, threads=2), rows), np.stack(alone))


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_other_dtypes_have_it_merged(dtype: str) -> None:
    names = [name for name, _ in packed(adapted(), "int4").arrays.items() if ".low_rank." in name]
    assert len(names) == 2 * 4
    assert not any(".low_rank." in name for name in packed(adapted(), dtype).arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 128}, "wrong size"),
        ({"n": 128}, "wrong size"),
        ({"n": 60}, "multiples of 64"),
        ({"type": "bf16"}, "wrong size"),
        ({"k": 32, "n": 128}, "multiples of 64"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    model = packed(adapted(num_layers=1), "int4")
    weights = native_weights(model)
    weights["layers.0.o"] = weights["layers.0.o"] | {"low_rank": weights["layers.0.o"]["low_rank"] | change}
    with pytest.raises(ValueError, match=message):
        _native.Model(native_spec(model.config, 64), weights, 1, ISAS[0])


def test_a_part_of_another_width_is_refused() -> None:
    model = packed(adapted(num_layers=1, intermediate_size=200), "int4")
    weights = native_weights(model)
    narrow, wide = weights["layers.0.o"], weights["layers.0.down"]
    weights["layers.0.o"] = narrow | {"low_rank": wide["low_rank"]}
    with pytest.raises(ValueError, match="does not fit its matrix"):
        _native.Model(native_spec(model.config, 64), weights, 1, ISAS[0])
