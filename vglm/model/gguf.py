"""GGUF files: a checkpoint whose tensors stay mapped and are dequantised on demand."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from vglm.errors import ModelError
from vglm.model.checkpoint import Checkpoint, Float32, Q4Blocks, TensorSource
from vglm.model.config_gguf import INTERLEAVED, config_from_gguf
from vglm.model.dequantize import dequantize, half, nibbles, scales_and_minimums
from vglm.model.gguf_header import Buffer, GGUFHeader, raw_rows
from vglm.model.graph_card import GGUF_KEY, parse_graph_card
from vglm.model.names import Shape
from vglm.model.tokenizer import Tokenizer
from vglm.model.tokenizer_gguf import tokenizer_from_gguf

_PLAIN: dict[str, str] = {"F32": "<f4", "F16": "<f2"}


class GGUFTensors(TensorSource):
    """The tensors of a mapped GGUF file."""

    def __init__(self, buffer: Buffer, header: GGUFHeader) -> None:
        self._buffer = buffer
        self._infos = header.tensors

    def shapes(self) -> Mapping[str, Shape]:
        return {name: info.shape for name, info in self._infos.items()}

    def format(self, name: str) -> str:
        return self._infos[name].format

    def check_readable(self, name: str) -> None:
        info = self._infos[name]
        if len(info.shape) == 1 and info.format not in ("F32", "F16", "BF16"):
            raise ModelError(
                f"tensor {name!r} is a vector stored as {info.format}; only matrices may be quantised"
            )

    def num_bytes(self, name: str) -> int:
        return self._infos[name].num_bytes

    def rows(self, name: str, start: int, stop: int) -> Float32:
        info = self._infos[name]
        raw = raw_rows(self._buffer, info, start, stop)
        shape = (stop - start, *info.shape[1:])
        if info.format in _PLAIN:
            return raw.reshape(-1).view(_PLAIN[info.format]).astype(np.float32).reshape(shape)
        if info.format == "BF16":
            return widen_bf16(raw.reshape(-1).view("<u2")).reshape(shape)
        return dequantize(raw, info.format).reshape(shape)

    def block_rows(self, name: str, start: int, stop: int) -> Q4Blocks | None:
        info = self._infos[name]
        split = _BLOCK_SPLITTERS.get(info.format)
        if split is None or len(info.shape) != 2:
            return None
        blocks = raw_rows(self._buffer, info, start, stop).reshape(-1, _BLOCK_BYTES[info.format])
        quants, scale, minimum = split(blocks)
        out, groups = stop - start, info.shape[1] // 32
        return Q4Blocks(
            quants.reshape(out, groups, 32), scale.reshape(out, groups), minimum.reshape(out, groups)
        )


def widen_bf16(raw: npt.NDArray[np.uint16]) -> Float32:
    """bfloat16 bit patterns as float32, exactly."""
    return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)


_Parts = tuple[npt.NDArray[np.uint8], Float32, Float32]
_BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q4_K": 144}


def _split_q4_0(blocks: npt.NDArray[np.uint8]) -> _Parts:
    scale = half(blocks, 0)
    return nibbles(blocks[:, 2:]), scale, np.float32(-8) * scale


def _split_q4_1(blocks: npt.NDArray[np.uint8]) -> _Parts:
    return nibbles(blocks[:, 4:]), half(blocks, 0), half(blocks, 2)


def _split_q4_k(blocks: npt.NDArray[np.uint8]) -> _Parts:
    """256 weights share two halves; eight groups of 32 have 6-bit scales and minimums packed in 12 bytes."""
    scales, minimums = scales_and_minimums(blocks[:, 4:16])
    scale = half(blocks, 0) * scales.astype(np.float32)
    minimum = -half(blocks, 2) * minimums.astype(np.float32)
    return nibbles(blocks[:, 16:].reshape(-1, 4, 32)), scale, minimum


_BLOCK_SPLITTERS = {"Q4_0": _split_q4_0, "Q4_1": _split_q4_1, "Q4_K": _split_q4_k}


class GGUFCheckpoint(Checkpoint):
    """A checkpoint in one GGUF file."""

    def __init__(self, path: Path, buffer: Buffer, header: GGUFHeader, mtime_ns: int) -> None:
        self.header = header
        config = config_from_gguf(header)
        template = header.get("tokenizer.chat_template")
        digest = xxhash.xxh3_128(buffer[: header.header_bytes])
        digest.update(f"{len(buffer)}:{mtime_ns}".encode())
        super().__init__(
            path,
            config,
            GGUFTensors(buffer, header),
            style="gguf",
            interleaved=INTERLEAVED[header.get("general.architecture")],
            fingerprint=digest.hexdigest(),
            chat_template=template if isinstance(template, str) else None,
            graph_card=parse_graph_card(header.get(GGUF_KEY)),
        )

    def tokenizer(self) -> Tokenizer:
        return tokenizer_from_gguf(self.header, self.config)


def open_gguf(path: Path) -> GGUFCheckpoint:
    """Map a GGUF file and check its header, config and tensor table. Raises ModelError."""
    with path.open("rb") as file:
        stat = path.stat()
        if stat.st_size < 24:
            raise ModelError(f"{path}: not a GGUF file, it has only {stat.st_size} bytes")
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        header = GGUFHeader(buffer, str(path))
        return GGUFCheckpoint(path, buffer, header, stat.st_mtime_ns)
    except ModelError as error:
        if str(path) in str(error):
            raise
        raise ModelError(f"{path}: {error}") from error
