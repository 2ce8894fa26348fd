"""JSON through orjson where it is installed: a load generator decodes one document for each token."""

from __future__ import annotations

import json
from typing import Any

try:
    import orjson
except ModuleNotFoundError:
    orjson = None  # type: ignore[assignment]

NOT_JSON = (ValueError, RecursionError)  # what `loads` raises


def _plain_dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


loads = json.loads if orjson is None else orjson.loads
dumps = _plain_dumps if orjson is None else orjson.dumps
