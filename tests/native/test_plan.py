"""Page tables of every shape: what is attended to, and that the plan (splits, stacks) changes no bit.

The plan decides who computes which part of a step's attention: long contexts are split among threads, and
pages that several sequences share are read once for all of them.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native.forward_helpers import (
    BLOCK,
    Rows,
    executor,
    mean_kl,
    packed,
    prompt_rows,
    random_checkpoint,
    reference,
    step,
    table_of,
)
from vglm import _native
from vglm.engine.executor import NativeExecutor

ISAS = _native.available_isas()
CHECKPOINT = random_checkpoint(num_layers=2, num_heads=6, num_kv_heads=2)
MODELS = {dtype: packed(CHECKPOINT, dtype) for dtype in ("bf16", "int8", "int4")}
PREFIX = np.random.default_rng(0).integers(0, 101, 640).tolist()  # two and a half chunks


def native(
    dtype: str = "bf16", kv: str = "bf16", threads: int = 1, isa: str = ISAS[0], blocks: int = 400
) -> NativeExecutor:
    return executor(MODELS[dtype], isa, kv, threads, blocks=blocks)


def decode(token: int, prefix: int, own: list[int], position: int, first_block: int = 0) -> Rows:
    """One row after `prefix` shared slots and `position - prefix` slots of its own blocks."""
    shared = table_of(range(first_block, first_block + 99), prefix)
    return Rows([token], [position], shared + table_of(own, position + 1 - prefix))


@pytest.mark.parametrize("isa", [*ISAS, "amx_simulated"])
@pytest.mark.parametrize("kv", ["bf16", "int8"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_shared_pages_give_the_bits_of_separate_pages(threads: int, kv: str, isa: str) -> None:
    """Ten sequences after one prefix: with the pages shared (stacked) and with a copy each."""
    engine = native(kv=kv, threads=threads, isa=isa, blocks=700)
    step(engine, [prompt_rows(PREFIX, [-1])])
    size = len(PREFIX) // BLOCK
    copies = [range(100 + i * size, 100 + (i + 1) * size) for i in range(10)]
    for blocks in copies:
        engine.kv.copy_blocks(np.arange(size, dtype=np.int32), np.array(blocks, np.int32))
    shared = [decode(i, len(PREFIX), [90 + i], len(PREFIX)) for i in range(10)]
    apart = [decode(i, len(PREFIX), [90 + i], len(PREFIX), copies[i].start) for i in range(10)]
    stacked = step(engine, shared)
    assert np.array_equal(step(engine, apart), stacked)
    assert np.array_equal(np.stack([step(engine, [rows])[0] for rows in apart]), stacked)
    assert np.array_equal(step(engine, [*shared[:4], *apart[4:]]), stacked)
    assert len({row.tobytes() for row in stacked}) == 10


def test_shared_pages_at_different_places_of_the_tables() -> None:
    """The same 16 pages come first in one table and second in another."""
    engine = native(threads=2)
    step(engine, [prompt_rows(PREFIX[:512], [-1])])
    a, b = list(range(16)), list(range(16, 32))
    rows = [
        Rows([5], [512], table_of([*first, *second, own], 513))
        for first, second, own in [(a, b, 90), (b, a, 91), (a, a, 92), (a, b, 93)]
    ]
    together = step(engine, rows)
    alone = np.stack([step(engine, [r])[0] for r in rows])
    assert np.array_equal(together, alone)
    assert np.array_equal(together[0], together[3])
    # The order of keys does not matter to attention: only the rounding differs.
    assert mean_kl(together[:1], together[1:2]) < 1e-4
    assert mean_kl(together[:1], together[2:3]) > 1e-4


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_batch_gives_every_sequence_its_own_bits(data: st.DataObject) -> None:
    """Prefills, chunks and decodes of many lengths, some sharing a prefix, in one step and apart."""
    dtype = data.draw(st.sampled_from(["bf16", "int8", "int4"]))
    kv = data.draw(st.sampled_from(["bf16", "int8"]))
    isa = data.draw(st.sampled_from(ISAS))
    threads = data.draw(st.integers(1, 4))
    engine = native(dtype, kv, threads, isa, blocks=200)
    step(engine, [prompt_rows(PREFIX, [-1])])
    sequences, block = [], len(PREFIX) // BLOCK
    for _ in range(data.draw(st.integers(1, 7))):
        prefix = BLOCK * data.draw(st.integers(0, len(PREFIX) // BLOCK))
        rows = data.draw(st.sampled_from([1, 1, 1, 2, 3, 17, 70, 130]))
        own = range(block, block + -(-rows // BLOCK))
        block = own.stop
        tokens = data.draw(st.lists(st.integers(0, 100), min_size=rows, max_size=rows))
        table = table_of(range(99), prefix) + table_of(own, rows)
        sequences.append(Rows(tokens, range(prefix, prefix + rows), table, sorted({0, rows // 2, rows - 1})))
    together = step(engine, sequences)
    one = native(dtype, kv, 1, isa, blocks=200)
    step(one, [prompt_rows(PREFIX, [-1])])
    alone = np.concatenate([step(one, [rows]) for rows in sequences])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("kv", ["bf16", "int8"])
@pytest.mark.parametrize("isa", ISAS)
def test_entries_that_are_not_full(isa: str, kv: str) -> None:
    """Spans end within a block: an entry's valid count hides the slots behind, whatever they hold."""
    engine = native(kv=kv, isa=isa)
    tokens = PREFIX[:75]
    cuts = [5, 21, 22, 38, 75]  # spans of 5, 16, 1, 16 and 37 tokens, each in blocks of its own
    step(engine, [prompt_rows([9] * 400, [-1])])  # what the blocks held before
    table: list[tuple[int, int]] = []
    begin, got = 0, []
    for i, end in enumerate(cuts):
        table = table + table_of(range(4 * i, 4 * i + 4), end - begin)
        got.append(step(engine, [Rows(tokens[begin:end], range(begin, end), table, range(end - begin))]))
        begin = end
    expected = reference(CHECKPOINT).logits(tokens)
    assert mean_kl(expected, np.concatenate(got)) < (1e-3 if kv == "bf16" else 0.01)


def test_positions_are_not_table_order() -> None:
    """Rows may have any positions: the rotary embedding follows them, the causal order follows the table."""
    rng = np.random.default_rng(2)
    tokens = PREFIX[:60]
    positions = rng.integers(0, 2000, 60).tolist()
    expected = reference(CHECKPOINT).logits(tokens, positions=positions)
    got = step(native(), [Rows(tokens, positions, table_of(range(9), 60), range(60))])
    assert mean_kl(expected, got) < 1e-3


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
def test_block_sizes_give_the_same_bits(block_size: int) -> None:
    prompts = [PREFIX, PREFIX[:1], PREFIX[100:117]]
    expected = None
    for size in (16, block_size):
        engine = executor(MODELS["int8"], ISAS[0], "int8", 2, blocks=99, block_size=size)
        sequences, block = [], 0
        for prompt in prompts:
            blocks = range(block, block + -(-len(prompt) // size))
            block = blocks.stop
            sequences.append(Rows(prompt, range(len(prompt)), table_of(blocks, len(prompt), size), [0, -1]))
        got = step(engine, sequences)
        assert expected is None or np.array_equal(got, expected)
        expected = got


def test_more_stacked_rows_than_one_item_takes() -> None:
    """100 sequences with 3 query heads per KV head each share two pages of context."""
    engine = native(threads=2, blocks=200)
    step(engine, [prompt_rows(PREFIX, [-1])])
    rows = [decode(i, len(PREFIX), [60 + i], len(PREFIX)) for i in range(100)]
    together = step(engine, rows)
    for i in (0, 31, 32, 63, 64, 99):
        assert np.array_equal(step(engine, [rows[i]])[0], together[i])


def test_copied_and_released_blocks() -> None:
    engine = native()
    first = step(engine, [prompt_rows(PREFIX[:32], [-1])])
    engine.kv.copy_blocks(np.array([0, 1], np.int32), np.array([7, 5], np.int32))
    again = step(engine, [Rows([PREFIX[31]], [31], table_of([7, 5], 32))])
    assert np.array_equal(again, first)
    before = engine.kv.resident_bytes()
    step(engine, [prompt_rows(PREFIX, [-1], 100)])
    assert engine.kv.resident_bytes() > before
    engine.kv.release(np.arange(90, 200, dtype=np.int32))
    assert engine.kv.resident_bytes() <= before + 8192
    assert np.array_equal(step(engine, [Rows([PREFIX[31]], [31], table_of([7, 5], 32))]), first)
    for wrong in (-1, 400):
        ids = np.array([wrong], np.int32)
        with pytest.raises((IndexError, ValueError)):
            engine.kv.release(ids)
        with pytest.raises((IndexError, ValueError)):
            engine.kv.copy_blocks(ids, np.array([0], np.int32))
        with pytest.raises((IndexError, ValueError)):
            engine.kv.copy_blocks(np.array([0], np.int32), ids)
