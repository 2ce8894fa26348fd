"""Event streams (`text/event-stream`), read piece by piece: bytes may be split anywhere."""

from __future__ import annotations

from vglm.bench.http_parser import ProtocolError

_MAX_EVENT = 16 << 20


class EventParser:
    """An event stream (`text/event-stream`): comments, any line end, data of several lines."""

    __slots__ = ("_after_return", "_begun", "_buffer")

    def __init__(self) -> None:
        self._buffer = b""
        self._after_return = False  # a \n that follows belongs to the \r that has been read
        self._begun = False

    def feed(self, data: bytes) -> list[bytes]:
        """The data of every event that is complete now. Raises ProtocolError on an endless event."""
        if self._after_return or b"\r" in data:
            data = self._plain_line_ends(data)
        data = self._buffer + data
        if not self._begun:
            if b"\xef\xbb\xbf".startswith(data):  # too short to tell whether it begins with a byte order mark
                self._buffer = data
                return []
            self._begun = True
            data = data.removeprefix(b"\xef\xbb\xbf")
        if data.startswith(b"data: ") and data.find(b"\n") == len(data) - 2 and data.endswith(b"\n\n"):
            self._buffer = b""  # what nearly every piece is: one event of one line
            return [data[6:-2]]
        *blocks, self._buffer = data.split(b"\n\n")
        if len(self._buffer) > _MAX_EVENT:
            raise ProtocolError(f"an event of more than {_MAX_EVENT >> 20} MB")
        return [found for found in map(_data, blocks) if found is not None]

    @property
    def incomplete(self) -> bool:
        """Whether the stream has ended in the middle of an event, if it has ended."""
        return any(line and not line.startswith(b":") for line in self._buffer.split(b"\n"))

    def _plain_line_ends(self, data: bytes) -> bytes:
        if not data:
            return data
        if self._after_return:
            data = data.removeprefix(b"\n")
        self._after_return = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(block: bytes) -> bytes | None:
    """The data of the event in these lines; None when it has none."""
    lines = []
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None
