"""A column of strings in two arrays: it loads from disk at once and decodes only what is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError

_SEARCHES_PER_TABLE = 16  # looking up more than a sixteenth of a table pays for a dictionary of all of it


class StringTable:
    """An immutable column of strings: UTF-8 `data` uint8[bytes] and `offsets` int64[n + 1].

    A graph of a million nodes holds two arrays per column instead of a million objects, so that loading
    is a read, and a string is decoded when somebody asks for it.
    """

    __slots__ = ("_bytes", "_ends", "data", "offsets")

    def __init__(self, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
        """Takes the arrays as they are; raises GraphError if the offsets do not lie in order inside the
        data."""
        if (
            len(offsets) == 0
            or offsets[0] != 0
            or offsets[-1] != len(data)
            or bool((np.diff(offsets) < 0).any())
        ):
            raise GraphError(
                "string column: the offsets do not match the data; rebuild the graph from its source"
            )
        self.data = data
        self.offsets = offsets
        self._bytes = memoryview(data.data)  # memoryviews slice several times faster than arrays
        self._ends = memoryview(offsets.data)

    @classmethod
    def of(cls, strings: Iterable[str]) -> StringTable:
        """Packs `strings`; raises GraphError for text that is not valid Unicode (lone surrogates)."""
        texts = strings if isinstance(strings, list | tuple) else list(strings)
        joined = "".join(texts)
        offsets = np.zeros(len(texts) + 1, np.int64)
        if joined.isascii():
            np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
            return cls(np.frombuffer(joined.encode(), np.uint8), offsets)
        encoded = [encode(text) for text in texts]
        np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    @classmethod
    def empty(cls, count: int) -> StringTable:
        """`count` empty strings."""
        return cls(np.zeros(0, np.uint8), np.zeros(count + 1, np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        return str(self._bytes[self._ends[index] : self._ends[index + 1]], "utf-8")

    def __iter__(self) -> Iterator[str]:
        data, ends = self.data.tobytes(), self.offsets.tolist()
        for start, end in pairwise(ends):
            yield data[start:end].decode("utf-8")

    def find(self, text: str) -> int:
        """Where `text` stands in a table that is sorted and has no string twice, or -1 if it does not.

        A binary search, a few microseconds in a million strings: a dictionary would cost a hundred megabytes
        and half a second for every version of a graph. Bytes of UTF-8 and code points sort alike.
        """
        try:
            key = text.encode("utf-8")
        except (UnicodeEncodeError, AttributeError):  # no text of a graph; or no text
            return -1
        data, ends = self._bytes, self._ends
        low, high = 0, len(ends) - 1
        while low < high:
            middle = (low + high) // 2
            if bytes(data[ends[middle] : ends[middle + 1]]) < key:
                low = middle + 1
            else:
                high = middle
        found = low < len(ends) - 1 and data[ends[low] : ends[low + 1]] == key
        return low if found else -1

    def find_all(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """`find` of every text, int32[len(texts)]."""
        if len(texts) * _SEARCHES_PER_TABLE < len(self):
            return np.fromiter(map(self.find, texts), np.int32, len(texts))
        index = {text: position for position, text in enumerate(self)}
        return np.fromiter(
            (index.get(text, -1) if isinstance(text, str) else -1 for text in texts), np.int32, len(texts)
        )

    def take(self, indices: npt.NDArray[np.integer]) -> StringTable:
        """The strings at `indices`, in that order."""
        starts, ends = self.offsets[indices], self.offsets[np.asarray(indices) + 1]
        offsets = np.zeros(len(indices) + 1, np.int64)
        np.cumsum(ends - starts, out=offsets[1:])
        pieces = zip(starts.tolist(), ends.tolist(), strict=True)
        return StringTable(
            np.frombuffer(b"".join([self._bytes[start:end] for start, end in pieces]), np.uint8), offsets
        )

    @property
    def nbytes(self) -> int:
        """Bytes that the two arrays occupy."""
        return self.data.nbytes + self.offsets.nbytes


def encode(text: str) -> bytes:
    """UTF-8 of `text`; raises GraphError where it holds a lone surrogate, naming the position."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise GraphError(f"text is not valid Unicode at character {error.start}: {text[:40]!r}") from error
