"""Groundings compiled for a graph and a vocabulary: the engine's constraints, and what their texts mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from json import JSONDecodeError, loads
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from vglm import _native
from vglm.decode.grounded.forms import FormBuilder
from vglm.decode.grounded.grounding import Grounding, refuse
from vglm.decode.grounded.names import GraphIndex, graph_index
from vglm.decode.grounded.reading import Allowed, Grounded, Reader, ReadName
from vglm.decode.grounded.schema import SchemaWriter, Unsupported
from vglm.decode.grounded.schema_enums import WrittenOut, with_enums
from vglm.decode.grounded.vocabulary import Spelling, Vocabulary, vocabulary_of
from vglm.decode.grounded.wording import instructions
from vglm.decode.matcher import Grammar, Matcher
from vglm.decode.structured import StructuredOutputs
from vglm.errors import RequestError, VGLMError
from vglm.graph.graph import Graph

MaskArray = npt.NDArray[np.uint32]
MAX_DECODERS = 64  # that are kept for a graph


class GroundedText:
    """Where a sequence is in its grounded text: the engine's Constraint (vglm.engine.constraint).

    Attributes:
        finished: whether nothing can follow.
        error: None; every state can be completed.
    """

    __slots__ = ("_matcher", "_vocabulary", "error", "finished", "parts")

    def __init__(self, machine: _native.TextMachine, vocabulary: Vocabulary) -> None:
        self.parts = (machine, vocabulary)  # that it was made of
        self._matcher = _native.TextMatcher(machine)
        self._vocabulary = vocabulary
        self.finished = False
        self.error: str | None = None

    def begin(self) -> list[int]:
        """The tokens that every text begins with."""
        return self._forced()

    def accept(self, token: int) -> list[int]:
        """Follow a token that the mask allowed; returns the tokens that must come next, which are followed, too.

        Raises VGLMError for a token that the mask did not allow.
        """
        try:
            self._matcher.accept(token)
        except ValueError as error:
            raise VGLMError(str(error)) from error
        return self._forced()

    def _forced(self) -> list[int]:
        """Where only one text can follow, it is spelled as the tokenizer spells it, as far as no token that goes on
        beyond it could be meant.
        """
        matcher = self._matcher
        forced: list[int] = []
        while not matcher.finished and (text := matcher.forced()):
            tokens = self._vocabulary.spell(text)
            taken = matcher.take(tokens)
            forced += tokens[:taken].tolist()
            if not taken:
                break
        self.finished = matcher.finished
        return forced

    def fill_mask(self, row: MaskArray) -> None:
        """Set the bits of the tokens that may come next, and no others: uint32 [ceil(vocabulary / 32)]."""
        self.fill_masks([self], row.reshape(1, -1))

    @staticmethod
    def fill_masks(constraints: Sequence[GroundedText], masks: MaskArray) -> None:
        """`fill_mask` for many at once, with the GIL released: uint32 [len(constraints), ...], C-contiguous."""
        _native.TextMatcher.fill_masks([text._matcher for text in constraints], masks)


class GroundedDecoder:
    """A grounding compiled for a graph: makes the constraints of sequences, and reads their texts. Immutable; may be used
    in any thread.

    Attributes:
        grounding: what was compiled.
        instructions: a sentence that tells a model the form.
    """

    def __init__(self, grounding: Grounding, index: GraphIndex, vocabulary: Vocabulary) -> None:
        self.grounding = grounding
        self.instructions = instructions(grounding)
        self._index, self._vocabulary = index, vocabulary
        self._form = FormBuilder(index, vocabulary)
        self._grammar: Grammar | None = None
        self._machine: _native.TextMachine | None = None
        if grounding.kind == "json":
            self._compile_schema(loads(str(grounding.schema)))
        else:
            self._form.write(grounding)
            self._machine = self._made_machine()
        if (
            self._machine is not None
        ):  # what the first mask of a large list costs is paid here, not by the engine
            first = GroundedText(self._machine, vocabulary)
            first.begin()
            first.fill_mask(np.zeros(-(-vocabulary.vocab_size // 32), np.uint32))

    def _made_machine(self) -> _native.TextMachine:
        form = self._form
        return form.program.machine(self._index.edges_both_ways if form.inverse else self._index.edges)

    def _compile_schema(self, schema: Any) -> None:
        try:
            SchemaWriter(self._form, schema).write(schema)
            self._machine = self._made_machine()
        except (Unsupported, ValueError) as error:
            if isinstance(error, RequestError):
                raise
            self._grammar = self._written_out(schema, str(error))

    def _written_out(self, schema: Any, keyword: str) -> Grammar:
        form = self._form = FormBuilder(self._index, self._vocabulary)
        values = WrittenOut(self._index, form.nodes, form.relation_flags, form.node_indices, keyword)
        try:
            return self._vocabulary.grammars.compile(StructuredOutputs(json=with_enums(schema, values)))
        except RequestError as error:
            refuse(str(error).removeprefix("structured_outputs: ").removeprefix("constraint: "))

    def start(self) -> GroundedText | Matcher:
        """The constraint of a sequence at the start of its text."""
        if self._grammar is not None:
            return self._grammar.start()
        assert self._machine is not None
        return GroundedText(self._machine, self._vocabulary)

    @property
    def names(self) -> _native.StringIndex:
        """The index of the graph's names."""
        return self._form.names.nodes.native

    # ---- reading

    def read(self, output: str | bytes | Sequence[int]) -> Grounded:
        """What a text, or its tokens, means. One that was cut off is read as far as it goes.

        Raises RequestError (of parameter `text`) for a text that is not of the form.
        """
        raw = self._raw(output)
        if self._machine is None:
            return self._read_json(raw, complete=True)
        length, complete, found = self._machine.read(raw)
        if length < len(raw):
            before, wrong = raw[max(0, length - 40) : length], raw[length : length + 20]
            _refuse_text(
                f"the text leaves its form at byte {length}: {wrong.decode('utf-8', 'replace')!r} after "
                f"{before.decode('utf-8', 'replace')!r}"
            )
        if self.grounding.kind == "json":
            return self._read_json(raw, complete)
        names = [self._read_name(*name) for name in found]
        return self._reader.read(raw, complete, names, self._allowed)

    def _raw(self, output: str | bytes | Sequence[int]) -> bytes:
        if isinstance(output, str):
            return output.encode("utf-8", "replace")
        return output if isinstance(output, bytes) else self._vocabulary.bytes_of(list(output))

    def _read_name(self, instruction: int, group: int, end: int) -> ReadName:
        role = self._form.roles[instruction]
        size = len(self._form.names.nodes.native.text(group)) if role.what == "mention" else 0
        return ReadName(role, group, end - size, end)

    def _read_json(self, raw: bytes, complete: bool) -> Grounded:
        text = raw.decode("utf-8", "replace")
        if not complete:
            return Grounded(text, complete=False)
        try:
            value = loads(text)
            return self._reader.read_json(
                text, True, value, loads(str(self.grounding.schema)), self._allowed_by
            )
        except (JSONDecodeError, RecursionError, LookupError) as error:
            _refuse_text(
                f"the text is not JSON after the schema ({error or 'a name that the graph does not have'})"
            )

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self._index.graph, self._form.names)

    @cached_property
    def _allowed(self) -> dict[int, Allowed]:
        parts: Any = self.grounding.parts or (self.grounding,)
        return {number: self._allowed_in(part) for number, part in enumerate(parts)}

    def _allowed_in(self, part: Grounding) -> Allowed:
        form, last = self._form, self._form.nodes(part)
        first = form.node_indices(part.start, "start") if part.start else None
        return Allowed(*(None if nodes is None else form.flags_of(nodes) for nodes in (first, last)))

    def _allowed_by(self, options: Mapping[str, Any]) -> Allowed:
        known = {name: options[name] for name in ("types", "candidates", "start") if name in options}
        return self._allowed_in(Grounding(kind="walk", **known))


def _refuse_text(message: str) -> NoReturn:
    raise RequestError(message, "text")


def compile_grounding(
    grounding: Grounding | str | Mapping[str, Any],
    graph: Graph,
    tokenizer: Spelling,
    vocab_size: int | None = None,
    eos_token_ids: Sequence[int] | None = None,
) -> GroundedDecoder:
    """A grounding for a graph, as the `constraint` of requests to the engine; may be called in any thread.

    What was compiled lately is kept with the graph, and an edited graph takes over what it shares with the one before.
    `vocab_size` (logits of the model) and `eos_token_ids` are the tokenizer's by default. Raises RequestError (of parameter
    `constraint`) for what the graph cannot satisfy: nothing is left to be found out while a text is generated.
    """
    wanted = Grounding.parse(grounding)
    if vocab_size is None:
        vocab_size = int(getattr(tokenizer, "vocab_size"))  # noqa: B009
    ends = getattr(tokenizer, "eos_ids", ()) if eos_token_ids is None else eos_token_ids
    vocabulary = vocabulary_of(tokenizer, vocab_size, tuple(ends))
    index = graph_index(graph)
    key = (wanted, id(vocabulary))
    with index.compiling:  # whoever asks for the same meanwhile waits for it
        if key not in index.decoders:
            index.decoders[key] = GroundedDecoder(wanted, index, vocabulary)
        index.decoders.move_to_end(key)
        while len(index.decoders) > MAX_DECODERS:
            index.decoders.popitem(last=False)
        found: GroundedDecoder = index.decoders[key]
        return found
