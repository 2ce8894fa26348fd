"""The block pool alone: allocation order, accounting, copy on write, trimming and compaction."""

import numpy as np
import pytest
from tiny_model import TinyStorage

from vglm.engine.block_pool import BlockPool, OutOfBlocksError
from vglm.errors import ConfigError


def make_pool(num_blocks: int = 8, block_size: int = 4) -> BlockPool:
    return BlockPool(num_blocks, block_size, TinyStorage(num_blocks, block_size))


def storage_of(pool: BlockPool) -> TinyStorage:
    assert isinstance(pool.storage, TinyStorage)
    return pool.storage


def test_untouched_blocks_are_the_last_resort() -> None:
    pool = make_pool()
    first = pool.allocate(3)
    assert first == [0, 1, 2]
    pool.release(1)
    assert pool.allocate() == [1]
    assert pool.num_committed == 3
    assert pool.allocate(2) == [3, 4]
    assert pool.num_committed == 5
    pool.check_integrity(dict.fromkeys(range(5), 1))


def test_allocation_is_all_or_nothing() -> None:
    pool = make_pool(4)
    pool.allocate(3)
    with pytest.raises(OutOfBlocksError, match="2 blocks wanted, 1 of 4"):
        pool.allocate(2)
    assert (pool.num_used, pool.num_free, pool.num_committed) == (3, 1, 3)


def test_a_block_is_free_after_its_last_reference() -> None:
    pool = make_pool()
    (block,) = pool.allocate()
    pool.retain(block)
    assert pool.is_shared(block)
    pool.release(block)
    assert not pool.is_shared(block)
    assert pool.num_used == 1
    pool.release(block)
    assert pool.num_used == 0
    for operation in (pool.release, pool.retain):
        with pytest.raises(ValueError, match="not in use"):
            operation(block)


def test_fragmentation_is_counted_exactly() -> None:
    pool = make_pool(8, 4)
    blocks = pool.allocate(4)
    for block, valid in zip(blocks, (4, 4, 3, 1), strict=True):
        pool.set_valid(block, valid)
    pool.release(blocks[1])
    stats = pool.stats()
    assert (stats.used, stats.free, stats.committed, stats.tokens_valid) == (3, 5, 4, 8)
    assert stats.unused_slots == 4
    assert stats.internal_fragmentation == pytest.approx(4 / 12)
    assert stats.external_fragmentation == pytest.approx(1 / 4)


def test_copy_takes_content_and_valid_count() -> None:
    pool = make_pool()
    (block,) = pool.allocate()
    pool.set_valid(block, 3)
    storage_of(pool).kv[:, :, block] = 7.0
    copy = pool.copy(block)
    assert (storage_of(pool).kv[:, :, copy] == 7.0).all()
    assert pool.tokens_valid == 6
    pool.check_integrity({block: 1, copy: 1})


def test_trim_gives_back_the_free_tail_only() -> None:
    pool = make_pool()
    blocks = pool.allocate(6)
    storage_of(pool).kv[:, :, blocks] = 1.0
    for block in (1, 4, 5):
        pool.release(block)
    assert pool.trim() == 2
    assert pool.num_committed == 4
    assert np.isnan(storage_of(pool).kv[:, :, 4:6]).all()
    assert pool.allocate(2) == [1, 4]
    pool.check_integrity()


def test_compaction_moves_live_blocks_down() -> None:
    pool = make_pool()
    blocks = pool.allocate(6)
    for block in blocks:
        storage_of(pool).kv[:, :, block] = float(block)
        pool.set_valid(block, 1 + block % 4)
    pool.retain(5)
    for block in (0, 2, 3):
        pool.release(block)
    moves = pool.compact()
    assert sorted(moves) == [4, 5]
    assert sorted(moves.values()) == [0, 2]
    for src, dst in moves.items():
        assert (storage_of(pool).kv[:, :, dst] == float(src)).all()
    assert pool.ref_count(moves[5]) == 2
    assert pool.stats().external_fragmentation == 0.0
    assert np.isnan(storage_of(pool).kv[:, :, 3:]).all()
    pool.check_integrity({1: 1, moves[4]: 1, moves[5]: 2})


def test_compacting_a_compact_pool_moves_nothing() -> None:
    pool = make_pool()
    pool.allocate(3)
    assert pool.compact() == {}
    assert pool.num_committed == 3


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0), (-1, 4)])
def test_impossible_sizes_are_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ConfigError, match="positive"):
        BlockPool(num_blocks, block_size, TinyStorage(1, 1))


def test_integrity_check_notices_a_lost_reference() -> None:
    pool = make_pool()
    (block,) = pool.allocate()
    with pytest.raises(AssertionError, match="without an owner"):
        pool.check_integrity({})
    pool.tokens_valid = 1
    with pytest.raises(AssertionError, match="miscounted"):
        pool.check_integrity({block: 1})
