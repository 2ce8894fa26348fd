"""Models that are made of another one: a directory whose `config.json` names a base model and the files that go with it.

    {"name": "open-autoglm-v1", "version": "1.0", "base_model": "smollm2-135m-instruct",
     "vglm_graph": {"spans": true, "span_tokens": 128, "levels": 2, "heading": "Graph:\\n"},
     "files": {"adapter.safetensors": "<SHA-256>", "encoder.safetensors": "<SHA-256>"}}

`base_model` is a known name, or a path, from the directory itself if it is a relative one. Files are optional:
`adapter.safetensors` is merged into the base's weights (vglm/model/adapter.py), the others belong to tasks. The models that
come with vGLM lie in the repository's `models/`, and in the package itself once it is installed from a wheel.

An exported model (vglm/model/export.py) has such a card, too, with `packed_dtype` instead of `base_model`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from vglm.errors import ModelError
from vglm.model.graph_card import CONFIG_KEY, GraphCard, parse_graph_card
from vglm.model.safetensors_dir import read_json

CARD = "config.json"
ADAPTER = "adapter.safetensors"
MAX_FILE = 4 << 30
BASE_KEY = "base_model"
PACKED_KEY = "packed_dtype"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What `config.json` says; `files` are SHA-256 digests by file name, lower-case hexadecimal.

    Either `base_model` or `packed_dtype` is some text, the other is "".
    """

    name: str
    version: str
    base_model: str
    packed_dtype: str
    graph: GraphCard | None
    files: Mapping[str, str]


def is_bundle(path: Path) -> bool:
    """Whether a path is a directory with a card that names a base model."""
    return _has(path, BASE_KEY)


def is_exported(path: Path) -> bool:
    """Whether a path is a directory with the card of an exported model."""
    return _has(path, PACKED_KEY)


def _has(path: Path, key: str) -> bool:
    card = path / CARD
    if not os.path.isfile(card):  # unlike Path.is_file, it answers False for names too long to be a path
        return False
    try:
        return key in read_json(card)
    except (OSError, ModelError):
        return False  # whoever opens it as another kind of model says what is wrong


def read_card(directory: Path) -> ModelCard:
    """The card of a directory. Raises ModelError that says which field is wrong."""
    path = directory / CARD
    try:
        raw = read_json(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    kind = BASE_KEY if BASE_KEY in raw else PACKED_KEY
    for key in ("name", "version", kind):
        if not isinstance(raw.get(key), str) or not 0 < len(raw[key]) <= 4096:
            raise ModelError(f"{path}: {key!r} must be some text, found {_shown(raw.get(key))}")
    try:
        graph = parse_graph_card(raw.get(CONFIG_KEY))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    files = _files(path, raw.get("files", {}))
    base, packed = (raw[key] if key == kind else "" for key in (BASE_KEY, PACKED_KEY))
    return ModelCard(raw["name"], raw["version"], base, packed, graph, files)


def _files(path: Path, files: Any) -> dict[str, str]:
    if not isinstance(files, dict):
        raise ModelError(f"{path}: 'files' must be SHA-256 digests by file name, found {_shown(files)}")
    for name, digest in files.items():
        # a card must not be able to point outside its directory
        if not _PLAIN_NAME.fullmatch(name) or ".." in name:
            raise ModelError(f"{path}: files: {_shown(name)} is not a plain file name")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ModelError(f"{path}: files: {name!r} needs its SHA-256 in 64 lower-case digits")
    return files


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def card_file(directory: Path, name: str) -> Path | None:
    """A file that the card lists, its content checked; None if it lists none of this name.

    Raises ModelError when the file is missing or is not the one that the card means.
    """
    expected = read_card(directory).files.get(name)
    if expected is None:
        return None
    path = directory / name
    try:
        if path.stat().st_size > MAX_FILE:
            raise ModelError(f"{path}: {path.stat().st_size:,} bytes are more than the limit of {MAX_FILE:,}")
        found = sha256(path)
    except OSError as error:
        raise ModelError(f"{path}: the card lists it, but: {error.strerror or error}") from error
    if found != expected:
        raise ModelError(f"{path}: damaged or changed: its SHA-256 is {found}, {CARD} says {expected}")
    return path


def write_card(
    directory: Path,
    *,
    name: str,
    version: str,
    base_model: str,
    graph: GraphCard | None,
    files: Iterable[str] = (),
) -> ModelCard:
    """Write the card of a directory whose `files` are there already, and return it. Raises ModelError or OSError."""
    digests = {file: sha256(directory / file) for file in sorted(files)}
    card: dict[str, Any] = {"name": name, "version": version, "base_model": base_model}
    if graph is not None:
        card[CONFIG_KEY] = asdict(graph)
    card["files"] = digests
    (directory / CARD).write_text(json.dumps(card, indent=2) + "\n", "utf-8")
    return read_card(directory)


def content_state(path: Path) -> str:
    """A digest of what a bundle does to its base's weights and prompts: its card and its adapter, whole."""
    digest = xxhash.xxh3_128()
    for name in (CARD, ADAPTER):
        file = path / name
        content = file.read_bytes() if file.is_file() else b""
        digest.update(f"{name}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bundled_directory(name: str) -> Path | None:
    """Where a model that comes with vGLM lies; None if this installation has it not."""
    package = Path(__file__).parents[1]
    for models in (package / "_models", package.parent / "models"):
        if (models / name / CARD).is_file():
            return models / name
    return None
