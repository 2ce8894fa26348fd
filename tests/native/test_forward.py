"""The native forward pass gives the fp32 reference's logits; a row's bits do not depend on its neighbours.

Thresholds. bf16: the issue's bar, 0.001 nats. int8: weights and activations each carry an error of about
1/250 of their range in a model of two or three random layers of 48 channels, which measures 0.0004 to 0.013
nats. int4 is compared with a reference that has the same 4-bit weights, so what is left is int8 activations.
A wrong constant anywhere costs more (see `test_the_thresholds_would_notice`).
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.native.forward_helpers import (
    Float32,
    Rows,
    TinyCheckpoint,
    executor,
    mean_kl,
    packed,
    prompt_rows,
    random_checkpoint,
    reference,
    step,
    table_of,
)
from tests.reference import Reference
from vglm import _native
from vglm.model import layout
from vglm.model.checkpoint import open_checkpoint
from vglm.model.packing import padded_head_dim

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/expected.npz"))
ISAS = _native.available_isas()
DTYPES = ("bf16", "int8", "int4")
KL = {"bf16": 1e-3, "int8": 0.02, "int4": 0.01}
WORST = {
    "bf16": 0.25,
    "int8": 1.0,
    "int4": 0.5,
}  # largest error of a logit, in standard deviations of the logits
INT8_KV_KL = 0.02  # above the KL with bf16 KV


def load(name: str) -> tuple[TinyCheckpoint, list[int], list[int]]:
    """A fixture in memory, its prompt (as long as the sliding window at most) and the rows to compare."""
    source = open_checkpoint(FIXTURES / name)
    expected = np.load(FIXTURES / name / "expected.npz")
    limit = source.config.sliding_window or 1 << 30
    checkpoint = TinyCheckpoint(source.config, {n: source.tensor(n) for n in source.names()})
    return checkpoint, expected["token_ids"][:limit].tolist(), [int(r) for r in expected["rows"] if r < limit]


def with_4_bit_weights(checkpoint: TinyCheckpoint) -> TinyCheckpoint:
    """The checkpoint with the values that int4 packing gives its matrices."""
    config = checkpoint.config
    head, wide = config.head_dim, padded_head_dim(config)

    def rounded(name: str, w: Float32) -> Float32:
        if not name.endswith("_proj"):
            return w
        heads = (len(w), config.num_heads)
        if name.endswith("o_proj"):  # its inputs are heads, which are padded before they are cut into blocks
            w = np.pad(w.reshape(*heads, head), ((0, 0), (0, 0), (0, wide - head))).reshape(len(w), -1)
        q, scale, minimum = layout.quantise_int4(w)
        values = (q * scale[..., None] + minimum[..., None]).reshape(len(w), -1)[:, : w.shape[1]]
        if name.endswith("o_proj"):
            values = values.reshape(*heads, wide)[:, :, :head].reshape(len(w), -1)
        return np.ascontiguousarray(values, np.float32)

    return TinyCheckpoint(config, {name: rounded(name, w) for name, w in checkpoint.tensors.items()})


def expected_logits(name: str, dtype: str) -> Float32:
    """transformers' logits; for int4 the reference's, of the same 4-bit weights."""
    checkpoint, tokens, rows = load(name)
    if dtype != "int4":
        return np.load(FIXTURES / name / "expected.npz")["logits"][: len(rows)]
    return reference(with_4_bit_weights(checkpoint)).logits(tokens)[rows]


@pytest.fixture(scope="module")
def models() -> Callable[[str, str], Any]:
    cache: dict[tuple[str, str], Any] = {}

    def get(name: str, dtype: str) -> Any:
        if (name, dtype) not in cache:
            cache[name, dtype] = (packed(load(name)[0], dtype), expected_logits(name, dtype))
        return cache[name, dtype]

    return get


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("isa", [*ISAS, "amx_simulated"])
def test_logits_equal_the_reference(models: Any, isa: str, name: str, dtype: str) -> None:
    model, expected = models(name, dtype)
    _, tokens, rows = load(name)
    got = step(executor(model, isa, max_len=256), [prompt_rows(tokens, rows)])
    kl = mean_kl(expected, got)
    assert kl <= KL[dtype]
    assert np.abs(got - expected).max() <= WORST[dtype] * expected.std()
    int8_kv = step(executor(model, isa, "int8", max_len=256), [prompt_rows(tokens, rows)])
    assert mean_kl(expected, int8_kv) <= kl + INT8_KV_KL


def change_rope(checkpoint: TinyCheckpoint) -> None:
    rope = dataclasses.replace(checkpoint.config.rope, scaling=None)
    checkpoint.config = dataclasses.replace(checkpoint.config, rope=rope)


def drop(*suffixes: str) -> Callable[[TinyCheckpoint], None]:
    def change(checkpoint: TinyCheckpoint) -> None:
        kept = {n: w for n, w in checkpoint.tensors.items() if not n.endswith(suffixes)}
        assert len(kept) < len(checkpoint.tensors)
        checkpoint.tensors = kept

    return change


def change_config(**values: Any) -> Callable[[TinyCheckpoint], None]:
    def change(checkpoint: TinyCheckpoint) -> None:
        checkpoint.config = dataclasses.replace(checkpoint.config, **values)

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama-llama3", change_rope),
        ("qwen2-yarn", change_rope),
        ("llama-linear-bias", change_rope),
        ("qwen2", drop("q_bias", "k_bias", "v_bias")),
        ("llama-linear-bias", drop("o_bias")),
        ("llama-linear-bias", drop("down_bias")),
        ("qwen3", drop("q_norm", "k_norm")),
        ("glm4", drop("attn_post_norm")),
        ("granite", change_config(residual_multiplier=0.55)),
        ("granite", change_config(attn_scale=0.25)),
        ("granite", change_config(logit_multiplier=0.55)),
        ("granite", change_config(embedding_multiplier=3.3)),
        ("llama", change_config(norm_eps=0.1)),
    ],
)
def test_the_thresholds_would_notice(name: str, change: Callable[[TinyCheckpoint], None]) -> None:
    checkpoint, tokens, rows = load(name)
    expected = expected_logits(name, "bf16")
    change(checkpoint)
    got = step(executor(packed(checkpoint, "bf16"), ISAS[0], max_len=256), [prompt_rows(tokens, rows)])
    assert mean_kl(expected, got) > 2 * KL["bf16"]


# ---- sizes that no fixture has ----


@pytest.mark.parametrize(
    "sizes",
    [
        {"head_dim": 64, "num_heads": 3, "num_kv_heads": 1, "hidden_size": 192},
        {"head_dim": 80, "num_heads": 2, "num_kv_heads": 2},
        {"head_dim": 128, "num_heads": 8, "num_kv_heads": 1},
        {"head_dim": 256, "num_heads": 1, "num_kv_heads": 1},
        {"head_dim": 2, "num_heads": 64, "num_kv_heads": 1},
        {"hidden_size": 2, "num_layers": 1},
        {"hidden_size": 130, "intermediate_size": 1, "vocab_size": 1},
        {"vocab_size": 4097, "intermediate_size": 333},
    ],
)
@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_any_sizes(sizes: dict[str, int], kv: str) -> None:
    checkpoint = random_checkpoint(**sizes)
    tokens = [(7 * i) % checkpoint.config.vocab_size for i in range(37)]
    expected = reference(checkpoint).logits(tokens)
    model = packed(checkpoint, "bf16")
    for isa in ISAS:
        got = step(executor(model, isa, kv), [prompt_rows(tokens, range(37))])
        assert np.abs(got - expected).max() < (0.04 if kv == "bf16" else 0.12) * max(
            1.0, float(np.abs(expected).max())
        )


def test_partial_rotary_beside_padding() -> None:
    """A rotary part narrower than a head that is narrower than the kernels' head."""
    checkpoint = random_checkpoint(head_dim=20)
    rope = dataclasses.replace(checkpoint.config.rope, rotary_dim=6)
    checkpoint.config = dataclasses.replace(checkpoint.config, rope=rope)
    tokens = list(range(50))
    expected = reference(checkpoint).logits(tokens)
    for isa in ISAS:
        got = step(executor(packed(checkpoint, "bf16"), isa), [prompt_rows(tokens, range(50))])
        assert mean_kl(expected, got) < 1e-3


def test_long_context() -> None:
    """Many chunks of attention, in one step and in steps of every size, equal the reference."""
    checkpoint = random_checkpoint(seed=3)
    tokens = np.random.default_rng(1).integers(0, 101, 1100).tolist()
    rows = [0, 255, 256, 257, 511, 512, 900, 1099]
    expected = reference(checkpoint).logits(tokens)[rows]
    got = step(executor(packed(checkpoint, "bf16"), ISAS[0], blocks=128), [prompt_rows(tokens, rows)])
    assert mean_kl(expected, got) < 1e-3


# ---- bits ----


def in_chunks(native: Any, tokens: list[int], sizes: list[int], wanted: list[int]) -> Float32:
    """The prompt in steps of the given sizes; logits of the wanted rows."""
    out, at = [], 0
    for size in sizes:
        here = [r - at for r in wanted if at <= r < at + size]
        rows = Rows(tokens[at : at + size], range(at, at + size), table_of(range(99), at + size), here)
        logits = step(native, [rows])
        out.append(logits)
        at += size
    assert at == len(tokens)
    return np.concatenate(out)


@pytest.mark.parametrize("isa", [*ISAS, "amx_simulated"])
@pytest.mark.parametrize(
    ("dtype", "kv"), [("bf16", "bf16"), ("bf16", "int8"), ("int8", "int8"), ("int4", "bf16")]
)
def test_chunks_and_threads_do_not_change_a_bit(isa: str, dtype: str, kv: str) -> None:
    length = 150 if isa == "amx_simulated" else 600
    tokens = np.random.default_rng(2).integers(0, 101, length).tolist()
    wanted = sorted({0, 1, 63, 64, length // 2, length - 2, length - 1})
    model = packed(random_checkpoint(num_heads=6), dtype)
    whole = in_chunks(executor(model, isa, kv, blocks=99), tokens, [length], wanted)
    rest = length % 16
    splits = [
        [1] * 9 + [length - 9],
        [length - 1, 1],
        [64, 65, length - 129],
        [16] * (length // 16) + ([rest] if rest else []),
    ]
    for threads, sizes in enumerate(splits, start=1):
        got = in_chunks(executor(model, isa, kv, threads, blocks=99), tokens, sizes, wanted)
        assert np.array_equal(got, whole), f"{threads} threads, chunks {sizes[:3]}..."


@pytest.mark.parametrize("isa", [*ISAS, "amx_simulated"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_do_not_change_a_bit(isa: str, dtype: str) -> None:
    """A sequence of each length alone, and all together: with few rows and with many."""
    model = packed(random_checkpoint(num_heads=6), dtype)
    rng = np.random.default_rng(4)
    for lengths in ([1, 2, 3, 5, 7, 12, 13], [1, 31, 90, 17, 150, 64]):
        prompts = [rng.integers(0, 101, n).tolist() for n in lengths]
        alone = [step(executor(model, isa), [prompt_rows(p, [-1])])[0] for p in prompts]
        together = step(
            executor(model, isa, threads=2), [prompt_rows(p, [-1], 10 * i) for i, p in enumerate(prompts)]
        )
        assert np.array_equal(together, np.stack(alone))


def test_embeddings_in_place_of_tokens() -> None:
    """An embedding's own row gives what the token gives; another vector what the reference gives."""
    checkpoint = random_checkpoint(hidden_size=70)
    tokens = list(range(30))
    native = executor(packed(checkpoint, "bf16"), ISAS[0])
    rows = prompt_rows(tokens, range(30))
    plain = step(native, [rows])
    rng = np.random.default_rng(0)
    for table in (checkpoint.tensors["embed_tokens"], rng.standard_normal((101, 70)).astype(np.float32)):
        given = {3: table[3], 29: table[29]}
        embedded = reference(checkpoint).embed(tokens)
        embedded[[3, 29]] = table[[3, 29]]
        got = step(native, [rows], given)
        assert mean_kl(reference(checkpoint).logits(tokens, embeds=embedded), got) < 1e-3
        assert np.array_equal(got, plain) == (table is checkpoint.tensors["embed_tokens"])


@pytest.mark.parametrize("kv", ["bf16", "int8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_block_held_before_does_not_matter(dtype: str, kv: str) -> None:
    """Slots past the end of a sequence may hold anything, NaN too, left by a request that overflowed."""
    checkpoint = random_checkpoint(num_layers=1)
    poisoned = random_checkpoint(num_layers=1)
    poisoned.tensors["layers.0.v_proj"] = np.full_like(poisoned.tensors["layers.0.v_proj"], np.inf)
    poisoned.tensors["layers.0.k_proj"] = np.full_like(poisoned.tensors["layers.0.k_proj"], np.nan)
    tokens = list(range(21))
    for isa in ISAS:
        clean = executor(packed(checkpoint, dtype), isa, kv)
        expected = step(clean, [prompt_rows(tokens, range(21))])
        bad = executor(packed(poisoned, "bf16"), isa, kv)
        step(bad, [prompt_rows(list(range(64)), [-1])])
        bad.model = clean.model
        assert np.array_equal(step(bad, [prompt_rows(tokens, range(21))]), expected)
        for length in range(1, 20):  # a fresh tile that is filled token by token
            last = step(bad, [Rows([tokens[length - 1]], [length - 1], table_of([2, 3], length))])
            assert np.isfinite(last).all(), f"{isa}: {length} tokens"


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_what_a_block_held_before_does_not_matter_to_threads(kv: str) -> None:
    """Prefill in blocks of rows that end within a tile: one thread's rows may not look at what another has yet to write."""
    checkpoint, poisoned = random_checkpoint(), random_checkpoint()
    for i in range(2):
        poisoned.tensors[f"layers.{i}.v_proj"] = np.full_like(poisoned.tensors[f"layers.{i}.v_proj"], np.nan)
    model, bad = packed(checkpoint, "bf16"), packed(poisoned, "bf16")
    lengths = [130, 140, 150, 200, 270, 330]
    for threads in (2, 3):
        native, wrong = executor(model, ISAS[0], kv, threads), executor(bad, ISAS[0], kv, threads)
        clean = executor(model, ISAS[0], kv)
        for length in lengths * 5:
            tokens = [(7 * i) % 101 for i in range(length)]
            wrong.kv = native.kv
            step(wrong, [prompt_rows(tokens, [-1])])
            rows = prompt_rows(tokens, range(length))
            assert np.array_equal(step(native, [rows]), step(clean, [rows])), (
                f"{length} rows, {threads} threads"
            )


# ---- wrong batches ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": [101, 0]}, "token id"),
        ({"token_ids": [-1, 0]}, "token id"),
        ({"positions": [0, 64]}, "position"),
        ({"positions": [0, -1]}, "position"),
        ({"positions": [0]}, "positions"),
        ({"query_start": [0, 1]}, "query_start"),
        ({"query_start": [1, 2]}, "query_start"),
        ({"query_start": [0, 2, 2], "table_start": [0, 1, 1]}, "no rows"),
        ({"query_start": [0, 2**31 - 1, -(2**31), 2], "table_start": [0, 1, 1, 1]}, "query_start|too short"),
        ({"query_start": [0, -5, 2], "table_start": [0, 1, 1]}, "query_start|no rows"),
        ({"query_start": [0], "table_start": [0]}, "S \\+ 1"),
        ({"table_start": [0, 2]}, "table_start"),
        ({"table_block": [4]}, "block id"),
        ({"table_block": [-1]}, "block id"),
        ({"table_valid": [0]}, "valid count"),
        ({"table_valid": [17]}, "valid count"),
        ({"table_valid": [1]}, "too short"),
        ({"table_valid": [2, 2]}, "table_valid"),
        ({"output_rows": [2]}, "output row"),
        ({"output_rows": [-1]}, "output row"),
        ({"token_ids": [], "positions": [], "query_start": [0, 0]}, "empty|no rows"),
    ],
)
def test_wrong_batches_are_refused(changes: dict[str, list[int]], message: str) -> None:
    native = executor(packed(random_checkpoint(num_layers=1), "bf16"), ISAS[0], blocks=4, max_len=64)
    batch = {"token_ids": [1, 2], "positions": [0, 1], "query_start": [0, 2], "table_start": [0, 1],
             "table_block": [0], "table_valid": [2], "output_rows": [1]}  # fmt: skip
    arrays = {name: np.array(values, np.int32) for name, values in batch.items()}
    good = native.model.logits(native.kv, *arrays.values())
    for name, values in changes.items():
        arrays[name] = np.array(values, np.int32)
    with pytest.raises(ValueError, match=message):
        native.model.logits(native.kv, *arrays.values())
    arrays = {name: np.array(values, np.int32) for name, values in batch.items()}
    assert np.array_equal(native.model.logits(native.kv, *arrays.values()), good)


def test_kv_cache_of_another_model_is_refused() -> None:
    native = executor(packed(random_checkpoint(num_layers=1), "bf16"), ISAS[0])
    other = executor(packed(random_checkpoint(num_layers=3), "bf16"), ISAS[0])
    native.kv = other.kv
    with pytest.raises(ValueError, match="another model"):
        step(native, [prompt_rows([1, 2], [-1])])


def test_the_reference_is_what_it_is_compared_with() -> None:
    """The tiny models of this file are not degenerate: logits differ from row to row and are not flat."""
    logits = Reference(random_checkpoint().config, random_checkpoint().tensor).logits(list(range(20)))
    assert logits.std() > 0.3
    assert len({int(row.argmax()) for row in logits}) > 5


def test_two_python_threads_on_one_model() -> None:
    """The lock is released during a pass; a second one waits, whoever calls."""
    model = packed(random_checkpoint(), "bf16")
    native = executor(model, ISAS[0], threads=2)
    prompts = [list(range(40)), list(range(50, 101)) * 3]
    expected = [step(executor(model, ISAS[0]), [prompt_rows(p, [-1])]) for p in prompts]
    wrong: list[int] = []

    def work(i: int) -> None:
        rows = prompt_rows(prompts[i], [-1], 20 * i)
        wrong.extend(n for n in range(100) if not np.array_equal(step(native, [rows]), expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
