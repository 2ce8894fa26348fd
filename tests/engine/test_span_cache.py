"""Merkle keys, reference counts, eviction order and page tables of spans."""

from itertools import permutations

import pytest
from tiny_model import TinyStorage

from vglm.engine.block_pool import BlockPool
from vglm.engine.span_cache import Span, SpanCache, SpanKeys, page_table

KEYS = SpanKeys("model", "bf16")


def make_cache(num_blocks: int = 16) -> SpanCache:
    return SpanCache(BlockPool(num_blocks, 4, TinyStorage(num_blocks, 4)))


def add(cache: SpanCache, name: str, parents: tuple[Span, ...] = (), valid: tuple[int, ...] = (4,)) -> Span:
    """Insert a span of len(valid) blocks; it comes back with one user."""
    blocks = cache.pool.allocate(len(valid))
    key = KEYS.key(0, name.encode(), [parent.key for parent in parents])
    return cache.insert(key, list(zip(blocks, valid, strict=True)), 0, parents)


def test_every_part_of_a_key_matters() -> None:
    a, b = KEYS.key(0, b"a"), KEYS.key(0, b"b")
    keys = [
        a,
        b,
        KEYS.key(1, b"a"),
        KEYS.key(0, b""),
        KEYS.key(0, b"a", [a]),
        KEYS.key(0, b"a", [b]),
        KEYS.key(0, b"a", [a, b]),
        SpanKeys("model2", "bf16").key(0, b"a"),
        SpanKeys("model", "int8").key(0, b"a"),
        SpanKeys("modelb", "f16").key(0, b"a"),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 for key in keys)


def test_content_cannot_pose_as_a_parent() -> None:
    parent = KEYS.key(0, b"p")
    assert KEYS.key(0, b"x", [parent]) != KEYS.key(0, parent + b"x")


def test_the_order_of_parents_does_not_matter() -> None:
    parents = [KEYS.key(0, bytes([i])) for i in range(4)]
    assert len({KEYS.key(9, b"edge", order) for order in permutations(parents)}) == 1


def test_holding_the_end_of_a_chain_holds_the_chain() -> None:
    cache = make_cache()
    a = add(cache, "a")
    b = add(cache, "b", (a,))
    c = add(cache, "c", (b,))
    cache.release(a)
    cache.release(b)
    assert (a.refs, b.refs, c.refs) == (1, 1, 1)
    cache.check_integrity({c.key: 1})
    cache.release(c)
    assert cache.num_idle_blocks == 3
    cache.acquire(b)
    assert (a.refs, b.refs, c.refs) == (1, 1, 0)
    cache.check_integrity({b.key: 1})


def test_children_are_evicted_before_their_parents_oldest_first() -> None:
    cache = make_cache()
    root = add(cache, "root")
    left, right = add(cache, "left", (root,)), add(cache, "right", (root,))
    edge = add(cache, "edge", (left, right))
    for span in (root, left, right, edge):
        cache.release(span)
    cache.acquire(right)
    cache.release(right)  # used again: later than left
    cache.check_integrity({})
    assert [cache.evict() for _ in range(4)] == [edge, left, right, root]
    assert cache.pool.num_used == 0


def test_spans_in_use_are_never_evicted() -> None:
    cache = make_cache(4)
    used, idle = add(cache, "used", (), (4, 4)), add(cache, "idle", (), (4, 1))
    cache.release(idle)
    assert not cache.make_room(3)
    assert len(cache) == 2
    assert cache.make_room(2)
    assert cache.get(idle.key) is None
    assert cache.get(used.key) is used
    with pytest.raises(KeyError):
        cache.evict()


def test_a_span_computed_twice_is_kept_once() -> None:
    cache = make_cache()
    first, second = add(cache, "same"), add(cache, "same")
    assert first is second
    assert first.refs == 2
    assert cache.pool.num_used == 1
    cache.check_integrity({first.key: 2})


def test_a_parent_must_be_cached() -> None:
    cache = make_cache()
    parent = add(cache, "parent")
    cache.release(parent)
    cache.evict()
    with pytest.raises(ValueError, match="parents must be in the cache"):
        add(cache, "child", (parent,))
    with pytest.raises(ValueError, match="not in the cache"):
        cache.acquire(parent)


def test_too_many_releases_are_refused() -> None:
    cache = make_cache()
    span = add(cache, "span")
    cache.release(span)
    with pytest.raises(ValueError, match="more often"):
        cache.release(span)


def test_lookup_stops_at_the_first_gap() -> None:
    cache = make_cache()
    a = add(cache, "a")
    b = add(cache, "b", (a,))
    missing = KEYS.key(0, b"missing")
    assert cache.lookup([a.key, b.key, missing]) == [a, b]
    assert cache.lookup([a.key, missing, b.key]) == [a]
    cache.record(10, 4)
    assert cache.stats.hit_rate == pytest.approx(0.4)


def test_page_table_depends_on_the_set_only() -> None:
    cache = make_cache()
    spans = [add(cache, name, (), valid) for name, valid in (("a", (4, 2)), ("b", (3,)), ("c", (4, 4, 1)))]
    tables = {tuple(page_table(order)) for order in permutations(spans)}
    assert len(tables) == 1
    assert sum(valid for _, valid in tables.pop()) == sum(span.num_tokens for span in spans)
    assert cache.pool.stats().unused_slots == 2 + 1 + 3


def test_compaction_keeps_spans_intact() -> None:
    cache = make_cache()
    gone, kept = add(cache, "gone", (), (4, 4)), add(cache, "kept", (), (4, 3))
    cache.release(gone)
    cache.evict()
    cache.remap(cache.pool.compact())
    assert sorted(block for block, _ in kept.blocks) == [0, 1]
    assert [valid for _, valid in kept.blocks] == [4, 3]
    cache.pool.check_integrity(cache.block_owners())
