"""The directory of spans on disk: a folder for each identity, its segments, its lock, and the bound on its size.

    DIRECTORY/spans-<hash of the identity>/    lock, 00000001.pages, 00000001.index, 00000002.pages, ...

The identity is everything that the bits of a span's KV depend on besides the span's key. Another model, KV type,
instruction set or build has another folder, and every index states its identity in full. When all folders together would
grow over the limit, whole segments go, the least recently used first, those of other identities among them.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO, NamedTuple

from vglm.engine import span_segments
from vglm.engine.span_segments import MAGIC, PageArray, Record, SavedSpan, Segment
from vglm.errors import ConfigError

log = logging.getLogger("vglm.spans")

FORMAT = 1  # of the files; a new one leaves the old ones alone until they are the oldest
NUM_SEGMENTS = 8  # that the limit has room for
RECORD_BYTES = 4096  # at most, of a record without its parents, and of the gap before its pages
_PREFIX = "spans-"


class Place(NamedTuple):
    """Where a span lies."""

    segment: Segment
    record: Record


class SpanFiles:
    """The spans on disk of one identity. One thread may append while another one finds and views.

    A second process on the same folder reads what was there when it started and writes nothing.
    """

    def __init__(self, directory: Path, identity: Mapping[str, str], block_bytes: int, limit: int) -> None:
        """`limit`: bytes of the whole directory. Raises ConfigError when the directory cannot be had, or the
        limit has no room for anything.
        """
        text = json.dumps({"format": str(FORMAT), **identity}, sort_keys=True)
        self._header = span_segments.header(text)
        self.segment_bytes = limit // NUM_SEGMENTS
        least = NUM_SEGMENTS * (block_bytes + len(self._header) + 2 * RECORD_BYTES)
        if limit < least:
            raise ConfigError(
                f"span_cache_size is {limit} bytes; a block of this model's KV takes {block_bytes}, so give at least "
                f"{least}, better a hundred times as much"
            )
        self.directory = directory
        self.folder = directory / (_PREFIX + blake2b(self._header, digest_size=8).hexdigest())
        self.limit = limit
        self.segments: list[Segment] = []  # in the order in which they were begun
        self._places: dict[bytes, Place] = {}
        self._mutex = threading.Lock()  # places, segments, and whether these are open
        self._lock = self._prepare()
        self._open_segments()
        if self.writable:
            current = self.segments[-1].size if self.segments else self.segment_bytes
            self._make_room(max(0, self.segment_bytes - current))

    @property
    def writable(self) -> bool:
        """Whether this process may write; if not, another one does, or the directory is read-only."""
        return self._lock is not None

    @property
    def longest(self) -> int:
        """Bytes of the largest span that can be kept."""
        return self.segment_bytes - len(self._header) - RECORD_BYTES

    @property
    def num_spans(self) -> int:
        """Spans that can be found."""
        return len(self._places)

    @property
    def num_bytes(self) -> int:
        """Bytes of this identity's segments."""
        return sum(segment.size for segment in self.segments.copy())

    # ---- reading

    def find(self, key: bytes) -> Place | None:
        """Where the span with this key lies, and that it was used; None when it is not on disk."""
        place = self._places.get(key)
        if place is not None:
            place.segment.touch()
        return place

    def view(self, place: Place) -> PageArray | None:
        """Its mapped pages, uint8 [pages, bytes of a block]; None when the file is gone or cut short."""
        with self._mutex:
            try:
                return place.segment.view(place.record)
            except OSError:
                return None

    def forget(self, key: bytes) -> bool:
        """Find this span no more: its pages are damaged. False when it was gone already."""
        return self._places.pop(key, None) is not None

    # ---- writing

    def append(self, span: SavedSpan) -> bool:
        """Write a span; False when there is no room for it. Raises OSError when the disk takes no more."""
        need = span.pages.nbytes + RECORD_BYTES + 32 * len(span.parents)
        if not self.writable or need > self.segment_bytes - len(self._header):
            return False
        segment = self.segments[-1] if self.segments else None
        if segment is None or segment.sealed or segment.size + need > self.segment_bytes:
            segment = self._next_segment()
            if segment is None:
                return False
        record = segment.append(span)
        segment.touch()
        with self._mutex:
            self._places[span.key] = Place(segment, record)
        return True

    def _next_segment(self) -> Segment | None:
        if not self._make_room(self.segment_bytes):
            return None
        number = self.segments[-1].number + 1 if self.segments else 1
        segment = Segment.create(self.folder, number, self._header)
        with self._mutex:
            self.segments.append(segment)
        return segment

    def _make_room(self, num_bytes: int) -> bool:
        """Drop segments until the directory has room for that many bytes; False when that cannot be."""
        known = [(s.last_used, s.size, partial(self._drop, s)) for s in self.segments] + list(self._others())
        total = sum(size for _, size, _ in known)
        for _, size, drop in sorted(known, key=lambda entry: entry[0]):
            if total + num_bytes <= self.limit:
                break
            if drop():
                total -= size
        return total + num_bytes <= self.limit

    def _drop(self, segment: Segment) -> bool:
        with self._mutex:
            self.segments.remove(segment)
            for key in segment.keys:
                place = self._places.get(key)
                if place is not None and place.segment is segment:
                    del self._places[key]
            try:
                segment.drop()
            except OSError as error:
                log.warning("%s: spans cannot be deleted: %s", self.folder, error)
                return False
        return True

    def _others(self) -> Iterator[tuple[float, int, Callable[[], bool]]]:
        """(time of last use, bytes, how to drop it) of each segment of another identity."""
        for index in self.directory.glob(f"{_PREFIX}*/*.index"):
            if index.parent == self.folder or not _is_index(index):
                continue
            files = index.with_suffix(".pages"), index
            try:
                pages, size = files[0].stat(), index.stat().st_size
            except OSError:
                continue  # dropped meanwhile by the process that writes it
            yield pages.st_mtime, pages.st_size + size, partial(_drop_unused, files)

    # ---- opening and closing

    def _prepare(self) -> IO[bytes] | None:
        """Make the folder and take its lock; None when this process may only read."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"span_cache_dir {str(self.directory)!r} cannot be made ({error.strerror or error}); give another one"
            ) from error
        try:
            self.folder.mkdir(exist_ok=True, mode=0o700)
            return _take_lock(self.folder)
        except BlockingIOError:
            log.warning("%s: another process writes the spans; this one reads them only", self.directory)
        except OSError as error:
            log.warning("%s: spans are read but not written: %s", self.directory, error.strerror or error)
        return None

    def _open_segments(self) -> None:
        for index in sorted(self.folder.glob("*.index")):
            if not index.stem.isdecimal():
                continue
            try:
                segment, records = Segment.open(self.folder, int(index.stem), self._header, self.writable)
            except (OSError, ValueError) as error:
                log.warning("%s: spans that cannot be read are left out: %s", index, error)
                if self.writable:
                    self._delete((index.with_suffix(".pages"), index))
                continue
            self.segments.append(segment)
            self._places.update((record.key, Place(segment, record)) for record in records)
        if self.writable:
            for pages in self.folder.glob("*.pages"):
                if not pages.with_suffix(".index").exists():  # of a process that was killed
                    self._delete((pages, pages.with_suffix(".index")))

    def _delete(self, files: tuple[Path, Path]) -> None:
        try:
            span_segments.delete(files)
        except OSError as error:
            log.warning("%s cannot be deleted: %s", files[0], error)

    def read_ahead(self) -> None:
        """Have the pages that were used last in memory soon, at most a quarter of the machine's memory."""
        left = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
        for segment in sorted(self.segments, key=lambda segment: -segment.last_used):
            left -= segment.size
            if left < 0:
                return
            segment.read_ahead()

    def close(self) -> None:
        """Close every file and give the lock up; nothing is found any more."""
        with self._mutex:
            self._places.clear()
            for segment in self.segments:
                segment.close()
            self.segments.clear()
            if self._lock is not None:
                self._lock.close()
                self._lock = None


def _take_lock(folder: Path) -> IO[bytes]:
    """Raises BlockingIOError when another process (or another engine of this one) holds it."""
    file = open(folder / "lock", "ab")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def _is_index(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _drop_unused(files: tuple[Path, Path]) -> bool:
    """Delete a segment of another identity unless a process works with it."""
    try:
        with _take_lock(files[0].parent):
            span_segments.delete(files)
    except OSError:
        return False
    return True
