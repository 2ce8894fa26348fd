"""Counting the tokens of lines: exactly with a tokenizer and a memory, or about, without one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

CountTokens = Callable[[str], int]
_PIECES = re.compile(r"[^\W\d_]{1,6}|\d|[^\w\s]|_|\n|[^\x00-\x7f]")


class Encodes(Protocol):
    """What is needed of a tokenizer: token ids of a text in which control tokens are plain characters."""

    def encode(
        self, text: str, add_special: bool = ..., allow_special_tokens: bool = ...
    ) -> Sequence[int]: ...


class TokenCounts:
    """Counts a tokenizer's tokens and remembers them: lines of graphs occur in request after request.

    Up to `capacity` texts are remembered (some 100 bytes each); then the memory starts afresh.
    """

    def __init__(self, tokenizer: Encodes, capacity: int = 200_000) -> None:
        self._tokenizer = tokenizer
        self._capacity = capacity
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        found = self._known.get(text)
        if found is None:
            if len(self._known) >= self._capacity:
                self._known = {}  # a new one: another thread may be reading the old one
            found = len(self._tokenizer.encode(text, add_special=False, allow_special_tokens=False))
            self._known[text] = found
        return found


def estimate_tokens(text: str) -> int:
    """About the tokens of a text, for want of a tokenizer: words in pieces of six letters, digits and marks singly."""
    return len(_PIECES.findall(text))
