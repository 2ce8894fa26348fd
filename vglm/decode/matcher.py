"""Compiled grammars and the matchers that follow them, one for each sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vglm.errors import VGLMError

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

MaskArray = npt.NDArray[np.uint32]

_NO_TEXT = "NoExtension"  # beginning of the library's word for a grammar without texts


def reason(matcher: LLMatcher) -> str:
    """Why a matcher is in its error state, in a line."""
    message = matcher.get_error().split("\n<")[0].strip()
    if message.startswith(_NO_TEXT):
        return "it allows no text at all"
    return " ".join(message.split())[:300] or matcher.stop_reason()


class Grammar:
    """A compiled grammar: makes the matchers of sequences. Immutable; may be used in any thread.

    Attributes:
        spoiled: True once a matcher has reached a limit of the library. Matchers share the states that they find,
            so others may meet the same limit; a grammar compiled again starts afresh.
    """

    def __init__(self, first: LLMatcher, executor: LLExecutor) -> None:
        self._first = first  # never advanced, only copied
        self.executor = executor
        self.spoiled = False

    def start(self) -> Matcher:
        """A matcher at the start of a text."""
        return Matcher(self, self._first.deep_copy())


class Matcher:
    """Where a sequence is in its grammar: the engine's Constraint (vglm.engine.constraint).

    Attributes:
        finished: whether nothing can follow.
        error: why no mask can be computed any more; None while all is well.
    """

    __slots__ = ("_grammar", "_matcher", "error", "finished")

    def __init__(self, grammar: Grammar, matcher: LLMatcher) -> None:
        self._grammar = grammar
        self._matcher = matcher
        self.finished = False
        self.error: str | None = None

    def begin(self) -> list[int]:
        """The tokens that every text of the grammar begins with. Raises VGLMError as `accept` does."""
        return self._forced()

    def accept(self, token: int) -> list[int]:
        """Follow a token that the mask allowed; returns the tokens that must come next, which are followed, too.

        Raises VGLMError when the grammar reaches a limit of the library.
        """
        if not self._matcher.consume_token(token):
            self._fail()
        return self._forced()

    def _forced(self) -> list[int]:
        matcher, forced = self._matcher, []
        while tokens := matcher.compute_ff_tokens():
            forced += tokens
            if not matcher.consume_tokens(tokens):
                self._fail()
        self.finished = matcher.is_stopped()
        if self.finished and matcher.is_error():
            self._fail()
        return forced

    def _fail(self) -> None:
        self._note_error()
        raise VGLMError(self.error)

    def _note_error(self) -> None:
        self._grammar.spoiled = True
        self.error = reason(self._matcher)

    def fill_mask(self, row: MaskArray) -> None:
        """Set the bits of the tokens that may come next, and no others: uint32 [ceil(vocabulary / 32)]."""
        self.fill_masks([self], row.reshape(1, -1))

    @staticmethod
    def fill_masks(matchers: Sequence[Matcher], masks: MaskArray) -> None:
        """`fill_mask` for many at once, with the GIL released: uint32 [len(matchers), ...], C-contiguous."""
        if not matchers:
            return
        rows = [(matcher._matcher, i) for i, matcher in enumerate(matchers)]
        executor = matchers[0]._grammar.executor
        executor.unsafe_compute_mask_ptr(rows, masks.ctypes.data, masks.strides[0], len(rows))
        for i, matcher in enumerate(matchers):
            if matcher._matcher.is_error():
                matcher._note_error()
                masks[i] = 0
