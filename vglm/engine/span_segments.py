"""A segment of spans on disk: a file of pages, and beside it an index that says which span lies where.

    00000007.pages    pages of spans, as they lie in the KV pool, one span after the other
    00000007.index    a header that states what the KV depends on, then a record for each span

Pages are written before their record. A record carries a checksum (XXH3) of itself and one of its pages. A process that is
killed at any moment thus leaves whole records and perhaps a torn tail, which the next one that writes cuts off.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

PageArray = npt.NDArray[np.uint8]

MAGIC = b"vglm spans\n"
ALIGN = 64  # of a span's first page in the file
TOUCH = 60.0  # seconds after which the use of a segment is noted on disk again
_HEAD = struct.Struct("<II32sqQQ16s")  # counts of parents and pages, key, position, offset, bytes, checksum
_CHECK = 8  # bytes of a record's own checksum


def header(identity: str) -> bytes:
    """The beginning of the index of every segment with this identity."""
    text = identity.encode()
    body = MAGIC + struct.pack("<I", len(text)) + text
    return body + xxhash.xxh3_64_digest(body)


class SavedSpan(NamedTuple):
    """A span as it goes to disk: `valid` tokens of each of its pages, `pages` uint8 [pages, bytes of a block]."""

    key: bytes
    first_position: int
    parents: tuple[bytes, ...]
    valid: tuple[int, ...]
    pages: PageArray


@dataclass(frozen=True, slots=True)
class Record:
    """Where a span lies in its segment; `checksum` is the XXH3-128 of its `length` bytes of pages."""

    key: bytes
    first_position: int
    parents: tuple[bytes, ...]
    valid: tuple[int, ...]
    offset: int
    length: int
    checksum: bytes

    @property
    def end(self) -> int:
        """The offset behind the last page."""
        return self.offset + self.length

    def pack(self) -> bytes:
        """The record's bytes in the index."""
        counts = len(self.parents), len(self.valid)
        head = _HEAD.pack(*counts, self.key, self.first_position, self.offset, self.length, self.checksum)
        body = head + b"".join(self.parents) + struct.pack(f"<{len(self.valid)}H", *self.valid)
        return body + xxhash.xxh3_64_digest(body)

    @classmethod
    def unpack(cls, index: bytes, at: int) -> tuple[Record, int] | None:
        """The record at this place and the place behind it; None where there is no whole record."""
        if at + _HEAD.size > len(index):
            return None
        num_parents, num_pages, key, position, offset, length, checksum = _HEAD.unpack_from(index, at)
        parents_at = at + _HEAD.size
        valid_at = parents_at + 32 * num_parents
        end = valid_at + 2 * num_pages
        if index[end : end + _CHECK] != xxhash.xxh3_64_digest(index[at:end]):
            return None
        parents = tuple(index[i : i + 32] for i in range(parents_at, valid_at, 32))
        valid = struct.unpack_from(f"<{num_pages}H", index, valid_at)
        return cls(key, position, parents, valid, offset, length, checksum), end + _CHECK


class Segment:
    """The two files of a segment. One thread appends; `view` and `close` exclude each other (see SpanFiles)."""

    def __init__(self, folder: Path, number: int, mode: str) -> None:
        self.number = number
        self.paths = pages_path, index_path = paths(folder, number)
        # NOTE: unbuffered, so that what a write call has accepted is the system's and outlives this process.
        self._pages = open(pages_path, mode, buffering=0)  # noqa: SIM115
        try:
            self._index = open(index_path, mode, buffering=0)  # noqa: SIM115
        except OSError:
            self._pages.close()
            raise
        self.pages_size = self.index_size = 0
        self.sealed = False  # takes no more spans
        self.last_used = self._noted = os.fstat(self._pages.fileno()).st_mtime
        self.keys: list[bytes] = []
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls, folder: Path, number: int, head: bytes) -> Segment:
        """A new, empty segment. Raises OSError."""
        segment = cls(folder, number, "x+b")
        try:
            _write_at(segment._index, head, 0)
        except OSError:
            segment.drop()
            raise
        segment.index_size = len(head)
        return segment

    @classmethod
    def open(cls, folder: Path, number: int, head: bytes, writable: bool) -> tuple[Segment, list[Record]]:
        """An existing segment and its whole records. One that is `writable` loses its torn tail.

        Raises ValueError when its index does not begin with `head`, OSError when it cannot be read.
        """
        segment = cls(folder, number, "r+b" if writable else "rb")
        index = segment._index.read()
        if not index.startswith(head):
            segment.close()
            raise ValueError("it belongs to something else, or its beginning is damaged")
        available = os.fstat(segment._pages.fileno()).st_size
        records: list[Record] = []
        at = len(head)
        while (found := Record.unpack(index, at)) is not None:
            record, at = found
            if record.end <= available:
                records.append(record)
            else:
                segment.sealed = True  # its pages are gone: nothing may take their place
        segment.index_size = at
        segment.pages_size = max((record.end for record in records), default=0)
        segment.keys = [record.key for record in records]
        if writable and not segment.sealed:
            segment._cut()
        return segment, records

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return self.pages_size + self.index_size

    def append(self, span: SavedSpan) -> Record:
        """Write a span. Raises OSError, and leaves the segment as it was, when the disk takes no more."""
        offset = -(-self.pages_size // ALIGN) * ALIGN
        checksum = xxhash.xxh3_128_digest(span.pages.data)
        record = Record(*span[:4], offset, span.pages.nbytes, checksum)
        packed = record.pack()
        try:
            _write_at(self._pages, span.pages.data.cast("B"), offset)
            _write_at(self._index, packed, self.index_size)
        except OSError:
            self._cut()
            raise
        self.pages_size = record.end
        self.index_size += len(packed)
        self.keys.append(span.key)
        return record

    def _cut(self) -> None:
        for file, size in ((self._pages, self.pages_size), (self._index, self.index_size)):
            with contextlib.suppress(OSError):  # what is left over is overwritten, or ignored as a torn tail
                os.ftruncate(file.fileno(), size)

    def view(self, record: Record) -> PageArray | None:
        """The mapped pages of a record, uint8 [pages, bytes of a block]; None when they are not there any more.

        The array stays valid when the segment is closed or dropped.
        """
        # NOTE: reading a mapped page behind the end of its file kills the process, hence the look at the size.
        if self._pages.closed or os.fstat(self._pages.fileno()).st_size < record.end:
            return None
        if self._map is None or len(self._map) < record.end:
            self._map = mmap.mmap(self._pages.fileno(), 0, access=mmap.ACCESS_READ)
        flat = np.frombuffer(self._map, np.uint8, record.length, record.offset)
        return flat.reshape(len(record.valid), -1)

    def forget(self, record: Record) -> None:
        """Count the mapped pages of a record as this process's memory no longer."""
        mapped = self._map
        first = -(-record.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (record.end - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if mapped is not None and record.end <= len(mapped) and length > 0:
            mapped.madvise(mmap.MADV_DONTNEED, first, length)

    def read_ahead(self) -> None:
        """Ask the system to have the pages in memory soon."""
        os.posix_fadvise(self._pages.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def touch(self) -> None:
        """Note that the segment is in use, on disk at most once a minute."""
        now = self.last_used = time.time()
        if now - self._noted > TOUCH:
            self._noted = now
            with contextlib.suppress(OSError, ValueError):  # read-only or just dropped: no matter
                os.utime(self._pages.fileno())

    def close(self) -> None:
        """Close the files; views stay valid."""
        self._map = None
        self._pages.close()
        self._index.close()

    def drop(self) -> None:
        """Close and delete the files."""
        self.close()
        delete(self.paths)


def paths(folder: Path, number: int) -> tuple[Path, Path]:
    """The files of a segment: pages, index."""
    return folder / f"{number:08}.pages", folder / f"{number:08}.index"


def delete(files: tuple[Path, Path]) -> None:
    """Delete a segment's files, its index first: pages without an index are nobody's. Raises OSError."""
    for path in reversed(files):
        path.unlink(missing_ok=True)


def _write_at(file: Any, data: bytes | memoryview, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(file.fileno(), left, offset)
        left, offset = left[written:], offset + written
