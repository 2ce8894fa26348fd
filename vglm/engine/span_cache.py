"""Spans: immutable runs of tokens whose KV is computed once and shared, under Merkle keys.

The key of a span covers the model, its first position, its content and the keys of the spans it attends to,
so equal keys mean equal KV. Prefix caching is one use (each full block is the child of the one before it);
spans of several blocks with several parents are another. References run from users to spans and from spans
in use to their parents: a user holds the last span of a chain and thereby the whole chain.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

from vglm.engine.block_pool import BlockPool

if TYPE_CHECKING:
    from vglm.engine.span_store import SpanStore, StoreStats


class SpanKeys:
    """Makes the Merkle keys of one model and KV type."""

    def __init__(self, model_id: str, dtype: str) -> None:
        self._base = blake2b(digest_size=32, person=b"vglm span")
        for part in (model_id.encode(), dtype.encode()):
            self._base.update(struct.pack("<Q", len(part)) + part)

    def key(self, first_position: int, content: bytes, parents: Iterable[bytes] = ()) -> bytes:
        """blake2b of model, dtype, first position, content (token ids, embedding digest), sorted parents."""
        keys = sorted(parents)
        digest = self._base.copy()
        digest.update(struct.pack("<qQQ", first_position, len(keys), len(content)))
        digest.update(b"".join(keys))
        digest.update(content)
        return digest.digest()


@dataclass(slots=True, eq=False)
class Span:
    """An immutable run of tokens in the cache.

    `blocks` lists (block, valid tokens); only compaction rewrites it, and only the block numbers. `refs`
    counts the sequences that use the span and the spans in use that attend to it.
    """

    key: bytes
    blocks: tuple[tuple[int, int], ...]
    num_tokens: int
    first_position: int
    parents: tuple[Span, ...] = ()
    refs: int = field(default=0, repr=False)


def page_table(spans: Iterable[Span]) -> list[tuple[int, int]]:
    """The page-table entries of a set of spans, in key order: the same set gives the same pages."""
    return [entry for span in sorted(spans, key=lambda span: span.key) for entry in span.blocks]


@dataclass(slots=True)
class CacheStats:
    """Hit statistics in tokens, evictions in spans; monotonic. `disk`: of the store behind the cache, if any."""

    queries: int = 0
    hits: int = 0
    inserted: int = 0
    evicted: int = 0
    disk: StoreStats | None = None

    @property
    def hit_rate(self) -> float:
        """Share of the tokens looked up that were found, 0..1."""
        return self.hits / self.queries if self.queries else 0.0


class SpanCache:
    """All computed spans, by key; those that nobody uses are evicted least recently used first, in O(1).

    NOTE: the LRU order needs no look at children. A span in use holds its parents, so a parent becomes idle
    only after its last child did and stands behind it in the order: the front is always a span without
    cached children.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.stats = CacheStats()
        self.store: SpanStore | None = None  # see `attach`
        self.num_blocks = 0
        self.num_idle_blocks = 0
        self._spans: dict[bytes, Span] = {}
        self._idle: OrderedDict[bytes, Span] = OrderedDict()

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans.values())

    @property
    def num_available_blocks(self) -> int:
        """Blocks that are free or would be after evicting every idle span."""
        return self.pool.num_free + self.num_idle_blocks

    def get(self, key: bytes) -> Span | None:
        """The span with this key if it is in memory, or None; nothing changes. May be called in any thread."""
        return self._spans.get(key)

    def fetch(self, key: bytes) -> Span | None:
        """The span with this key, from memory or from disk, or None; not acquired.

        One that comes from disk may take the blocks of idle spans. It needs its parents in memory.
        """
        span = self._spans.get(key)
        if span is not None:
            self.keep(span)
        elif (span := self._restore(key)) is not None:
            self.release(span)
        return span

    def lookup(self, keys: Iterable[bytes]) -> list[Span]:
        """The spans of the longest prefix of a chain of keys that is in memory or on disk; not acquired."""
        found: list[Span] = []
        held: Span | None = None  # the last that came from disk: with it the whole chain stays
        for key in keys:
            span = self._spans.get(key)
            if span is None:
                span = self._restore(key, held)
                if span is None:
                    break
                held = span
            found.append(span)
        if held is not None:
            self.release(held)
        return found

    def record(self, queries: int, hits: int) -> None:
        """Count a lookup that was used: tokens asked for and tokens found."""
        self.stats.queries += queries
        self.stats.hits += hits

    def acquire(self, span: Span) -> None:
        """Add a user to a cached span; a span that was idle acquires its parents too.

        Raises ValueError when the span is not (or no longer) cached.
        """
        if self._spans.get(span.key) is not span:
            raise ValueError("the span is not in the cache")
        stack = [span]
        while stack:
            span = stack.pop()
            span.refs += 1
            if span.refs == 1:
                del self._idle[span.key]
                self.num_idle_blocks -= len(span.blocks)
                stack.extend(span.parents)

    def release(self, span: Span) -> None:
        """Remove a user; a span without users becomes idle (evictable) and releases its parents.

        A span that `reset` has forgotten is passed over.
        """
        if self._spans.get(span.key) is not span:
            return
        stack = [span]
        while stack:
            span = stack.pop()
            if span.refs < 1:
                raise ValueError("a span was released more often than acquired")
            span.refs -= 1
            if not span.refs:
                self._idle[span.key] = span
                self.num_idle_blocks += len(span.blocks)
                stack.extend(span.parents)

    def insert(
        self,
        key: bytes,
        blocks: Sequence[tuple[int, int]],
        first_position: int,
        parents: Sequence[Span] = (),
    ) -> Span:
        """Put a computed span into the cache and return it acquired; the caller's reference to each block
        passes to it.

        If the key is there already (computed twice), the cached span is returned and the caller's blocks
        are released: the caller must then use the returned span's blocks. Raises ValueError when a parent
        is not cached.
        """
        known = self._spans.get(key)
        if known is not None:
            self.acquire(known)
            for block, _ in blocks:
                self.pool.release(block)
            return known
        if any(self._spans.get(parent.key) is not parent for parent in parents):
            raise ValueError("a span's parents must be in the cache before it")
        num_tokens = sum(valid for _, valid in blocks)
        span = Span(key, tuple(blocks), num_tokens, first_position, tuple(parents), refs=1)
        for block, valid in blocks:
            self.pool.set_valid(block, valid)
        for parent in parents:
            self.acquire(parent)
        self._spans[key] = span
        self.num_blocks += len(span.blocks)
        self.stats.inserted += 1
        return span

    # ---- the disk behind the cache

    def attach(self, store: SpanStore) -> None:
        """Look for missing spans in this store from now on, and give it those that `keep` is called for."""
        self.store = store
        self.stats.disk = store.stats

    def keep(self, span: Span) -> None:
        """Have a cached span written to disk, if there is a store and it is not there."""
        if self.store is not None:
            self.store.keep(span)

    def _restore(self, key: bytes, held: Span | None = None) -> Span | None:
        """Bring a span back from disk and return it acquired; None, and nothing changed, when it is not there, or
        a parent or the room for it is missing. A reference to `held` is given up once the span is there.
        """
        store = self.store
        place = store.find(key) if store is not None else None
        if store is None or place is None:
            return None
        record = place.record
        parents = [span for parent in record.parents if (span := self._spans.get(parent)) is not None]
        if len(parents) < len(record.parents):
            return None
        for parent in parents:
            self.acquire(parent)  # making room must not evict them
        span = None
        if self.make_room(len(record.valid)):
            blocks = self.pool.allocate(len(record.valid))
            if store.load(place, blocks):
                entries = list(zip(blocks, record.valid, strict=True))
                span = self.insert(key, entries, record.first_position, parents)
            else:
                for block in blocks:
                    self.pool.release(block)
        for parent in parents:
            self.release(parent)
        if span is not None and held is not None:
            self.release(held)
        return span

    # ---- eviction

    def make_room(self, num_blocks: int) -> bool:
        """Evict idle spans until `num_blocks` are free; False, and nothing evicted, when that cannot be."""
        if num_blocks > self.num_available_blocks:
            return False
        while self.pool.num_free < num_blocks:
            self.evict()
        return True

    def evict(self) -> Span:
        """Evict the least recently used idle span and free its blocks; KeyError when every span is in use."""
        key, span = self._idle.popitem(last=False)
        del self._spans[key]
        self.num_blocks -= len(span.blocks)
        self.num_idle_blocks -= len(span.blocks)
        for block, _ in span.blocks:
            self.pool.release(block)
        self.stats.evicted += 1
        return span

    def clear(self) -> None:
        """Evict every idle span."""
        while self._idle:
            self.evict()

    def reset(self) -> None:
        """Forget every span without touching the pool (which is reset along with it)."""
        self._spans.clear()
        self._idle.clear()
        self.num_blocks = self.num_idle_blocks = 0

    def remap(self, moves: Mapping[int, int]) -> None:
        """Follow the moves of a compaction."""
        if moves:
            for span in self._spans.values():
                span.blocks = tuple((moves.get(block, block), valid) for block, valid in span.blocks)

    def block_owners(self) -> dict[int, int]:
        """{block: references held by spans}, for integrity checks."""
        owners: dict[int, int] = {}
        for span in self._spans.values():
            for block, _ in span.blocks:
                owners[block] = owners.get(block, 0) + 1
        return owners

    def check_integrity(self, users: Mapping[bytes, int] | None = None) -> None:
        """Assert reference counts, parents and eviction order; `users` is {key: direct users}."""
        wanted = dict.fromkeys(self._spans, 0)
        order = {key: i for i, key in enumerate(self._idle)}
        for key, span in self._spans.items():
            self.check_span(span)
            for parent in span.parents:
                if span.refs:
                    wanted[parent.key] += 1
                elif not parent.refs:
                    assert order[key] < order[parent.key], "a parent would be evicted before its child"
        num_blocks = sum(len(span.blocks) for span in self._spans.values())
        assert num_blocks == self.num_blocks, "blocks of spans are miscounted"
        idle_blocks = sum(len(span.blocks) for span in self._idle.values())
        assert idle_blocks == self.num_idle_blocks, "idle blocks are miscounted"
        if users is not None:
            for key, span in self._spans.items():
                assert span.refs == wanted[key] + users.get(key, 0), "a span's users are miscounted"

    def check_span(self, span: Span) -> None:
        """Assert what can be said of one cached span."""
        assert self._spans.get(span.key) is span, "a span is filed under another key"
        idle = span.key in self._idle
        assert (span.refs == 0) == idle, f"span with {span.refs} users, idle={idle}"
        for parent in span.parents:
            assert self._spans.get(parent.key) is parent, "a cached span has a parent that is not cached"
            assert parent.refs or not span.refs, "a span in use has an idle parent"
        for block, _ in span.blocks:
            assert self.pool.is_used(block), f"a cached span lists block {block}, which is free"
