"""Token ids to text, one step at a time.

Byte-level and SentencePiece vocabularies (with byte fallback) spell every token as bytes, so the text is the
tokens' bytes read as UTF-8: a table look-up and an incremental decoder, O(1) for each token, never half a
character. A vocabulary whose decoder does more than that (WordPiece, say) is decoded a few tokens at a time.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Protocol
from weakref import WeakKeyDictionary

from vglm.decode.sampling_params import SamplingParams
from vglm.decode.stop_strings import StopScanner

_LONGEST_PARTIAL = 3  # bytes of a UTF-8 character that is not complete
_REPLACEMENT = "\ufffd"
_WINDOW = 4  # tokens
_SAMPLE = (*range(0, 512, 8), *range(512, 16384, 512))  # token ids; unknown ones spell nothing


class TokenText(Protocol):
    """What is needed of a tokenizer; vglm.model.tokenizer.Tokenizer has it."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...


class Detokenizer:
    """Text of one completion.

    Args:
        tokenizer: the model's.
        prompt_ids: tokens before the completion; they decide whether a leading space is text, and complete
            a character that the prompt left unfinished. Ids outside the vocabulary are passed over.
        params: stop, min_tokens, detokenize, skip_special_tokens and include_stop_str_in_output count.
        incremental: whether increments are wanted. If not, and without stop strings, `append` only notes the
            tokens, and the text is made when it is asked for.

    A token that ended the generation by its id is not part of the text; do not append it, unless
    include_stop_str_in_output asks for it.

    Attributes:
        stopped: the stop string that was found, after which nothing is appended; else None.
        num_tokens: tokens that were appended, up to and including the one that completed the stop string.
    """

    def __init__(
        self,
        tokenizer: TokenText,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        incremental: bool = True,
    ) -> None:
        self.stopped: str | None = None
        self.num_tokens = 0
        self._decoder: _ByteDecoder | _WindowDecoder | None = None
        if params.detokenize:
            decoder = _ByteDecoder if spells_bytes(tokenizer) else _WindowDecoder
            self._decoder = decoder(tokenizer, prompt_ids, params.skip_special_tokens)
        stops = params.stop_strings
        self._scanner = StopScanner(stops, params.include_stop_str_in_output) if stops else None
        self._min_tokens = params.min_tokens
        self._lazy = self._scanner is None and not incremental
        self._waiting: list[int] = []
        self._parts: list[str] = []

    def append(self, token_ids: Iterable[int]) -> str:
        """Adds tokens and returns the text that has become certain.

        Tokens after the one that completes a stop string are not taken; see `stopped` and `num_tokens`.
        """
        if self._lazy:
            before = len(self._waiting)
            self._waiting += token_ids
            self.num_tokens += len(self._waiting) - before
            return ""
        increment = ""
        for token_id in token_ids:
            if self.stopped is not None:
                break
            self.num_tokens += 1
            increment += self._take(token_id)
        if increment:
            self._parts.append(increment)
        return increment

    def finish(self) -> str:
        """Ends the text: returns what was held back, with U+FFFD for a character that was never completed."""
        if self._decoder is None or self.stopped is not None:
            return ""
        self._decode_waiting()
        rest = self._decoder.finish()
        if self._scanner is not None:
            rest, self.stopped = self._scanner.feed(rest, may_stop=self.num_tokens > self._min_tokens)
            rest += self._scanner.finish()
        self._parts.append(rest)
        return rest

    @property
    def text(self) -> str:
        """The increments so far, in one piece."""
        self._decode_waiting()
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def _take(self, token_id: int) -> str:
        text = self._decoder.feed(token_id) if self._decoder is not None else ""
        if self._scanner is not None and text:
            text, self.stopped = self._scanner.feed(text, may_stop=self.num_tokens > self._min_tokens)
        return text

    def _decode_waiting(self) -> None:
        if self._decoder is not None and self._waiting:
            self._parts += map(self._decoder.feed, self._waiting)
            self._waiting = []


class _ByteDecoder:
    """The tokens' bytes, read as UTF-8."""

    def __init__(self, tokenizer: TokenText, prompt_ids: Sequence[int], skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        tail = b""
        for token_id in reversed(prompt_ids):
            if token_id not in self._skipped:
                tail = self._bytes(token_id) + tail
            if len(tail) >= _LONGEST_PARTIAL:
                break
        self._utf8.decode(tail)
        self._at_start = not tail

    def feed(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        if self._at_start:
            return self._first(token_id)
        return self._utf8.decode(self._bytes(token_id))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)

    def _first(self, token_id: int) -> str:
        """SentencePiece decoders drop the space that begins a text; the tokenizer knows if this one does."""
        spelled = self._bytes(token_id)
        self._at_start = not spelled
        text = self._tokenizer.decode([token_id], skip_special=False) if spelled else ""
        return self._utf8.decode(spelled) if _REPLACEMENT in text else text


class _WindowDecoder:
    """The difference that a token makes to the text of the few before it."""

    def __init__(self, tokenizer: TokenText, prompt_ids: Sequence[int], skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        visible = (i for i in reversed(prompt_ids) if i not in self._skipped and tokenizer.token_bytes(i))
        self._before = list(islice(visible, _WINDOW))[::-1]
        self._pending: list[int] = []

    def feed(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        self._pending.append(token_id)
        text = self._pending_text()
        if text.endswith(_REPLACEMENT) and len(self._pending) <= _LONGEST_PARTIAL:
            return ""
        self._before = (self._before + self._pending)[-_WINDOW:]
        self._pending = []
        return text

    def finish(self) -> str:
        return self._pending_text()

    def _pending_text(self) -> str:
        before = self._tokenizer.decode(self._before, skip_special=False)
        return self._tokenizer.decode(self._before + self._pending, skip_special=False)[len(before) :]


_spelling: WeakKeyDictionary[TokenText, bool] = WeakKeyDictionary()


def spells_bytes(tokenizer: TokenText) -> bool:
    """Whether the tokenizer's decoder only joins the bytes of tokens, tried once on tokens from all over."""
    known = _spelling.get(tokenizer)
    if known is None:
        words = [(i, _as_text(tokenizer.token_bytes(i))) for i in _SAMPLE if i not in tokenizer.special_ids]
        joined = "".join(word for _, word in words)
        decoded = tokenizer.decode([i for i, word in words if word], skip_special=False)
        known = _spelling[tokenizer] = decoded.lstrip(" ") == joined.lstrip(" ")
    return known


def _as_text(spelled: bytes) -> str:
    text = spelled.decode("utf-8", "replace")
    return "" if _REPLACEMENT in text else text
