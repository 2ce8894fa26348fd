"""A full copy of a graph in the store: its columns, in pieces, each with a checksum."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

import numpy as np

from vglm.errors import GraphError
from vglm.graph.cache import Arrays, graph_from_arrays, graph_to_arrays
from vglm.graph.graph import Graph
from vglm.graph.store_schema import Damaged, digest_of, typed

_PIECE = 8 << 20
_DTYPES = {"|u1", "<i4", "<i8"}
_TEXTS = ("ids", "names", "texts", "aliases", "attributes")

Written = Callable[[int], None]


def write_base(
    db: sqlite3.Connection, graph_id: int, version: int, graph: Graph, written: Written | None = None
) -> None:
    """All columns of a version that has a row; `written` is told of bytes as they go."""
    meta, arrays = graph_to_arrays(graph)
    own, same = _without_repeats(arrays)
    header = {
        "columns": meta,
        "arrays": {name: [array.dtype.str, len(array)] for name, array in own.items()},
        "same": same,
    }
    size = sum(array.nbytes for array in own.values())
    db.execute("INSERT INTO bases VALUES (?, ?, ?, ?)", (graph_id, version, size, json.dumps(header)))
    for part, array in own.items():
        data = np.ascontiguousarray(array).view(np.uint8)
        for number, start in enumerate(range(0, len(data), _PIECE)):
            piece = data[start : start + _PIECE].tobytes()
            row = (graph_id, version, part, number, digest_of(piece), piece)
            db.execute("INSERT INTO pieces VALUES (?, ?, ?, ?, ?, ?)", row)
            if written is not None:
                written(len(piece))
    db.execute("UPDATE versions SET cost = 0 WHERE graph = ? AND version = ?", (graph_id, version))


def read_base(db: sqlite3.Connection, graph_id: int, version: int) -> Graph:
    """What `write_base` wrote; raises Damaged where a checksum or a size is wrong."""
    try:
        row = db.execute(
            "SELECT meta FROM bases WHERE graph = ? AND version = ?", (graph_id, version)
        ).fetchone()
        header = json.loads(row[0])
        data = _pieces(db, graph_id, version)
        arrays = {
            name: _array(data.get(name, b""), dtype, length)
            for name, (dtype, length) in header["arrays"].items()
        }
        arrays |= {name: arrays[first] for name, first in header["same"].items()}
        graph = graph_from_arrays(header["columns"], arrays)
        lengths = {len(getattr(graph.columns, name)) for name in _TEXTS}
        if lengths != {graph.num_nodes}:
            raise Damaged(f"columns of version {version} differ in length")
    except (GraphError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"the columns of version {version} do not fit together: {error}") from error
    return graph


def _pieces(db: sqlite3.Connection, graph: int, version: int) -> dict[str, bytes]:
    rows = db.execute(
        "SELECT part, digest, data FROM pieces WHERE graph = ? AND version = ? ORDER BY part, number",
        (graph, version),
    )
    parts: dict[str, list[bytes]] = {}
    for row in rows:
        part, digest, data = typed(row, str, bytes, bytes)
        if digest_of(data) != digest:
            raise Damaged(f"the checksum of {part} in version {version} is wrong")
        parts.setdefault(part, []).append(data)
    return {part: data[0] if len(data) == 1 else b"".join(data) for part, data in parts.items()}


def _array(data: bytes, dtype: str, length: int) -> Any:
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r}")
    array = np.frombuffer(data, dtype)
    if len(array) != length:
        raise ValueError(f"{len(array)} values instead of {length}")
    return array


def _without_repeats(arrays: Arrays) -> tuple[Arrays, dict[str, str]]:
    """The arrays that differ, and for the others which one they equal: in many graphs the ids are the names."""
    own: Arrays = {}
    same: dict[str, str] = {}
    for name, array in arrays.items():
        for first, other in own.items():
            if array is other or (
                array.dtype == other.dtype and len(array) == len(other) and np.array_equal(array, other)
            ):
                same[name] = first
                break
        else:
            own[name] = array
    return own, same
