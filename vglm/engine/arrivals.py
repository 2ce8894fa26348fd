"""How requests come into the engine: checked, admitted, and queued when the spans that they need are there."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Seq
from random import Random
from typing import TypedDict, Unpack

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.block_manager import BlockManager
from vglm.engine.block_pool import BlockPool
from vglm.engine.config import EngineConfig, latency_controller
from vglm.engine.constraint import ConstraintFactory
from vglm.engine.contexts import Contexts, span_keys
from vglm.engine.intake import check_context, check_request, check_spans, make_sequences, number_sequences
from vglm.engine.metrics import EngineMetrics
from vglm.engine.request import PromptEmbeds, Request, RequestKind, SpanSpec, TokenHook
from vglm.engine.scheduler import Scheduler
from vglm.engine.span_cache import Span, SpanCache, SpanKeys
from vglm.engine.step import Executor, StepBuilder
from vglm.engine.tree import Tree
from vglm.engine.trie import make_trie
from vglm.engine.waiting import parse_priority
from vglm.errors import ConfigError, RequestError


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


class Arrivals(ABC):
    """What an engine has, and the requests that come to it; `EngineCore` runs them."""

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
        self.controller = latency_controller(config)
        self.contexts = Contexts(self.cache, self._compute_span, config.max_wait)
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
        if is_internal(request):
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

    @abstractmethod
    def _recover_if_interrupted(self) -> None:
        """Start again with nothing if an interrupt has left queues and pages between two consistent states."""

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


_SPAN_PARAMS = SamplingParams(max_tokens=1)


def is_internal(request: Request) -> bool:
    """Whether the engine made the request itself, for a span that others wait for."""
    return request.request_id.startswith("\0span-")
