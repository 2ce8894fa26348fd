"""What is known of one HTTP request, and who is told when it ends: the log, metrics and traces."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vglm.engine.request import Request
from vglm.serve.logs import log_event

log = logging.getLogger("vglm.serve.access")

PROBES = frozenset(
    {"/health", "/ping", "/metrics", "/version", "/load"}
)  # asked every few seconds: logged as debug
Decode = Callable[[list[int]], str]
CLIENT_GONE = 499  # the status of a request whose client left before its answer began
_ID = re.compile(rb"[\x21-\x7e][\x20-\x7e]{0,127}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


class RequestRecord:
    """One HTTP request, from its head to the end of its answer. Times are seconds of `time.perf_counter`.

    Whoever serves it finds it as `request.state.record` and tells it the engine's requests with `add`.
    """

    __slots__ = (
        "client", "ended", "method", "path", "request_id", "requests", "route", "started", "started_ns", "state",
        "status", "streamed", "traceparent", "tracestate",
    )  # fmt: skip

    def __init__(
        self, scope: Scope, request_id: str, traceparent: str | None, tracestate: str | None
    ) -> None:
        self.started = time.perf_counter()
        self.started_ns = time.time_ns()
        self.ended = 0.0
        self.request_id = request_id
        self.traceparent = traceparent
        self.tracestate = tracestate
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        client = scope.get("client")
        self.client: str | None = f"{client[0]}:{client[1]}" if client else None
        self.state: dict[str, Any] = scope["state"]
        self.status = 0
        self.streamed = False
        self.route: str | None = None  # the path's pattern, when there is one
        self.requests: list[Request] = []

    def add(self, requests: Iterable[Request]) -> None:
        """The engine's requests that this one has become; they are looked at when it ends."""
        self.requests.extend(requests)

    @property
    def api_key_name(self) -> str | None:
        """Whose key was presented."""
        name: str | None = self.state.get("api_key_name")
        return name

    @property
    def trace_id(self) -> str | None:
        """The trace that the client has begun, 32 hexadecimal digits."""
        return self.traceparent.split("-")[1] if self.traceparent else None

    @property
    def seconds(self) -> float:
        """From the head to the end of the answer."""
        return self.ended - self.started

    def wall_clock(self, time: float) -> int:
        """A time of `time.perf_counter` as nanoseconds since 1970."""
        return self.started_ns + int(1e9 * (time - self.started))

    @property
    def seconds_to_first_token(self) -> float | None:
        """From the head to the engine's first token."""
        first = min((r.first_token_time for r in self.requests if r.first_token_time), default=0.0)
        return first - self.started if first else None

    @property
    def prompt_tokens(self) -> int | None:
        """Of all prompts with their graphs; None when there was none."""
        if not self.requests:
            return None
        return sum(len(r.prompt_token_ids) + r.num_context_tokens for r in self.requests)

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens whose KV was cached."""
        if not self.requests:
            return None
        return sum(r.num_cached_tokens + r.num_cached_context_tokens for r in self.requests)

    @property
    def completion_tokens(self) -> int | None:
        """Generated tokens of all sequences."""
        return (
            sum(len(s.output_token_ids) for r in self.requests for s in r.sequences)
            if self.requests
            else None
        )

    @property
    def finish_reason(self) -> str | None:
        """Why generation ended; several reasons are joined by commas."""
        reasons = {s.finish_reason for r in self.requests for s in r.sequences if s.finish_reason}
        return ",".join(sorted(reasons)) or None


class RequestObserver(Protocol):
    """Wants to know of every HTTP request. Called in the event loop; must be quick and not raise."""

    def began(self, record: RequestRecord) -> None:
        """Its head is complete."""

    def ended(self, record: RequestRecord) -> None:
        """Its answer is complete, or nobody wants it any more."""


class AccessLog:
    """ASGI: gives each request an id and a record, and tells the log and the observers when it has ended.

    Stands outermost, so that refusals are logged too. The answer carries the id as X-Request-Id: the client's own when it is
    printable ASCII of at most 128 characters, else a new one.
    """

    def __init__(
        self, app: ASGIApp, observers: Sequence[RequestObserver] = (), decode: Decode | None = None
    ) -> None:
        """`decode`: turns token ids into text; given, prompts and outputs are logged, and never without."""
        self.app = app
        self.observers = observers
        self.decode = decode

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on and report (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = _record(scope)
        id_header = (b"x-request-id", record.request_id.encode())

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), id_header]}
            elif message.get("more_body", False):
                record.streamed = True
            await send(message)

        for observer in self.observers:
            observer.began(record)
        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            record.status = record.status or CLIENT_GONE
            raise
        except Exception:
            record.status = record.status or 500
            raise
        finally:
            self._end(record, scope)

    def _end(self, record: RequestRecord, scope: Scope) -> None:
        record.ended = time.perf_counter()
        record.status = record.status or CLIENT_GONE
        record.route = getattr(scope.get("route"), "path", None)
        for observer in self.observers:
            observer.ended(record)
        quiet = record.path in PROBES and record.status < 400
        level = logging.DEBUG if quiet else logging.ERROR if record.status == 500 else logging.INFO
        if log.isEnabledFor(level):
            log_event(log, level, "request", _fields(record, self.decode))


def _record(scope: Scope) -> RequestRecord:
    """The record of a new request; it and its id are in the scope's state from now on."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in (b"x-request-id", b"traceparent", b"tracestate"):
            found.setdefault(name, value)
    own = found.get(b"x-request-id", b"")
    request_id = own.decode() if _ID.fullmatch(own) else secrets.token_hex(16)
    traceparent = found.get(b"traceparent", b"")
    parent = (
        traceparent.decode() if _TRACEPARENT.fullmatch(traceparent) and traceparent[:2] != b"ff" else None
    )
    state = scope.setdefault("state", {})
    record = RequestRecord(
        scope, request_id, parent, found.get(b"tracestate", b"").decode("latin-1") if parent else None
    )
    state["request_id"] = request_id
    state["record"] = record
    return record


def _fields(record: RequestRecord, decode: Decode | None) -> dict[str, Any]:
    first = record.seconds_to_first_token
    priorities = {request.priority for request in record.requests}
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "api_key_name": record.api_key_name,
        "client": record.client,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "e2e_ms": round(1e3 * record.seconds, 3),
        "ttft_ms": None if first is None else round(1e3 * first, 3),
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "finish_reason": record.finish_reason,
        "priority": min(priorities) if priorities else None,
        "error": next((request.error for request in record.requests if request.error), None),
    }
    if decode is not None and record.requests:
        fields["prompts"] = [decode(request.prompt_token_ids) for request in record.requests]
        fields["outputs"] = [
            decode(s.output_token_ids) for request in record.requests for s in request.sequences
        ]
    return fields
