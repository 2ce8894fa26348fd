"""From the engine's finished requests to what the caller sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vglm.decode.detokenizer import Detokenizer
from vglm.decode.outputs import (
    CompletionOutput,
    EmbeddingOutput,
    Logprob,
    RequestMetrics,
    RequestOutput,
    ScoreOutput,
)
from vglm.engine.request import Request, Sequence, TokenLogprobs
from vglm.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vglm.decode.graph_outputs import GraphOutput


@dataclass(slots=True)
class CompletionChunk:
    """One increment of a streamed completion. `text` may be empty while a character or a stop string is undecided."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    graph: GraphOutput | None = None
    _request: Request | None = field(default=None, repr=False)

    @property
    def metrics(self) -> RequestMetrics | None:
        """Times of the request; on the last chunk only."""
        return None if self._request is None else _metrics(self._request)


def request_output(
    request: Request, prompt: str | None, detokenizers: list[Detokenizer], tokenizer: Tokenizer
) -> RequestOutput:
    """A finished GENERATE request."""
    outputs = [_completion(s, d, tokenizer) for s, d in zip(request.sequences, detokenizers, strict=True)]
    return RequestOutput(
        request.request_id,
        prompt,
        request.prompt_token_ids,
        outputs,
        True,
        _prompt_logprobs(request, tokenizer),
        _metrics(request),
        request.num_cached_tokens,
    )


def embedding_output(request: Request) -> EmbeddingOutput:
    """A finished ENCODE request."""
    assert request.pooled is not None
    return EmbeddingOutput(
        request.request_id, request.prompt_token_ids, request.pooled, request.num_cached_tokens
    )


def score_output(request: Request) -> ScoreOutput:
    """A finished SCORE request."""
    return ScoreOutput(
        request.request_id,
        request.prompt_token_ids,
        request.target_token_ids,
        [score.logprob for score in request.scores],
        [score.rank or 0 for score in request.scores],
        request.num_cached_tokens,
    )


def _completion(sequence: Sequence, detokenizer: Detokenizer, tokenizer: Tokenizer) -> CompletionOutput:
    params = sequence.request.params
    if not params.stop_strings:
        ids = sequence.output_token_ids
        ended_by_id = sequence.finish_reason == "stop" and ids and ids[-1] in sequence.request.stop_ids
        detokenizer.append(ids[:-1] if ended_by_id and not params.include_stop_str_in_output else ids)
    detokenizer.finish()
    wants_logprobs = params.logprobs is not None
    return CompletionOutput(
        sequence.index,
        detokenizer.text,
        sequence.output_token_ids,
        sequence.cumulative_logprob if wants_logprobs else None,
        [_named(entry, tokenizer) for entry in sequence.logprobs] if wants_logprobs else None,
        sequence.finish_reason,  # type: ignore[arg-type]
        sequence.stop_reason,
    )


def _prompt_logprobs(request: Request, tokenizer: Tokenizer) -> list[dict[int, Logprob] | None] | None:
    if request.params.prompt_logprobs is None:
        return None
    return [None, *(_named(entry, tokenizer) for entry in request.prompt_logprobs)]


def _named(entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[int, Logprob]:
    """The step's best tokens and the one that was taken, by id."""
    named = {
        token: Logprob(logprob, rank + 1, tokenizer.decode([token], skip_special=False))
        for rank, (token, logprob) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True))
    }
    if entry.token_id not in named:
        text = tokenizer.decode([entry.token_id], skip_special=False)
        named[entry.token_id] = Logprob(entry.logprob, entry.rank, text)
    return named


def _metrics(request: Request) -> RequestMetrics:
    return RequestMetrics(
        request.arrival_time,
        request.scheduled_time or None,
        request.first_token_time or None,
        max((s.last_token_time for s in request.sequences), default=0.0) or None,
        request.finished_time or None,
        sum(len(s.output_token_ids) for s in request.sequences),
        sum(s.num_preemptions for s in request.sequences),
    )
