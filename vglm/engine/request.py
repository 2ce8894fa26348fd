"""The engine's nouns: a request, its sequences, and a sequence's page table."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vglm.engine.span_cache import Span

if TYPE_CHECKING:
    from vglm.decode.sampling_params import SamplingParams
    from vglm.engine.constraint import Constraint, ConstraintFactory
    from vglm.engine.tree import Tree

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]

#: (sequence index, token id) -> the stop string that the text has reached, or None to go on. Not called for
#: a stop token: its sequence has ended, and it is not part of the text.
TokenHook = Callable[[int, int], str | None]


class RequestKind(enum.Enum):
    """What a request wants from the model."""

    GENERATE = "generate"  # tokens
    ENCODE = "encode"  # the mean of the prompt's final hidden states
    SCORE = "score"  # log-probabilities of given continuation tokens
    SPAN = "span"  # the KV of its prompt as one span of the cache; no output
    TREE = "tree"  # log-probabilities of many continuations


class Status(enum.Enum):
    """Where a sequence is."""

    WAITING = "waiting"  # not admitted yet, preempted, or waiting for another sequence's spans
    RUNNING = "running"
    FORKING = "forking"  # waits for sequence 0 of its request to compute the shared prompt
    FINISHED = "finished"


class PageTable:
    """What a sequence attends to: (block, valid tokens), first of its context's spans, then its own blocks.

    `block` and `valid` are int32 arrays of which the first `num_pages` entries count. The valid count of
    the last page that a step touches is set by the step; every other own page is full.
    """

    __slots__ = ("block", "num_pages", "valid")

    def __init__(self) -> None:
        self.num_pages = 0
        self.block: IntArray = np.zeros(8, np.int32)
        self.valid: IntArray = np.zeros(8, np.int32)

    def extend(self, blocks: Seq[int], valid: Seq[int] | int) -> None:
        """Append pages with these valid counts; amortised O(1) each."""
        end = self.num_pages + len(blocks)
        if end > len(self.block):
            self.block = np.resize(self.block, max(end, 2 * len(self.block)))
            self.valid = np.resize(self.valid, len(self.block))
        self.block[self.num_pages : end] = blocks
        self.valid[self.num_pages : end] = valid
        self.num_pages = end

    def remap(self, moves: Mapping[int, int]) -> None:
        """Follow the moves of a compaction."""
        if moves:
            blocks: list[int] = self.block[: self.num_pages].tolist()
            self.block[: self.num_pages] = [moves.get(block, block) for block in blocks]

    def copy(self) -> PageTable:
        """An independent table with the same entries."""
        table = PageTable()
        table.block, table.valid, table.num_pages = self.block.copy(), self.valid.copy(), self.num_pages
        return table

    def entries(self) -> list[tuple[int, int]]:
        """The entries as (block, valid) pairs."""
        n = self.num_pages
        return list(zip(self.block[:n].tolist(), self.valid[:n].tolist(), strict=True))


class Sequence:
    """One growing run of tokens: the unit that the scheduler runs.

    Token i stands at position `first_position + i`, in slot `i % block_size` of own page `i // block_size`.

        own pages  | spans (shared, cached) | private (one reference each) |
                   0                num_span_pages                  capacity / block_size

    `num_tokens` are known, `num_computed` have their KV in the cache; rows from `wanted_from` on still owe
    an output. Known tokens are the prompt, what was sampled, and what the constraint forces after that.
    """

    __slots__ = (
        "capacity", "constraint", "cumulative_logprob", "ending", "finish_reason", "held_back", "index", "keys",
        "last_span", "last_token_time", "logprobs", "num_computed", "num_context_pages", "num_preemptions",
        "num_prompt_tokens", "num_span_pages", "num_tokens", "order", "output_token_ids", "overdue", "pages",
        "request", "seed", "shared_tail", "slot", "status", "stop_reason", "tokens", "waited", "waiting_since",
        "wanted_from",
    )  # fmt: skip

    def __init__(self, request: Request, index: int, tokens: IntArray, num_tokens: int) -> None:
        self.request = request
        self.index = index
        self.seed = 0  # set, with `order`, when the request is admitted
        self.order = (request.priority, request.arrival, index)
        self.status = Status.WAITING
        self.slot = -1
        self.waiting_since = 0.0  # by the scheduler's clock, as if all its waiting had been in one go
        self.waited = 0.0  # seconds that it had waited in all when it last started to run
        self.overdue = False  # it was started after max_wait: it is not preempted for a better class
        # tokens
        self.tokens = tokens
        self.num_prompt_tokens = self.num_tokens = num_tokens
        self.num_computed = 0
        self.wanted_from = request.first_output_row
        # pages
        self.pages = PageTable()
        self.num_context_pages = 0
        self.num_span_pages = 0
        self.capacity = 0
        self.shared_tail = False  # the last page is shared with a sibling and must be copied before a write
        self.last_span: Span | None = None
        self.keys: list[bytes] = []
        # output
        self.constraint: Constraint | None = None
        self.held_back: list[int] = []  # forced before the first sampled token: part of the output with it
        self.output_token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []  # those of forced tokens come a step after the tokens
        self.ending: str | None = None  # finish reason of a sequence that samples no more but owes something
        self.cumulative_logprob = 0.0
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.last_token_time = 0.0
        self.num_preemptions = 0

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request.request_id!r}[{self.index}], {self.status.value}, "
            f"{self.num_computed}/{self.num_tokens} tokens)"
        )

    @property
    def num_generated(self) -> int:
        """Known tokens after the prompt."""
        return self.num_tokens - self.num_prompt_tokens

    def append(self, token: int) -> None:
        """Add a sampled or a forced token to the known ones."""
        if self.num_tokens == len(self.tokens):
            self.tokens = np.resize(self.tokens, 2 * len(self.tokens))
        self.tokens[self.num_tokens] = token
        self.num_tokens += 1

    def compute_logprobs_only(self) -> None:
        """Sample no more: what is left to compute is what the log-probabilities of the output need, if wanted."""
        output = len(self.output_token_ids) + len(self.held_back)
        wanted = (
            output - 1 if self.request.num_logprobs >= 0 else 0
        )  # the last token is predicted, never computed
        self.num_tokens = self.num_prompt_tokens + max(0, wanted)

    def own_page(self, index: int) -> int:
        """The block of own page `index`."""
        return int(self.pages.block[self.num_context_pages + index])

    def own_pages(self, start: int = 0) -> list[int]:
        """The blocks of the own pages from `start` on."""
        blocks: list[int] = self.pages.block[self.num_context_pages + start : self.pages.num_pages].tolist()
        return blocks


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of one token and of the step's most likely tokens (best first)."""

    token_id: int
    logprob: float
    rank: int | None = None
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptEmbeds:
    """Embeddings in place of prompt tokens: `rows` float32 [k, H] at ascending `positions` int32 [k]."""

    positions: IntArray
    rows: FloatArray

    def digest(self, start: int, end: int) -> bytes:
        """What the prompt positions [start, end) add to a span key; empty when no embedding stands there."""
        first, last = np.searchsorted(self.positions, (start, end))
        if first == last:
            return b""
        digest = blake2b(digest_size=32)
        digest.update((self.positions[first:last] - start).astype("<i4").tobytes())
        digest.update(np.ascontiguousarray(self.rows[first:last], "<f4").tobytes())
        return digest.digest()


@dataclass(frozen=True, slots=True, eq=False)
class SpanSpec:
    """A span that a request attends to: `tokens` int32 [n] from `first_position` on; `parents` are the indices of the
    specifications before it that it attends to.
    """

    tokens: IntArray
    first_position: int
    parents: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Request:
    """One request and its results. Times are seconds of `time.perf_counter`; 0.0 means not yet."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    kind: RequestKind = RequestKind.GENERATE
    priority: int = 0  # lower runs first
    arrival: int = 0
    target_token_ids: list[int] = field(default_factory=list)  # SCORE: the continuation
    embeds: PromptEmbeds | None = None
    context: tuple[Span, ...] = ()  # spans that every sequence attends to, held until the request finishes
    first_position: int = 0
    on_token: TokenHook | None = None
    constraint: ConstraintFactory | None = None
    tree: Tree | None = None  # TREE: the candidates, and their scores
    # derived from the parameters when the request is added
    stop_ids: frozenset[int] = frozenset()
    max_tokens: int = 0
    num_logprobs: int = -1  # -1 means none
    num_prompt_logprobs: int = -1
    plain: bool = True  # neither logit bias, min_tokens nor penalties
    # results
    sequences: list[Sequence] = field(default_factory=list)
    forks: list[Sequence] = field(default_factory=list)  # sequences 1..n-1 until the prompt is computed
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    scores: list[TokenLogprobs] = field(default_factory=list)
    pooled: npt.NDArray[np.floating[Any]] | None = None  # float32 [H] when finished, a sum before
    span: Span | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    # the spans that its context is gathered from (see engine/contexts.py)
    span_specs: tuple[SpanSpec, ...] = ()
    context_keys: tuple[bytes, ...] = ()  # of the context's spans, gathered or not
    num_context_tokens: int = 0
    num_cached_context_tokens: int = 0
    # times
    arrival_time: float = 0.0
    queued_time: float = 0.0  # when the engine took it
    scheduled_time: float = 0.0
    first_token_time: float = 0.0
    finished_time: float = 0.0

    @property
    def first_output_row(self) -> int:
        """The first prompt row whose output is wanted; rows before it may come from the cache."""
        if self.kind is RequestKind.SPAN:
            return len(self.prompt_token_ids)
        whole_prompt = self.kind is RequestKind.ENCODE or (
            self.kind is RequestKind.GENERATE and self.params.prompt_logprobs is not None
        )
        return 0 if whole_prompt else len(self.prompt_token_ids) - 1

    def bias(self, num_output_tokens: int) -> tuple[IntArray, FloatArray]:
        """Token ids and what is added to their logits before the next token: logit_bias, and -inf for every
        token that would end the sequence before min_tokens.
        """
        bias = dict(self.params.logit_bias or {})
        if num_output_tokens < self.params.min_tokens:
            bias.update(dict.fromkeys(self.stop_ids, -np.inf))
        return np.array(list(bias), np.int32), np.array(list(bias.values()), np.float32)

    @property
    def finished(self) -> bool:
        """Whether every sequence has ended."""
        return all(sequence.status is Status.FINISHED for sequence in self.sequences)
