"""Values of other libraries as JSON values: numbers of numpy, dates, sets, bytes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from vglm.errors import GraphError
from vglm.graph.limits import MAX_DEPTH, MAX_VALUES


def plain_fields(fields: Mapping[Any, Any], where: str) -> dict[Any, Any]:
    """Each value as JSON has it: arrays and sets are lists, dates ISO 8601, bytes base64.

    What has no such form stays as it is, for whoever checks attributes to refuse. Raises GraphError for more
    values than a graph takes.
    """
    return {key: _Plain(f"{where}.{key}").of(value, 0) for key, value in fields.items()}


def plain(value: Any, where: str) -> Any:
    """One value as JSON has it; see `plain_fields`."""
    return _Plain(where).of(value, 0)


class _Plain:
    """Counts values, so that a list that holds itself twice ends."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._count = 0

    def of(self, value: Any, depth: int) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise GraphError(f"{self._where}: more than {MAX_VALUES:,} values")
        if value is None or type(value) in (str, int, float, bool):
            return value
        if depth > MAX_DEPTH:
            raise GraphError(f"{self._where}: nested more than {MAX_DEPTH} levels deep")
        for name in (
            "tolist",
            "isoformat",
            "iso_format",
        ):  # arrays; dates; dates of neo4j, some of which are tuples
            convert = getattr(value, name, None)
            if callable(convert):
                return self.of(convert(), depth + 1)
        if isinstance(value, Mapping):
            return {key: self.of(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(item, depth + 1) for item in value]
        if isinstance(value, set | frozenset):
            return sorted((self.of(item, depth + 1) for item in value), key=_order)
        if isinstance(value, bytes | bytearray):
            return base64.b64encode(value).decode()
        return value


def _order(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)
