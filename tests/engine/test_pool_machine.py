"""Hypothesis drives the pool and the span cache through random histories and checks every invariant."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)
from tiny_model import TinyStorage

from vglm.engine.block_pool import BlockPool, OutOfBlocksError
from vglm.engine.span_cache import Span, SpanCache, SpanKeys

NUM_BLOCKS, BLOCK_SIZE = 12, 4
KEYS = SpanKeys("model", "bf16")


class PoolMachine(RuleBasedStateMachine):
    """Private blocks and spans over one pool; each block's memory carries a mark of what it should hold."""

    held = Bundle("held")  # spans with one user each

    def __init__(self) -> None:
        super().__init__()
        self.storage = TinyStorage(NUM_BLOCKS, BLOCK_SIZE)
        self.pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE, self.storage)
        self.cache = SpanCache(self.pool)
        self.private: list[tuple[int, float]] = []  # (block, mark)
        self.users: dict[bytes, int] = {}
        self.marks: dict[bytes, tuple[float, ...]] = {}  # what each span's blocks hold
        self.clock = 0

    def write(self, block: int) -> float:
        self.clock += 1
        self.storage.kv[:, :, block] = float(self.clock)
        return float(self.clock)

    @rule(count=st.integers(1, 4), valid=st.integers(0, BLOCK_SIZE))
    def allocate(self, count: int, valid: int) -> None:
        used = self.pool.num_used
        if not self.cache.make_room(count):
            assert count > NUM_BLOCKS - used + self.cache.num_idle_blocks
            return
        for block in self.pool.allocate(count):
            self.pool.set_valid(block, valid)
            self.private.append((block, self.write(block)))

    @rule(count=st.integers(1, NUM_BLOCKS + 1))
    def allocate_too_much(self, count: int) -> None:
        free = self.pool.num_free
        if count <= free:
            return
        try:
            self.pool.allocate(count)
        except OutOfBlocksError:
            assert self.pool.num_free == free
        else:
            raise AssertionError("more blocks were handed out than were free")

    @precondition(lambda self: self.private)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block, mark = data.draw(st.sampled_from(self.private))
        self.pool.retain(block)
        self.private.append((block, mark))

    @precondition(lambda self: self.private)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block, _ = self.private.pop(data.draw(st.integers(0, len(self.private) - 1)))
        self.pool.release(block)

    @precondition(lambda self: self.private)
    @rule(data=st.data())
    def copy_on_write(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.private) - 1))
        block, mark = self.private[index]
        if self.pool.is_shared(block) and self.pool.num_free:
            copy = self.pool.copy(block)
            self.pool.release(block)
            assert (self.storage.kv[:, :, copy] == mark).all()
            self.private[index] = (copy, self.write(copy))

    @rule(
        target=held,
        content=st.integers(0, 5),
        num_blocks=st.integers(1, 3),
        last_valid=st.integers(1, BLOCK_SIZE),
        parents=st.lists(held, max_size=3),
    )
    def insert(self, content: int, num_blocks: int, last_valid: int, parents: list[Span]) -> object:
        parents = list({span.key: span for span in parents}.values())
        if not self.cache.make_room(num_blocks):
            return multiple()
        blocks = self.pool.allocate(num_blocks)
        marks = tuple(self.write(block) for block in blocks)
        valid = [BLOCK_SIZE] * (num_blocks - 1) + [last_valid]
        content_key = bytes([content, num_blocks, last_valid])
        key = KEYS.key(0, content_key, [parent.key for parent in parents])
        known = self.cache.get(key)
        span = self.cache.insert(key, list(zip(blocks, valid, strict=True)), 0, parents)
        assert known is None or span is known
        if known is None:
            self.marks[key] = marks
        self.users[key] = self.users.get(key, 0) + 1
        return span

    @rule(target=held, span=held)
    def acquire(self, span: Span) -> Span:
        self.cache.acquire(span)
        self.users[span.key] += 1
        return span

    @rule(span=consumes(held))
    def release_span(self, span: Span) -> None:
        self.cache.release(span)
        self.users[span.key] -= 1

    @rule(target=held, data=st.data())
    def acquire_idle(self, data: st.DataObject) -> object:
        idle = [span for key in self.marks if (span := self.cache.get(key)) is not None and not span.refs]
        if not idle:
            return multiple()
        span = data.draw(st.sampled_from(idle))
        self.cache.acquire(span)
        self.users[span.key] = self.users.get(span.key, 0) + 1
        return span

    @precondition(lambda self: self.cache.num_idle_blocks)
    @rule()
    def evict(self) -> None:
        span = self.cache.evict()
        assert not span.refs
        del self.marks[span.key]

    @rule()
    def trim(self) -> None:
        self.pool.trim()
        top = self.pool.num_committed
        assert not top or self.pool.is_used(top - 1)

    @rule()
    def compact(self) -> None:
        moves = self.pool.compact()
        self.cache.remap(moves)
        self.private = [(moves.get(block, block), mark) for block, mark in self.private]
        assert self.pool.num_committed == self.pool.num_used

    @invariant()
    def conserved(self) -> None:
        owners = self.cache.block_owners()
        for block, _ in self.private:
            owners[block] = owners.get(block, 0) + 1
        self.pool.check_integrity(owners)
        self.cache.check_integrity({key: users for key, users in self.users.items() if users})

    @invariant()
    def content_is_where_it_belongs(self) -> None:
        for block, mark in self.private:
            if not self.pool.is_shared(block):
                assert (self.storage.kv[:, :, block] == mark).all()
        for key in list(self.marks):
            span = self.cache.get(key)
            if span is None:  # evicted to make room
                del self.marks[key]
                continue
            for (block, _), mark in zip(span.blocks, self.marks[key], strict=True):
                assert (self.storage.kv[:, :, block] == mark).all()

    @invariant()
    def memory_above_the_high_water_mark_was_given_back(self) -> None:
        assert np.isnan(self.storage.kv[0, 0, self.pool.num_committed :]).all()


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase
