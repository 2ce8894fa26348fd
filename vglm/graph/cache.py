"""Parsed graphs kept on disk as plain arrays: an .npz of numbers and bytes, and JSON; never pickled
objects."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError
from vglm.graph.graph import Columns, Graph
from vglm.graph.strings import StringTable

FORMAT = 2  # raise it when what is written changes, or how a ranking index is computed
Arrays = dict[str, npt.NDArray[Any]]
_log = logging.getLogger(__name__)


def source_key(paths: Iterable[Path]) -> str:
    """SHA-256 (hex) over this format and each file's absolute path, size and modification time."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([FORMAT, stats]).encode()).hexdigest()


def write(path: Path, key: str, meta: dict[str, Any], arrays: Arrays) -> bool:
    """Writes a cache file in one atomic step; a full or read-only disk costs the cache only, and is logged.

    Two processes may write at once: each writes its own file, and the last rename wins with equal content.
    """
    header = json.dumps({"format": FORMAT, "key": key, "meta": meta}).encode()
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, header=np.frombuffer(header, np.uint8), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _log.warning("the parsed graph is not cached: %s: %s", path, error.strerror or error)
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        return False
    return True


def read(path: Path, key: str) -> tuple[dict[str, Any], Arrays] | None:
    """What `write` wrote under this key, or None if there is none, it is older, cut short or damaged
    (CRC)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            if header["format"] != FORMAT or header["key"] != key:
                return None
            return header["meta"], {name: file[name] for name in file.files if name != "header"}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("the cached graph %s is unusable and will be written anew: %s", path, error)
        return None


def graph_to_arrays(graph: Graph) -> tuple[dict[str, Any], Arrays]:
    """A graph as named arrays and a small JSON part."""
    meta: dict[str, Any] = {}
    arrays: Arrays = {}
    for column in fields(Columns):
        value = getattr(graph.columns, column.name)
        if isinstance(value, StringTable):
            arrays[f"graph.{column.name}.data"], arrays[f"graph.{column.name}.offsets"] = (
                value.data,
                value.offsets,
            )
        elif isinstance(value, tuple):
            meta[column.name] = list(value)
        else:
            arrays[f"graph.{column.name}"] = value
    return meta, arrays


def graph_from_arrays(meta: dict[str, Any], arrays: Arrays) -> Graph:
    """The graph that `graph_to_arrays` took apart; raises GraphError if the parts do not fit together."""
    parts: dict[str, Any] = {name: tuple(value) for name, value in meta.items()}
    for name, array in arrays.items():
        group, _, column = name.partition(".")
        if group == "graph" and name.endswith(".data"):
            column = column.removesuffix(".data")
            parts[column] = StringTable(array, arrays[f"graph.{column}.offsets"])
        elif group == "graph" and not name.endswith(".offsets"):
            parts[column] = array
    columns = Columns(**parts)
    nodes, edges = len(columns.ids), len(columns.sources)
    for indices, length, bound in (
        (columns.node_types, nodes, len(columns.type_names)),
        (columns.sources, edges, nodes),
        (columns.targets, edges, nodes),
        (columns.relations, edges, len(columns.relation_names)),
        (columns.edge_attributes, edges, len(columns.edge_attribute_texts)),
    ):
        if len(indices) != length or (length and not 0 <= int(indices.min()) <= int(indices.max()) < bound):
            raise GraphError("cached graph: a column is out of range; delete the cache file")
    return Graph(columns)
