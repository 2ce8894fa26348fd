"""What a graph from outside may contain: every size has a limit, and what breaks one is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vglm.errors import GraphError


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds for one graph; lengths are in characters, `attributes` counts the JSON text."""

    nodes: int = 5_000_000
    edges: int = 50_000_000
    id: int = 1_000
    name: int = 10_000
    type: int = 1_000
    relation: int = 1_000
    text: int = 1_000_000
    aliases: int = 10_000
    attributes: int = 1_000_000
    closure: int = 5_000_000  # (node, ancestor) pairs that a closure may produce
    bytes: int = 1 << 33  # of a file, decompressed


DEFAULT_LIMITS = Limits()
MAX_DEPTH = 32
MAX_VALUES = 200_000


def shown(value: object, length: int = 60) -> str:
    """`value` for an error message, shortened, so that a hostile input cannot flood a terminal."""
    if isinstance(value, str):
        return repr(value) if len(value) <= length else f"{value[:length]!r}... ({len(value)} characters)"
    if isinstance(value, bool | int | float) or value is None:
        return repr(value)[:length]
    return f"a {type(value).__name__}"


def checked_text(value: object, where: str, limit: int, *, empty: bool = True) -> str:
    """`value` if it is a string of at most `limit` characters and valid Unicode, else GraphError naming
    `where`."""
    if not isinstance(value, str):
        raise GraphError(f"{where}: expected a string, found {shown(value)}")
    if len(value) > limit:
        raise GraphError(f"{where}: {len(value):,} characters, the limit is {limit:,}")
    if not empty and not value:
        raise GraphError(f"{where}: is empty")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise GraphError(
                f"{where}: not valid Unicode at character {error.start} (a lone surrogate)"
            ) from error
    return value


def checked_id(value: object, where: str, limit: int) -> str:
    """A node id: a string, or an integer, which is written in decimal (networkx numbers its nodes)."""
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 10**20:
            raise GraphError(f"{where}: the number is too large for an id")
        value = str(value)
    return checked_text(value, where, limit, empty=False)


def canonical_json(attributes: object, where: str, limit: int) -> str:
    """Attributes as JSON with sorted keys ("" when there are none), so that equal attributes are equal text.

    Raises GraphError for anything that JSON cannot hold exactly: other objects, NaN, infinity, keys that
    are not strings, cycles, nesting that is too deep, or more than `limit` characters.
    """
    if not isinstance(attributes, Mapping):
        raise GraphError(f"{where}: expected an object, found {shown(attributes)}")
    if not attributes:
        return ""
    try:
        _check_keys(attributes, where)
        text = json.dumps(
            dict(attributes), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, GraphError):
            raise
        raise GraphError(f"{where}: cannot be written as JSON: {error}") from error
    return checked_text(text, where, limit)


def _check_keys(attributes: Mapping[Any, Any], where: str) -> None:
    """Bounded walk: refuses keys that are not strings, deep nesting (cycles too) and too many values."""
    waiting: list[tuple[Any, int]] = [(attributes, 0)]
    visited = 0
    while waiting:
        value, depth = waiting.pop()
        visited += 1
        if depth > MAX_DEPTH:
            raise GraphError(f"{where}: nested more than {MAX_DEPTH} levels deep")
        if visited > MAX_VALUES:
            raise GraphError(f"{where}: more than {MAX_VALUES:,} values")
        if isinstance(value, Mapping):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise GraphError(f"{where}: the key {shown(key)} is not a string")
                waiting.append((item, depth + 1))
        elif isinstance(value, list | tuple):
            waiting.extend((item, depth + 1) for item in value)
