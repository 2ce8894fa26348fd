"""Where a graph's bytes come from: a file, compressed or not, or memory; bounded, and with lines counted."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vglm.errors import GraphError
from vglm.graph.limits import shown

_CHUNK = 1 << 18  # what is made of a chunk stays in the processor's cache
_MAX_LINE = 1 << 26
_GZIP = b"\x1f\x8b"
_MAX_RATIO = 200  # text that is more regular than this is a decompression bomb
_FREE = 1 << 26  # the ratio is looked at beyond this size only

Progress = Callable[[int], None]


class Source:
    """Bytes with a name for messages; read once, as a whole or in pieces.

    Raises GraphError when there are more than `limit` of them, when they cannot be read, or when they are
    compressed beyond reason.
    """

    def __init__(self, name: str, stream: BinaryIO | gzip.GzipFile, limit: int) -> None:
        self.name = name
        self._stream = stream
        self._limit = limit

    @classmethod
    def of(cls, data: bytes | str, name: str, limit: int) -> Source:
        """Bytes in memory; raises GraphError for text with lone surrogates, and for other objects."""
        if not isinstance(data, bytes | bytearray | memoryview | str):
            raise GraphError(f"{name}: expected text or bytes, found {shown(data)}")
        if isinstance(data, str):
            try:
                data = data.encode()
            except UnicodeEncodeError as error:
                raise GraphError(f"{name}: not valid Unicode at character {error.start}") from error
        return cls(name, io.BytesIO(data), limit)

    def chunks(self) -> Iterator[bytes]:
        """The bytes in pieces, without a byte order mark."""
        count = 0
        try:
            while chunk := self._stream.read(_CHUNK):
                if count == 0:
                    chunk = chunk.removeprefix(b"\xef\xbb\xbf") or b"\n"
                count += len(chunk)
                if count > self._limit:
                    raise GraphError(f"{self.name}: more than {self._limit:,} bytes")
                yield chunk
        except (OSError, EOFError, zlib.error) as error:
            raise GraphError(
                f"{self.name}: cannot be read: {getattr(error, 'strerror', '') or error}"
            ) from error

    def read(self) -> bytes:
        """All bytes."""
        return b"".join(self.chunks())

    def blocks(self, keep_returns: bool = False) -> Iterator[tuple[int, str]]:
        """The text in blocks of whole lines: (number of the first line, text without its last line break).

        Lines end in \\n or (without `keep_returns`) \\r\\n, which becomes \\n; other separators of Unicode are
        part of a line. Raises GraphError naming the line that is not UTF-8.
        """
        number, rest = 1, bytearray()
        for chunk in self.chunks():
            head, newline, tail = chunk.rpartition(b"\n")
            if not newline:
                rest += chunk
                if len(rest) > _MAX_LINE:
                    raise GraphError(f"{self.name}, line {number}: longer than {_MAX_LINE:,} bytes")
                continue
            block = bytes(rest + head)
            rest = bytearray(tail)
            yield number, self._decoded(block, number, keep_returns)
            number += block.count(b"\n") + 1
        if rest:
            yield number, self._decoded(bytes(rest), number, keep_returns)

    def raw_lines(self) -> Iterator[str]:
        """Lines with their line breaks as they are, for readers with rules of their own (CSV)."""
        for _, block in self.blocks(keep_returns=True):
            yield from map("{}\n".format, block.split("\n"))

    def lines(self) -> Iterator[tuple[int, str]]:
        """Numbered lines without their line breaks."""
        for first, block in self.blocks():
            yield from enumerate(block.split("\n"), first)

    def _decoded(self, block: bytes, number: int, keep_returns: bool) -> str:
        try:
            text = block.decode("utf-8")
        except UnicodeDecodeError as error:
            line = number + block.count(b"\n", 0, error.start)
            raise GraphError(f"{self.name}, line {line}: is not UTF-8 text") from error
        if keep_returns or "\r" not in text:
            return text
        return text.replace("\r\n", "\n").removesuffix("\r")


@contextmanager
def open_source(path: Path, limit: int, progress: Progress | None = None) -> Iterator[Source]:
    """A file, decompressed when it starts as gzip does; `progress` is told of every byte read from disk.

    Raises GraphError when it cannot be opened.
    """
    try:
        file = path.open("rb", buffering=0)
    except (OSError, ValueError) as error:
        raise GraphError(f"{path}: cannot be read: {getattr(error, 'strerror', '') or error}") from error
    with file:
        counted = _Counted(file, progress)
        stream = io.BufferedReader(counted, 1 << 18)
        if stream.peek(2)[:2] == _GZIP:
            yield Source(path.name, _Inflated(stream, counted, path.name), limit)
        else:
            yield Source(path.name, stream, limit)


class _Counted(io.RawIOBase):
    """A raw file that counts what is read from it."""

    def __init__(self, file: io.FileIO, progress: Progress | None) -> None:
        self._file = file
        self._progress = progress
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = self._file.readinto(buffer) or 0
        self.count += size
        if self._progress is not None:
            self._progress(size)
        return size


class _Inflated(gzip.GzipFile):
    """A gzip stream that stops where it grows beyond reason."""

    def __init__(self, stream: BinaryIO, raw: _Counted, name: str) -> None:
        super().__init__(fileobj=stream, mode="rb")
        self._raw_file = raw
        self._name = name
        self._grown = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._grown += len(data)
        if self._grown > max(_FREE, self._raw_file.count * _MAX_RATIO):
            raise GraphError(f"{self._name}: decompresses to more than {_MAX_RATIO} times its size")
        return data
