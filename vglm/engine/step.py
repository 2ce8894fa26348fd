"""Turns what the scheduler decided into the arrays of one native call.

Every array is built from per-sequence numpy arrays that live as long as the sequence (tokens, page table)
and from per-slot columns of sampling parameters, so a step costs a few array operations and no work per
token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vglm.engine.constraint import Constraint
from vglm.engine.lanes import Lanes
from vglm.engine.request import FloatArray, IntArray, RequestKind, Sequence
from vglm.engine.scheduler import Scheduled

ByteArray = npt.NDArray[np.uint8]
SeedArray = npt.NDArray[np.uint64]

_NO_INTS = np.zeros(0, np.int32)
_NO_FLOATS = np.zeros(0, np.float32)


class RowKind(IntEnum):
    """What an output row is for."""

    SAMPLE = 0  # sample a token
    TARGET = 1  # log-probability of a given token
    HIDDEN = 2  # the final hidden state (after the last norm), no logits
    SCORES = 3  # log-probabilities of several given tokens


class Segment(NamedTuple):
    """Consecutive output rows of one sequence and one kind; the first predicts the sequence's token `first_token`."""

    sequence: Sequence
    first_row: int
    num_rows: int
    kind: RowKind
    first_token: int

    @property
    def of_output(self) -> bool:
        """Whether the rows predict tokens of a request's output, not of its prompt."""
        return (
            self.sequence.request.kind is RequestKind.GENERATE
            and self.first_token >= self.sequence.num_prompt_tokens
        )


@dataclass(slots=True)
class SampleRows:
    """What to do with each of the R output rows; arrays have R entries unless said.

    `temperature` to `seed` matter for SAMPLE rows only. `num_logprobs` is -1 for none, else how many of the
    best tokens to report besides the row's own. Ragged arrays: row r adds `bias_value` to the logits of
    `bias_id` over `bias_start[r]:bias_start[r + 1]` (-inf bans a token), and its penalties count `history`
    over `history_start[r]: history_start[r + 1]`, of which the first `history_prompt[r]` tokens are prompt.
    A row without penalties has none. Row r may sample what constraint `mask_row[r]` of `constraints` allows;
    -1, or no `mask_row` at all, means anything. A SCORES row r asks for the tokens `score_ids` over
    `score_start[r]:score_start[r + 1]`; without such rows both are None.
    """

    segments: list[Segment]
    kind: ByteArray
    target: IntArray  # token whose log-probability is wanted; -1: the sampled one
    num_logprobs: IntArray
    temperature: FloatArray
    top_p: FloatArray
    top_k: IntArray
    min_p: FloatArray
    repetition_penalty: FloatArray
    presence_penalty: FloatArray
    frequency_penalty: FloatArray
    seed: SeedArray
    index: IntArray  # how many tokens the sequence has generated: the counter of its random numbers
    bias_start: IntArray  # [R + 1]
    bias_id: IntArray
    bias_value: FloatArray
    history_start: IntArray  # [R + 1]
    history: IntArray
    history_prompt: IntArray
    constraints: list[Constraint] = field(default_factory=list)
    mask_row: IntArray | None = None
    score_start: IntArray | None = None  # [R + 1]
    score_ids: IntArray | None = None

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(slots=True)
class StepBatch:
    """One step: M token rows of S sequences, E page-table entries, R output rows.

    The n rows of a sequence are the last n valid slots of its page table, in table order; row i of them
    attends to all slots up to its own. `positions` are for RoPE only. `table_valid` counts the tokens that
    this step writes.
    """

    token_ids: IntArray  # [M]
    positions: IntArray  # [M]
    query_start: IntArray  # [S + 1]
    table_start: IntArray  # [S + 1]
    table_block: IntArray  # [E]
    table_valid: IntArray  # [E]
    output_rows: IntArray  # [R], a row may appear more than once (n > 1)
    sample_rows: SampleRows
    embed_rows: IntArray | None = None  # [k] rows whose token id is ignored
    embeds: FloatArray | None = None  # [k, H]

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.query_start) - 1


@dataclass(slots=True)
class StepResult:
    """What came out for the R output rows.

    `token_ids`: sampled token, for TARGET rows the target. `logprobs`: natural log of the raw probability
    of that token; only needs to be right where `num_logprobs` >= 0 or the kind is TARGET. `ranks`: 1 for
    the most likely token. `top_ids`, `top_logprobs` [R, k], best first, k >= max(num_logprobs). `hidden`
    [R, H], right for HIDDEN rows. `scores`: log-probabilities of the `score_ids` of SCORES rows, whose token is 0.
    `mask_error`: why no constraint could say what it allows; its rows then have no token.
    """

    token_ids: IntArray
    logprobs: FloatArray
    ranks: IntArray | None = None
    top_ids: IntArray | None = None
    top_logprobs: FloatArray | None = None
    hidden: FloatArray | None = None
    scores: FloatArray | None = None
    mask_error: str | None = None


class Executor(Protocol):
    """Runs the model; the native core is one."""

    def execute(self, batch: StepBatch) -> StepResult:
        """Write the KV of every row into its page slot and answer every output row."""
        ...


class _Columns:
    """Sampling parameters by slot; a slot is written when another sequence takes it, not in every step."""

    def __init__(self, num_slots: int) -> None:
        self.num_logprobs = np.zeros(num_slots, np.int32)
        self.temperature = np.zeros(num_slots, np.float32)
        self.top_p = np.zeros(num_slots, np.float32)
        self.top_k = np.zeros(num_slots, np.int32)
        self.min_p = np.zeros(num_slots, np.float32)
        self.repetition_penalty = np.zeros(num_slots, np.float32)
        self.presence_penalty = np.zeros(num_slots, np.float32)
        self.frequency_penalty = np.zeros(num_slots, np.float32)
        self.seed = np.zeros(num_slots, np.uint64)
        self._owner: list[tuple[int, int, int] | None] = [None] * num_slots  # by order, which is unique

    def fill(self, sequence: Sequence) -> int:
        """Make sure that the sequence's slot holds its parameters; returns the slot."""
        slot = sequence.slot
        if self._owner[slot] != sequence.order:
            params = sequence.request.params
            for name in _COPIED:
                getattr(self, name)[slot] = getattr(params, name)
            self.num_logprobs[slot] = sequence.request.num_logprobs
            self.seed[slot] = sequence.seed
            self._owner[slot] = sequence.order
        return slot


_COPIED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


class StepBuilder:
    """Builds the batch of each step."""

    def __init__(self, num_slots: int, block_size: int) -> None:
        self._columns = _Columns(num_slots)
        self._block_size = block_size

    def build(self, scheduled: Scheduled) -> StepBatch:
        """The arrays for these sequences and token counts; changes nothing of theirs."""
        lanes = Lanes(self._block_size)
        first_rows = []
        for sequence, count in scheduled:
            first_rows.append(lanes.num_rows)
            tree = sequence.request.tree
            if tree is not None and tree.growing:
                lanes.add_tree(sequence, tree)
            else:
                lanes.add(sequence, count)
        table_start = _offsets(lanes.num_pages)
        table_valid = np.concatenate(lanes.valid)
        table_valid[table_start[1:] - 1] = lanes.last_valid
        output_rows, sample_rows = self._outputs(scheduled, first_rows)
        batch = StepBatch(
            token_ids=np.concatenate(lanes.tokens),
            positions=_ranges(lanes.starts, lanes.counts),
            query_start=_offsets(lanes.counts),
            table_start=table_start,
            table_block=np.concatenate(lanes.blocks),
            table_valid=table_valid,
            output_rows=output_rows,
            sample_rows=sample_rows,
        )
        _add_embeds(batch, scheduled, first_rows)
        return batch

    def _outputs(self, scheduled: Scheduled, first_rows: list[int]) -> tuple[IntArray, SampleRows]:
        """The rows whose output is wanted, and what is wanted of them."""
        segments: list[Segment] = []
        rows: list[int] = []  # first row in the batch of each segment
        num_rows = 0
        for (sequence, count), row in zip(scheduled, first_rows, strict=True):
            start = sequence.num_computed
            for member, first, length, kind in _wanted(sequence, count):
                segments.append(Segment(member, num_rows, length, kind, first + 1))
                rows.append(row + first - start)
                num_rows += length
        lengths = [segment.num_rows for segment in segments]
        return _ranges(rows, lengths), self._sample_rows(segments, lengths, num_rows)

    def _sample_rows(self, segments: list[Segment], lengths: list[int], num_rows: int) -> SampleRows:
        columns = self._columns
        slots = np.array([columns.fill(segment.sequence) for segment in segments], np.intp)
        index = np.array([segment.sequence.num_generated for segment in segments], np.int32)
        if num_rows != len(segments):
            slots, index = np.repeat(slots, lengths), np.repeat(index, lengths)
        kind = np.zeros(num_rows, np.uint8)
        target = np.full(num_rows, -1, np.int32)
        num_logprobs = columns.num_logprobs[slots]
        for segment in segments:
            sequence, first_row, length, row_kind, first_token = segment
            if row_kind is RowKind.SAMPLE:
                continue
            rows = slice(first_row, first_row + length)
            kind[rows] = row_kind
            if not segment.of_output:
                num_logprobs[rows] = sequence.request.num_prompt_logprobs
            if row_kind is RowKind.TARGET:
                target[rows] = sequence.tokens[first_token : first_token + length]
        return SampleRows(
            segments,
            kind,
            target,
            num_logprobs,
            columns.temperature[slots],
            columns.top_p[slots],
            columns.top_k[slots],
            columns.min_p[slots],
            columns.repetition_penalty[slots],
            columns.presence_penalty[slots],
            columns.frequency_penalty[slots],
            columns.seed[slots],
            index,
            *_bias(segments, num_rows),
            *_history(segments, num_rows),
            *_constraints(segments, num_rows),
            *_scores(segments, num_rows),
        )


def _wanted(sequence: Sequence, count: int) -> list[tuple[Sequence, int, int, RowKind]]:
    """(sequence, first row, rows, kind) of the outputs wanted from the next `count` rows of a sequence.

    Rows are counted from the sequence's first token: row i predicts token i + 1.
    """
    request = sequence.request
    end = sequence.num_computed + count
    first = max(sequence.num_computed, sequence.wanted_from)
    if request.tree is not None:
        if request.tree.growing:
            first, end = sequence.num_computed, sequence.num_computed + request.tree.num_scored_rows
        return [(sequence, first, end - first, RowKind.SCORES)] if first < end else []
    if request.kind is not RequestKind.GENERATE:
        kind = RowKind.HIDDEN if request.kind is RequestKind.ENCODE else RowKind.TARGET
        return [(sequence, first, end - first, kind)] if first < end else []
    wanted = []
    last_of_prompt = sequence.num_prompt_tokens - 1
    if first < (end_of_prompt := min(end, last_of_prompt)):
        wanted.append((sequence, first, end_of_prompt - first, RowKind.TARGET))
    samples = end == sequence.num_tokens and sequence.ending is None
    members = [sequence, *request.forks] if sequence.index == 0 else [sequence]
    known = max(first, last_of_prompt)  # rows from here on that predict what is known already
    if request.num_logprobs >= 0 and known < end - samples:
        wanted += [(member, known, end - samples - known, RowKind.TARGET) for member in members]
    if samples:
        wanted += [(member, end - 1, 1, RowKind.SAMPLE) for member in members]
    return wanted


def _offsets(lengths: list[int]) -> IntArray:
    """[0, and the running sums of the lengths]."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _ranges(starts: list[int], lengths: list[int]) -> IntArray:
    """The concatenation of range(start, start + length)."""
    total = sum(lengths)
    if total == len(starts) and all(lengths):
        return np.array(starts, np.int32)
    ends = np.cumsum(lengths, dtype=np.int32)
    shift = np.array(starts, np.int32) - ends + np.array(lengths, np.int32)
    return np.repeat(shift, lengths) + np.arange(total, dtype=np.int32)


def _add_embeds(batch: StepBatch, scheduled: Scheduled, first_rows: list[int]) -> None:
    """Find the embedding rows that stand in for tokens of this step."""
    rows, embeds = [], []
    for (sequence, count), row in zip(scheduled, first_rows, strict=True):
        given = sequence.request.embeds
        if given is not None:
            start = sequence.num_computed
            first, last = np.searchsorted(given.positions, (start, start + count))
            if first < last:
                rows.append(given.positions[first:last] - start + row)
                embeds.append(given.rows[first:last])
    if rows:
        batch.embed_rows = np.concatenate(rows).astype(np.int32, copy=False)
        batch.embeds = np.concatenate(embeds)


def _bias(segments: list[Segment], num_rows: int) -> tuple[IntArray, IntArray, FloatArray]:
    """Ragged (start, token ids, values) of what is added to the logits."""
    if all(segment.sequence.request.plain for segment in segments):
        return np.zeros(num_rows + 1, np.int32), _NO_INTS, _NO_FLOATS
    lengths = [0] * num_rows
    ids: list[IntArray] = []
    values: list[FloatArray] = []
    for sequence, row, _, kind, _ in segments:
        if kind is RowKind.SAMPLE:
            bias = sequence.request.bias(sequence.num_generated)
            lengths[row] = len(bias[0])
            ids.append(bias[0])
            values.append(bias[1])
    return _offsets(lengths), _joined(ids, np.int32), _joined(values, np.float32)


def _history(segments: list[Segment], num_rows: int) -> tuple[IntArray, IntArray, IntArray]:
    """Ragged (start, tokens, prompt tokens) of the rows with penalties."""
    lengths = [0] * num_rows
    prompt = np.zeros(num_rows, np.int32)
    tokens: list[IntArray] = []
    for sequence, row, _, kind, _ in segments:
        if not sequence.request.plain and kind is RowKind.SAMPLE and sequence.request.params.needs_penalties:
            lengths[row] = sequence.num_tokens
            prompt[row] = sequence.num_prompt_tokens
            tokens.append(sequence.tokens[: sequence.num_tokens])
    return _offsets(lengths), _joined(tokens, np.int32), prompt


def _constraints(segments: list[Segment], num_rows: int) -> tuple[list[Constraint], IntArray | None]:
    """The constraints of rows that sample, and which row has which."""
    constraints: list[Constraint] = []
    mask_row = None
    for sequence, row, _, kind, _ in segments:
        if sequence.constraint is not None and kind is RowKind.SAMPLE:
            if mask_row is None:
                mask_row = np.full(num_rows, -1, np.int32)
            mask_row[row] = len(constraints)
            constraints.append(sequence.constraint)
    return constraints, mask_row


def _scores(segments: list[Segment], num_rows: int) -> tuple[IntArray | None, IntArray | None]:
    """Ragged (start, token ids) of the tokens whose log-probabilities are wanted."""
    lengths = [0] * num_rows
    ids: list[int] = []
    for sequence, row, length, kind, _ in segments:
        if kind is RowKind.SCORES and (tree := sequence.request.tree) is not None:
            lengths[row : row + length] = tree.score_counts
            ids += tree.score_ids
    return (_offsets(lengths), np.array(ids, np.int32)) if ids else (None, None)


def _joined(arrays: list[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)
