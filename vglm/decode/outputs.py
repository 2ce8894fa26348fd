"""What a request gives back, with vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from vglm.decode.graph_outputs import GraphOutput

FinishReason = Literal["stop", "length", "abort"]


@dataclass(slots=True)
class Logprob:
    """Log-probability (nats) of one token under the raw logits, before temperature, penalties and masks.

    `rank` is 1 for the most probable token; tokens of equal probability share a rank.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class RequestMetrics:
    """When things happened to a request, in seconds of the engine's monotonic clock; None: not yet."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    num_generation_tokens: int = 0
    num_preemptions: int = 0

    @property
    def time_in_queue(self) -> float | None:
        """Seconds from arrival to the first step that worked on the request."""
        return _between(self.arrival_time, self.first_scheduled_time)

    @property
    def ttft(self) -> float | None:
        """Seconds from arrival to the first generated token."""
        return _between(self.arrival_time, self.first_token_time)

    @property
    def tpot(self) -> float | None:
        """Mean seconds per generated token after the first."""
        seconds = _between(self.first_token_time, self.last_token_time)
        if seconds is None or self.num_generation_tokens < 2:
            return None
        return seconds / (self.num_generation_tokens - 1)

    @property
    def e2e_latency(self) -> float | None:
        """Seconds from arrival to the end."""
        return _between(self.arrival_time, self.finished_time)


@dataclass(slots=True)
class CompletionOutput:
    """One completion of a prompt.

    `logprobs[i]` has the sampled token of step i and the best tokens, by token id. `stop_reason` is the stop
    string or the stop token id that ended it; None when end-of-text or the length did. `graph` is what it says of the
    request's graph, if there is one.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    graph: GraphOutput | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing will be added."""
        return self.finish_reason is not None

    def __repr__(self) -> str:
        return (
            f"CompletionOutput(index={self.index}, text={_short(self.text)}, tokens={len(self.token_ids)}, "
            f"finish_reason={self.finish_reason!r}, stop_reason={self.stop_reason!r})"
        )


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its completions, finished or on the way.

    `prompt_logprobs[i]` describes prompt token i and is None for the first, which nothing predicts.
    `num_cached_tokens` counts the prompt tokens whose KV was found in the cache.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    metrics: RequestMetrics | None = None
    num_cached_tokens: int = 0

    @property
    def text(self) -> str:
        """Text of the first completion; empty before there is one."""
        return self.outputs[0].text if self.outputs else ""

    @property
    def graph(self) -> GraphOutput | None:
        """What the first completion says of the graph; None when the request brought none."""
        return self.outputs[0].graph if self.outputs else None

    def __repr__(self) -> str:
        return (
            f"RequestOutput(request_id={self.request_id!r}, prompt={_short(self.prompt)}, "
            f"prompt_tokens={len(self.prompt_token_ids)}, cached={self.num_cached_tokens}, "
            f"finished={self.finished}, outputs={self.outputs!r})"
        )


@dataclass(slots=True)
class EmbeddingOutput:
    """Pooled hidden state of a prompt: `embedding` is float32[hidden_size]."""

    request_id: str
    prompt_token_ids: list[int]
    embedding: npt.NDArray[np.float32]
    num_cached_tokens: int = 0

    def __repr__(self) -> str:
        return (
            f"EmbeddingOutput(request_id={self.request_id!r}, prompt_tokens={len(self.prompt_token_ids)}, "
            f"hidden_size={self.embedding.shape[-1]})"
        )


@dataclass(slots=True)
class ScoreOutput:
    """How probable a given continuation is after a prompt; log-probabilities in nats."""

    request_id: str
    prompt_token_ids: list[int]
    continuation_token_ids: list[int]
    token_logprobs: list[float]
    token_ranks: list[int]
    num_cached_tokens: int = 0

    @property
    def logprob(self) -> float:
        """Log-probability of the whole continuation."""
        return sum(self.token_logprobs)

    @property
    def mean_logprob(self) -> float:
        """Log-probability per token, which compares continuations of different lengths."""
        return self.logprob / len(self.token_logprobs)

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would have produced the continuation."""
        return all(rank == 1 for rank in self.token_ranks)

    def __repr__(self) -> str:
        return (
            f"ScoreOutput(request_id={self.request_id!r}, logprob={self.logprob:.4f}, "
            f"tokens={len(self.continuation_token_ids)}, is_greedy={self.is_greedy})"
        )


@dataclass(slots=True)
class CandidateScore:
    """How probable one of many candidates is after a prompt.

    `token_logprobs`: natural log of the probability of each of its tokens, the end token's last if it was asked for.
    `logprob`: their sum, or their mean where scores are normalised by tokens.
    """

    text: str
    logprob: float
    token_logprobs: list[float]


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


def _short(text: str | None, limit: int = 60) -> str:
    return repr(text) if text is None or len(text) <= limit else repr(text[: limit - 3]) + "..."
