"""The engine's loop: requests in, one model step at a time, results on the requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from vglm.engine.arrivals import Arrivals, is_internal
from vglm.engine.block_pool import BlockPool
from vglm.engine.config import EngineConfig
from vglm.engine.integrity import IdleWork, check_engine
from vglm.engine.metrics import EngineStats
from vglm.engine.request import Request, Sequence, Status
from vglm.engine.results import check_result, take_over
from vglm.engine.scheduler import Scheduled, Scheduler
from vglm.engine.span_cache import Span
from vglm.engine.step import Executor


class EngineCore(Arrivals):
    """Runs requests over one executor and one block pool; single-threaded.

    `step()` never raises for a failing forward pass: the requests in it end with finish reason "error" and
    `error` set, their pages come back and the others go on. After an interrupt (KeyboardInterrupt leaves
    `step`), either go on or call `abort_all`.
    """

    def __init__(
        self,
        executor: Executor,
        pool: BlockPool,
        config: EngineConfig,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`clock` gives the time in seconds. Raises ConfigError when not even one sequence of max_model_len
        fits into the pool.
        """
        super().__init__(executor, pool, config, clock)
        self._idle_work = IdleWork(self)

    def _settle(self, updated: list[Request]) -> list[Request]:
        """Tell those who wait for spans what has become of them; `updated` without the requests for spans."""
        was_changing, self._changing = self._changing, True
        failed: list[Request] = []
        while self._landed:
            complete, lost = self.contexts.landed(self._landed.pop())
            for request in complete:
                self._queue_gathered(request)
            for request in lost:
                if not request.finished:
                    self._end(request, "error", request.error)
                    failed.append(request)
        self._begin_contexts()
        self._changing = was_changing
        return [request for request in updated if not is_internal(request)] + failed

    def abort(self, request_id: str) -> bool:
        """End a request where it is; False when it is not (or no longer) in the engine."""
        self._recover_if_interrupted()
        request = self.requests.get(request_id)
        if request is None:
            return False
        self._end(request, "abort")
        self._settle([])
        return True

    def abort_all(self) -> list[Request]:
        """End every request and take every page back, whatever state an interrupt has left; returns them."""
        if self._changing:
            return self._reset(reason="abort")
        requests = list(self.requests.values())
        for request in requests:
            self._end(request, "abort")
        return self._settle(requests)

    def step(self) -> list[Request]:
        """Run one step; returns the requests that got something new (look at `finished`). Empty when idle, and
        when the step worked on spans that requests wait for.
        """
        self._recover_if_interrupted()
        if not self.requests:
            return []
        return self._settle(self._step())

    def _step(self) -> list[Request]:
        started = self.clock()
        try:
            scheduled, updated = self._schedule()
        except Exception as error:
            return self._reset(f"scheduling failed: {_describe(error)}")
        if not scheduled:
            return updated
        try:
            batch = self.builder.build(scheduled)
            built = self.clock()
            result = self.executor.execute(batch)
            check_result(batch, result)
        except Exception as error:
            return updated + self._fail(scheduled, f"the model step failed: {_describe(error)}")
        executed = self.clock()
        self._changing = True
        try:
            updated += take_over(self, scheduled, batch, result, started, executed)
            if self.controller is not None:
                self.controller.observe(scheduled, started, executed, self.scheduler.num_waiting)
        except Exception as error:
            return self._reset(f"taking over a step's results failed: {_describe(error)}")
        self._changing = False
        metrics = self.metrics
        metrics.num_steps += 1
        metrics.iteration_tokens.observe(len(batch.token_ids))
        metrics.schedule_time += built - started
        metrics.execute_time += executed - built
        metrics.apply_time += self.clock() - executed
        return updated

    def _schedule(self) -> tuple[Scheduled, list[Request]]:
        """The next step's sequences, and the requests that ended without one."""
        self._changing = True
        scheduler = self.scheduler
        if self.controller is not None:
            self.controller.apply(scheduler, self.clock())
        started = time.thread_time()  # its own work: not what the system gives to others meanwhile
        scheduled = scheduler.schedule()
        self.metrics.schedule_seconds.observe(time.thread_time() - started)
        updated = []
        while scheduler.found:
            sequence = scheduler.found.pop()
            self.end_sequence(sequence, "stop")
            updated.append(sequence.request)
        if not scheduled and not updated and scheduler.waiting:
            # Nothing runs and nothing can be evicted: blocks are held from outside, waiting would never end.
            request = scheduler.waiting.next(self.clock()).request
            held = self.pool.num_blocks - self.cache.num_available_blocks
            self._end(request, "error", f"no room in the KV cache: spans in use hold {held} blocks")
            updated.append(request)
        self._changing = False
        return scheduled, updated

    def end_sequence(self, sequence: Sequence, reason: str) -> None:
        """Finish one sequence: pages back, and the request's end when it was the last."""
        sequence.finish_reason = reason
        sequence.constraint = None
        self.scheduler.finish(sequence)
        self.blocks.drop_context(sequence)
        request = sequence.request
        if request.finished:
            del self.requests[request.request_id]
            if self.contexts.owns(request):
                self._landed.append(request)
            elif request.span_specs:
                self.contexts.end(request)
            self._count_finished(request, reason)

    def _count_finished(self, request: Request, reason: str) -> None:
        request.finished_time = self.clock()
        if not is_internal(request):
            self.metrics.count_finished(request, reason)

    def _end(self, request: Request, reason: str, error: str | None = None) -> None:
        was_changing, self._changing = self._changing, True
        request.error = error
        for sequence in request.sequences:
            if sequence.status is not Status.FINISHED:
                self.end_sequence(sequence, reason)
        self._changing = was_changing

    def fail_request(self, request: Request, error: str) -> None:
        """End a request with an error."""
        self._end(request, "error", error)

    def _fail(self, scheduled: Scheduled, error: str) -> list[Request]:
        requests = list(dict.fromkeys(sequence.request for sequence, _ in scheduled))
        for request in requests:
            self._end(request, "error", error)
        return requests

    def _recover_if_interrupted(self) -> None:
        if self._changing:
            self._reset("interrupted")

    def reset(self) -> list[Request]:
        """End every request, forget everything cached and start with an empty pool; returns the requests."""
        return self._reset("the engine was reset")

    def _reset(self, error: str | None = None, reason: str = "error") -> list[Request]:
        """End every request and start again with an empty pool: the way back from any inconsistent state."""
        requests = list(self.requests.values())
        self.pool.reset()
        self.cache.reset()
        self.scheduler = Scheduler(self.config, self.blocks, self.clock)
        self.contexts.reset()
        self._landed.clear()
        self.requests = {}
        for request in requests:
            request.error = error
            request.forks = []
            for sequence in request.sequences:
                if sequence.status is not Status.FINISHED:
                    sequence.status, sequence.finish_reason = Status.FINISHED, reason
            self._count_finished(request, reason)
        self._changing = False
        return [request for request in requests if not is_internal(request)]

    def compact(self) -> int:
        """Move live blocks together, give the memory above them back; returns the number of blocks moved."""
        self._recover_if_interrupted()
        self._changing = True
        moves = self.pool.compact()
        self.cache.remap(moves)
        for request in self.requests.values():
            for sequence in request.sequences:
                sequence.pages.remap(moves)
            if request.tree is not None:
                request.tree.remap(moves)
        self._changing = False
        return len(moves)

    def stats(self) -> EngineStats:
        """A snapshot of queues, pool and cache."""
        scheduler = self.scheduler
        return EngineStats(
            len(scheduler.running),
            scheduler.num_waiting + len(self.contexts),
            scheduler.num_preemptions,
            self.pool.stats(),
            self.cache.stats,
            self.cache.num_idle_blocks,
            scheduler.num_waiting_by_class(),
        )

    def check_integrity(self, held: Iterable[Span] = ()) -> None:
        """Assert that each block and span reference has one owner; `held` are spans that callers hold."""
        check_engine(self, held)

    def idle(self) -> bool:
        """Do a piece of what is best done while nothing runs, about a millisecond long: give free memory back
        and check the integrity of blocks and spans, however many there are. Returns whether there is more to
        do. Raises AssertionError when the integrity is broken. Does nothing when there are requests.
        """
        self._recover_if_interrupted()
        return not self.requests and self._idle_work.run()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
