"""Checks that every block and span reference has one owner: all at once, or a slice at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from vglm.engine.request import Status
from vglm.engine.span_cache import Span

if TYPE_CHECKING:
    from vglm.engine.core import EngineCore

SLICE = 512  # blocks or spans that one piece of idle work looks at: some hundred microseconds
TRIM = 1024  # blocks that it gives back to the operating system: about a millisecond


def check_engine(engine: EngineCore, held: Iterable[Span]) -> None:
    """Assert every invariant of the engine; `held` are spans that callers hold."""
    owners = engine.cache.block_owners()
    users: dict[bytes, int] = {}
    sequences = [s for request in engine.requests.values() for s in request.sequences]
    for sequence in sequences:
        for block in sequence.own_pages(sequence.num_span_pages):
            owners[block] = owners.get(block, 0) + 1
    for request in engine.requests.values():
        if request.tree is not None:
            request.tree.check_integrity(request.sequences[0])
            for block in request.tree.held_blocks():
                owners[block] = owners.get(block, 0) + 1
    spans = [span for s in sequences if (span := s.last_span) is not None]
    spans += [*held, *engine.contexts.held()]
    for s in sequences:
        spans += s.request.context if s.status is not Status.FINISHED else ()
    for span in spans:
        users[span.key] = users.get(span.key, 0) + 1
    engine.pool.check_integrity(owners)
    engine.cache.check_integrity(users)
    engine.scheduler.check_integrity()


class IdleWork:
    """What an engine without requests does in small pieces: give free memory back, and check its integrity.

    A round of checks goes over all blocks and all spans, SLICE of them at a time; it starts again when the
    cache has changed in between. Spans may be held by callers, so that their users are not counted here.
    """

    def __init__(self, engine: EngineCore) -> None:
        self._engine = engine
        self._round: Iterator[None] | None = None
        self._state: tuple[int, ...] = ()

    def run(self) -> bool:
        """One piece; whether there is more to do. Raises AssertionError when the integrity is broken."""
        engine = self._engine
        trimmed = engine.pool.trim(TRIM)
        stats = engine.cache.stats
        state = (engine.metrics.num_steps, len(engine.cache), stats.inserted, stats.evicted)
        if self._round is None or state != self._state:
            self._round, self._state = self._slices(), state
        for _ in self._round:
            return True
        self._round = None
        return trimmed == TRIM

    def _slices(self) -> Iterator[None]:
        pool, cache, scheduler = self._engine.pool, self._engine.cache, self._engine.scheduler
        assert not scheduler.has_unfinished, "a sequence has outlived its request"
        scheduler.check_integrity()
        assert pool.num_used == cache.num_blocks, "a block is in use although nobody works with it"
        for start in range(0, pool.num_committed, SLICE):
            pool.check_slice(start, start + SLICE)
            yield
        spans = iter(cache)
        while piece := list(islice(spans, SLICE)):
            for span in piece:
                cache.check_span(span)
                for block, _ in span.blocks:
                    assert pool.ref_count(block) == 1, f"block {block} of a span has another owner"
            yield
