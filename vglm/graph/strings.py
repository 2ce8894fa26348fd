"""A column of strings in two arrays: it loads from disk at once and decodes only what is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError


class StringTable:
    """An immutable column of strings: UTF-8 `data` uint8[bytes] and `offsets` int64[n + 1].

    A graph of a million nodes holds two arrays per column instead of a million objects, so that loading
    is a read, and a string is decoded when somebody asks for it.
    """

    __slots__ = ("data", "offsets")

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

    @classmethod
    def of(cls, strings: Iterable[str]) -> StringTable:
        """Packs `strings`; raises GraphError for text that is not valid Unicode (lone surrogates)."""
        encoded = [encode(text) for text in strings]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes().decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        data, ends = self.data.tobytes(), self.offsets.tolist()
        for start, end in pairwise(ends):
            yield data[start:end].decode("utf-8")

    def take(self, indices: npt.NDArray[np.integer]) -> StringTable:
        """The strings at `indices`, in that order."""
        return StringTable.of(self[int(index)] for index in indices)

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
