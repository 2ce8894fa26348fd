"""Which pieces of text share a span: cuts and packs that waste little of the pages of the KV cache.

A span of n tokens takes ceil(n / block) pages. A long record is cut, and short records are packed, where that
leaves the fewest slots empty. Where a cut falls depends on what stands near it only, so that a change here does
not move the cuts there: lists are first parted at places that their own content chooses (by a hash), and packs
follow a tree over hashes of their members, which is the same whoever else is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate

from vglm.errors import GraphError

SEGMENT_TOKENS = 1_000  # about how long the parts are within which a list is cut at the best places


@dataclass(frozen=True, slots=True)
class SpanLayout:
    """Sizes in tokens. A record of at most `pack_below` that wastes more than `pack_waste` of its pages is packed
    with its neighbours; `pack_below=0` gives every record a span of its own."""

    block_size: int = 16
    max_tokens: int = 96
    pack_below: int = 80
    pack_waste: float = 0.08

    def __post_init__(self) -> None:
        if self.block_size < 1 or self.max_tokens < self.block_size:
            raise GraphError("span layout: max_tokens must be at least block_size, and block_size at least 1")

    def pages(self, tokens: int) -> int:
        """Blocks that a span takes."""
        return -(-tokens // self.block_size)

    def is_packed(self, tokens: int) -> bool:
        """Whether a record of this length is worth packing."""
        slots = self.pages(tokens) * self.block_size
        return tokens <= self.pack_below and slots - tokens > self.pack_waste * slots


def stable_hash(text: str) -> int:
    """64 bits that depend on the text alone."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def cut(
    sizes: Sequence[int], hashes: Sequence[int], overhead: int, layout: SpanLayout, first: bool
) -> list[slice]:
    """Cuts a list of pieces of `sizes` tokens into spans that take the fewest pages.

    Every span costs `overhead` tokens more, but for the first one if `first`. `hashes` of the pieces choose where
    a long list is parted beforehand. A piece that is longer than a span is alone in one.
    """
    found: list[slice] = []
    start = 0
    for end, (size, digest) in enumerate(zip(sizes, hashes, strict=True), 1):
        if digest % SEGMENT_TOKENS < size or end == len(sizes):
            found += _fewest_pages(sizes, start, end, overhead, layout, first)
            start = end
    return found


def _fewest_pages(
    sizes: Sequence[int], start: int, end: int, overhead: int, layout: SpanLayout, first: bool
) -> list[slice]:
    """The best cuts of one part, by dynamic programming: fewest pages, then fewest spans, then the last one shortest."""
    best: list[tuple[int, int, int]] = [(0, 0, start)]  # pages, spans and where the last span begins, by end
    for stop in range(start + 1, end + 1):
        tokens, choice = 0, None
        for begin in range(stop - 1, start - 1, -1):
            tokens += sizes[begin]
            total = tokens + (0 if first and begin == 0 else overhead)
            if tokens > layout.max_tokens and begin < stop - 1:
                break
            if total > layout.max_tokens and begin < stop - 1:
                continue  # the very first span may still do: it has no overhead
            pages, spans, _ = best[begin - start]
            option = (pages + layout.pages(total), spans + 1, begin)
            if choice is None or option[:2] < choice[:2]:
                choice = option
        assert choice is not None, "a piece alone always fits"
        best.append(choice)
    found: list[slice] = []
    while end > start:
        begin = best[end - start][2]
        found.append(slice(begin, end))
        end = begin
    return found[::-1]


def pack(sizes: Sequence[int], hashes: Sequence[int], layout: SpanLayout) -> list[slice]:
    """Groups records of `sizes` tokens, in their order, where together they take fewer pages than apart.

    The boundary with the highest hash (of the record after it) parts the list first, then the parts likewise;
    coming back up, parts, or the groups that meet at their boundary, are joined where that saves a page. A record
    that comes, goes or changes thus moves the boundaries beside it at most.
    """
    starts = [0, *accumulate(sizes)]

    def joined(groups: list[slice]) -> list[slice]:
        """One group of them all if it fits and saves a page, else the groups as they are."""
        apart = sum(layout.pages(starts[group.stop] - starts[group.start]) for group in groups)
        together = starts[groups[-1].stop] - starts[groups[0].start]
        saves = together <= layout.max_tokens and layout.pages(together) < apart
        return [slice(groups[0].start, groups[-1].stop)] if saves else groups

    done: list[list[slice]] = []
    for begin, middle, end in _parted(hashes):
        if middle == begin:
            done.append([slice(begin, end)])
            continue
        right, left = done.pop(), done.pop()
        if starts[end] - starts[begin] <= layout.max_tokens and len(joined(left + right)) == 1:
            done.append([slice(begin, end)])
        else:
            done.append(left[:-1] + joined([left[-1], right[0]]) + right[1:])
    return done[0] if done else []


def _parted(hashes: Sequence[int]) -> list[tuple[int, int, int]]:
    """The parts of a list in the order in which they are put together: (begin, middle, end), children before their
    parents; a single record has its middle at its begin."""
    left, right, root = _tree(hashes)
    found: list[tuple[int, int, int]] = []
    waiting = [(0, len(hashes), root)] if hashes else []
    while waiting:  # parents before children, right before left; turned around at the end
        begin, end, middle = waiting.pop()
        if end - begin == 1:
            found.append((begin, begin, end))
            continue
        found.append((begin, middle, end))
        waiting += [(begin, middle, left[middle]), (middle, end, right[middle])]
    return found[::-1]


def _tree(hashes: Sequence[int]) -> tuple[list[int], list[int], int]:
    """The Cartesian tree over the boundaries 1..n-1 (boundary k stands before record k), highest hash at the root."""
    left, right = [0] * len(hashes), [0] * len(hashes)
    path: list[int] = []
    for boundary in range(1, len(hashes)):
        last = 0
        while path and hashes[path[-1]] < hashes[boundary]:
            last = path.pop()
        left[boundary] = last
        if path:
            right[path[-1]] = boundary
        path.append(boundary)
    return left, right, path[0] if path else 0
