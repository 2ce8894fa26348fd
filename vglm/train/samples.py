"""Training samples: a graph and questions about it with their answers, as the rows of tokens that the model is trained on.

The tokens, positions and masks are those of the engine: prompts come from `vglm.tasks.asking`, so that what is trained is what
is served. All questions about one graph share a row: each sees the graph and itself, and the graph is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vglm.engine.request import SpanSpec
from vglm.errors import RequestError
from vglm.graph.graph import Graph
from vglm.model.chat import ChatFormat
from vglm.model.checkpoint import Checkpoint
from vglm.model.graph_card import GraphCard
from vglm.tasks.asking import Asking
from vglm.tasks.graph_prompt import GraphPrompts

Ints = npt.NDArray[np.int64]
IGNORED = -100  # the target of a token whose successor is not trained
ROOM = 1 << 20  # tokens of a graph, at most


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer; `lead` is what the answer begins with in the prompt, and is not trained. `named` as in
    `vglm.tasks.asking.Asking.question`.
    """

    question: str
    answer: str
    lead: str = ""
    named: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """Questions about one graph; without a graph, one plain conversation, in which the model is to stay as it was.

    `kind` names the lesson. With `raw`, the turn's answer is plain text outside any conversation.
    """

    kind: str
    turns: tuple[Turn, ...]
    graph: Graph | None = None
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """tokens, positions and targets int64 [n] (IGNORED where nothing is to be learned), visible bool [n, n]."""

    kind: str
    tokens: Ints
    positions: Ints
    targets: Ints
    visible: npt.NDArray[np.bool_]
    num_turns: int

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def answer_tokens(self) -> tuple[int, ...]:
        """What is to be learned, in order."""
        return tuple(self.targets[self.targets != IGNORED].tolist())


class RowWriter:
    """Writes samples as rows, for one model and card."""

    def __init__(self, checkpoint: Checkpoint, card: GraphCard, block_size: int = 16) -> None:
        if checkpoint.chat_template is None:
            raise RequestError("the base model has no chat template; choose an instruct model")
        self.tokenizer = checkpoint.tokenizer()
        ends = checkpoint.config.eos_token_ids
        self._chat = ChatFormat(checkpoint.chat_template, self.tokenizer, ends[0] if ends else None)
        prompts = GraphPrompts(self.tokenizer, card, block_size, "auto", ROOM)
        self.asking = Asking(self.tokenizer, checkpoint.config, prompts, self._chat)

    def row(self, sample: Sample, mode: str = "spans", max_tokens: int = 512) -> Row | None:
        """The sample in "spans" or "sequential" mode; turns that do not fit are left out, None if none does."""
        if sample.graph is None:
            return self._plain(sample, max_tokens)
        prompts = [
            self.asking.question(turn.question, sample.graph, mode=mode, named=turn.named).prompt
            for turn in sample.turns
        ]
        leads = [self._encode(turn.lead) for turn in sample.turns]
        answers = [[*self._encode(turn.answer), self.asking.end_id] for turn in sample.turns]
        afters = [prompt.token_ids for prompt in prompts]
        if mode == "spans":
            specs: Sequence[SpanSpec] = prompts[0].span_specs
            first = prompts[0].first_position
        else:
            shared = _common([*afters, afters[0][:-1]])
            specs = [SpanSpec(np.array(shared, np.int32), 0)]
            afters = [after[len(shared) :] for after in afters]
            first = len(shared)
        branches = [
            (after + lead, answer) for after, lead, answer in zip(afters, leads, answers, strict=True)
        ]
        return _row(sample.kind, specs, first, branches, max_tokens)

    def _plain(self, sample: Sample, max_tokens: int) -> Row | None:
        turn = sample.turns[0]
        answer = self._encode(turn.answer)
        if sample.raw:
            return _row(sample.kind, [], 0, [(answer[:1], answer[1:max_tokens])], max_tokens)
        prompt = self._chat.encode([{"role": "user", "content": turn.question}])
        return _row(sample.kind, [], 0, [(prompt, answer[: max(0, max_tokens - len(prompt))])], max_tokens)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special=False, allow_special_tokens=False)


def _common(lists: Sequence[list[int]]) -> list[int]:
    """What all lists begin with."""
    found: list[int] = []
    for values in zip(*lists, strict=False):
        if len(set(values)) > 1:
            break
        found.append(values[0])
    return found


def _row(
    kind: str,
    specs: Sequence[SpanSpec],
    first: int,
    branches: Sequence[tuple[list[int], list[int]]],
    max_tokens: int,
) -> Row | None:
    """A row of the spans and, from position `first` on, as many branches (prompt, answer) as fit."""
    ends = np.cumsum([0, *(len(spec.tokens) for spec in specs)])
    taken: list[tuple[list[int], list[int]]] = []
    total = int(ends[-1])
    for prompt, answer in branches:
        if answer and prompt and total + len(prompt) + len(answer) <= max_tokens:
            taken.append((prompt, answer))
            total += len(prompt) + len(answer)
    if not taken:
        return None
    tokens = np.zeros(total, np.int64)
    positions = np.zeros(total, np.int64)
    targets = np.full(total, IGNORED, np.int64)
    visible = np.zeros((total, total), np.bool_)
    for place, spec in enumerate(specs):
        own = slice(ends[place], ends[place + 1])
        _write(tokens, positions, visible, own, spec.tokens, spec.first_position)
        for parent in spec.parents:
            visible[own, ends[parent] : ends[parent + 1]] = True
    start = int(ends[-1])
    for prompt, answer in taken:
        own = slice(start, start + len(prompt) + len(answer))
        _write(tokens, positions, visible, own, [*prompt, *answer], first)
        visible[own, : ends[-1]] = True
        begin = start + len(prompt) - 1
        targets[begin : begin + len(answer)] = answer
        start = own.stop
    return Row(kind, tokens, positions, targets, visible, len(taken))


def _write(
    tokens: Ints,
    positions: Ints,
    visible: npt.NDArray[np.bool_],
    own: slice,
    values: Sequence[int] | npt.NDArray[np.int32],
    first: int,
) -> None:
    """A run of tokens from position `first` on, which sees itself up to each token."""
    length = own.stop - own.start
    tokens[own] = values
    positions[own] = np.arange(first, first + length)
    visible[own, own] = np.tri(length, dtype=np.bool_)
