"""Text to token ids and back, over the `tokenizers` library.

A prompt may hold text that nobody trusts (a graph's labels). `allow_special_tokens=False` encodes such text
so that no control token can come out of it, whatever it spells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

from tokenizers import Tokenizer as Backend

from vglm.errors import ModelError, RequestError

_CACHE_FORMAT = 1
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@contextmanager
def tokenizer_errors(where: str) -> Iterator[None]:
    """Turn what the `tokenizers` library raises on bad data, Rust panics included, into ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{where}: the tokenizer cannot be built: {str(error)[:300]}") from error
    except BaseException as error:
        # A panic in the library derives from BaseException; interrupts and exits must pass.
        if type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{where}: the tokenizer cannot be built: {str(error)[:300]}") from error


class Tokenizer:
    """Encodes and decodes; immutable and safe to share between threads.

    `bos_id` is the begin token or None, `eos_ids` the end tokens, `prefix_ids` and `suffix_ids` what `encode`
    puts around a text when `add_special` is true.
    """

    def __init__(self, backend: Backend, bos_id: int | None, eos_ids: Sequence[int]) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._bytes: dict[int, bytes] = {}
        self.bos_id = bos_id
        self.eos_ids = tuple(eos_ids)
        probe = backend.encode("", add_special_tokens=True).ids
        around = backend.encode("a", add_special_tokens=True).ids
        plain = backend.encode("a", add_special_tokens=False).ids
        start = next((i for i in range(len(around) + 1) if around[i : i + len(plain)] == plain), 0)
        self.prefix_ids = tuple(around[:start])
        self.suffix_ids = tuple(probe[start:])

    @property
    def add_bos(self) -> bool:
        """Whether `encode` starts a text with the begin token when `add_special` is true."""
        return self.bos_id is not None and self.bos_id in self.prefix_ids

    @property
    def eos_id(self) -> int | None:
        """The first end token."""
        return self.eos_ids[0] if self.eos_ids else None

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the control tokens: `decode` leaves them out and untrusted text never yields them."""
        return self._special_ids

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @property
    def added_ids(self) -> frozenset[int]:
        """Ids of all tokens beside the vocabulary proper, which templates use, except for white space."""
        return self._added_ids

    @cached_property
    def _added_ids(self) -> frozenset[int]:
        return frozenset(token_id for token_id, text in self._added.items() if not text.isspace())

    def encode(self, text: str, add_special: bool = True, allow_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        `add_special` adds what the model puts around every text (a begin token, often nothing);
        `allow_special_tokens=False` reads control tokens spelled in the text as plain characters.
        Raises RequestError when the text is not valid Unicode.
        """
        return self.encode_batch([text], add_special, allow_special_tokens)[0]

    def encode_batch(
        self, texts: Sequence[str], add_special: bool = True, allow_special_tokens: bool = True
    ) -> list[list[int]]:
        """As `encode`, for many texts in parallel."""
        backend = self._backend if allow_special_tokens else self._plain_backend
        try:
            if len(texts) == 1:
                encoded = [backend.encode(texts[0], add_special_tokens=add_special).ids]
            else:
                batch = backend.encode_batch_fast(list(texts), add_special_tokens=add_special)
                encoded = [encoding.ids for encoding in batch]
        except (TypeError, UnicodeEncodeError) as error:
            raise RequestError(f"a prompt is not valid Unicode text: {error}") from error
        if not allow_special_tokens:
            encoded = [self._without_control(ids, add_special) for ids in encoded]
        return encoded

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids; invalid UTF-8 becomes U+FFFD. Raises RequestError for negative ids."""
        try:
            text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special)
        except (TypeError, OverflowError) as error:
            raise RequestError(f"token ids must be whole numbers from 0: {error}") from error
        return text

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its exact name, as in "<|im_end|>"; None when there is none."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def id_to_token(self, token_id: int) -> str | None:
        """The token's name in the vocabulary (byte-level spelling); None for an unknown id."""
        token: str | None = self._backend.id_to_token(token_id)
        return token

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; of a control token its name, of an unknown id nothing."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._read_bytes(token_id)
        return found

    def to_json(self) -> str:
        """Everything needed to rebuild the tokenizer quickly with `from_json`."""
        head = {"format": _CACHE_FORMAT, "bos_id": self.bos_id, "eos_ids": list(self.eos_ids)}
        return json.dumps(head) + "\n" + self._backend.to_str()

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Rebuild a tokenizer from `to_json`. Raises ModelError when the text is not from there."""
        with tokenizer_errors("cached tokenizer"):
            head_text, _, body = text.partition("\n")
            head = json.loads(head_text)
            if head["format"] != _CACHE_FORMAT:
                raise ModelError(f"cached tokenizer: format {head['format']!r} is not {_CACHE_FORMAT}")
            return cls(Backend.from_str(body), head["bos_id"], head["eos_ids"])

    @cached_property
    def _plain_backend(self) -> Backend:
        """A copy that reads every added token as text, except runs of spaces, which are only compression."""
        description = json.loads(self._backend.to_str())
        for token in description["added_tokens"]:
            if not token["content"].isspace():
                token["special"] = True
        plain = Backend.from_str(json.dumps(description))
        plain.encode_special_tokens = True
        return plain

    def _without_control(self, ids: list[int], add_special: bool) -> list[int]:
        """Spell out any control token that plain merges happened to build from the text itself."""
        prefix, suffix = (len(self.prefix_ids), len(self.suffix_ids)) if add_special else (0, 0)
        end = len(ids) - suffix
        if self.special_ids.isdisjoint(ids[prefix:end]):
            return ids
        spelled = ids[:prefix]
        for token_id in ids[prefix:end]:
            spelled += self._spell(token_id) if token_id in self.special_ids else [token_id]
        return spelled + ids[end:]

    def _spell(self, token_id: int) -> list[int]:
        """The text of a control token, one character at a time."""
        pieces = []
        for character in self.token_bytes(token_id).decode("utf-8", "replace"):
            pieces += self._plain_backend.encode(character, add_special_tokens=False).ids
        return [piece for piece in pieces if piece not in self.special_ids]

    def _read_bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode("utf-8")
        token = self.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        return _byte_level_bytes(token) if self._is_byte_level else _piece_bytes(token)

    @cached_property
    def _added(self) -> dict[int, str]:
        return {i: token.content for i, token in self._backend.get_added_tokens_decoder().items()}

    @cached_property
    def _is_byte_level(self) -> bool:
        return '"ByteLevel"' in _state(self._backend.decoder)


def _state(component: object) -> str:
    """The JSON description of a part of a tokenizer."""
    if component is None:
        return ""
    state = component.__getstate__()  # type: ignore[attr-defined,unused-ignore]
    return state.decode("utf-8") if isinstance(state, bytes) else str(state)


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: each of 256 printable characters stands for one byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return alphabet


_ALPHABET = byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in token)
    except KeyError:
        return token.encode("utf-8")


def _piece_bytes(token: str) -> bytes:
    """SentencePiece spelling: <0x0A> is a byte, and the lower one eighth block a space."""
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace("\u2581", " ").encode("utf-8")
