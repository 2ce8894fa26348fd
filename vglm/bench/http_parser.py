"""HTTP/1.1 responses, read piece by piece: bytes may be split anywhere. No input or output here."""

from __future__ import annotations

import re

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n]*)?")
_MAX_HEAD = 64 << 10
_MAX_CHUNK_LINE = 1 << 10
_MAX_LENGTH_DIGITS = 15


class ProtocolError(Exception):
    """The peer does not speak HTTP/1.1, or not correctly."""


class ResponseParser:
    """One response.

    `status` is 0 until the head is complete; `headers` has lower-case names. `complete` is set with the last
    byte; `keep_alive` says whether the connection can carry another request then.
    """

    __slots__ = (
        "_after_chunk",
        "_buffer",
        "_chunked",
        "_last",
        "_left",
        "complete",
        "headers",
        "keep_alive",
        "status",
    )

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        self.keep_alive = False
        self._buffer = b""
        self._chunked = False
        self._left: int | None = 0  # bytes of the body or chunk that are still to come; None: until the end
        self._after_chunk = False  # a line end must follow the chunk
        self._last = False  # the last chunk has been announced: trailers follow

    def feed(self, data: bytes) -> bytes:
        """The part of the body that `data` holds. Raises ProtocolError."""
        if self.complete:
            raise ProtocolError(f"{len(data)} bytes after the end of the answer")
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        if not self.status:
            found = self._head(data)
            if found is None:
                return b""
            data = found
        if self._chunked:
            return self._chunks(data)
        if self._left is None:
            return data
        if len(data) > self._left:
            raise ProtocolError(f"{len(data) - self._left} bytes more than Content-Length announced")
        self._left -= len(data)
        self.complete = not self._left
        return data

    def eof(self) -> bool:
        """The peer has closed; whether the response is complete."""
        if self.status and not self._chunked and self._left is None:
            self.complete = True
        return self.complete

    def _head(self, data: bytes) -> bytes | None:
        """Read the head and return what follows it; None when it is not complete yet."""
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > _MAX_HEAD or not _may_begin(data):
                    raise ProtocolError(f"no HTTP response: {_shown(data)}")
                self._buffer = data
                return None
            status = self._fields(data[:end])
            data = data[end + 4 :]
            if status >= 200:  # those below are no answers yet
                self._framing(status)
                self.status = status
                return data

    def _fields(self, head: bytes) -> int:
        lines = head.split(b"\r\n")
        match = _STATUS_LINE.fullmatch(lines[0])
        if match is None:
            raise ProtocolError(f"no HTTP status line: {_shown(lines[0])}")
        self.headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if not colon or not name or name != name.strip():
                raise ProtocolError(f"no header: {_shown(line)}")
            key, text = name.decode("latin-1").lower(), value.strip().decode("latin-1")
            if key == "content-length" and self.headers.get(key, text) != text:
                raise ProtocolError("two different Content-Length headers")
            self.headers[key] = text
        connection = self.headers.get("connection", "").lower()
        self.keep_alive = connection == "keep-alive" if match[1] == b"0" else connection != "close"
        return int(match[2])

    def _framing(self, status: int) -> None:
        """How the end of the body is found."""
        coding = self.headers.get("transfer-encoding", "").lower()
        length = self.headers.get("content-length")
        if self.headers.get("content-encoding", "identity") != "identity":
            raise ProtocolError(f"the answer is compressed ({self.headers['content-encoding']}), unasked")
        if status in (204, 304):
            self.complete = True
        elif coding:
            if coding != "chunked":
                raise ProtocolError(f"unknown Transfer-Encoding {coding!r}")
            self._chunked = True
        elif length is not None:
            if not (length.isascii() and length.isdigit() and len(length) <= _MAX_LENGTH_DIGITS):
                raise ProtocolError(f"Content-Length is {length!r}")
            self._left = int(length)
        else:
            self._left = None
            self.keep_alive = False

    def _chunks(self, data: bytes) -> bytes:
        parts: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            if self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                self._after_chunk = not self._left
                parts.append(piece)
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                self._buffer = data[at:]
                if len(self._buffer) > _MAX_CHUNK_LINE:
                    raise ProtocolError(f"no chunk size: {_shown(self._buffer)}")
                break
            self._chunk_line(data[at:end])
            at = end + 2
            if self.complete and at < size:
                raise ProtocolError(f"{size - at} bytes after the end of the answer")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _chunk_line(self, line: bytes) -> None:
        """The line end after a chunk, a chunk's size, or a trailer."""
        if self._after_chunk:
            if line:
                raise ProtocolError("a chunk is longer than its size says")
            self._after_chunk = False
        elif self._last:
            self.complete = not line
        else:
            digits = line.partition(b";")[0].rstrip()
            if (
                not digits.isalnum() or len(digits) > _MAX_LENGTH_DIGITS
            ):  # int() would take signs and underscores
                raise ProtocolError(f"no chunk size: {_shown(line)}")
            try:
                self._left = int(digits, 16)
            except ValueError:
                raise ProtocolError(f"no chunk size: {_shown(line)}") from None
            self._last = not self._left


def _may_begin(data: bytes) -> bool:
    return data[:5] == b"HTTP/"[: len(data)]


def _shown(data: bytes) -> str:
    """The beginning of what a peer sent, for a message."""
    return repr(data[:60].decode("latin-1")) + ("..." if len(data) > 60 else "")
