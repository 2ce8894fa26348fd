"""Gives sequences their pages: from the span cache where it can, from the block pool where it must."""

from __future__ import annotations

from vglm.engine.block_pool import BlockPool
from vglm.engine.request import RequestKind, Sequence
from vglm.engine.span_cache import Span, SpanCache, SpanKeys, page_table


class BlockManager:
    """Page tables of sequences over one pool and one span cache.

    With prefix caching every full block becomes a span, the child of the span before it; a sequence then
    holds only the last span of its chain (which holds the rest) and one reference to each private block
    after it.
    """

    def __init__(
        self, pool: BlockPool, cache: SpanCache, keys: SpanKeys, prefix_caching: bool = True
    ) -> None:
        self.pool = pool
        self.cache = cache
        self.span_keys = keys
        self.prefix_caching = prefix_caching
        self.block_size = pool.block_size

    # Keys and lookups

    def keys(self, sequence: Sequence) -> list[bytes]:
        """Span keys of the known full blocks, or of the whole prompt when it is to become one span."""
        request, keys = sequence.request, sequence.keys
        if request.kind is RequestKind.SPAN:
            if not keys:
                keys.append(self._key(sequence, 0, sequence.num_tokens))
        elif self.prefix_caching:
            for index in range(len(keys), sequence.num_tokens // self.block_size):
                keys.append(self._key(sequence, index * self.block_size, (index + 1) * self.block_size))
        return keys

    def _key(self, sequence: Sequence, start: int, end: int) -> bytes:
        request = sequence.request
        content = sequence.tokens[start:end].tobytes()
        if request.embeds is not None:
            content += request.embeds.digest(start, end)
        parents = set(sequence.keys[-1:] or request.context_keys)
        return self.span_keys.key(request.first_position + start, content, parents)

    def reusable_keys(self, sequence: Sequence) -> list[bytes]:
        """The keys that may be hit: blocks without a row whose output is wanted."""
        keys = self.keys(sequence)
        if sequence.request.kind is RequestKind.SPAN:
            return keys
        return keys[: sequence.wanted_from // self.block_size]

    # Pages

    def allocate(self, sequence: Sequence, hits: list[Span], reserve: int) -> bool:
        """Give the sequence the pages of all its known tokens, `hits` first; False, and nothing changed,
        when fewer than `reserve` blocks would stay available.
        """
        need = self.pool.blocks_for(sequence.num_tokens) - len(hits)
        idle_hits = 0
        while idle_hits < len(hits) and not hits[-1 - idle_hits].refs:
            idle_hits += 1  # the idle part of a chain is its end: a span in use holds its parents
        if need + reserve > self.cache.num_available_blocks - idle_hits:
            return False
        if hits:
            sequence.last_span = hits[-1]
            self.cache.acquire(hits[-1])
            for span in hits:
                self.cache.keep(span)  # a block that is used again is worth its place on disk
        self.cache.make_room(need)
        blocks = [span.blocks[0][0] for span in hits] + self.pool.allocate(need)
        self._extend(sequence, blocks)
        sequence.num_span_pages = len(hits)
        sequence.num_computed = len(hits) * self.block_size
        return True

    def may_append(self, sequence: Sequence) -> bool:
        """Make the known tokens writable: new pages at block boundaries, a private copy of a shared page.

        False when that needs blocks and too few are available."""
        if sequence.num_tokens > sequence.capacity:
            need = self.pool.blocks_for(sequence.num_tokens - sequence.capacity)
            if not self.cache.make_room(need):
                return False
            self._extend(sequence, self.pool.allocate(need))
        if sequence.shared_tail:
            index = sequence.num_computed // self.block_size
            block = sequence.own_page(index)
            if self.pool.is_shared(block):
                if not self.cache.make_room(1):
                    return False
                sequence.pages.block[sequence.num_context_pages + index] = self.pool.copy(block)
                self.pool.release(block)
            sequence.shared_tail = False
        return True

    def _extend(self, sequence: Sequence, blocks: list[int]) -> None:
        sequence.pages.extend(blocks, self.block_size)
        sequence.capacity += len(blocks) * self.block_size

    def commit(self, sequence: Sequence, num_tokens: int) -> list[bytes]:
        """Count `num_tokens` more as computed and cache the blocks that became full; returns their keys."""
        start, end = sequence.num_computed, sequence.num_computed + num_tokens
        sequence.num_computed = end
        sequence.wanted_from = max(end, sequence.wanted_from)
        for index in range(start // self.block_size, self.pool.blocks_for(end)):
            valid = min(end - index * self.block_size, self.block_size)
            self.pool.set_valid(sequence.own_page(index), valid)
        if sequence.request.kind is RequestKind.SPAN:
            return self._commit_span(sequence) if end == sequence.num_tokens else []
        full = end // self.block_size
        if not self.prefix_caching or full == sequence.num_span_pages:
            return []
        return self._commit_blocks(sequence, full)

    def _commit_blocks(self, sequence: Sequence, full: int) -> list[bytes]:
        keys, request = self.keys(sequence), sequence.request
        first = sequence.num_span_pages
        for index in range(first, full):
            block = sequence.own_page(index)
            last = sequence.last_span
            position = request.first_position + index * self.block_size
            parents = request.context if last is None else (last,)
            span = self.cache.insert(keys[index], [(block, self.block_size)], position, parents)
            if last is not None:
                self.cache.release(last)  # held through its child from here on
            # NOTE: when another sequence was faster, the cache kept its block and freed ours: same KV.
            sequence.pages.block[sequence.num_context_pages + index] = span.blocks[0][0]
            sequence.last_span = span
            sequence.num_span_pages = index + 1
        return keys[first:full]

    def _commit_span(self, sequence: Sequence) -> list[bytes]:
        request = sequence.request
        entries = [
            (block, min(self.block_size, sequence.num_tokens - i * self.block_size))
            for i, block in enumerate(sequence.own_pages())
        ]
        key = self.keys(sequence)[0]
        sequence.last_span = self.cache.insert(key, entries, request.first_position, request.context)
        self.cache.keep(sequence.last_span)
        sequence.num_span_pages = len(entries)
        return [key]

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child` share the pages of `parent`; who writes first to the partial last page copies it."""
        child.pages = parent.pages.copy()
        for name in (
            "num_context_pages",
            "num_span_pages",
            "capacity",
            "num_computed",
            "wanted_from",
            "last_span",
        ):
            setattr(child, name, getattr(parent, name))
        child.keys = parent.keys.copy()
        if parent.last_span is not None:
            self.cache.acquire(parent.last_span)
        for block in parent.own_pages(parent.num_span_pages):
            self.pool.retain(block)
        parent.shared_tail = child.shared_tail = parent.num_computed % self.block_size != 0

    def free(self, sequence: Sequence) -> None:
        """Take the sequence's own pages back; its spans stay in the cache and its context stays held."""
        if sequence.last_span is not None:
            self.cache.release(sequence.last_span)
            sequence.last_span = None
        for block in sequence.own_pages(sequence.num_span_pages):
            self.pool.release(block)
        sequence.pages.num_pages = sequence.num_context_pages
        sequence.num_span_pages = sequence.num_computed = sequence.capacity = 0
        sequence.shared_tail = False

    # Contexts: spans that a request attends to from its start

    def hold_context(self, sequence: Sequence) -> None:
        """Acquire the context's spans and put their pages, sorted by key, in front of the sequence's own."""
        for span in sequence.request.context:
            self.cache.acquire(span)
        entries = page_table(sequence.request.context)
        sequence.pages.extend([block for block, _ in entries], [valid for _, valid in entries])
        sequence.num_context_pages = sequence.pages.num_pages

    def drop_context(self, sequence: Sequence) -> None:
        """Release the context's spans."""
        for span in sequence.request.context:
            self.cache.release(span)
        sequence.pages.num_pages = sequence.num_context_pages = 0
