"""Bounds of what a caller may have compiled: size, depth and number of values, and how it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from json import dumps, loads
from typing import Any, NoReturn

from vglm.errors import RequestError

MAX_BYTES = 256 * 1024  # of a schema, expression or grammar, as UTF-8
MAX_DEPTH = 128  # arrays and objects within each other
MAX_NODES = 150_000  # values in a JSON document: more do not fit into MAX_BYTES


def refuse(message: str) -> NoReturn:
    """Raises RequestError of the parameter structured_outputs."""
    raise RequestError(f"structured_outputs: {message}", "structured_outputs")


def checked_text(name: str, value: Any) -> str:
    """The value if it is a text, not empty, valid Unicode and not too long."""
    if not isinstance(value, str) or not value:
        refuse(f"{name} is {shown(value)}, but must be a text that is not empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        refuse(f"{name} is not valid Unicode ({error.reason})")
    if size > MAX_BYTES:
        refuse(f"{name} has {size} bytes, but at most {MAX_BYTES} are allowed")
    return value


def parse_object(name: str, value: Any) -> dict[str, Any]:
    """A JSON object, made afresh, from a mapping or from JSON text of bounded size and depth."""
    text = checked_text(name, value) if isinstance(value, str) else _as_json(name, value)
    try:
        parsed = loads(
            text, parse_constant=lambda constant: refuse(f"{name} has {constant}, which is no JSON")
        )
    except RecursionError:
        refuse(f"{name} is nested deeper than {MAX_DEPTH}")
    except RequestError:
        raise
    except ValueError as error:
        refuse(f"{name} is not JSON: {str(error)[:200]}")
    if not isinstance(parsed, dict):
        refuse(f"{name} is {shown(parsed)}, but must be a JSON object")
    check_extent(name, parsed)
    return parsed


def _as_json(name: str, value: Any) -> str:
    if not isinstance(value, Mapping):
        refuse(f"{name} is {shown(value)}, but must be a mapping or JSON text")
    check_extent(name, value)
    try:
        text = dumps(dict(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        refuse(f"{name} cannot be written as JSON: {str(error)[:200]}")
    return checked_text(name, text)


def check_extent(name: str, value: Any) -> None:
    """Refuse a value that is nested too deep (or contains itself) or has too many parts."""
    level, nodes = [value], 0
    for _ in range(MAX_DEPTH + 1):
        containers = [v for v in level if isinstance(v, (Mapping, list, tuple))]
        if not containers:
            return
        level = []
        for container in containers:
            level += container.values() if isinstance(container, Mapping) else container
            nodes += len(container)
            if nodes > MAX_NODES:
                refuse(f"{name} has more than {MAX_NODES} values")
    refuse(f"{name} is nested deeper than {MAX_DEPTH}")


def shown(value: object) -> str:
    """A value as an error message shows it."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a huge number"  # repr() would raise
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
