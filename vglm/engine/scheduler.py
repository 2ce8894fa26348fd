"""Continuous batching under one rule: every sequence has `num_tokens` known and `num_computed` done, and
each step hands out a token budget so that `num_computed` catches up. Prefill, chunked prefill and decode
are the same thing.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vglm.engine.block_manager import BlockManager
from vglm.engine.in_flight import SpansInFlight
from vglm.engine.request import RequestKind, Sequence, Status
from vglm.engine.span_cache import Span
from vglm.engine.tree import Tree
from vglm.engine.waiting import MAX_PRIORITY, PRIORITY_CLASSES, WaitingQueue, class_name
from vglm.errors import ConfigError

Scheduled = list[tuple[Sequence, int]]

MAX_PARKED = 256  # at once: waking them all must cost little
MAX_PARKED_PER_STEP = 32  # looking up what a sequence waits for takes some microseconds


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of a step: sequences at once, tokens per step, tokens per sequence; and the bound on waiting.

    `max_wait`: seconds after which a waiting request gets its turn although better ones wait; see WaitingQueue.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_model_len: int = 2048
    max_wait: float = 10.0

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
        if not self.max_wait >= 0:
            raise ConfigError(f"max_wait is {self.max_wait!r}; it must be a number of seconds, 0 or more")


@dataclass(slots=True)
class _Plan:
    """The step that is being planned."""

    now: float
    tokens: dict[Sequence, int] = field(default_factory=dict)
    spare: int = 0  # tokens of the budget that nobody has yet
    num_parked: int = 0

    def give(self, sequence: Sequence, limit: int) -> None:
        """Let a sequence compute what it has left to do, at most `limit` tokens more."""
        planned = self.tokens.get(sequence, 0)
        count = min(sequence.num_tokens - sequence.num_computed - planned, limit)
        self.tokens[sequence] = planned + count
        self.spare -= count

    def drop(self, sequence: Sequence) -> None:
        """Take a sequence out that does not run after all."""
        self.spare += self.tokens.pop(sequence, 0)


class Scheduler:
    """Decides which sequences run in a step and with how many tokens.

    A running sequence has a slot, where the step builder keeps its sampling parameters. Who starts next is up
    to the WaitingQueue. `running` is sorted by (priority, arrival, index): the front is served first, the back
    is preempted first. A sequence whose next blocks are being computed by a running one is parked until they
    are in the cache. Only running sequences compute, parked ones hold nothing, and whoever stops running wakes
    those parked on it: no deadlock.

    **Preemption by class.** When there is no room for a sequence whose turn it is, it takes the place of the
    worst running one of a strictly worse class. When it is the turn of an overdue one that has to wait for
    room, the best may still swap places with a worse running one. A sequence that has been started overdue
    keeps its place against every class; memory is taken from it last, and then from the one that arrived last,
    so that the first of them always finishes. Each preemption by class adds to the time that its victim has
    waited, which makes it overdue in the end: no sequence is preempted for ever.

    **Tokens.** Every running sequence gets one. Up to half of the rest goes to prompts that are late (arrived,
    or asked for by somebody who arrived, more than max_wait ago), the earliest first; then class decides, the
    waiting before running ones of a worse class.

    **Trees** (see engine/tree.py) have a great many tokens to compute. While others want some, one gets no more than
    half of what is left when its turn comes; what nobody wants it gets as well.

    **Parked sequences** lend their class to the one that computes their spans. They become overdue like
    others; from then on it counts as late and as started overdue, and after 2 * max_wait they wait for it no
    longer: the bound that WaitingQueue states holds for them with 2 * max_wait in the place of max_wait.

    `token_budget` and `max_running` may be lowered from the configured limits while the engine runs.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        blocks: BlockManager,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config = config
        self.blocks = blocks
        self.clock = clock
        self.token_budget = config.max_num_batched_tokens
        self.max_running = config.max_num_seqs
        self.waiting = WaitingQueue(config.max_wait)
        self.running: list[Sequence] = []
        self.in_flight = SpansInFlight()
        self.found: list[Sequence] = []  # span requests whose span was in the cache after all
        self.num_preemptions = 0
        self._free_slots = list(range(config.max_num_seqs))

    @property
    def num_parked(self) -> int:
        """Waiting sequences that wait for another sequence's spans."""
        return self.in_flight.num_parked

    @property
    def num_waiting(self) -> int:
        """Sequences that do not run, parked ones included."""
        return len(self.waiting) + self.num_parked

    @property
    def has_unfinished(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self.waiting or self.running or self.num_parked)

    def num_waiting_by_class(self) -> dict[str, int]:
        """The same by named class (see `class_name`)."""
        counts = dict.fromkeys(PRIORITY_CLASSES, 0)
        for priority, count in self.waiting.counts().items():
            counts[class_name(priority)] += count
        for sequence, _ in self.in_flight.parked():
            counts[class_name(sequence.request.priority)] += 1
        return counts

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; what it has waited before counts."""
        sequence.waiting_since = self.clock() - sequence.waited
        self.waiting.add(sequence)

    # ---- planning a step ----------------------------------------------------------------------------------

    def schedule(self) -> Scheduled:
        """[(sequence, tokens to compute)] of the next step, at least one token for every running sequence.
        Preempts when blocks run out.
        """
        plan = _Plan(self.clock())
        self._keep_running(plan)
        plan.spare = max(0, self.token_budget - len(plan.tokens))
        prefilling = {s: s.request.priority for s in plan.tokens if s.num_tokens - s.num_computed > 1}
        if self.num_parked:
            prefilling = self._mind_parked(plan.now, prefilling)
        self._serve_late(plan, prefilling)
        for sequence, priority in prefilling.items():
            self._admit(plan, ahead_of=priority)
            if sequence in plan.tokens:
                plan.give(sequence, plan.spare if _growing(sequence) is None else plan.spare // 2)
        self._admit(plan, ahead_of=MAX_PRIORITY + 1)
        self._grow_trees(plan)
        return list(plan.tokens.items())

    def _keep_running(self, plan: _Plan) -> None:
        """One token for every running sequence that has, or is given, a block for it."""
        for sequence in tuple(self.running):
            if sequence.status is not Status.RUNNING:
                continue  # preempted for one before it
            while not self._may_advance(sequence):
                victim = self._preempt(self._memory_victim())
                plan.drop(victim)
                if victim is sequence:
                    break
            else:
                plan.tokens[sequence] = 1

    def _may_advance(self, sequence: Sequence) -> bool:
        tree = _growing(sequence)
        return self.blocks.may_append(sequence) if tree is None else tree.may_grow(self.blocks)

    def _grow_trees(self, plan: _Plan) -> None:
        """Let trees have the tokens that nobody else wants, and choose what they compute."""
        for sequence in plan.tokens:
            if (tree := _growing(sequence)) is not None:
                plan.give(sequence, plan.spare)
                count = plan.tokens[sequence]
                plan.tokens[sequence] = tree.grow(sequence, count, self.blocks, reserve=len(self.running))
                plan.spare += count - plan.tokens[sequence]

    def _memory_victim(self) -> Sequence:
        for sequence in reversed(self.running):
            if not sequence.overdue:
                return sequence
        return max(self.running, key=lambda sequence: sequence.order[1:])

    def _mind_parked(self, now: float, prefilling: dict[Sequence, int]) -> dict[Sequence, int]:
        """See the class: who computes for others is as urgent as they are, and they wait only so long.

        Takes and returns {sequence: class to serve it as}, in the order of serving.
        """
        for sequence, owner in self.in_flight.parked():
            if self.waiting.is_overdue(sequence, now):
                owner.overdue = True
                if not self._may_park(sequence, now):
                    self.in_flight.unpark(sequence)
                    self.waiting.add(sequence)
            if owner in prefilling:
                prefilling[owner] = min(prefilling[owner], sequence.request.priority)
        return dict(sorted(prefilling.items(), key=lambda item: (item[1], item[0].order)))

    def _may_park(self, sequence: Sequence, now: float) -> bool:
        return now - sequence.waiting_since <= 2 * self.config.max_wait

    def _serve_late(self, plan: _Plan, prefilling: Iterable[Sequence]) -> None:
        latest = plan.now - self.config.max_wait
        late = [s for s in prefilling if s.overdue or s.request.queued_time < latest]
        share = plan.spare // 2
        for sequence in sorted(late, key=lambda sequence: sequence.order[1:]):
            before = plan.spare
            plan.give(sequence, share)
            share -= before - plan.spare

    def _admit(self, plan: _Plan, ahead_of: int) -> None:
        """Start waiting sequences in turn while the best class is better than `ahead_of`. One whose turn it is
        and that does not fit blocks those behind it, or it might never fit.
        """
        waiting = self.waiting
        while plan.spare > 0 and waiting and waiting.best.request.priority < ahead_of:
            best, sequence = waiting.best, waiting.next(plan.now)
            if not self._try_to_start(sequence, plan) and (
                sequence is best or not self._try_to_start(best, plan, swap=True)
            ):
                return

    def _try_to_start(self, sequence: Sequence, plan: _Plan, swap: bool = False) -> bool:
        """Start a waiting sequence, or park it, or find that its span is there; False when it has to wait.

        Running sequences of worse classes give way if they must; with `swap`, at least one must.
        """
        limit = max(self.max_running, self.config.max_num_seqs - len(self._free_slots))
        victims = self._victims(sequence)
        if not victims and (swap or not self._has_slots(sequence, limit)):
            return False
        keys = self.blocks.reusable_keys(sequence)
        hits = self.blocks.cache.lookup(keys)
        if hits and sequence.request.kind is RequestKind.SPAN:
            self._find(sequence, hits[0])
            return True
        if self._may_park(sequence, plan.now) and (key := self.in_flight.last_key(keys[len(hits) :])):
            return self._park(sequence, key, plan)
        # NOTE: each running sequence may need one more block soon; starting one must not preempt another.
        while swap or not (
            self._has_slots(sequence, limit)
            and self.blocks.allocate(sequence, hits, reserve=len(self.running))
        ):
            if not self._can_make_way(sequence, hits, victims, limit):
                return False
            swap = False
            plan.drop(self._preempt(victims.pop(0)))
        self._start(sequence, plan)
        return True

    def _victims(self, sequence: Sequence) -> list[Sequence]:
        """Running sequences of a worse class, the worst first, without those that were started overdue."""
        victims = []
        for running in reversed(self.running):
            if running.request.priority <= sequence.request.priority:
                break
            if not running.overdue:
                victims.append(running)
        return victims

    def _has_slots(self, sequence: Sequence, limit: int) -> bool:
        need, free = len(_lanes(sequence)), len(self._free_slots)
        used = self.config.max_num_seqs - free
        return need <= free and (used + need <= limit or not used)

    def _can_make_way(
        self, sequence: Sequence, hits: list[Span], victims: list[Sequence], limit: int
    ) -> bool:
        """Whether preempting all these victims could be enough: blocks that others share are counted, too."""
        slots = sum(len(_lanes(victim)) for victim in victims)
        used = self.config.max_num_seqs - len(self._free_slots) - slots
        blocks = sum(victim.pages.num_pages - victim.num_context_pages for victim in victims)
        blocks += sum(tree.num_blocks for victim in victims if (tree := _growing(victim)) is not None)
        room = self.blocks.cache.num_available_blocks + blocks - (len(self.running) - len(victims))
        need = self.blocks.pool.blocks_for(sequence.num_tokens) - len(hits)
        return bool(victims) and need <= room and (used + len(_lanes(sequence)) <= limit or not used)

    def _find(self, sequence: Sequence, span: Span) -> None:
        self.waiting.remove(sequence)
        self.blocks.cache.acquire(span)
        sequence.request.span = span
        self.found.append(sequence)

    def _park(self, sequence: Sequence, key: bytes, plan: _Plan) -> bool:
        if plan.num_parked == MAX_PARKED_PER_STEP or self.num_parked == MAX_PARKED:
            return False
        plan.num_parked += 1
        self.waiting.remove(sequence)
        self.in_flight.park(sequence, key)
        return True

    def _start(self, sequence: Sequence, plan: _Plan) -> None:
        self.waiting.admitted(sequence, plan.now)
        sequence.waited = plan.now - sequence.waiting_since
        sequence.overdue = sequence.waited > self.config.max_wait
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=_order)
        for lane in _lanes(sequence):
            lane.slot = self._free_slots.pop()
        if not sequence.num_preemptions:
            hits = sequence.num_computed
            self.blocks.cache.record(sequence.num_tokens, hits)
            sequence.request.num_cached_tokens = min(hits, sequence.num_prompt_tokens)
        self.in_flight.claim(sequence.keys[sequence.num_span_pages :], sequence)
        plan.give(sequence, plan.spare)

    # ---- who stops running --------------------------------------------------------------------------------

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
        if (tree := _growing(sequence)) is not None:
            tree.release(sequence, self.blocks)
        self.blocks.free(sequence)
        self._requeue(self.in_flight.give_up(pending, sequence))

    def _free_slot(self, sequence: Sequence) -> None:
        if sequence.slot >= 0:
            self._free_slots.append(sequence.slot)
            sequence.slot = -1

    def _requeue(self, woken: list[Sequence]) -> None:
        for sequence in woken:
            self.waiting.add(sequence)

    def commit(self, sequence: Sequence, num_tokens: int) -> None:
        """Count tokens that a step has computed; sequences that waited for the new spans become eligible."""
        if (tree := _growing(sequence)) is not None:
            tree.commit(sequence, self.blocks)
            return
        if keys := self.blocks.commit(sequence, num_tokens):
            self._requeue(self.in_flight.landed(keys))
        if sequence.request.tree is not None and sequence.num_computed == sequence.num_tokens:
            sequence.request.tree.begin(sequence, self.blocks)

    def fork(self, sequence: Sequence) -> None:
        """Start the other sequences of a request whose prompt has just been computed, sharing its pages."""
        children, sequence.request.forks = sequence.request.forks, []
        for child in children:
            self.blocks.fork(sequence, child)
            child.waited, child.overdue = sequence.waited, sequence.overdue
            child.status = Status.RUNNING
            insort(self.running, child, key=_order)

    def finish(self, sequence: Sequence) -> None:
        """Remove a sequence, wherever it is, and take its pages back."""
        if sequence.status is Status.RUNNING:
            self._stop(sequence)
        elif sequence.status is Status.FORKING:
            sequence.request.forks.remove(sequence)
            self._free_slot(sequence)
        elif not self.in_flight.unpark(sequence) and sequence in self.waiting:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED

    def check_integrity(self) -> None:
        """Assert that the queues are sorted, and that statuses, slots and spans in flight are right."""
        self.waiting.check_integrity()
        self.in_flight.check_integrity(self.running)
        assert self.running == sorted(self.running, key=_order), "the running sequences are out of order"
        assert all(sequence.status is Status.RUNNING for sequence in self.running), (
            "a running status is wrong"
        )
        assert all(sequence.status is Status.WAITING for sequence in self.waiting), (
            "a waiting status is wrong"
        )
        slots = [lane.slot for sequence in self.running for lane in _lanes(sequence)]
        assert sorted(slots + self._free_slots) == list(range(self.config.max_num_seqs)), (
            "slots are not conserved"
        )


def _growing(sequence: Sequence) -> Tree | None:
    """The request's tree, if its prompt is computed."""
    tree = sequence.request.tree
    return tree if tree is not None and tree.growing else None


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order


def _lanes(sequence: Sequence) -> list[Sequence]:
    """The sequences that need a slot when this one runs: itself and the forks that it will have."""
    return [sequence, *sequence.request.forks] if sequence.index == 0 else [sequence]
