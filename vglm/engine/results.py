"""Takes a step's results over into the sequences: tokens, log-probabilities, pooled states, and who has
finished.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vglm.engine.request import Request, RequestKind, Sequence, Status, TokenLogprobs
from vglm.engine.scheduler import Scheduled
from vglm.engine.step import RowKind, Segment, StepBatch, StepResult
from vglm.engine.waiting import class_name

if TYPE_CHECKING:
    from vglm.engine.core import EngineCore

ALL_BANNED = -2  # kTokenAllBanned of native/sampler.hpp; -1 means that the logits are not finite


def take_over(
    engine: EngineCore, scheduled: Scheduled, batch: StepBatch, result: StepResult, started: float, now: float
) -> list[Request]:
    """Count the step's tokens as computed and apply its outputs; returns the requests that changed."""
    scheduler, metrics = engine.scheduler, engine.metrics
    for sequence, num_tokens in scheduled:
        if sequence.num_computed < sequence.num_prompt_tokens:
            _count_prefill(engine, sequence, num_tokens, started)
        scheduler.commit(sequence, num_tokens)
        if sequence.index == 0 and sequence.request.forks and sequence.num_computed == sequence.num_tokens:
            scheduler.fork(sequence)
    updated: dict[str, Request] = {}
    token_ids = result.token_ids.tolist()
    smallest = min(token_ids, default=0)
    for segment in batch.sample_rows.segments:
        sequence = segment.sequence
        if sequence.status is Status.FINISHED:
            continue  # its request failed in this very step
        updated[sequence.request.request_id] = sequence.request
        if smallest < 0 and (code := _failure(segment, token_ids)) < 0:
            engine.fail_request(sequence.request, _no_token(code))
        elif segment.kind is RowKind.SAMPLE:
            metrics.generation_tokens += 1
            if sequence.request.num_logprobs >= 0:
                logprobs = _token_logprobs(result, segment.first_row, sequence.request.num_logprobs)
                sequence.logprobs.append(logprobs)
                sequence.cumulative_logprob += logprobs.logprob
            _accept_token(engine, sequence, token_ids[segment.first_row], now)
        else:
            _take_prompt_rows(segment, result)
    for sequence, _ in scheduled:
        request = sequence.request
        if request.kind is not RequestKind.GENERATE and sequence.num_computed == sequence.num_tokens:
            _complete(engine, sequence)
            updated[request.request_id] = request
    return list(updated.values())


def _count_prefill(engine: EngineCore, sequence: Sequence, num_tokens: int, started: float) -> None:
    engine.metrics.prompt_tokens += num_tokens
    request = sequence.request
    if not request.scheduled_time:
        request.scheduled_time = started
        engine.metrics.prompt_tokens_cached += request.num_cached_tokens
        waited = started - request.arrival_time
        engine.metrics.request_queue_time.observe(waited)
        engine.metrics.queue_time_by_class[class_name(request.priority)].observe(waited)


def _accept_token(engine: EngineCore, sequence: Sequence, token: int, now: float) -> None:
    """Append a sampled token and end the sequence when it was its last."""
    request, metrics = sequence.request, engine.metrics
    sequence.append(token)
    if sequence.last_token_time:
        metrics.inter_token_latency.observe(now - sequence.last_token_time)
    elif not request.first_token_time:
        request.first_token_time = now
        metrics.time_to_first_token.observe(now - request.arrival_time)
    sequence.last_token_time = now
    if token in request.stop_ids:  # banned before min_tokens
        sequence.stop_reason = None if token in engine.config.eos_token_ids else token
        engine.end_sequence(sequence, "stop")
        return
    if request.on_token is not None:
        try:
            sequence.stop_reason = request.on_token(sequence.index, token)
        except Exception as error:
            engine.fail_request(request, f"the token callback failed: {type(error).__name__}: {error}")
            return
    if sequence.stop_reason is not None:
        engine.end_sequence(sequence, "stop")
    elif len(sequence.output_token_ids) >= request.max_tokens:
        engine.end_sequence(sequence, "length")


def _failure(segment: Segment, token_ids: list[int]) -> int:
    """The sampler's error code in a segment that wants tokens; 0 when there is none."""
    if segment.kind is RowKind.HIDDEN:
        return 0
    return min(0, *token_ids[segment.first_row : segment.first_row + segment.num_rows])


def _no_token(code: int) -> str:
    """What the sampler's negative results mean (native/sampler.hpp)."""
    if code == ALL_BANNED:
        return "every token is banned: look at logit_bias, min_tokens and the stop tokens"
    return "the model's logits are not finite: look at the prompt embeddings and the model's weights"


def _token_logprobs(result: StepResult, row: int, num_top: int) -> TokenLogprobs:
    rank = None if result.ranks is None else int(result.ranks[row])
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()
    if num_top and result.top_ids is not None and result.top_logprobs is not None:
        top_ids = tuple(result.top_ids[row, :num_top].tolist())
        top_logprobs = tuple(result.top_logprobs[row, :num_top].tolist())
    return TokenLogprobs(int(result.token_ids[row]), float(result.logprobs[row]), rank, top_ids, top_logprobs)


def _take_prompt_rows(segment: Segment, result: StepResult) -> None:
    sequence, first, num_rows, kind = segment
    request = sequence.request
    if kind is RowKind.HIDDEN and result.hidden is not None:
        rows = result.hidden[first : first + num_rows].sum(axis=0, dtype=np.float64)
        request.pooled = rows if request.pooled is None else request.pooled + rows
        return
    wanted = request.scores if request.kind is RequestKind.SCORE else request.prompt_logprobs
    for row in range(first, first + num_rows):
        wanted.append(_token_logprobs(result, row, request.num_prompt_logprobs))


def _complete(engine: EngineCore, sequence: Sequence) -> None:
    """End a request that wanted no tokens and has everything now."""
    request = sequence.request
    if request.kind is RequestKind.ENCODE and request.pooled is not None:
        request.pooled = (request.pooled / sequence.num_tokens).astype(np.float32)
    if request.kind is RequestKind.SPAN and sequence.last_span is not None:
        engine.cache.acquire(sequence.last_span)
        request.span = sequence.last_span
    engine.end_sequence(sequence, "stop")
