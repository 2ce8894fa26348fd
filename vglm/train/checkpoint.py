"""Checkpoints: one safetensors file whose metadata hold everything that is no tensor, replaced atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vglm.errors import ConfigError

_FORMAT = "vglm-checkpoint-1"


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write nested dicts, lists and tuples of JSON values, NumPy arrays and tensors; never half of them.

    The file is complete on disk before it takes the name, so that a kill or a power cut leaves the old or the new one.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = json.dumps(_split(content, tensors))
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file(tensors, temporary, metadata={"format": _FORMAT, "content": tree})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """What `write_checkpoint` wrote, None if there is no file. Raises ConfigError for any other file."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except SafetensorError as error:
        raise ConfigError(f"{path}: the checkpoint is damaged ({error}); remove it to begin anew") from None
    if metadata.get("format") != _FORMAT:
        raise ConfigError(f"{path}: not a checkpoint of this program; name another folder")
    content: dict[str, Any] = _join(json.loads(metadata["content"]), tensors)
    return content


def _split(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON values for `value`, its tensors and arrays moved into `tensors`.

    Dicts become lists of pairs, for JSON has no keys but strings and an optimizer's are integers.
    """
    if isinstance(value, torch.Tensor | np.ndarray):
        name = str(len(tensors))
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        tensor = value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(value)
        tensors[name] = tensor.clone().contiguous()  # tied weights share memory, which safetensors refuses
        return {kind: name}
    if isinstance(value, dict):
        return {"dict": [[key, _split(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_split(item, tensors) for item in value]}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _join(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, item),) = value.items()
    if kind == "tensor":
        return tensors[item]
    if kind == "array":
        return tensors[item].numpy()
    if kind == "dict":
        return {key: _join(inner, tensors) for key, inner in item}
    joined = [_join(inner, tensors) for inner in item]
    return joined if kind == "list" else tuple(joined)
