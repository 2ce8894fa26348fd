"""A packed model as one file: what the native core reads, ready to be mapped, and all that goes with it.

It is a safetensors file whose data are aligned to 64 bytes, with the model's config, tokenizer, chat template and graph card
in it, so that a start reads nothing else; its metadata hold a checksum of the whole file.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from vglm.model.config import ModelConfig, RopeConfig
from vglm.model.graph_card import GraphCard, parse_graph_card

Array = np.ndarray[Any, np.dtype[Any]]

VERSION = "4"  # of the packed layout; a new one packs again
ALIGN = 64
_DTYPES = {"U8": np.uint8, "U16": np.uint16, "F32": np.float32}
_NAMES = {np.dtype(d): name for name, d in _DTYPES.items()}
_CHECKSUM = "0" * 32  # in its own place while the checksum is computed
_BEFORE_CHECKSUM = b'"checksum": "'


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A model ready to run: config, native arrays by name, and what it takes to turn text into tokens."""

    config: ModelConfig
    arrays: dict[str, Array]
    tokenizer_json: str
    chat_template: str | None
    fingerprint: str
    graph_card: GraphCard | None = None
    checksum: str = _CHECKSUM  # of the packed file; zeros when it could not be kept

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights that a forward pass reads (the embedding table is read by rows)."""
        return sum(a.nbytes for name, a in self.arrays.items() if name != "embedding")

    def digest(self) -> str:
        """A digest of all the weights' bits (the same file packed elsewhere may differ in the last place)."""
        if self.checksum != _CHECKSUM:
            return self.checksum
        digest = xxhash.xxh3_128()
        for name, array in sorted(self.arrays.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def pack(
    source: Path, dtype: str, progress: Callable[[float], None]
) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and the metadata of a model file or directory, packed now. Raises ModelError."""
    from vglm.model.checkpoint import open_checkpoint
    from vglm.model.packing import pack_model

    checkpoint = open_checkpoint(source)
    tokenizer = checkpoint.tokenizer()
    # the tokenizer knows end tokens that a model's config may not name
    config = dataclasses.replace(checkpoint.config, eos_token_ids=tuple(tokenizer.eos_ids))
    meta = {
        "version": VERSION,
        "config": json.dumps(dataclasses.asdict(config)),
        "chat_template": json.dumps(checkpoint.chat_template),
        "fingerprint": f"{checkpoint.fingerprint}-{dtype}",
        "graph_card": checkpoint.graph_card.to_json() if checkpoint.graph_card else "null",
        "checksum": _CHECKSUM,
    }
    arrays = {"tokenizer": np.frombuffer(tokenizer.to_json().encode(), np.uint8)}
    arrays.update((name, aligned(array)) for name, array in pack_model(checkpoint, dtype, progress))
    return arrays, meta


def read_packed(path: Path) -> PackedModel:
    """Map a packed file, its checksum verified.

    Raises OSError, and ValueError, KeyError, TypeError or ModelError for one that is cut short, damaged or of another version.
    """
    with open(path, "rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    packed = _open_mapped(memoryview(view))
    _forget_pages(view, packed.arrays["embedding"])
    return packed


def write_packed(file: Any, arrays: dict[str, Array], meta: dict[str, str]) -> None:
    """Write what `pack` gives to a binary file that can seek."""
    header: dict[str, Any] = {"__metadata__": meta}
    at = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += -(-array.nbytes // ALIGN) * ALIGN
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGN)
    head = len(text).to_bytes(8, "little") + text
    file.write(head)
    digest = xxhash.xxh3_128(head)
    for array in arrays.values():
        data: Any = array.reshape(-1).view(np.uint8)
        for piece in (data.data, bytes(-array.nbytes % ALIGN)):
            digest.update(piece)
            file.write(piece)
    file.seek(head.index(_BEFORE_CHECKSUM) + len(_BEFORE_CHECKSUM))
    file.write(digest.hexdigest().encode())


def _forget_pages(view: mmap.mmap, array: Array) -> None:
    """Let go of pages that only the checksum has touched; those in use come back from the page cache."""
    start = array.ctypes.data - np.frombuffer(view, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (start + array.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
        view.madvise(mmap.MADV_DONTNEED, first, length)


def aligned(array: Array) -> Array:
    """The array, or a copy of it that starts at a multiple of 64 bytes."""
    if array.ctypes.data % ALIGN == 0 and array.flags.c_contiguous:
        return array
    memory = np.empty(array.nbytes + ALIGN, np.uint8)
    start = -memory.ctypes.data % ALIGN
    out = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def _open_mapped(view: memoryview) -> PackedModel:
    length = int.from_bytes(view[:8], "little")
    if length > len(view) - 8:
        raise ValueError("cut short in its header")
    head, data = bytes(view[: 8 + length]), view[8 + length :]
    at = head.index(_BEFORE_CHECKSUM) + len(_BEFORE_CHECKSUM)
    end = at + len(_CHECKSUM)
    digest = xxhash.xxh3_128(head[:at] + _CHECKSUM.encode() + head[end:])
    digest.update(data)
    if digest.hexdigest().encode() != head[at:end]:
        raise ValueError("checksum does not match")
    header = json.loads(head[8:])
    meta = header.pop("__metadata__")
    if meta["version"] != VERSION:
        raise ValueError(f"version {meta['version']}, not {VERSION}")
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        flat = np.frombuffer(data[begin:end], _DTYPES[entry["dtype"]])
        arrays[name] = flat.reshape(entry["shape"])
    return packed_model(arrays, meta)


def packed_model(arrays: dict[str, Array], meta: dict[str, str]) -> PackedModel:
    """The model of arrays and metadata as `pack` gives them."""
    arrays = dict(arrays)
    tokenizer = arrays.pop("tokenizer").tobytes().decode()
    return PackedModel(
        _config(json.loads(meta["config"])),
        arrays,
        tokenizer,
        json.loads(meta["chat_template"]),
        meta["fingerprint"],
        parse_graph_card(json.loads(meta.get("graph_card", "null"))),
        meta["checksum"],
    )


def _config(values: dict[str, Any]) -> ModelConfig:
    values["rope"] = RopeConfig(**values["rope"])
    values["eos_token_ids"] = tuple(values["eos_token_ids"])
    return ModelConfig(**values)
