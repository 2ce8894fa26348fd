"""Spans that survive a restart: the disk behind the span cache.

A span that was computed once is copied and written in the background; one that is asked for and not in memory is copied
back from a mapped file, after its checksum was compared. The store is a cache: what the disk or the queue has no room
for is not written, what is damaged is computed again, and no error of the disk reaches a request.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import xxhash

from vglm.engine.span_files import Place, SpanFiles
from vglm.engine.span_segments import PageArray, SavedSpan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vglm.engine.request import IntArray
    from vglm.engine.span_cache import Span

log = logging.getLogger("vglm.spans")

QUEUE_BYTES = 64 << 20  # of copied pages that wait to be written; more are not kept
RETRY = 30.0  # seconds without writing after the disk has refused
CLOSING = 30.0  # seconds that the writing of what is left may take in the end


class PageStorage(Protocol):
    """The memory behind the blocks, as far as the store needs it (the native KV cache)."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers."""

    def read_blocks(self, blocks: IntArray, out: PageArray) -> None:
        """Copy whole blocks into out, uint8 [blocks, block_bytes]."""

    def write_blocks(self, blocks: IntArray, data: PageArray) -> None:
        """Copy data, as `read_blocks` has given it, into blocks."""


@dataclass(slots=True)
class StoreStats:
    """What the store has done; monotonic but for the last two, which say what is on disk now."""

    hits: int = 0  # spans that came from disk
    hit_tokens: int = 0
    bytes_read: int = 0
    written: int = 0  # spans
    bytes_written: int = 0
    dropped: int = 0  # spans that were not written: no room in the queue or on the disk
    errors: int = 0  # damaged spans found, and writes that failed
    num_spans: int = 0
    num_bytes: int = 0


class SpanStore:
    """The spans on disk, for the engine's thread: it never waits for the disk to write."""

    def __init__(
        self, directory: Path, identity: Mapping[str, str], storage: PageStorage, max_bytes: int
    ) -> None:
        """`identity`: see vglm/engine/span_files.py; `max_bytes` bounds the directory. Raises ConfigError."""
        self.stats = StoreStats()
        self._storage = storage
        self._told_damage = False
        self._files = SpanFiles(directory, identity, storage.block_bytes, max_bytes)
        self._writer = _Writer(self._files, self.stats)
        log.info("%s: %d spans on disk, %d bytes", directory, self.stats.num_spans, self.stats.num_bytes)
        self._close = weakref.finalize(self, self._writer.close)  # also when the interpreter ends

    @property
    def writable(self) -> bool:
        """Whether spans are written; if not, another process writes, or the directory is read-only."""
        return self._files.writable

    def find(self, key: bytes) -> Place | None:
        """Where the span with this key lies; None when it is not on disk."""
        return self._files.find(key)

    def load(self, place: Place, blocks: Sequence[int]) -> bool:
        """Copy a span's pages into as many blocks; False when they are damaged, after which it is not found again."""
        record = place.record
        pages = self._files.view(place)
        if (
            pages is None
            or pages.shape != (len(blocks), self._storage.block_bytes)
            or xxhash.xxh3_128_digest(pages.data) != record.checksum
        ):
            if self._files.forget(record.key):  # or it has just been dropped to make room
                self._count_damaged()
            return False
        self._storage.write_blocks(np.array(blocks, np.int32), pages)
        place.segment.forget(record)
        self.stats.hits += 1
        self.stats.hit_tokens += sum(record.valid)
        self.stats.bytes_read += record.length
        return True

    def _count_damaged(self) -> None:
        self.stats.errors += 1
        self.stats.num_spans = self._files.num_spans
        if not self._told_damage:
            self._told_damage = True
            log.warning("%s: a damaged span was found; it is computed again", self._files.folder)

    def keep(self, span: Span) -> None:
        """Note that a cached span was used: have it written if it is not on disk. Its pages are copied before this
        returns.
        """
        if self._files.find(span.key) is not None:
            return
        if not self._writer.accepts(span.key, len(span.blocks) * self._storage.block_bytes):
            return
        blocks = [block for block, _ in span.blocks]
        pages = np.empty((len(blocks), self._storage.block_bytes), np.uint8)
        self._storage.read_blocks(np.array(blocks, np.int32), pages)
        parents = tuple(parent.key for parent in span.parents)
        valid = tuple(valid for _, valid in span.blocks)
        self._writer.put(SavedSpan(span.key, span.first_position, parents, valid, pages))

    def flush(self, timeout: float = CLOSING) -> bool:
        """Wait until what was kept is written; False when that takes longer than `timeout` seconds."""
        return self._writer.flush(timeout)

    def close(self) -> None:
        """Write what is left, close the files and give the directory free; nothing is found or kept any more."""
        self._close()


class _Writer:
    """The thread that writes. It must not know the store, which would then never be collected."""

    def __init__(self, files: SpanFiles, stats: StoreStats) -> None:
        self._files = files
        self._stats = stats
        self._queue: deque[SavedSpan] = deque()
        self._pending: set[bytes] = set()  # keys in the queue or being written
        self._pending_bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._paused_until = 0.0
        self._warned = False
        self._count()
        self._thread = threading.Thread(target=self._run, name="vglm-spans", daemon=True)
        self._thread.start()

    def accepts(self, key: bytes, num_bytes: int) -> bool:
        """Whether a span of that size can be queued; one for which there is no room is counted as dropped."""
        if self._closing or key in self._pending or not self._files.writable:
            return False
        room = min(QUEUE_BYTES - self._pending_bytes, self._files.longest)
        if num_bytes <= room and time.monotonic() >= self._paused_until:
            return True
        self._stats.dropped += 1
        return False

    def put(self, span: SavedSpan) -> None:
        """Queue a span."""
        with self._changed:
            self._pending.add(span.key)
            self._pending_bytes += span.pages.nbytes
            self._queue.append(span)
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until nothing is pending."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending, timeout)

    def close(self) -> None:
        """Have what is queued written and the files closed."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # which may be the one that collects the store
            self._thread.join(CLOSING)

    def _run(self) -> None:
        try:
            self._files.read_ahead()
            while (span := self._next()) is not None:
                self._write(span)
                with self._changed:
                    self._pending.discard(span.key)
                    self._pending_bytes -= span.pages.nbytes
                    self._changed.notify_all()
        finally:
            self._closing = True
            self._files.close()

    def _next(self) -> SavedSpan | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            return self._queue.popleft() if self._queue else None

    def _write(self, span: SavedSpan) -> None:
        if time.monotonic() < self._paused_until:
            self._stats.dropped += 1
            return
        reason = "other engines' spans take all the room"
        try:
            written = self._files.append(span)
        except OSError as error:
            self._stats.errors += 1
            written, reason = False, error.strerror or str(error)
        if written:
            self._stats.written += 1
            self._stats.bytes_written += span.pages.nbytes
        else:
            self._stats.dropped += 1
            self._paused_until = time.monotonic() + RETRY
            if not self._warned:
                self._warned = True
                log.warning(
                    "%s: spans cannot be written (%s); the engine goes on", self._files.folder, reason
                )
        self._count()

    def _count(self) -> None:
        self._stats.num_spans, self._stats.num_bytes = self._files.num_spans, self._files.num_bytes
