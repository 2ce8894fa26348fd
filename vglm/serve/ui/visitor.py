"""Who looks at the page: the key that was given, checked before every action as the endpoints check theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from starlette.types import Scope

from vglm.serve.access_log import Decode, RequestObserver
from vglm.serve.auth import ApiKey, ApiKeys
from vglm.serve.errors import ApiError
from vglm.serve.serving import Serving


@dataclass(frozen=True, slots=True)
class Host:
    """What the page stands on: the server's parts that it shares with the endpoints. `keys`: None where none is needed."""

    serving: Serving
    keys: ApiKeys | None = None
    observers: Sequence[RequestObserver] = ()
    decode: Decode | None = None


@dataclass(slots=True)
class Visitor:
    """One browser tab."""

    host: Host
    client: tuple[str, int] | None = None
    key: bytes = field(default=b"", repr=False)

    async def check(self) -> ApiKey | None:
        """The visitor's key; None where none is needed. Raises ApiError (401) when it is not, or no longer, valid."""
        keys = self.host.keys
        if keys is None:
            return None
        await keys.refresh()
        found = keys.match(self.key)
        if found is None:
            raise ApiError(401, "this API key is not valid; ask whoever runs the server for one")
        return found

    async def scope(self) -> Scope:
        """A question as an HTTP request, for what stands around requests. Raises ApiError (401)."""
        key = await self.check()
        state: dict[str, Any] = {}
        if key is not None:
            state = {"api_key_name": key.name, "api_key_limit": key.max_concurrent}
        return {
            "type": "http",
            "method": "POST",
            "path": "/",
            "route": SimpleNamespace(path="/"),
            "query_string": b"",
            "headers": [],
            "client": self.client,
            "state": state,
        }
