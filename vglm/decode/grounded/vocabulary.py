"""A model's vocabulary for grounded decoding: the trie of its tokens, and how forced text is spelled."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cached_property
from itertools import accumulate
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from vglm import _native
from vglm.decode.detokenizer import spells_bytes
from vglm.decode.grammar import GrammarCompiler
from vglm.decode.grammar_tokens import SpelledTokens, TokenSpelling
from vglm.decode.grounded.grounding import refuse
from vglm.graph.strings import StringTable

Ids = npt.NDArray[np.int32]
Flags = npt.NDArray[np.uint8]
_KEPT_SPELLINGS = 4096
_LONGEST_KEPT = 512  # bytes of a text whose spelling is kept
_CONTINUATIONS = range(0x80, 0xC0)


class Spelling(TokenSpelling, Protocol):
    """What is needed of a tokenizer; vglm.model.tokenizer.Tokenizer has it."""

    @property
    def added_ids(self) -> frozenset[int]: ...


class Vocabulary:
    """The tokens that grounded text is made of: all that spell text, none that the tokenizer adds for templates.

    Raises RequestError for a tokenizer whose tokens do not spell bytes, or a model that cannot end a text.
    """

    def __init__(self, tokenizer: Spelling, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        if not eos_token_ids:
            refuse("the model has no end-of-text token, which would end the text")
        if not spells_bytes(tokenizer):
            refuse("the model's tokens do not spell bytes, so that no name can be followed")
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        excluded = {*tokenizer.special_ids, *tokenizer.added_ids, *eos_token_ids}
        spelled = {i: tokenizer.token_bytes(i) for i in range(vocab_size) if i not in excluded}
        spelled = {i: text for i, text in spelled.items() if text}
        if not _single_bytes(spelled).issuperset(
            _CONTINUATIONS
        ):  # else a character might be begun and never completed
            spelled = {i: text for i, text in spelled.items() if _is_utf8(text)}
        self._missing = np.ones(256, np.uint8)  # bytes that no token of one byte is
        self._missing[[*_single_bytes(spelled)]] = 0
        self._usable = frozenset(spelled)
        offsets = np.fromiter(accumulate(map(len, spelled.values()), initial=0), np.int64, len(spelled) + 1)
        self.trie = _native.TokenTrie(
            np.frombuffer(b"".join(spelled.values()), np.uint8),
            offsets,
            np.fromiter(spelled, np.int32, len(spelled)),
            np.array(sorted(set(eos_token_ids)), np.int32),
            vocab_size,
        )
        self._spellings: OrderedDict[bytes, Ids] = OrderedDict()
        self._lock = threading.Lock()

    def bytes_of(self, token_ids: list[int]) -> bytes:
        """What tokens spell, without control tokens."""
        special = {*self._tokenizer.special_ids, *self.eos_token_ids}
        return b"".join(self._tokenizer.token_bytes(i) for i in token_ids if i not in special)

    def unspellable(self, strings: StringTable) -> Flags | None:
        """1 for each string that cannot be made of tokens, uint8[n]; None if there is none."""
        if not _native.contains_any(
            strings.data, self._missing
        ):  # most vocabularies lack some bytes, but rarely ones that names have
            return None
        spellable: Flags = self.trie.spellable(strings.data, strings.offsets)
        return 1 - spellable if not spellable.all() else None

    def require_spellable(self, text: str) -> None:
        """Raises RequestError if a text of the form itself cannot be made of tokens."""
        flags = self.unspellable(StringTable.of([text]))
        if flags is not None and flags[0]:
            refuse(f"the model's tokens cannot spell {text!r}")

    def spell(self, text: bytes) -> Ids:
        """The tokenizer's own tokens for a text in the middle of another, int32[n]; a character that is cut off at its
        end is left out.
        """
        with self._lock:
            if (kept := self._spellings.get(text)) is not None:
                self._spellings.move_to_end(text)
                return kept
        ids = np.array(self._spell(text), np.int32)
        if len(text) <= _LONGEST_KEPT:
            with self._lock:
                self._spellings[text] = ids
                if len(self._spellings) > _KEPT_SPELLINGS:
                    self._spellings.popitem(last=False)
        return ids

    def _spell(self, text: bytes) -> list[int]:
        start = next((i for i, byte in enumerate(text) if byte not in _CONTINUATIONS), len(text))
        whole = text[start:].decode("utf-8", "ignore").encode()  # cut off at the end, if anywhere
        if not text.startswith(whole, start):
            whole = b""
        ids = self._spelled.greedy(text[:start])
        if not whole:
            return ids
        found = self._spelled(whole)
        if not self._usable.issuperset(found):
            found = self._tokenizer.encode(whole.decode(), add_special=False, allow_special_tokens=False)
        return ids + found

    @cached_property
    def _spelled(self) -> SpelledTokens:
        return SpelledTokens(self._tokenizer, self.vocab_size, self.eos_token_ids)

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Compiles the schemas that are left to the grammar library."""
        return GrammarCompiler(self._tokenizer, self.vocab_size, self.eos_token_ids)


def _single_bytes(spelled: dict[int, bytes]) -> set[int]:
    return {text[0] for text in spelled.values() if len(text) == 1}


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


_made: WeakKeyDictionary[Spelling, dict[tuple[int, tuple[int, ...]], Vocabulary]] = WeakKeyDictionary()
_making = threading.Lock()


def vocabulary_of(tokenizer: Spelling, vocab_size: int, eos_token_ids: tuple[int, ...]) -> Vocabulary:
    """The vocabulary of a tokenizer, made once: 0.1 seconds for 49,000 tokens."""
    with _making:
        made = _made.setdefault(tokenizer, {})
        key = (vocab_size, eos_token_ids)
        if key not in made:
            made[key] = Vocabulary(tokenizer, vocab_size, eos_token_ids)
        return made[key]
