"""Structured outputs compiled for a tokenizer, by the library llguidance.

The library and its form of the tokenizer are loaded when the first grammar is compiled. Compiled grammars are kept and
shared; each sequence has a matcher of its own, which is a copy that costs some microseconds.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import cached_property
from json import dumps, loads
from typing import TYPE_CHECKING, Any

import numpy as np

from vglm.decode.bounds import refuse
from vglm.decode.gbnf import as_lark, is_gbnf
from vglm.decode.grammar_tokens import GrammarVocabulary, TokenSpelling
from vglm.decode.matcher import Grammar, reason
from vglm.decode.structural_tag import tags_as_lark, with_options
from vglm.decode.structured import StructuredOutputs
from vglm.errors import RequestError, VGLMError

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLParserLimits, LLTokenizer

STACK_BYTES = (
    64 << 20
)  # of the compiling thread: room for the deepest schema and grammar that the checks let through
MAX_GRAMMARS = 32  # that are kept

# Time and memory of one grammar. Measured for a vocabulary of 49,000: fuel is spent at 0.5 us a unit or less, a state
# of the lexer takes up to 0.9 kB, an item 1 us. What is needed: a schema with 10,000 enum values 200,000 of initial
# fuel, strings of 20,000 characters 70,000 states; per step ordinary schemas less than a tenth of these.
_LIMITS = {
    "initial_lexer_fuel": 300_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_items_in_row": 1_000,  # quadratic; 250 properties that may all be left out need it
    "max_lexer_states": 100_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,  # else messages contain the grammar and the generated text
}
# Terminals are greedy, so a caller's grammar may force text that never ends (start: A A, where A is /x+/), and the
# library looks for its end. Nothing is forced in such grammars; one token that is allowed alone is sampled.
_NO_FORCING = '%llguidance {"no_forcing": true}\n'
_FLEXIBLE = {"whitespace_flexible": True, "item_separator": ",", "key_separator": ":"}
_FIXED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GrammarCompiler:
    """Compiles structured outputs for one model; may be used in several threads at once.

    Args:
        tokenizer: the model's.
        vocab_size: logits of the model; ids that the tokenizer does not know are never allowed.
        eos_token_ids: tokens that end a text.
        capacity: compiled grammars that are kept, the most recently used ones.
    """

    def __init__(
        self,
        tokenizer: TokenSpelling,
        vocab_size: int,
        eos_token_ids: Collection[int],
        capacity: int = MAX_GRAMMARS,
    ) -> None:
        self._vocabulary = GrammarVocabulary(tokenizer, vocab_size, tuple(eos_token_ids))
        self._capacity = capacity
        self._slots: OrderedDict[StructuredOutputs, _Slot] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    def compile(self, structured: StructuredOutputs) -> Grammar:
        """The grammar of these structured outputs. Raises RequestError that says why it cannot be compiled.

        Takes less than a millisecond for an ordinary schema, at most seconds for a hostile one; the GIL is free
        meanwhile.
        """
        with self._lock:
            slot = self._slots.get(structured)
            if slot is None or slot.spoiled:
                slot = self._slots[structured] = _Slot()
            self._slots.move_to_end(structured)
            while len(self._slots) > self._capacity:
                self._slots.popitem(last=False)
        with slot.lock:  # whoever asks for the same meanwhile waits for it
            if slot.grammar is None and slot.refusal is None:
                try:
                    slot.grammar = self._compile(structured)
                except RequestError as error:
                    slot.refusal = str(error)
        if slot.refusal is not None:
            raise RequestError(slot.refusal, "structured_outputs")
        assert slot.grammar is not None
        return slot.grammar

    def _compile(self, structured: StructuredOutputs) -> Grammar:
        with self._loading:
            tokenizer, executor = self._tokenizer, self._executor
        source = _source(structured, self._vocabulary.literal)
        try:
            return _in_deep_stack(lambda: _build(tokenizer, source, self._limits, executor))
        except VGLMError as error:
            refuse(f"{structured.kind} cannot be compiled: {error}")

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return self._vocabulary.load()

    @cached_property
    def _limits(self) -> LLParserLimits:
        from llguidance import LLParserLimits

        return LLParserLimits(**_LIMITS)  # type: ignore[arg-type]

    @cached_property
    def _executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        # Half of the processors: the others run the forward pass meanwhile.
        return LLExecutor(max(1, len(os.sched_getaffinity(0)) // 2))


class _Slot:
    """A kept grammar, or why it was refused, or a place for whoever compiles it first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.grammar: Grammar | None = None
        self.refusal: str | None = None

    @property
    def spoiled(self) -> bool:
        """Whether the grammar has reached a limit while it was used: its matchers share what was counted."""
        return self.grammar is not None and self.grammar.spoiled


def _source(structured: StructuredOutputs, literal: Callable[[str], str]) -> str:
    """The grammar as llguidance takes it."""
    from llguidance import LLMatcher, regex_to_lark

    kind, value = structured.kind, getattr(structured, structured.kind)
    if kind == "json":
        return _schema(loads(value), _options(structured))
    if kind == "json_object":
        return _schema({"type": "object"}, _options(structured))
    if kind == "regex":
        return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(value, 'dw')}/")
    if kind == "choice":
        return LLMatcher.grammar_from_lark("start: CHOICE\nCHOICE: " + " | ".join(map(_quoted, value)))
    if kind == "grammar":
        return LLMatcher.grammar_from_lark(_NO_FORCING + (as_lark(value) if is_gbnf(value) else value))
    return LLMatcher.grammar_from_lark(tags_as_lark(loads(value), _options(structured), literal))


def _schema(schema: dict[str, Any], options: dict[str, Any]) -> str:
    return dumps({"grammars": [{"json_schema": with_options(schema, options)}]}, ensure_ascii=False)


def _options(structured: StructuredOutputs) -> dict[str, Any]:
    return dict(_FIXED if structured.disable_any_whitespace else _FLEXIBLE)


def _quoted(text: str) -> str:
    return dumps(text, ensure_ascii=False)


def _build(tokenizer: LLTokenizer, source: str, limits: LLParserLimits, executor: LLExecutor) -> Grammar:
    """A grammar that has made its first step: what that costs is paid here, not by the engine. Raises VGLMError."""
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer, source, log_level=0, limits=limits)
    if matcher.is_error():
        raise VGLMError(reason(matcher))
    grammar = Grammar(matcher, executor)
    first = grammar.start()
    first.begin()
    first.fill_mask(np.zeros(-(-tokenizer.vocab_size // 32), np.uint32))
    if first.error is not None:
        raise VGLMError(first.error)
    return grammar


_stack_size = threading.Lock()  # setting it is global


def _in_deep_stack(work: Callable[[], Grammar]) -> Grammar:
    """The result of the work, done in a thread with a deep stack: the library's compiler recurses."""
    result: Future[Grammar] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=run, name="vglm-grammar", daemon=True)
    with _stack_size:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        except RuntimeError as error:
            raise VGLMError(f"no memory for a thread ({error})") from error
        finally:
            threading.stack_size(before)
    return result.result()
