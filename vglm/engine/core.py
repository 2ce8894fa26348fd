"""The engine's loop: requests in, one model step at a time, results on the requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from random import Random
from typing import TypedDict, Unpack

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.block_manager import BlockManager
from vglm.engine.block_pool import BlockPool
from vglm.engine.constraint import ConstraintFactory
from vglm.engine.contexts import Contexts, span_keys
from vglm.engine.intake import check_context, check_request, check_spans, make_sequences, number_sequences
from vglm.engine.integrity import IdleWork, check_engine
from vglm.engine.metrics import EngineMetrics, EngineStats
from vglm.engine.policies import LatencyController
from vglm.engine.request import PromptEmbeds, Request, RequestKind, Sequence, SpanSpec, Status, TokenHook
from vglm.engine.results import take_over
from vglm.engine.scheduler import Scheduled, Scheduler, SchedulerConfig
from vglm.engine.span_cache import Span, SpanCache, SpanKeys
from vglm.engine.step import Executor, RowKind, StepBatch, StepBuilder, StepResult
from vglm.engine.tree import Tree
from vglm.engine.trie import make_trie
from vglm.engine.waiting import parse_priority
from vglm.errors import ConfigError, RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig(SchedulerConfig):
    """Limits of the engine and the facts about the model that it needs."""

    vocab_size: int
    hidden_size: int
    eos_token_ids: tuple[int, ...] = ()
    model_id: str = ""  # part of every span key: the model's fingerprint
    kv_cache_dtype: str = "bf16"
    enable_prefix_caching: bool = True
    seed: int = 0
    ttft_target_ms: float | None = None  # to the first token, and between tokens: see LatencyController
    itl_target_ms: float | None = None


class RequestOptions(TypedDict, total=False):
    """What `EngineCore.prepare_request` takes besides the prompt and the sampling parameters."""

    kind: RequestKind
    priority: int | str
    target_token_ids: Seq[int]
    candidates: Seq[Seq[int]]
    embeds: PromptEmbeds | None
    context: Seq[Span]
    span_specs: Seq[SpanSpec]
    first_position: int
    on_token: TokenHook | None
    constraint: ConstraintFactory | None


class EngineCore:
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
        if config.max_model_len > pool.num_blocks * pool.block_size:
            raise ConfigError(
                f"a sequence of max_model_len={config.max_model_len} tokens does not fit into the KV cache, "
                f"which has room for {pool.num_blocks * pool.block_size}; raise kv_cache_memory or lower "
                "max_model_len"
            )
        self.config = config
        self.executor = executor
        self.pool = pool
        self.cache = SpanCache(pool)
        self.blocks = BlockManager(
            pool, self.cache, SpanKeys(config.model_id, config.kv_cache_dtype), config.enable_prefix_caching
        )
        self.clock = clock
        self.scheduler = Scheduler(config, self.blocks, clock)
        self.builder = StepBuilder(config.max_num_seqs, pool.block_size)
        self.metrics = EngineMetrics()
        self.controller = _controller(config)
        self.contexts = Contexts(self.cache, self._compute_span, config.max_wait)
        self._idle_work = IdleWork(self)
        self.requests: dict[str, Request] = {}  # the unfinished ones
        self._landed: list[Request] = []  # finished requests for spans whose waiters have to be told
        self._random = Random(config.seed)
        self._num_arrivals = 0
        self._num_spans = 0
        self._changing = False  # True while queues and pages are between two consistent states

    @property
    def has_unfinished(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self.requests)

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Seq[int],
        params: SamplingParams,
        **options: Unpack[RequestOptions],
    ) -> Request:
        """Queue a request: `prepare_request` and `admit` in one."""
        request = self.prepare_request(request_id, prompt_token_ids, params, **options)
        self.admit(request)
        return request

    def prepare_request(
        self,
        request_id: str,
        prompt_token_ids: Seq[int],
        params: SamplingParams,
        *,
        kind: RequestKind = RequestKind.GENERATE,
        priority: int | str = 0,
        target_token_ids: Seq[int] = (),
        candidates: Seq[Seq[int]] = (),
        embeds: PromptEmbeds | None = None,
        context: Seq[Span] = (),
        span_specs: Seq[SpanSpec] = (),
        first_position: int = 0,
        on_token: TokenHook | None = None,
        constraint: ConstraintFactory | None = None,
    ) -> Request:
        """Check a request and make its sequences; the engine knows nothing of it before `admit`.

        May be called in any thread while the engine runs. Raises RequestError, with `param` where one
        parameter is at fault, when the request is malformed or can never fit.

        `priority`: see `parse_priority`; lower runs first. `target_token_ids`: the continuation of a SCORE
        request. `context`: cached spans, held by the caller until `admit` returns and by the request
        afterwards; or `span_specs`: spans that are looked up, and computed when they are missing (see
        engine/contexts.py). `first_position`: of the prompt, after them. `on_token`: called with every new
        token but a stop token; a string ends the sequence with that stop string. `constraint`: which tokens
        may come, as from compiled structured outputs.
        """
        request = Request(
            request_id,
            list(prompt_token_ids),
            params,
            kind,
            parse_priority(priority),
            target_token_ids=list(target_token_ids),
            embeds=embeds,
            context=tuple(context),
            span_specs=tuple(span_specs),
            first_position=first_position,
            on_token=on_token,
            constraint=constraint,
            arrival_time=self.clock(),
        )
        check_spans(request, self.config)
        request.context_keys = (
            span_keys(self.blocks.span_keys, span_specs)
            if span_specs
            else tuple(span.key for span in context)
        )
        if kind is RequestKind.TREE:
            room = self.config.max_model_len - first_position - len(request.prompt_token_ids)
            request.tree = Tree(make_trie(candidates, self.config.vocab_size, room + 1))
        check_request(request, self.config, self.cache)
        make_sequences(request, self.config, self.cache)
        self.blocks.keys(request.sequences[0])  # here, so that the scheduler does not have to hash the prompt
        return request

    def admit(self, request: Request) -> None:
        """Queue a prepared request, once. Raises RequestError, and changes nothing, when its id is in use or
        a span of its context has left the cache since it was prepared.
        """
        self._recover_if_interrupted()
        if _is_internal(request):
            raise RequestError("request ids must not begin with '\\0span-'", "request_id")
        if request.request_id in self.requests:
            raise RequestError(
                f"request id {request.request_id!r} is already in use; choose another", "request_id"
            )
        if request.queued_time:
            raise RequestError(f"request {request.request_id!r} has been admitted before; prepare a new one")
        check_context(request, self.cache)
        self._changing = True
        self._enter(request)
        if request.span_specs:
            self.contexts.add(request)
            self._begin_contexts()
        else:
            self._queue(request)
        self._changing = False

    def _enter(self, request: Request) -> None:
        number_sequences(request, self._num_arrivals, self._random.getrandbits(64))
        self._num_arrivals += 1
        request.queued_time = self.clock()
        self.requests[request.request_id] = request

    def _queue(self, request: Request) -> None:
        """Give a request whose context is there to the scheduler."""
        for sequence in request.sequences:
            self.blocks.hold_context(sequence)
        self.scheduler.add(request.sequences[0])

    # ---- contexts that have to be gathered first

    def _begin_contexts(self) -> None:
        for request in self.contexts.begin(self.clock()):
            self._queue_gathered(request)

    def _queue_gathered(self, request: Request) -> None:
        request.context = self.contexts.take(request)
        request.sequences[0].waited = self.clock() - request.queued_time
        self._queue(request)
        for span in request.context:
            self.cache.release(span)

    def _compute_span(self, spec: SpanSpec, parents: tuple[Span, ...], needed_by: Request) -> Request:
        """Queue the request for a missing span, with the priority of the request that needs it and its waiting."""
        self._num_spans += 1
        request = self.prepare_request(
            f"\0span-{self._num_spans}",  # no id that a user would choose
            spec.tokens.tolist(),
            _SPAN_PARAMS,
            kind=RequestKind.SPAN,
            priority=needed_by.priority,
            context=parents,
            first_position=spec.first_position,
        )
        self._enter(request)
        request.queued_time = needed_by.queued_time
        request.sequences[0].waited = self.clock() - needed_by.queued_time
        self._queue(request)
        return request

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
        return [request for request in updated if not _is_internal(request)] + failed

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
            _check_result(batch, result)
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
        if not _is_internal(request):
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
        return [request for request in requests if not _is_internal(request)]

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


_SPAN_PARAMS = SamplingParams(max_tokens=1)


def _is_internal(request: Request) -> bool:
    """Whether the engine made the request itself, for a span that others wait for."""
    return request.request_id.startswith("\0span-")


def _controller(config: EngineConfig) -> LatencyController | None:
    """The controller of the configured targets; None when there are none."""
    if config.itl_target_ms is None and config.ttft_target_ms is None:
        return None
    itl, ttft = (
        None if target is None else target / 1000 for target in (config.itl_target_ms, config.ttft_target_ms)
    )
    return LatencyController(itl, ttft)


def _check_result(batch: StepBatch, result: StepResult) -> None:
    """What the executor gave must answer what the step asked: later there is no way back."""
    rows = batch.sample_rows
    wanted = len(rows)
    if len(result.token_ids) != wanted or len(result.logprobs) != wanted:
        raise ValueError(f"the executor answered {len(result.token_ids)} of {wanted} output rows")
    num_top = max(rows.num_logprobs.tolist(), default=0)
    for values in (result.top_ids, result.top_logprobs) if num_top > 0 else ():
        if values is None or values.shape[0] != wanted or values.shape[1] < num_top:
            raise ValueError(f"the executor gave fewer than {num_top} best tokens")
    if rows.score_ids is not None and (result.scores is None or len(result.scores) != len(rows.score_ids)):
        raise ValueError("the executor gave no scores, or too few")
    if (rows.kind == RowKind.HIDDEN).any() and (result.hidden is None or len(result.hidden) != wanted):
        raise ValueError("the executor gave no hidden states")


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
