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
    scheduler = engine.scheduler
    for sequence, num_tokens in scheduled:
        if sequence.num_computed < sequence.num_prompt_tokens:
            _count_prefill(engine, sequence, num_tokens, started)
        elif sequence.request.tree is not None:
            engine.metrics.prompt_tokens += num_tokens
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
            engine.fail_request(sequence.request, _no_token(code, sequence, result))
        elif segment.kind is RowKind.SAMPLE:
            _take_logprobs(segment, result)
            _accept_token(engine, sequence, token_ids[segment.first_row], now)
        elif segment.of_output:
            _take_logprobs(segment, result)
        elif segment.kind is RowKind.SCORES:
            _take_scores(segment, batch, result)
        else:
            _take_prompt_rows(segment, result)
    for sequence, _ in scheduled:
        request = sequence.request
        if sequence.num_computed < sequence.num_tokens or sequence.status is Status.FINISHED:
            continue
        if request.kind is not RequestKind.GENERATE:
            _complete(engine, sequence)
        elif sequence.ending is not None:
            _end_completed(engine, sequence, now)
        updated[request.request_id] = request
    return list(updated.values())


def _count_prefill(engine: EngineCore, sequence: Sequence, num_tokens: int, started: float) -> None:
    left = sequence.num_prompt_tokens - sequence.num_computed
    engine.metrics.prompt_tokens += num_tokens if sequence.num_preemptions else min(num_tokens, left)
    request = sequence.request
    if not request.scheduled_time:
        request.scheduled_time = started
        engine.metrics.prompt_tokens_cached += request.num_cached_tokens
        if engine.contexts.owns(request):
            return  # nobody asked for it: the wait that counts is that of the request that needs it
        waited = started - request.arrival_time
        engine.metrics.request_queue_time.observe(waited)
        engine.metrics.queue_time_by_class[class_name(request.priority)].observe(waited)


def _accept_token(engine: EngineCore, sequence: Sequence, token: int, now: float) -> None:
    """Take a sampled token over, and those that the sequence's constraint forces after it."""
    request = sequence.request
    sequence.append(token)
    tokens = [*sequence.held_back, token]
    sequence.held_back = []
    if sequence.constraint is not None and token not in request.stop_ids:
        try:
            forced = sequence.constraint.accept(token)
        except Exception as error:
            engine.fail_request(request, f"structured output failed: {error}")
            return
        for following in forced:
            sequence.append(following)
        tokens += forced
    complete = sequence.constraint is not None and sequence.constraint.finished
    _deliver(engine, sequence, tokens, now, "stop" if complete else None)


def _deliver(
    engine: EngineCore, sequence: Sequence, tokens: list[int], now: float, in_the_end: str | None
) -> None:
    """Add known tokens to the output, up to the one that ends the sequence.

    `in_the_end`: why the last of them does in any case, or None.
    """
    request, metrics = sequence.request, engine.metrics
    if sequence.last_token_time:
        metrics.inter_token_latency.observe(now - sequence.last_token_time)
    elif not request.first_token_time:
        request.first_token_time = now
        metrics.time_to_first_token.observe(now - request.arrival_time)
    sequence.last_token_time = now
    last = len(sequence.output_token_ids) + len(tokens)
    for token in tokens:
        sequence.output_token_ids.append(token)
        metrics.generation_tokens += 1
        try:
            reason = _end_reason(engine, sequence, token)
        except Exception as error:
            engine.fail_request(request, f"the token callback failed: {type(error).__name__}: {error}")
            return
        length = len(sequence.output_token_ids)
        if reason is None and length == last:
            reason = in_the_end
        if reason is None and length >= request.max_tokens:
            reason = "length"
        if reason is not None:
            _end(engine, sequence, reason)
            return


def _end_reason(engine: EngineCore, sequence: Sequence, token: int) -> str | None:
    """Whether the token that has just been added to the output ends it by what it is."""
    request, length = sequence.request, len(sequence.output_token_ids)
    if token in request.stop_ids and length > request.params.min_tokens:
        sequence.stop_reason = None if token in engine.config.eos_token_ids else token
        return "stop"
    if request.on_token is not None:
        sequence.stop_reason = request.on_token(sequence.index, token)
    return None if sequence.stop_reason is None else "stop"


def _end(engine: EngineCore, sequence: Sequence, reason: str) -> None:
    """End a sequence whose output is complete, now or when its log-probabilities are complete, too."""
    missing = len(sequence.output_token_ids) - len(sequence.logprobs)
    if missing > 0 and sequence.request.num_logprobs >= 0:
        sequence.ending = reason
        sequence.compute_logprobs_only()
        return
    while missing < 0:  # of tokens that were forced behind a stop string
        sequence.cumulative_logprob -= sequence.logprobs.pop().logprob
        missing += 1
    engine.end_sequence(sequence, reason)


def _end_completed(engine: EngineCore, sequence: Sequence, now: float) -> None:
    """End a sequence that samples no more and has computed everything, and the forks that it has just had."""
    request = sequence.request
    for member in request.sequences if sequence.index == 0 else [sequence]:
        if member.ending is None or member.status is not Status.RUNNING or request.error is not None:
            continue
        if member.num_computed < member.num_tokens:
            continue
        if member.held_back:
            tokens, member.held_back = member.held_back, []
            _deliver(engine, member, tokens, now, member.ending)
        else:
            engine.end_sequence(member, member.ending)


def _failure(segment: Segment, token_ids: list[int]) -> int:
    """The sampler's error code in a segment that wants tokens; 0 when there is none."""
    if segment.kind is RowKind.HIDDEN:
        return 0
    return min(0, *token_ids[segment.first_row : segment.first_row + segment.num_rows])


def _no_token(code: int, sequence: Sequence, result: StepResult) -> str:
    """What the sampler's negative results mean (native/sampler.hpp)."""
    if code == ALL_BANNED:
        constraint = sequence.constraint
        if constraint is not None and (error := constraint.error or result.mask_error):
            return f"structured output failed: {error}"
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


def _take_logprobs(segment: Segment, result: StepResult) -> None:
    """Log-probabilities of tokens of the output, if they are wanted."""
    sequence, first = segment.sequence, segment.first_row
    num_top = sequence.request.num_logprobs
    for row in range(first, first + segment.num_rows) if num_top >= 0 else ():
        logprobs = _token_logprobs(result, row, num_top)
        sequence.logprobs.append(logprobs)
        sequence.cumulative_logprob += logprobs.logprob


def _take_prompt_rows(segment: Segment, result: StepResult) -> None:
    sequence, first, num_rows, kind, _ = segment
    request = sequence.request
    if kind is RowKind.HIDDEN and result.hidden is not None:
        rows = result.hidden[first : first + num_rows].sum(axis=0, dtype=np.float64)
        request.pooled = rows if request.pooled is None else request.pooled + rows
        return
    wanted = request.scores if request.kind is RequestKind.SCORE else request.prompt_logprobs
    for row in range(first, first + num_rows):
        wanted.append(_token_logprobs(result, row, request.num_prompt_logprobs))


def _take_scores(segment: Segment, batch: StepBatch, result: StepResult) -> None:
    """Log-probabilities of candidates' tokens."""
    tree, start = segment.sequence.request.tree, batch.sample_rows.score_start
    if tree is not None and start is not None and result.scores is not None:
        end = segment.first_row + segment.num_rows
        tree.take(result.scores[start[segment.first_row] : start[end]])


def _complete(engine: EngineCore, sequence: Sequence) -> None:
    """End a request that wanted no tokens and has everything now."""
    request = sequence.request
    if request.kind is RequestKind.ENCODE and request.pooled is not None:
        request.pooled = (request.pooled / sequence.num_tokens).astype(np.float32)
    if request.kind is RequestKind.SPAN and sequence.last_span is not None:
        engine.cache.acquire(sequence.last_span)
        request.span = sequence.last_span
    engine.end_sequence(sequence, "stop")


def check_result(batch: StepBatch, result: StepResult) -> None:
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
