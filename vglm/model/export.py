"""Exported models: a directory with the packed weights of one dtype, which opens by itself, without base or adapter.

    config.json          {"name": ..., "version": ..., "packed_dtype": "int8", "vglm_graph": ..., "files": {...}}
    packed.safetensors   weights, tokenizer, chat template (vglm/model/packed_file.py), with a checksum of its own
    encoder.safetensors  and whatever else the source's card lists, but the adapter, which is in the weights

The weights are to the bit those that the engine would pack from the source; a start maps them and is ready.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vglm.errors import ModelError
from vglm.model.bundle import ADAPTER, CARD, card_file, is_bundle, is_exported, read_card, sha256
from vglm.model.graph_card import CONFIG_KEY, parse_graph_card
from vglm.model.packed_file import VERSION, PackedModel, pack, read_packed, write_packed

PACKED = "packed.safetensors"
README = "README.md"


def export_model(source: Path, dtype: str, out: Path, progress: Callable[[float], None]) -> Path:
    """Write a model file or directory as an exported model to `out`, a directory that is not there yet or empty.

    Whoever looks at `out` sees all of it or nothing. Raises ModelError.
    """
    if is_exported(source):
        raise ModelError(f"{source}: is an exported model already; export the model that it was made from")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ModelError(f"{out}: is there already; give a new directory")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(prefix=f".{out.name}-partial-", dir=out.parent))
        try:
            _write(source, dtype, workspace, progress)
            workspace.chmod(0o755)
            os.replace(workspace, out)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"{out}: the model cannot be written: {error.strerror or error}") from error
    return out


def _write(source: Path, dtype: str, out: Path, progress: Callable[[float], None]) -> None:
    name, version, files = source.stem, "1", {}
    if is_bundle(source):
        card = read_card(source)
        name, version = card.name, card.version
        for listed in card.files:
            if listed != ADAPTER and (path := card_file(source, listed)) is not None:
                shutil.copyfile(path, out / listed)
                files[listed] = sha256(out / listed)
        if (source / README).is_file():
            shutil.copyfile(source / README, out / README)
    arrays, meta = pack(source, dtype, progress)
    with (out / PACKED).open("wb") as file:
        write_packed(file, arrays, meta)
        file.flush()
        os.fsync(file.fileno())
    described: dict[str, Any] = {"name": name, "version": version, "packed_dtype": dtype}
    graph = parse_graph_card(json.loads(meta["graph_card"]))
    if graph is not None:
        described[CONFIG_KEY] = asdict(graph)
    described["files"] = files
    (out / CARD).write_text(json.dumps(described, indent=2) + "\n", "utf-8")


def open_exported(path: Path, dtype: str) -> PackedModel:
    """The weights of an exported model. Raises ModelError, also for a dtype that it does not have."""
    card = read_card(path)
    if dtype != card.packed_dtype:
        raise ModelError(
            f"{path}: was exported as {card.packed_dtype}, and has no {dtype} weights; "
            "open it with dtype='auto', or export it anew"
        )
    try:
        return read_packed(path / PACKED)
    except OSError as error:
        raise ModelError(f"{path / PACKED}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, ModelError) as error:
        raise ModelError(
            f"{path / PACKED}: damaged, or of another version of the layout than {VERSION} ({error}); export it anew"
        ) from error
