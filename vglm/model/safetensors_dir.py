"""Hugging Face directories: `config.json`, one or many safetensors files, `tokenizer.json`."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import xxhash

from vglm.errors import ModelError
from vglm.model.checkpoint import Checkpoint, Float32, TensorSource
from vglm.model.config_hf import config_from_hf, family_of
from vglm.model.graph_card import CONFIG_KEY, parse_graph_card
from vglm.model.names import Shape
from vglm.model.tokenizer import Tokenizer
from vglm.model.tokenizer_hf import tokenizer_from_directory

_DTYPES = {"F32": ("<f4", 4), "F16": ("<f2", 2), "BF16": ("<u2", 2)}
_MAX_HEADER = 100_000_000
_MAX_JSON = 256_000_000


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: the mapped file, byte offset, safetensors dtype name, shape."""

    buffer: mmap.mmap
    offset: int
    dtype: str
    shape: Shape


class SafetensorsTensors(TensorSource):
    """The tensors of one or many mapped safetensors files; bfloat16 is widened, as numpy has none."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self._stored = stored

    def shapes(self) -> Mapping[str, Shape]:
        return {name: tensor.shape for name, tensor in self._stored.items()}

    def format(self, name: str) -> str:
        return self._stored[name].dtype

    def check_readable(self, name: str) -> None:
        dtype = self._stored[name].dtype
        if dtype not in _DTYPES:
            raise ModelError(f"tensor {name!r} is stored as {dtype}; vGLM reads {', '.join(_DTYPES)}")

    def num_bytes(self, name: str) -> int:
        tensor = self._stored[name]
        return int(np.prod(tensor.shape, dtype=object)) * _DTYPES[tensor.dtype][1]

    def rows(self, name: str, start: int, stop: int) -> Float32:
        tensor = self._stored[name]
        dtype, size = _DTYPES[tensor.dtype]
        row = int(np.prod(tensor.shape[1:], dtype=np.int64))
        offset = tensor.offset + start * row * size
        raw = np.frombuffer(tensor.buffer, dtype, (stop - start) * row, offset)
        if tensor.dtype == "BF16":
            values = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            values = raw.astype(np.float32)
        return values.reshape(stop - start, *tensor.shape[1:])


class DirectoryCheckpoint(Checkpoint):
    """A checkpoint in a Hugging Face directory."""

    def tokenizer(self) -> Tokenizer:
        return tokenizer_from_directory(self.path, self.config)


def open_directory(path: Path) -> DirectoryCheckpoint:
    """Open a directory with `config.json` and safetensors weights. Raises ModelError."""
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: no config.json here; a model is a GGUF file or a Hugging Face directory")
    try:
        return _open(path)
    except ModelError as error:
        if str(path) in str(error):
            raise
        raise ModelError(f"{path}: {error}") from error


def _open(path: Path) -> DirectoryCheckpoint:
    raw = read_json(path / "config.json")
    generation_path = path / "generation_config.json"
    generation = read_json(generation_path) if generation_path.is_file() else {}
    config = config_from_hf(raw, generation)
    interleaved = family_of(raw).interleaved
    digest = xxhash.xxh3_128((path / "config.json").read_bytes())
    stored: dict[str, StoredTensor] = {}
    for file in _weight_files(path):
        tensors, header = _read_file(file)
        clash = stored.keys() & tensors.keys()
        if clash:
            raise ModelError(f"{file}: tensor {min(clash)!r} is also in another file of the model")
        stored.update(tensors)
        stat = file.stat()
        digest.update(header)
        digest.update(f"{file.name}:{stat.st_size}:{stat.st_mtime_ns}".encode())
    return DirectoryCheckpoint(
        path,
        config,
        SafetensorsTensors(stored),
        style="hf",
        interleaved=interleaved,
        fingerprint=digest.hexdigest(),
        chat_template=_chat_template(path),
        graph_card=parse_graph_card(raw.get(CONFIG_KEY)),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; ModelError says what else it is."""
    if path.stat().st_size > _MAX_JSON:
        raise ModelError(f"{path}: {path.stat().st_size} bytes are too many for this file")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: must hold a JSON object, found {type(value).__name__}")
    return value


def _weight_files(path: Path) -> list[Path]:
    index_path = path / "model.safetensors.index.json"
    if not index_path.is_file():
        single = path / "model.safetensors"
        if single.is_file():
            return [single]
        hint = " (PyTorch .bin weights are not read: convert them)" if any(path.glob("*.bin")) else ""
        raise ModelError(f"{path}: no model.safetensors and no model.safetensors.index.json{hint}")
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index_path}: no weight_map")
    files = []
    for name in sorted({str(value) for value in weight_map.values()}):
        # A shard is a plain file name: an index must not be able to point outside the model's directory.
        if not name.endswith(".safetensors") or name != Path(name).name or "\\" in name or "\0" in name:
            raise ModelError(f"{index_path}: {name!r} is not a plain file name ending in .safetensors")
        if not (path / name).is_file():
            raise ModelError(f"{index_path}: the shard {name!r} is missing; is the download complete?")
        files.append(path / name)
    return files


def _read_file(path: Path) -> tuple[dict[str, StoredTensor], bytes]:
    """The tensor table of one safetensors file, every range checked against the file, and the raw header."""
    size = path.stat().st_size
    if size < 8:
        raise ModelError(f"{path}: not a safetensors file, it has only {size} bytes")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MAX_HEADER):
            raise ModelError(f"{path}: cut short or damaged: a header of {length} bytes in a file of {size}")
        header = file.read(length)
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        table = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: damaged: the header is not valid JSON: {error}") from error
    if not isinstance(table, dict):
        raise ModelError(f"{path}: damaged: the header is not a JSON object")
    start = 8 + length
    entries = {name: entry for name, entry in table.items() if name != "__metadata__"}
    return {n: _entry(path, n, e, buffer, start, size - start) for n, e in entries.items()}, header


def read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensor table of one safetensors file, every range checked against the file, and its metadata. Raises ModelError."""
    stored, header = _read_file(path)
    metadata = json.loads(header).get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ModelError(f"{path}: damaged: the metadata are not texts by name")
    return stored, metadata


def _entry(
    path: Path, name: str, entry: object, buffer: mmap.mmap, start: int, available: int
) -> StoredTensor:
    if not isinstance(entry, dict):
        raise ModelError(f"{path}: damaged: the entry of tensor {name!r} is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise ModelError(f"{path}: damaged: the entry of tensor {name!r} is malformed")
    begin, end = offsets
    if not begin <= end <= available:
        raise ModelError(f"{path}: cut short or damaged: tensor {name!r} should end at byte {start + end}")
    if dtype in _DTYPES:
        expected = _DTYPES[dtype][1]
        for extent in shape:
            expected *= extent
        if expected != end - begin:
            raise ModelError(
                f"{path}: damaged: tensor {name!r} of shape {shape} does not take {end - begin} bytes"
            )
    return StoredTensor(buffer, start + begin, dtype, tuple(shape))


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= 8
        and all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value)
    )


def _chat_template(path: Path) -> str | None:
    """`chat_template.jinja`, or the template in `tokenizer_config.json` ("default" if it has several)."""
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"{file}: not valid UTF-8") from error
    tokenizer_config = path / "tokenizer_config.json"
    template = read_json(tokenizer_config).get("chat_template") if tokenizer_config.is_file() else None
    if isinstance(template, list):
        named = [t for t in template if isinstance(t, dict)]
        chosen = next((t for t in named if t.get("name") == "default"), named[0] if named else {})
        template = chosen.get("template")
    return template if isinstance(template, str) else None
