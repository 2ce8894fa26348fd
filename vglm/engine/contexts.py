"""Contexts: the spans that a request attends to, found in the cache or computed for it.

A request may name spans besides its own tokens (`Request.span_specs`). Those that are cached are held; those that are
missing become small requests of their own, each as soon as its parents are there, and shared by all who wait for it.
When the last one is there, the request is queued like any other, with these spans as its context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vglm.engine.request import Request, SpanSpec
from vglm.engine.span_cache import Span, SpanCache, SpanKeys

#: (specification, the spans it attends to, priority) -> the request that computes it, queued
ComputeSpan = Callable[[SpanSpec, tuple[Span, ...], int], Request]


def span_keys(keys: SpanKeys, specs: tuple[SpanSpec, ...]) -> list[bytes]:
    """The Merkle key of each span; a parent stands before its children."""
    found: list[bytes] = []
    for spec in specs:
        parents = sorted({found[parent] for parent in spec.parents})
        found.append(keys.key(spec.first_position, spec.tokens.tobytes(), parents))
    return found


@dataclass(slots=True, eq=False)
class _Gathering:
    """A request and what of its context is there; equal spans are one, so there is an entry for each key."""

    request: Request
    specs: dict[bytes, SpanSpec]
    parents: dict[bytes, tuple[bytes, ...]]
    children: dict[bytes, list[bytes]]
    spans: dict[bytes, Span] = field(default_factory=dict)  # held

    @property
    def complete(self) -> bool:
        return len(self.spans) == len(self.specs)

    def computable(self, key: bytes) -> bool:
        """Whether the span is missing and everything that it attends to is there."""
        return key not in self.spans and all(parent in self.spans for parent in self.parents[key])


class Contexts:
    """The requests whose contexts are being gathered, and the spans that are being computed for them."""

    def __init__(self, cache: SpanCache, keys: SpanKeys, compute: ComputeSpan) -> None:
        self._cache = cache
        self._keys = keys
        self._compute = compute
        self._gathering: dict[str, _Gathering] = {}  # by request id
        self._computing: dict[bytes, list[_Gathering]] = {}  # span key -> who waits for it
        self._requests: dict[str, bytes] = {}  # ids of the requests that compute spans -> span key

    def __len__(self) -> int:
        return len(self._gathering)

    def owns(self, request: Request) -> bool:
        """Whether the request computes a span for others."""
        return request.request_id in self._requests

    def held(self) -> Iterator[Span]:
        """Spans that are held for requests which are not queued yet."""
        for gathering in self._gathering.values():
            yield from gathering.spans.values()

    def gather(self, request: Request) -> bool:
        """Begin to gather a request's context; True when it is complete already (see `take`)."""
        gathering = self._gathering[request.request_id] = self._describe(request)
        hits = 0
        for key, spec in gathering.specs.items():
            span = self._cache.get(key)
            if span is not None:
                self._hold(gathering, key, span)
                hits += len(spec.tokens)
        request.num_context_tokens = sum(len(spec.tokens) for spec in gathering.specs.values())
        request.num_cached_context_tokens = hits
        self._cache.record(request.num_context_tokens, hits)
        self._compute_missing(gathering, gathering.specs)
        return gathering.complete

    def _describe(self, request: Request) -> _Gathering:
        keys = span_keys(self._keys, request.span_specs)
        gathering = _Gathering(request, {}, {}, {})
        for key, spec in zip(keys, request.span_specs, strict=True):
            if key in gathering.specs:
                continue
            gathering.specs[key] = spec
            gathering.parents[key] = tuple(dict.fromkeys(keys[parent] for parent in spec.parents))
            for parent in gathering.parents[key]:
                gathering.children.setdefault(parent, []).append(key)
        return gathering

    def _hold(self, gathering: _Gathering, key: bytes, span: Span) -> None:
        self._cache.acquire(span)
        gathering.spans[key] = span

    def _compute_missing(self, gathering: _Gathering, keys: dict[bytes, SpanSpec] | list[bytes]) -> None:
        for key in keys:
            if not gathering.computable(key):
                continue
            if key in self._computing:
                self._computing[key].append(gathering)
                continue
            self._computing[key] = [gathering]
            parents = tuple(gathering.spans[parent] for parent in gathering.parents[key])
            request = self._compute(gathering.specs[key], parents, gathering.request.priority)
            self._requests[request.request_id] = key

    def landed(self, request: Request) -> tuple[list[Request], list[Request]]:
        """Take over a finished span request: the requests that are complete now, and those that fail with it.

        The reference that `request.span` comes with is given up.
        """
        key = self._requests.pop(request.request_id)
        waiting = [g for g in self._computing.pop(key) if g.request.request_id in self._gathering]
        span = request.span
        if span is None:
            for gathering in waiting:
                gathering.request.error = request.error or "a part of its graph was not computed"
            return [], [gathering.request for gathering in waiting]
        for gathering in waiting:
            self._hold(gathering, key, span)
        self._cache.release(span)
        for gathering in waiting:
            self._compute_missing(gathering, gathering.children.get(key, []))
        return [g.request for g in waiting if g.complete], []

    def take(self, request: Request) -> tuple[Span, ...]:
        """The complete context of a request, in key order; its references pass to the caller."""
        gathering = self._gathering.pop(request.request_id)
        return tuple(gathering.spans[key] for key in sorted(gathering.spans))

    def drop(self, request: Request) -> bool:
        """Forget a request and give up what is held for it; False when it is not here."""
        gathering = self._gathering.pop(request.request_id, None)
        if gathering is None:
            return False
        for span in gathering.spans.values():
            self._cache.release(span)
        return True

    def reset(self) -> None:
        """Forget everything without touching the cache (which is reset along with it)."""
        self._gathering.clear()
        self._computing.clear()
        self._requests.clear()
