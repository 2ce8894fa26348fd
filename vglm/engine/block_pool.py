"""The block pool: fixed-size pages of the KV cache, their reference counts, and what they cost.

    blocks   0 .............. used and released, mixed .............. | never touched ........ num_blocks
                                                                committed (high-water mark)

Only blocks below the high-water mark have memory behind them: the storage reserves one mapping and the
operating system commits a page when it is first written. Therefore released blocks are handed out again
before an untouched one, and `compact()` moves the live blocks down and gives everything above them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vglm.errors import ConfigError, VGLMError

IntArray = npt.NDArray[np.int32]


class OutOfBlocksError(VGLMError):
    """The pool has fewer free blocks than were asked for; nothing was allocated."""


class BlockStorage(Protocol):
    """The memory behind the blocks (the native KV cache)."""

    def copy_blocks(self, src: IntArray, dst: IntArray) -> None:
        """Copy the K and V of every layer from block src[i] to block dst[i]."""

    def release(self, blocks: IntArray) -> None:
        """Give the memory of these blocks back to the operating system; their content is lost."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """How the pool's blocks are used. Counts are blocks, `tokens_valid` is token slots."""

    num_blocks: int
    block_size: int
    used: int
    committed: int
    tokens_valid: int

    @property
    def free(self) -> int:
        """Blocks that can be allocated."""
        return self.num_blocks - self.used

    @property
    def unused_slots(self) -> int:
        """Internal fragmentation in token slots: slots of used blocks that hold no token."""
        return self.used * self.block_size - self.tokens_valid

    @property
    def internal_fragmentation(self) -> float:
        """Share of the used slots that hold no token, 0..1."""
        return self.unused_slots / (self.used * self.block_size) if self.used else 0.0

    @property
    def external_fragmentation(self) -> float:
        """Share of the committed blocks that nobody uses, 0..1."""
        return (self.committed - self.used) / self.committed if self.committed else 0.0


class BlockPool:
    """Fixed-size blocks with O(1) allocation, release and accounting.

    The free list is a plain stack. An intrusive doubly linked list would only pay if a block had to leave
    the middle of it; that never happens, because blocks of idle spans are not free blocks: the span cache
    owns them until it evicts the span. A stack also hands out the block that was released last, which is
    the likeliest to be in the CPU cache.
    """

    def __init__(self, num_blocks: int, block_size: int, storage: BlockStorage) -> None:
        """Raises ConfigError unless both sizes are positive."""
        if num_blocks < 1 or block_size < 1:
            raise ConfigError(
                f"the block pool needs positive sizes, got num_blocks={num_blocks}, block_size={block_size}; "
                "give the KV cache more memory"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.storage = storage
        self.tokens_valid = 0
        self._free: list[int] = []
        self._ref_count: list[int] = []  # one entry per committed block; its length is the high-water mark
        self._valid: list[int] = []

    @property
    def num_committed(self) -> int:
        """The high-water mark: blocks that may have memory behind them."""
        return len(self._ref_count)

    @property
    def num_used(self) -> int:
        """Blocks with at least one reference."""
        return len(self._ref_count) - len(self._free)

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated."""
        return self.num_blocks - len(self._ref_count) + len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def stats(self) -> PoolStats:
        """A snapshot of the accounting, O(1)."""
        return PoolStats(
            self.num_blocks, self.block_size, self.num_used, self.num_committed, self.tokens_valid
        )

    def allocate(self, count: int = 1) -> list[int]:
        """`count` blocks with one reference each and no valid token, or OutOfBlocksError and no change."""
        if count > self.num_free:
            raise OutOfBlocksError(f"{count} blocks wanted, {self.num_free} of {self.num_blocks} are free")
        free = self._free
        blocks: list[int] = []
        for _ in range(count):
            if free:
                block = free.pop()
                self._ref_count[block] = 1
            else:
                block = len(self._ref_count)
                self._ref_count.append(1)
                self._valid.append(0)
            blocks.append(block)
        return blocks

    def retain(self, block: int) -> None:
        """Add a reference to a used block."""
        if not self.is_used(block):
            raise ValueError(f"block {block} is not in use")
        self._ref_count[block] += 1

    def release(self, block: int) -> None:
        """Drop a reference; the last one frees the block."""
        if not self.is_used(block):
            raise ValueError(f"block {block} is not in use")
        self._ref_count[block] -= 1
        if not self._ref_count[block]:
            self.tokens_valid -= self._valid[block]
            self._valid[block] = 0
            self._free.append(block)

    def is_used(self, block: int) -> bool:
        """Whether the block has a reference."""
        return 0 <= block < len(self._ref_count) and self._ref_count[block] > 0

    def is_shared(self, block: int) -> bool:
        """Whether a write to the block would be seen by another owner."""
        return self._ref_count[block] > 1

    def ref_count(self, block: int) -> int:
        """References to the block; 0 for a free one."""
        return self._ref_count[block] if 0 <= block < len(self._ref_count) else 0

    def set_valid(self, block: int, num_tokens: int) -> None:
        """Record that the first `num_tokens` slots of a used block hold tokens."""
        self.tokens_valid += num_tokens - self._valid[block]
        self._valid[block] = num_tokens

    def copy(self, block: int) -> int:
        """A private copy of a block (copy on write); the caller's reference to `block` is kept."""
        new = self.allocate()[0]
        self.storage.copy_blocks(np.array([block], np.int32), np.array([new], np.int32))
        self.set_valid(new, self._valid[block])
        return new

    def trim(self, limit: int | None = None) -> int:
        """Give back the memory of the free tail, at most `limit` blocks of it, without moving a block; returns
        how many blocks that is.
        """
        top = len(self._ref_count)
        lowest = 0 if limit is None else max(0, top - limit)
        while top > lowest and not self._ref_count[top - 1]:
            top -= 1
        return self._lower_high_water_mark(top)

    def compact(self) -> dict[int, int]:
        """Move the live blocks out of the tail into free ones and give the tail's memory back.

        Returns {old block: new block}; every owner must remap its page tables before the next step. Sources
        lie above the used count and destinations below it, so the copies are independent of their order.
        """
        used = self.num_used
        holes = sorted(block for block in self._free if block < used)
        tail = [block for block in range(used, len(self._ref_count)) if self._ref_count[block]]
        moves = dict(zip(tail, holes, strict=True))
        if moves:
            self.storage.copy_blocks(np.array(tail, np.int32), np.array(holes, np.int32))
        for src, dst in moves.items():
            self._ref_count[dst], self._ref_count[src] = self._ref_count[src], 0
            self._valid[dst], self._valid[src] = self._valid[src], 0
        self._free.clear()  # exactly the blocks below `used` are live now
        self._lower_high_water_mark(used)
        return moves

    def reset(self) -> None:
        """Forget every block, whoever holds it, and give all memory back."""
        self.tokens_valid = 0
        self._free.clear()
        self._lower_high_water_mark(0)

    def _lower_high_water_mark(self, top: int) -> int:
        dropped = len(self._ref_count) - top
        if dropped:
            self.storage.release(np.arange(top, top + dropped, dtype=np.int32))
            self._free = [block for block in self._free if block < top]
            del self._ref_count[top:], self._valid[top:]
        return dropped

    def check_integrity(self, owners: Mapping[int, int] | None = None) -> None:
        """Assert block conservation; with `owners` ({block: references}) also that each reference has one."""
        committed = len(self._ref_count)
        assert committed <= self.num_blocks, "more blocks committed than exist"
        assert len(self._valid) == committed, "valid counts and reference counts differ in length"
        free = set(self._free)
        assert len(free) == len(self._free), "a block is in the free list twice"
        assert all(0 <= block < committed for block in free), "a free block was never committed"
        self.check_slice(0, committed)
        for block, refs in enumerate(self._ref_count):
            assert (refs == 0) == (block in free), (
                f"block {block} has {refs} references, free={block in free}"
            )
        assert self.tokens_valid == sum(self._valid), "valid tokens are miscounted"
        assert self.num_used + self.num_free == self.num_blocks, "blocks are not conserved"
        if owners is not None:
            held = {block: refs for block, refs in enumerate(self._ref_count) if refs}
            wanted = {block: refs for block, refs in owners.items() if refs}
            assert held == wanted, f"references without an owner or owners without one: {held} != {wanted}"

    def check_slice(self, start: int, stop: int) -> None:
        """Assert what can be said of the blocks (and of the free list's entries) `start` to `stop` alone."""
        for block in self._free[start:stop]:
            assert self.ref_count(block) == 0, f"block {block} is in the free list and in use"
        counts = zip(self._ref_count[start:stop], self._valid[start:stop], strict=True)
        for block, (refs, valid) in enumerate(counts, start):
            assert refs >= 0, f"block {block} has {refs} references"
            assert 0 <= valid <= (self.block_size if refs else 0), f"block {block} claims {valid} tokens"
