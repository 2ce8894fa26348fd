"""Packed weights on disk: written once, then mapped, so that a second start is ready at once.

A cache file is a safetensors file whose data are aligned to 64 bytes, with the model's config, tokenizer and
chat template in it, so that a start reads nothing else. Its name tells the source file's path, size and time
of change; its metadata hold a checksum of the whole file. It is written beside its final name and renamed, so
a reader sees a whole file or none; a file that is cut short, damaged or of another version is packed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import logging
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from vglm.errors import ModelError
from vglm.model.config import ModelConfig, RopeConfig
from vglm.model.graph_card import GraphCard, parse_graph_card
from vglm.model.pull import home

Array = np.ndarray[Any, np.dtype[Any]]

VERSION = "3"  # of the packed layout; a new one packs again
ALIGN = 64
_DTYPES = {"U8": np.uint8, "U16": np.uint16, "F32": np.float32}
_NAMES = {np.dtype(d): name for name, d in _DTYPES.items()}
_CHECKSUM = "0" * 32  # in its own place while the checksum is computed
_BEFORE_CHECKSUM = b'"checksum": "'
log = logging.getLogger("vglm")


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


def load_packed(source: Path, dtype: str, progress: Callable[[float], None]) -> PackedModel:
    """The packed form of a model file or directory, from the cache or made now.

    Raises ModelError when the source cannot be read. A cache that cannot be written (disk full, read-only)
    costs a warning.
    """
    place = _CachePlace(source, dtype)
    if (packed := place.read()) is not None:
        return packed
    with place.lock():
        if (packed := place.read()) is not None:  # another process has packed it while this one waited
            return packed
        return place.write(progress)


class _CachePlace:
    def __init__(self, source: Path, dtype: str) -> None:
        self.source, self.dtype = source, dtype
        path_hash = hashlib.blake2b(str(source.resolve()).encode(), digest_size=8).hexdigest()
        self.prefix = f"{source.stem[:40]}-{dtype}-{path_hash}-"
        self.folder = home() / "packed"
        self.path = self.folder / f"{self.prefix}{_state_of(source)}.safetensors"

    def read(self) -> PackedModel | None:
        try:
            with open(self.path, "rb") as file:
                view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return None
        try:
            packed = _open_mapped(memoryview(view))
        except (ValueError, KeyError, TypeError, ModelError) as error:
            log.warning("packed weights %s are damaged (%s): packing again", self.path, error)
            return None
        _forget_pages(view, packed.arrays["embedding"])
        return packed

    def write(self, progress: Callable[[float], None]) -> PackedModel:
        from vglm.model.checkpoint import open_checkpoint
        from vglm.model.packing import pack_model

        checkpoint = open_checkpoint(self.source)
        tokenizer = checkpoint.tokenizer()
        # the tokenizer knows end tokens that a model's config may not name
        config = dataclasses.replace(checkpoint.config, eos_token_ids=tuple(tokenizer.eos_ids))
        meta = {
            "version": VERSION,
            "config": json.dumps(dataclasses.asdict(config)),
            "chat_template": json.dumps(checkpoint.chat_template),
            "fingerprint": f"{checkpoint.fingerprint}-{self.dtype}",
            "graph_card": checkpoint.graph_card.to_json() if checkpoint.graph_card else "null",
            "checksum": _CHECKSUM,
        }
        arrays = {"tokenizer": np.frombuffer(tokenizer.to_json().encode(), np.uint8)}
        arrays.update((name, _aligned(array)) for name, array in pack_model(checkpoint, self.dtype, progress))
        try:
            self._store(arrays, meta)
        except OSError as error:
            log.warning(
                "cannot keep packed weights in %s (%s): the next start packs them again", self.folder, error
            )
            return _packed(arrays, meta)
        del arrays
        packed = self.read()
        if packed is None:
            raise ModelError(
                f"{self.path}: packed weights changed while they were written; delete the file and retry"
            )
        return packed

    def _store(self, arrays: dict[str, Array], meta: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        prefix = glob.escape(self.prefix)
        for abandoned in self.folder.glob(
            prefix + "*.tmp"
        ):  # by a process that was killed: this one has the lock
            abandoned.unlink(missing_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=self.prefix, suffix=".tmp")
        temporary = Path(name)
        try:
            with open(descriptor, "wb") as file:
                _write(file, arrays, meta)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        for old in self.folder.glob(prefix + "*.safetensors"):
            if old != self.path:  # packed from an earlier state of the same source
                old.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One process packs, the others wait; without a writable folder everyone packs for itself."""
        import fcntl

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / f"{self.prefix}lock", "w")  # noqa: SIM115
        except OSError:
            yield
            return
        with file:
            with contextlib.suppress(OSError):  # a file system without locks: each packs for itself
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _forget_pages(view: mmap.mmap, array: Array) -> None:
    """Let go of pages that only the checksum has touched; those in use come back from the page cache."""
    start = array.ctypes.data - np.frombuffer(view, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (start + array.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
        view.madvise(mmap.MADV_DONTNEED, first, length)


def _state_of(source: Path) -> str:
    digest = hashlib.blake2b(VERSION.encode(), digest_size=8)
    try:
        files = sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]
        states = [(path, path.stat()) for path in files]
    except OSError as error:
        raise ModelError(f"{source}: the model cannot be read: {error.strerror or error}") from error
    for path, stat in states:
        digest.update(f"{path.name}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _aligned(array: Array) -> Array:
    """The array, or a copy of it that starts at a multiple of 64 bytes."""
    if array.ctypes.data % ALIGN == 0 and array.flags.c_contiguous:
        return array
    memory = np.empty(array.nbytes + ALIGN, np.uint8)
    start = -memory.ctypes.data % ALIGN
    out = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def _write(file: Any, arrays: dict[str, Array], meta: dict[str, str]) -> None:
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
    return _packed(arrays, meta)


def _packed(arrays: dict[str, Array], meta: dict[str, str]) -> PackedModel:
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
