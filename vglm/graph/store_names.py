"""Names of graphs, snapshots and versions in a store: what they may be, and what they stand for."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from sqlite3 import Connection

from vglm.errors import ConflictError, GraphError, UnknownGraphError
from vglm.graph import store_schema as rows
from vglm.graph.limits import checked_text, shown
from vglm.graph.store_schema import Damaged, Found

MAX_NAME = 200
_SIGNS = frozenset("._-:@+ ")


@dataclass(frozen=True, slots=True)
class GraphInfo:
    """A stored graph as lists show it: its current version, size and time (Unix seconds), and its bytes on disk."""

    name: str
    version: int
    nodes: int
    edges: int
    updated: float
    bytes: int


def checked_name(value: object, where: str = "name") -> str:
    """A name in composed form (NFC): letters, digits, marks, spaces and . _ - : @ + of any script, so that it fits
    into a URL, a file name and a line of a terminal. Raises GraphError for anything else."""
    name = unicodedata.normalize("NFC", checked_text(value, where, MAX_NAME, empty=False))
    for character in name:
        if character not in _SIGNS and unicodedata.category(character)[0] not in "LMN":
            raise GraphError(
                f"{where}: {shown(name)} has the character {character!r}; "
                "letters, digits, spaces and . _ - : @ + are allowed"
            )
    if name[0] in " .-" or name[-1] == " ":
        raise GraphError(f"{where}: {shown(name)} begins or ends with a space, or begins with . or -")
    return name


def checked_label(value: object) -> str:
    """The label of a snapshot: a name that cannot be taken for the number of a version."""
    label = checked_name(value, "snapshot")
    if label.isdigit():
        raise GraphError(f"snapshot: {shown(label)} is a number, as versions are; begin it with a letter")
    return label


def find(db: Connection, name: str) -> Found:
    """The graph of a name; raises UnknownGraphError if there is none."""
    found = rows.find(db, checked_name(name))
    if found is None:
        raise UnknownGraphError(f"there is no graph named {shown(name)}")
    return found


def expected(db: Connection, name: str, version: int | None) -> Found:
    """`find`; raises ConflictError unless the graph is at this version, where one is expected."""
    found = find(db, name)
    if version is not None and version != found.version:
        raise ConflictError(
            f"the graph {shown(found.name)} is at version {found.version} and not {shown(version)}",
            found.version,
        )
    return found


def resolved(db: Connection, name: str, version: int | str | None) -> Found:
    """The graph with the version that a number or a label stands for (None: the current one)."""
    found = find(db, name)
    if version is None:
        return found
    if isinstance(version, str):
        snapshot = rows.snapshot(db, found.id, checked_label(version))
        if snapshot is None:
            raise UnknownGraphError(f"the graph {shown(found.name)} has no snapshot {shown(version)}")
        return replace(found, version=snapshot.version)
    if not isinstance(version, int) or isinstance(version, bool):
        raise GraphError(f"version: expected a number or the label of a snapshot, found {shown(version)}")
    if not 1 <= version <= found.version or rows.version_of(db, found.id, version) is None:
        raise UnknownGraphError(
            f"the graph {shown(found.name)} has no version {shown(version)}; it is at version {found.version}"
        )
    return replace(found, version=version)


def info(db: Connection, found: Found) -> GraphInfo:
    """What lists show of a graph."""
    current = rows.version_of(db, found.id, found.version)
    if current is None:
        raise Damaged(f"the current version of {shown(found.name)} is missing")
    size = rows.stored_bytes(db, found.id)
    return GraphInfo(found.name, current.number, current.nodes, current.edges, current.created, size)
