"""Tokenizers built from the vocabulary, merges and scores that a GGUF file carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from vglm.errors import ModelError
from vglm.model.config import ModelConfig
from vglm.model.gguf_header import GGUFHeader
from vglm.model.tokenizer import Tokenizer, tokenizer_errors

# Token kinds of `tokenizer.ggml.token_type`.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASH_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_LLAMA3 = rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}|{_TAIL}"
_TEKKEN = rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASH_TAIL}"
_GPT4O = (
    rf"{_START}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_START}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_SLASH_TAIL}"
)


@dataclass(frozen=True)
class PreTokenizer:
    """How a family cuts text before merging: by a regex or GPT-2's own (None), perhaps digit by digit."""

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False
    prefix: tuple[str, ...] = ()


_GLM = PreTokenizer(_LLAMA3, prefix=("[gMASK]", "<sop>"))
_LLAMA_BPE = PreTokenizer(_LLAMA3, ignore_merges=True, add_bos=True)
_SINGLE_DIGITS = PreTokenizer(digits=True)
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer(),
    "gpt-2": PreTokenizer(),
    "olmo": PreTokenizer(),
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "codeshell": _SINGLE_DIGITS,
    "exaone": _SINGLE_DIGITS,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "llama-bpe": _LLAMA_BPE,
    "falcon3": _LLAMA_BPE,
    "smaug-bpe": PreTokenizer(_LLAMA3),
    "dbrx": PreTokenizer(_LLAMA3),
    "chatglm-bpe": _GLM,
    "glm4": _GLM,
    "qwen2": PreTokenizer(_QWEN2, nfc=True),
    "deepseek-r1-qwen": PreTokenizer(_QWEN2, nfc=True),
    "stablelm2": PreTokenizer(_QWEN2, nfc=True),
    "tekken": PreTokenizer(_TEKKEN, ignore_merges=True, add_bos=True),
    "gpt-4o": PreTokenizer(_GPT4O),
}


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, with their kinds."""

    tokens: list[str]
    kinds: list[int]

    def ids(self) -> dict[str, int]:
        """Token to id, without the padding entries that converters add; the first of equal tokens counts."""
        ids: dict[str, int] = {}
        for token_id, token in enumerate(self.tokens):
            if self.kinds[token_id] != _UNUSED:
                ids.setdefault(token, token_id)
        return ids

    def of_kind(self, *kinds: int) -> list[str]:
        """Tokens of the given kinds, in order of id."""
        return [token for token, kind in zip(self.tokens, self.kinds, strict=True) if kind in kinds]


def tokenizer_from_gguf(header: GGUFHeader, config: ModelConfig) -> Tokenizer:
    """Build the tokenizer. Raises ModelError when the file has none, or one of an unknown kind."""
    model = header.get("tokenizer.ggml.model")
    if model is None:
        raise ModelError("the GGUF file has no tokenizer (tokenizer.ggml.model is missing)")
    vocabulary = _vocabulary(header, config.vocab_size)
    with tokenizer_errors("GGUF tokenizer"):
        if model == "gpt2":
            backend = _byte_level(header, vocabulary)
        elif model == "llama":
            backend = _sentencepiece(header, vocabulary)
        else:
            raise ModelError(f"GGUF tokenizer model {model!r} is not supported; vGLM reads gpt2 and llama")
        return Tokenizer(backend, config.bos_token_id, config.eos_token_ids)


def _strings(header: GGUFHeader, key: str) -> list[str]:
    value = header.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelError(f"GGUF tokenizer: {key} must be a list of strings")
    return value


def _vocabulary(header: GGUFHeader, embedding_rows: int) -> Vocabulary:
    tokens = _strings(header, "tokenizer.ggml.tokens")
    if not 1 <= len(tokens) <= embedding_rows:
        raise ModelError(f"GGUF tokenizer: {len(tokens)} tokens for an embedding of {embedding_rows} rows")
    kinds: Any = header.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise ModelError("GGUF tokenizer: tokenizer.ggml.token_type does not fit the list of tokens")
    return Vocabulary(tokens, kinds)


def _byte_level(header: GGUFHeader, vocabulary: Vocabulary) -> Backend:
    name = header.get("tokenizer.ggml.pre", "default")
    pre = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
    if pre is None:
        raise ModelError(
            f"GGUF pre-tokenizer {name!r} is not supported; vGLM reads {', '.join(PRE_TOKENIZERS)}"
        )
    merges = []
    for merge in _strings(header, "tokenizer.ggml.merges"):
        left, separator, right = merge.partition(" ")
        if not separator:
            raise ModelError(f"GGUF tokenizer: the merge {merge[:60]!r} is not two tokens")
        merges.append((left, right))
    ids = vocabulary.ids()
    backend = Backend(models.BPE(vocab=ids, merges=merges, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, vocabulary)
    prefix = list(pre.prefix) if all(token in ids for token in pre.prefix) else []
    _add_around(backend, header, vocabulary, prefix, pre.add_bos)
    return backend


def _pre_tokenizer(pre: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    steps: list[pre_tokenizers.PreTokenizer] = []
    if pre.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pre.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pre.pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.pattern is None))
    return pre_tokenizers.Sequence(steps)


def _sentencepiece(header: GGUFHeader, vocabulary: Vocabulary) -> Backend:
    """A SentencePiece BPE vocabulary: the score of a piece is the rank of every merge that builds it."""
    scores: Any = header.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise ModelError("GGUF tokenizer: tokenizer.ggml.scores does not fit the list of tokens")
    ids = vocabulary.ids()
    unknown = vocabulary.of_kind(_UNKNOWN)
    backend = Backend(
        models.BPE(
            vocab=ids,
            merges=_merges_from_scores(vocabulary, scores),
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix_space = header.get("tokenizer.ggml.add_space_prefix", True) is not False
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", "\u2581")]
    if prefix_space:
        spaces.insert(0, normalizers.Prepend("\u2581"))
    backend.normalizer = normalizers.Sequence(spaces)
    steps: list[decoders.Decoder] = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if prefix_space:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    _add_tokens(backend, vocabulary)
    _add_around(backend, header, vocabulary, [], True)
    return backend


_MAX_PIECE = 256


def _merges_from_scores(vocabulary: Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    special = set(vocabulary.of_kind(_UNKNOWN, _CONTROL, _UNUSED))
    pieces = {
        token: score for token, score in zip(vocabulary.tokens, scores, strict=True) if token not in special
    }
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, score in pieces.items():
        # Real pieces are short; a very long one would make the search quadratic.
        if not 2 <= len(piece) <= _MAX_PIECE:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                ranked.append((-float(score), -len(left), -len(right), left, right))
    ranked.sort(key=lambda entry: entry[:3])
    return [(left, right) for *_, left, right in ranked]


def _add_tokens(backend: Backend, vocabulary: Vocabulary) -> None:
    """Register control and user-defined tokens so that they are matched whole in a text."""
    backend.add_special_tokens([_added(t, True) for t in vocabulary.of_kind(_CONTROL, _UNKNOWN) if t])
    backend.add_tokens([_added(t, False) for t in vocabulary.of_kind(_USER_DEFINED) if t])


def _added(token: str, special: bool) -> AddedToken:
    return AddedToken(token, special=special, normalized=False)


def _add_around(
    backend: Backend, header: GGUFHeader, vocabulary: Vocabulary, prefix: list[str], default_bos: bool
) -> None:
    """What `encode` puts around a text: a family's own prefix, or the file's begin and end tokens."""
    suffix: list[str] = []
    bos, eos = _special_id(header, "bos"), _special_id(header, "eos")
    tokens = vocabulary.tokens
    if (
        not prefix
        and bos is not None
        and bos < len(tokens)
        and header.get("tokenizer.ggml.add_bos_token", default_bos)
    ):
        prefix = [tokens[bos]]
    if eos is not None and eos < len(tokens) and header.get("tokenizer.ggml.add_eos_token", False):
        suffix = [tokens[eos]]
    ids = vocabulary.ids()
    around = [(token, ids[token]) for token in dict.fromkeys(prefix + suffix) if token in ids]
    if len(around) < len(set(prefix + suffix)) or not around:
        return
    backend.post_processor = processors.TemplateProcessing(
        single=[f"{token}:0" for token in prefix] + ["$A:0"] + [f"{token}:0" for token in suffix],
        pair=None,
        special_tokens=around,
    )


def _special_id(header: GGUFHeader, name: str) -> int | None:
    value = header.get(f"tokenizer.ggml.{name}_token_id")
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
