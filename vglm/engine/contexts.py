"""Contexts: the spans that a request attends to, found in the cache or computed for it.

A request may name spans besides its own tokens (`Request.span_specs`). Those that are cached are held; those that are
missing become small requests of their own, each as soon as its parents are there, and shared by all who wait for it.
When the last one is there, the request is queued like any other, with these spans as its context.

Spans that are held cannot be evicted, so two requests that hold half of their contexts each could wait for each other
for ever. Contexts are therefore gathered only while all that are in use fit into the KV cache together, each span
counted once, and with room for one of their requests to run to its end. The others stand in line, by priority and
arrival; who has waited longer than `max_wait` is next.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from vglm.engine.block_pool import BlockPool
from vglm.engine.request import Request, SpanSpec
from vglm.engine.span_cache import Span, SpanCache, SpanKeys

#: (specification, the spans it attends to, the request that needs it) -> the request that computes it, queued
ComputeSpan = Callable[[SpanSpec, tuple[Span, ...], Request], Request]


def span_keys(keys: SpanKeys, specs: Iterable[SpanSpec]) -> tuple[bytes, ...]:
    """The Merkle key of each span; a parent stands before its children."""
    found: list[bytes] = []
    for spec in specs:
        parents = {found[parent] for parent in spec.parents}
        found.append(keys.key(spec.first_position, spec.tokens.tobytes(), parents))
    return tuple(found)


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


def _describe(request: Request) -> _Gathering:
    keys = request.context_keys
    gathering = _Gathering(request, {}, {}, {})
    for key, spec in zip(keys, request.span_specs, strict=True):
        if key in gathering.specs:
            continue
        gathering.specs[key] = spec
        gathering.parents[key] = tuple(dict.fromkeys(keys[parent] for parent in spec.parents))
        for parent in gathering.parents[key]:
            gathering.children.setdefault(parent, []).append(key)
    return gathering


class Reservations:
    """Which requests' contexts are in use, and how many blocks they can take together."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._users: dict[bytes, int] = {}
        self._requests: dict[
            str, tuple[dict[bytes, int], int]
        ] = {}  # -> blocks of each span, blocks of its own
        self._num_blocks = 0

    def reserve(self, gathering: _Gathering) -> bool:
        """Reserve a context and room to run, unless that is more than there is; one alone always may."""
        request = gathering.request
        spans = {key: self._pool.blocks_for(len(spec.tokens)) for key, spec in gathering.specs.items()}
        own = self._pool.blocks_for(len(request.prompt_token_ids) + request.max_tokens) * request.params.n
        fresh = sum(blocks for key, blocks in spans.items() if key not in self._users)
        longest = max([own, *(own for _, own in self._requests.values())])
        if self._requests and self._num_blocks + fresh + longest > self._pool.num_blocks:
            return False
        self._requests[request.request_id] = spans, own
        self._num_blocks += fresh
        for key in spans:
            self._users[key] = self._users.get(key, 0) + 1
        return True

    def release(self, request: Request) -> bool:
        """Give up what is reserved for a request; False when nothing is."""
        spans, _ = self._requests.pop(request.request_id, (None, 0))
        for key, blocks in (spans or {}).items():
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                self._num_blocks -= blocks
        return spans is not None


class Contexts:
    """The requests whose contexts are being gathered, and the spans that are being computed for them."""

    def __init__(self, cache: SpanCache, compute: ComputeSpan, max_wait: float) -> None:
        self._cache = cache
        self._compute = compute
        self._max_wait = max_wait
        self._line: list[_Gathering] = []  # not begun, by priority and arrival
        self._arrived: dict[str, _Gathering] = {}  # the same, by arrival
        self._gathering: dict[str, _Gathering] = {}  # begun, not queued yet
        self._reservations = Reservations(cache.pool)
        self._computing: dict[bytes, list[_Gathering]] = {}  # span key -> who waits for it
        self._requests: dict[str, bytes] = {}  # ids of the requests that compute spans -> span key

    def __len__(self) -> int:
        return len(self._line) + len(self._gathering)

    def owns(self, request: Request) -> bool:
        """Whether the request computes a span for others."""
        return request.request_id in self._requests

    def held(self) -> Iterator[Span]:
        """Spans that are held for requests which are not queued yet."""
        for gathering in self._gathering.values():
            yield from gathering.spans.values()

    # ---- a request's way: into the line, out of it, complete, taken, ended

    def add(self, request: Request) -> None:
        """Put a request into the line."""
        gathering = _describe(request)
        request.num_context_tokens = sum(len(spec.tokens) for spec in gathering.specs.values())
        insort(self._line, gathering, key=_order)
        self._arrived[request.request_id] = gathering

    def begin(self, now: float) -> list[Request]:
        """Begin with those in the line for whom there is room; the requests that are complete at once."""
        complete: list[Request] = []
        while self._line:
            first = next(iter(self._arrived.values()))
            overdue = now - first.request.queued_time > self._max_wait
            gathering = first if overdue else self._line[0]
            if not self._reservations.reserve(gathering):
                break
            self._leave_line(gathering)
            if self._gather(gathering):
                complete.append(gathering.request)
        return complete

    def _leave_line(self, gathering: _Gathering) -> None:
        del self._arrived[gathering.request.request_id]
        del self._line[bisect_left(self._line, _order(gathering), key=_order)]

    def _gather(self, gathering: _Gathering) -> bool:
        """Hold what is cached and have the rest computed; whether nothing is missing."""
        request = gathering.request
        self._gathering[request.request_id] = gathering
        hits = 0
        for key, spec in gathering.specs.items():
            span = self._cache.fetch(key)
            if span is not None:
                self._hold(gathering, key, span)
                hits += len(spec.tokens)
        request.num_cached_context_tokens = hits
        self._cache.record(hits, hits)  # what is missing counts as asked for when it is computed
        self._compute_missing(gathering, gathering.specs)
        return gathering.complete

    def _hold(self, gathering: _Gathering, key: bytes, span: Span) -> None:
        self._cache.acquire(span)
        gathering.spans[key] = span

    def _compute_missing(self, gathering: _Gathering, keys: Iterable[bytes]) -> None:
        for key in keys:
            if not gathering.computable(key):
                continue
            if key in self._computing:
                self._computing[key].append(gathering)
                continue
            self._computing[key] = [gathering]
            parents = tuple(gathering.spans[parent] for parent in gathering.parents[key])
            request = self._compute(gathering.specs[key], parents, gathering.request)
            self._requests[request.request_id] = key

    def landed(self, request: Request) -> tuple[list[Request], list[Request]]:
        """Take over a finished span request: the requests that are complete now, and those that fail with it.

        The reference that `request.span` comes with is given up.
        """
        key = self._requests.pop(request.request_id)
        waiting = [g for g in self._computing.pop(key) if self._gathering.get(g.request.request_id) is g]
        span = request.span
        if span is None:
            for gathering in waiting:
                gathering.request.error = request.error or "a part of its context was not computed"
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

    def end(self, request: Request) -> None:
        """Forget a request, wherever it is, and give up what is held and reserved for it."""
        if (queued := self._arrived.get(request.request_id)) is not None:
            self._leave_line(queued)
        if (gathering := self._gathering.pop(request.request_id, None)) is not None:
            for span in gathering.spans.values():
                self._cache.release(span)
        self._reservations.release(request)

    def reset(self) -> None:
        """Forget everything without touching the cache (which is reset along with it)."""
        for state in (self._line, self._arrived, self._gathering, self._computing, self._requests):
            state.clear()
        self._reservations = Reservations(self._cache.pool)


def _order(gathering: _Gathering) -> tuple[int, int]:
    return gathering.request.priority, gathering.request.arrival
