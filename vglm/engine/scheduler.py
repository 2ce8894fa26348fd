"""Continuous batching under one rule: every sequence has `num_tokens` known and `num_computed` done, and
each step hands out a token budget so that `num_computed` catches up. Prefill, chunked prefill and decode
are the same thing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

from vglm.engine.block_manager import BlockManager
from vglm.engine.request import RequestKind, Sequence, Status
from vglm.engine.span_cache import Span
from vglm.errors import ConfigError

Scheduled = list[tuple[Sequence, int]]


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of a step: sequences at once, tokens per step, tokens per sequence."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_model_len: int = 2048

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1 or self.max_model_len < 2:
            raise ConfigError(
                f"max_num_seqs must be at least 1 and max_model_len at least 2, "
                f"got {self.max_num_seqs} and {self.max_model_len}"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), so that every running sequence can advance in every step"
            )


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order


class Scheduler:
    """Decides which sequences run in a step and with how many tokens.

    A running sequence has a slot, where the step builder keeps its sampling parameters. Both queues are
    sorted by (priority, arrival, index): the front is served first, the back is preempted first. A sequence
    whose next blocks are being computed by a running one is parked until they are in the cache. Only
    running sequences compute, parked ones hold nothing, and whoever stops running wakes those parked on it:
    no deadlock.
    """

    def __init__(self, config: SchedulerConfig, blocks: BlockManager) -> None:
        self.config = config
        self.blocks = blocks
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._free_slots = list(range(config.max_num_seqs))
        self.num_preemptions = 0
        self.found: list[Sequence] = []  # span requests whose span was in the cache after all
        self._in_flight: dict[bytes, Sequence] = {}  # span key -> the running sequence that computes it
        self._parked: dict[bytes, list[Sequence]] = {}  # span key -> sequences that wait for it

    @property
    def num_parked(self) -> int:
        """Waiting sequences that wait for another sequence's spans."""
        return sum(map(len, self._parked.values()))

    @property
    def has_unfinished(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self.waiting or self.running or self._parked)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        insort(self.waiting, sequence, key=_order)

    def schedule(self) -> Scheduled:
        """[(sequence, tokens to compute)] of the next step: one token for every running sequence, then the
        rest of the budget in order, then new sequences. Preempts from the back when blocks run out.
        """
        spare = self.config.max_num_batched_tokens - len(self.running)
        scheduled: Scheduled = []
        i = 0
        while i < len(self.running):
            sequence = self.running[i]
            while not self.blocks.may_append(sequence):
                spare += 1
                if self._preempt(self.running[-1]) is sequence:
                    break
            else:
                num_tokens = min(sequence.num_tokens - sequence.num_computed, 1 + spare)
                spare -= num_tokens - 1
                scheduled.append((sequence, num_tokens))
                i += 1
        self._admit(scheduled, spare)
        return scheduled

    def _admit(self, scheduled: Scheduled, spare: int) -> None:
        """Start waiting sequences in order; a head that does not fit blocks those behind it."""
        while self.waiting and spare > 0:
            sequence = self.waiting[0]
            if len(_lanes(sequence)) > len(self._free_slots):
                return
            keys = self.blocks.reusable_keys(sequence)
            hits = self.blocks.cache.lookup(keys)
            if hits and sequence.request.kind is RequestKind.SPAN:
                self._find(self.waiting.pop(0), hits[0])
                continue
            if key := self._key_in_flight(keys[len(hits) :]):
                self._parked.setdefault(key, []).append(self.waiting.pop(0))
                continue
            # NOTE: each running sequence may need one more block soon; starting one must not preempt another.
            if not self.blocks.allocate(sequence, hits, reserve=len(self.running)):
                return
            self._start(self.waiting.pop(0))
            num_tokens = min(sequence.num_tokens - sequence.num_computed, spare)
            spare -= num_tokens
            scheduled.append((sequence, num_tokens))

    def _key_in_flight(self, keys: list[bytes]) -> bytes | None:
        """The last key of the run of missing keys that running sequences are computing."""
        found = None
        for key in keys:
            if key not in self._in_flight:
                break
            found = key
        return found

    def _find(self, sequence: Sequence, span: Span) -> None:
        self.blocks.cache.acquire(span)
        sequence.request.span = span
        self.found.append(sequence)

    def _start(self, sequence: Sequence) -> None:
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=_order)
        for lane in _lanes(sequence):
            lane.slot = self._free_slots.pop()
        if not sequence.num_preemptions:
            hits = sequence.num_computed
            self.blocks.cache.record(sequence.num_tokens, hits)
            sequence.request.num_cached_tokens = hits
        for key in sequence.keys[sequence.num_span_pages :]:
            self._in_flight.setdefault(key, sequence)

    def _preempt(self, sequence: Sequence) -> Sequence:
        """Back to the queue: its private blocks are freed, its spans stay while memory allows."""
        self._stop(sequence)
        sequence.status = Status.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.add(sequence)
        return sequence

    def _stop(self, sequence: Sequence) -> None:
        del self.running[bisect_left(self.running, sequence.order, key=_order)]
        for lane in _lanes(sequence):
            self._free_slot(lane)
        pending = sequence.keys[sequence.num_span_pages :]
        self.blocks.free(sequence)
        for key in pending:
            if self._in_flight.get(key) is sequence:
                self._wake(key)

    def _free_slot(self, sequence: Sequence) -> None:
        if sequence.slot >= 0:
            self._free_slots.append(sequence.slot)
            sequence.slot = -1

    def _wake(self, key: bytes) -> None:
        del self._in_flight[key]
        for sequence in self._parked.pop(key, ()):
            self.add(sequence)

    def commit(self, sequence: Sequence, num_tokens: int) -> None:
        """Count tokens that a step has computed; sequences that waited for the new spans become eligible."""
        for key in self.blocks.commit(sequence, num_tokens):
            if key in self._in_flight:
                self._wake(key)

    def fork(self, sequence: Sequence) -> None:
        """Start the other sequences of a request whose prompt has just been computed, sharing its pages."""
        children, sequence.request.forks = sequence.request.forks, []
        for child in children:
            self.blocks.fork(sequence, child)
            child.status = Status.RUNNING
            insort(self.running, child, key=_order)

    def finish(self, sequence: Sequence) -> None:
        """Remove a sequence, wherever it is, and take its pages back."""
        if sequence.status is Status.RUNNING:
            self._stop(sequence)
        elif sequence.status is Status.FORKING:
            sequence.request.forks.remove(sequence)
            self._free_slot(sequence)
        elif sequence.status is Status.WAITING:
            self._unqueue(sequence)
        sequence.status = Status.FINISHED

    def _unqueue(self, sequence: Sequence) -> None:
        i = bisect_left(self.waiting, sequence.order, key=_order)
        if i < len(self.waiting) and self.waiting[i] is sequence:
            del self.waiting[i]
            return
        for key, parked in self._parked.items():
            if sequence in parked:
                parked.remove(sequence)
                if not parked:
                    del self._parked[key]
                return

    def check_integrity(self) -> None:
        """Assert that the queues are sorted and that what a parked sequence waits for is being computed."""
        for queue in (self.waiting, self.running):
            assert queue == sorted(queue, key=_order), "a queue is out of order"
        assert all(sequence.status is Status.RUNNING for sequence in self.running), (
            "a running status is wrong"
        )
        for key, owner in self._in_flight.items():
            assert owner in self.running, "a span in flight has no running owner"
            assert key in owner.keys[owner.num_span_pages :], "a span in flight is not its owner's"
        assert self._parked.keys() <= self._in_flight.keys(), (
            "a sequence waits for a span that nobody computes"
        )
        slots = [lane.slot for sequence in self.running for lane in _lanes(sequence)]
        assert sorted(slots + self._free_slots) == list(range(self.config.max_num_seqs)), (
            "slots are not conserved"
        )


def _lanes(sequence: Sequence) -> list[Sequence]:
    """The sequences that need a slot when this one runs: itself and the forks that it will have."""
    return [sequence, *sequence.request.forks] if sequence.index == 0 else [sequence]
