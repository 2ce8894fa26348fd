"""A model's vocabulary as the grammar library needs it: the bytes of every token, and text to tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from json import dumps
from typing import TYPE_CHECKING, Protocol

from vglm.decode.bounds import refuse
from vglm.decode.detokenizer import TokenText, spells_bytes

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_MARK = "\x02"  # a character that no merge joins with others


class TokenSpelling(TokenText, Protocol):
    """What is needed of a tokenizer; vglm.model.tokenizer.Tokenizer has it."""

    @property
    def bos_id(self) -> int | None: ...

    def encode(self, text: str, add_special: bool = True, allow_special_tokens: bool = True) -> list[int]: ...

    def id_to_token(self, token_id: int) -> str | None: ...


class GrammarVocabulary:
    """A tokenizer, seen by the grammar library."""

    def __init__(self, tokenizer: TokenSpelling, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids

    def load(self) -> LLTokenizer:
        """The library's tokenizer: 0.3 seconds for 49,000 tokens. Raises RequestError when there can be none."""
        if not self._eos_token_ids:
            refuse("the model has no end-of-text token, which would end the text")
        if not spells_bytes(self._tokenizer):
            refuse("the model's tokens do not spell bytes, so that no grammar can be followed")
        from llguidance import LLTokenizer, TokenizerWrapper

        wrapper = TokenizerWrapper(SpelledTokens(self._tokenizer, self._vocab_size, self._eos_token_ids))
        return LLTokenizer(wrapper, n_vocab=self._vocab_size, eos_token=list(self._eos_token_ids))

    def literal(self, text: str) -> str:
        """A text in a Lark rule, with special tokens where it has their names."""
        parts = self._special.split(text) if self._special is not None else [text]
        return " ".join(self._part(part) for part in parts if part) or '""'

    def _part(self, part: str) -> str:
        token = self._special_names.get(part)
        return dumps(part, ensure_ascii=False) if token is None else f"<[{token}]>"

    @cached_property
    def _special_names(self) -> dict[str, int]:
        names = {i: self._tokenizer.id_to_token(i) for i in sorted(self._tokenizer.special_ids)}
        return {name: i for i, name in names.items() if name and i < self._vocab_size}

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        longest_first = sorted(self._special_names, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None


class SpelledTokens:
    """The tokens of a vocabulary as bytes, and text in tokens: what llguidance's TokenizerWrapper asks for."""

    def __init__(self, tokenizer: TokenSpelling, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_ids[0]
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(vocab_size)]
        special = {*tokenizer.special_ids, *eos_token_ids}
        self.special_token_ids = sorted(i for i in special if i < vocab_size)

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens that stand for the text in the middle of another one."""
        text = text.decode() if isinstance(text, bytes) else text
        wanted = text.encode()
        for before in ("", _MARK):  # some tokenizers put a space before a text
            ids = self._encode(before + text)
            if (found := self._last(ids, wanted)) is not None:
                return found
        return self.greedy(wanted)

    def _encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special=False)
        if self._tokenizer.special_ids.isdisjoint(ids):
            return ids
        return self._tokenizer.encode(text, add_special=False, allow_special_tokens=False)

    def _last(self, ids: Sequence[int], wanted: bytes) -> list[int] | None:
        """The last tokens if they spell just this."""
        start, spelled = len(ids), b""
        while len(spelled) < len(wanted) and start > 0 and ids[start - 1] < len(self.tokens):
            start -= 1
            spelled = self.tokens[ids[start]] + spelled
        return list(ids[start:]) if spelled == wanted else None

    def greedy(self, text: bytes) -> list[int]:
        """The longest token, again and again, as far as there is one."""
        ids: list[int] = []
        start = 0
        while start < len(text):
            sizes = range(min(self._longest, len(text) - start), 0, -1)
            size = next((n for n in sizes if text[start : start + n] in self._by_bytes), 0)
            if not size:
                break
            ids.append(self._by_bytes[text[start : start + size]])
            start += size
        return ids

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {token: i for i, token in enumerate(self.tokens) if token and i not in special}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_bytes), default=0)
