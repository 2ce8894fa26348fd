"""A bounds-checked reader of GGUF headers.

The `gguf` package builds a numpy view per string, which takes seconds for a real vocabulary, and trusts every
length that it reads. Here each length is checked against the file before it is used, and large arrays are
decoded on demand.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.errors import ModelError

Buffer = bytes | mmap.mmap

# ggml type id -> (name, elements per block, bytes per block)
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
_OTHER_TYPES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_MAX_NAME = 1 << 16


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor's bytes lie; `shape` is in [out, in] orientation, offset and num_bytes are in bytes."""

    name: str
    shape: tuple[int, ...]
    format: str
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class ArrayRef:
    """An array of the metadata, not decoded yet: `count` items of ggml value type `kind` at byte `offset`."""

    kind: int
    count: int
    offset: int


class GGUFHeader:
    """The metadata and tensor table of a GGUF file. ModelError for anything that does not fit the file."""

    def __init__(self, buffer: Buffer, where: str) -> None:
        self._buffer = buffer
        self._size = len(buffer)
        self._where = where
        self._position = 0
        self._metadata: dict[str, Any] = {}
        tensor_count, entry_count = self._read_prologue()
        for _ in range(entry_count):
            self._read_entry()
        infos = [self._read_tensor_info() for _ in range(tensor_count)]
        alignment = self._alignment()
        self.header_bytes = self._position
        self.data_offset = -(-self._position // alignment) * alignment
        self.tensors = self._place(infos, alignment)

    @property
    def keys(self) -> list[str]:
        """Names of the metadata entries."""
        return list(self._metadata)

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value: a bool, int, float, str, or for an array a list; `default` when it is absent."""
        value = self._metadata.get(key, default)
        return self._decode(value) if isinstance(value, ArrayRef) else value

    def floats(self, info: TensorInfo) -> list[float]:
        """The values of an F32 tensor."""
        values: list[float] = np.frombuffer(self._buffer, "<f4", info.num_bytes // 4, info.offset).tolist()
        return values

    def _fail(self, what: str) -> ModelError:
        return ModelError(f"{self._where}: {what}")

    def _take(self, length: int, what: str) -> int:
        """Reserve the next `length` bytes, returning where they start."""
        start = self._position
        if length > self._size - start:
            raise self._fail(
                f"cut short or damaged: {what} needs {length} bytes at byte {start} of {self._size}"
            )
        self._position = start + length
        return start

    def _u32(self, what: str) -> int:
        value: int = _U32.unpack_from(self._buffer, self._take(4, what))[0]
        return value

    def _u64(self, what: str) -> int:
        value: int = _U64.unpack_from(self._buffer, self._take(8, what))[0]
        return value

    def _text(self, what: str, limit: int | None = None) -> str:
        length = self._u64(what)
        if limit is not None and length > limit:
            raise self._fail(f"damaged: {what} is {length} bytes long")
        start = self._take(length, what)
        return self._utf8(start, length, what)

    def _utf8(self, start: int, length: int, what: str) -> str:
        try:
            return self._buffer[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._fail(f"damaged: {what} at byte {start} is not valid UTF-8") from error

    def _read_prologue(self) -> tuple[int, int]:
        if self._buffer[:4] != b"GGUF":
            raise self._fail("not a GGUF file (it does not start with the bytes 'GGUF')")
        self._position = 4
        version = self._u32("version")
        if version not in (2, 3):
            hint = " (a big-endian file)" if version & 0xFFFF == 0 else ""
            raise self._fail(f"GGUF version {version} is not supported{hint}; vGLM reads versions 2 and 3")
        tensor_count, entry_count = self._u64("tensor count"), self._u64("metadata count")
        # A tensor description takes at least 24 bytes and a metadata entry 13: larger counts cannot be true.
        if tensor_count > self._size // 24 or entry_count > self._size // 13:
            raise self._fail(
                f"damaged: {tensor_count} tensors and {entry_count} entries cannot fit in the file"
            )
        return tensor_count, entry_count

    def _read_entry(self) -> None:
        key = self._text("metadata key", _MAX_NAME)
        if key in self._metadata:
            raise self._fail(f"damaged: metadata key {key!r} appears twice")
        kind = self._u32(key)
        if kind == _STRING:
            self._metadata[key] = self._text(key)
        elif kind == _ARRAY:
            self._metadata[key] = self._skip_array(key)
        elif kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            start = self._take(dtype.itemsize, key)
            self._metadata[key] = np.frombuffer(self._buffer, dtype, 1, start)[0].item()
        else:
            raise self._fail(f"damaged: metadata key {key!r} has unknown type {kind}")

    def _skip_array(self, key: str) -> ArrayRef:
        kind, count = self._u32(key), self._u64(key)
        ref = ArrayRef(kind, count, self._position)
        if kind in _SCALARS:
            self._take(count * np.dtype(_SCALARS[kind]).itemsize, key)
        elif kind == _STRING:
            if count > (self._size - self._position) // 8:
                raise self._fail(f"cut short or damaged: {key!r} cannot hold {count} strings")
            for _, end in self._spans(ref, key):
                self._position = end
        else:
            raise self._fail(f"damaged: metadata key {key!r} is an array of unsupported type {kind}")
        return ref

    def _spans(self, ref: ArrayRef, what: str) -> Iterator[tuple[int, int]]:
        """Start and end of the bytes of each string of an array."""
        position, size, buffer, unpack = ref.offset, self._size, self._buffer, _U64.unpack_from
        for _ in range(ref.count):
            if position + 8 > size:
                raise self._fail(f"cut short or damaged: {what} runs past the end of the file")
            start = position + 8
            position = start + unpack(buffer, position)[0]
            if position > size:
                raise self._fail(f"cut short or damaged: {what} runs past the end of the file")
            yield start, position

    def _decode(self, ref: ArrayRef) -> list[Any]:
        if ref.kind != _STRING:
            values: list[Any] = np.frombuffer(
                self._buffer, np.dtype(_SCALARS[ref.kind]), ref.count, ref.offset
            ).tolist()
            return values
        try:
            return [
                self._buffer[start:end].decode("utf-8") for start, end in self._spans(ref, "string array")
            ]
        except UnicodeDecodeError as error:
            raise self._fail("damaged: a string of the metadata is not valid UTF-8") from error

    def _read_tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text("tensor name", _MAX_NAME)
        dimensions = self._u32(name)
        if not 1 <= dimensions <= 4:
            raise self._fail(f"damaged: tensor {name!r} has {dimensions} dimensions")
        sizes = tuple(self._u64(name) for _ in range(dimensions))
        return name, sizes[::-1], self._u32(name), self._u64(name)

    def _alignment(self) -> int:
        alignment = self._metadata.get("general.alignment", 32)
        if isinstance(alignment, bool) or not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise self._fail(f"damaged: alignment {alignment!r}")
        if alignment & (alignment - 1):
            raise self._fail(f"damaged: alignment {alignment} is not a power of two")
        return alignment

    def _place(
        self, infos: list[tuple[str, tuple[int, ...], int, int]], alignment: int
    ) -> dict[str, TensorInfo]:
        placed: dict[str, TensorInfo] = {}
        for name, shape, kind, relative in infos:
            if name in placed:
                raise self._fail(f"damaged: tensor {name!r} appears twice")
            if kind not in TENSOR_TYPES:
                known = ", ".join(known for known, _, _ in TENSOR_TYPES.values())
                raise self._fail(f"tensor {name!r} has the type {_type_name(kind)}; vGLM reads {known}")
            fmt, block, block_bytes = TENSOR_TYPES[kind]
            elements = 1
            for extent in shape:
                elements *= extent
            if elements == 0 or shape[-1] % block:
                raise self._fail(f"damaged: tensor {name!r} of shape {list(shape)} cannot be stored as {fmt}")
            offset, num_bytes = self.data_offset + relative, elements // block * block_bytes
            if relative % alignment or offset + num_bytes > self._size:
                raise self._fail(
                    f"cut short or damaged: tensor {name!r} should end at byte {offset + num_bytes}, "
                    f"the file has {self._size}"
                )
            placed[name] = TensorInfo(name, shape, fmt, offset, num_bytes)
        return placed


def _type_name(kind: int) -> str:
    """ggml's name of a tensor type that is not supported here, for the error message."""
    return _OTHER_TYPES.get(kind, f"number {kind} (unknown)")


def raw_rows(buffer: Buffer, info: TensorInfo, start: int, stop: int) -> npt.NDArray[np.uint8]:
    """Rows [start, stop) of a tensor as stored: uint8 [stop - start, bytes per row], not copied."""
    row_bytes = info.num_bytes // info.shape[0]
    data = np.frombuffer(buffer, np.uint8, (stop - start) * row_bytes, info.offset + start * row_bytes)
    return data.reshape(stop - start, row_bytes)
