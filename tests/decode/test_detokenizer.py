"""Increments of text against decoding everything at once, with tokenizers trained on the spot."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from vglm.decode.detokenizer import Detokenizer
from vglm.decode.sampling_params import SamplingParams
from vglm.model.tokenizer import Tokenizer

CORPUS = [
    "Marfan syndrome is a disorder of connective tissue; aortic dilatation is a finding.",
    "The gene FBN1 encodes fibrillin-1. Phenotype: HP:0001166, HP:0002616 aortic root aneurysm.",
    "Größe, naïve café, el niño, Ærø, Привет мир, こんにちは世界, 你好\uff0c世界。 한국어 텍스트",
    "Emoji: \U0001f642\U0001f643 \U0001f1e9\U0001f1ea \u2764\ufe0f and so on.   Spaces   and\n\nlines\t.",
    "A family is four emoji and three joiners: \U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
] * 4
SPECIAL = ["<s>", "</s>"]
WORDS = [*" ".join(CORPUS).split(" "), "\U0001f642", "世", "\n", "é"]
TEXTS = st.text() | st.lists(st.sampled_from(WORDS)).map(" ".join)


def byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return backend


def sentencepiece() -> Backend:
    """Llama 2's kind: pieces with a lower one eighth block for the space, and bytes for what has no piece."""
    trained = Backend(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        CORPUS[:2], trainers.BpeTrainer(vocab_size=250, special_tokens=[*SPECIAL, "<unk>"])
    )
    pieces = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    tokens = [piece for piece, _ in pieces[:3]] + [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: i for i, token in enumerate([*tokens, *(piece for piece, _ in pieces[3:])])}
    merges = [
        (piece[:cut], piece[cut:])
        for piece, _ in pieces[3:]
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    backend = Backend(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([*SPECIAL, "<unk>"])
    return backend


def word_pieces() -> Backend:
    backend = Backend(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=[*SPECIAL, "<unk>"])
    )
    return backend


@cache
def tokenizer(make: Callable[[], Backend]) -> Tokenizer:
    return Tokenizer(make(), 0, (1,))


def increments(
    tokens: Tokenizer,
    prompt: list[int],
    output: list[int],
    params: SamplingParams | None = None,
    step: int = 1,
) -> list[str]:
    detokenizer = Detokenizer(tokens, prompt, params or SamplingParams())
    texts = [detokenizer.append(output[i : i + step]) for i in range(0, len(output), step)]
    texts.append(detokenizer.finish())
    assert detokenizer.text == "".join(texts)
    return texts


@given(st.lists(st.integers(0, 650), max_size=60), st.integers(1, 4), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_byte_level_tokens_give_what_decoding_at_once_gives(
    ids: list[int], step: int, skip: bool
) -> None:
    tokens = tokenizer(byte_level)
    params = SamplingParams(skip_special_tokens=skip)
    assert "".join(increments(tokens, [], ids, params, step)) == tokens.decode(ids, skip_special=skip)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@given(text=TEXTS, cut=st.integers(0, 40), step=st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_prompt_and_increments_make_the_whole_text(
    make: Callable[[], Backend], text: str, cut: int, step: int
) -> None:
    tokens = tokenizer(make)
    ids = tokens.encode(text, allow_special_tokens=False)
    assert tokens.decode(ids) == text
    output = "".join(increments(tokens, [0, *ids[:cut]], ids[cut:], step=step))
    spelled = [tokens.token_bytes(token) for token in ids]
    begun = b"".join(spelled[:cut]).decode("utf-8", "ignore")  # without a character that is not complete
    assert output == (b"".join(spelled).decode()[len(begun) :] if begun else text)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_characters_are_never_cut(make: Callable[[], Backend]) -> None:
    tokens = tokenizer(make)
    text = (
        "ᚠᛇᚻ\U0001f701\U0001f702 \U0001d518\U0001d52b \U0001f648"  # not in the corpus: a token for each byte
    )
    ids = tokens.encode(text)
    assert len(ids) > 3 * len(text) - 6
    texts = increments(tokens, [], ids)
    assert "\ufffd" not in "".join(texts)
    assert "".join(texts) == text
    assert {"ᚠ", "\U0001f701", "\U0001d518", "\U0001f648"} <= set(texts)  # each as soon as it is complete


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_an_unfinished_character_is_replaced_only_at_the_end(make: Callable[[], Backend]) -> None:
    tokens = tokenizer(make)
    ids = tokens.encode("\U0001f701")[-4:-1]  # three of its four bytes
    detokenizer = Detokenizer(tokens, tokens.encode("a"), SamplingParams())
    assert detokenizer.append(ids) == ""
    assert detokenizer.text == ""
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.text == "\ufffd"


def test_broken_bytes_do_not_hold_up_the_text() -> None:
    tokens = tokenizer(sentencepiece)
    lead, good = tokens.token_to_id("<0xF0>"), tokens.encode("x")[-1]
    assert lead is not None
    texts = increments(tokens, [good], [lead] * 500 + [good])
    assert all(texts[1:500])
    assert "".join(texts) == "\ufffd" * 500 + tokens.token_bytes(good).decode()


def test_the_space_that_begins_a_text_is_the_tokenizers_business() -> None:
    tokens = tokenizer(sentencepiece)
    ids = tokens.encode("the gene")
    assert tokens.token_bytes(ids[0]).startswith(b" ")
    assert "".join(increments(tokens, [0], ids)) == "the gene"
    assert "".join(increments(tokens, [0, *tokens.encode("a")], ids)) == " the gene"


def test_special_tokens_are_left_out_or_spelled() -> None:
    tokens = tokenizer(byte_level)
    ids = [0, *tokens.encode("gene"), 1]
    assert "".join(increments(tokens, [], ids)) == "gene"
    assert "".join(increments(tokens, [], ids, SamplingParams(skip_special_tokens=False))) == "<s>gene</s>"


def test_tokens_outside_the_vocabulary_are_passed_over() -> None:
    tokens = tokenizer(byte_level)
    ids = [-1, 10**6, *tokens.encode("gene"), 10**6]
    assert "".join(increments(tokens, [-1, 10**6], ids)) == "gene"


def test_other_decoders_are_followed() -> None:
    tokens = tokenizer(word_pieces)
    ids = tokens.encode("Marfan syndrome is a disorder of aortic tissue")
    whole = tokens.decode(ids)
    for cut in range(len(ids)):
        prompt = tokens.decode(ids[:cut])
        assert prompt + "".join(increments(tokens, ids[:cut], ids[cut:])) == whole


@given(TEXTS, st.data(), st.integers(1, 5), st.booleans())
@settings(max_examples=300, deadline=None)
def test_stop_strings_end_the_text_where_find_finds_them(
    text: str, data: st.DataObject, step: int, include: bool
) -> None:
    tokens = tokenizer(byte_level)
    start = data.draw(st.integers(0, max(0, len(text) - 1)))
    stop = text[start : start + data.draw(st.integers(1, 6))] or "never"
    ids = tokens.encode(text, allow_special_tokens=False)
    detokenizer = Detokenizer(tokens, [], SamplingParams(stop=stop, include_stop_str_in_output=include))
    texts = [detokenizer.append(ids[i : i + step]) for i in range(0, len(ids), step)]
    texts.append(detokenizer.finish())
    assert "".join(texts) == detokenizer.text
    if stop not in text:
        assert detokenizer.stopped is None
        assert detokenizer.text == text
        return
    end = text.find(stop) + len(stop)
    assert detokenizer.stopped == stop
    assert detokenizer.text == text[: end if include else end - len(stop)]
    taken = detokenizer.num_tokens
    assert stop in tokens.decode(ids[:taken])
    assert stop not in tokens.decode(ids[: taken - 1])


def test_min_tokens_passes_over_early_stop_strings() -> None:
    tokens = tokenizer(byte_level)
    ids = [tokens.encode(character)[0] for character in "a.b.c"]
    detokenizer = Detokenizer(tokens, [], SamplingParams(stop=".", min_tokens=2))
    assert "".join(detokenizer.append([i]) for i in ids) == "a.b"
    assert detokenizer.stopped == "."
    assert detokenizer.num_tokens == 4


def test_without_increments_the_text_is_made_when_asked_for() -> None:
    tokens = tokenizer(byte_level)
    ids = tokens.encode(CORPUS[2])
    detokenizer = Detokenizer(tokens, [], SamplingParams(), incremental=False)
    assert [detokenizer.append([i]) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert CORPUS[2].startswith(detokenizer.text)
    detokenizer.append(ids[-1:])
    detokenizer.finish()
    assert detokenizer.text == CORPUS[2]
    assert detokenizer.num_tokens == len(ids)


def test_stop_strings_are_looked_for_even_without_increments() -> None:
    tokens = tokenizer(byte_level)
    detokenizer = Detokenizer(tokens, [], SamplingParams(stop="gene"), incremental=False)
    detokenizer.append(tokens.encode("The gene FBN1"))
    assert detokenizer.stopped == "gene"
    assert detokenizer.text == "The "


def test_detokenize_false_gives_no_text() -> None:
    tokens = tokenizer(byte_level)
    detokenizer = Detokenizer(tokens, [], SamplingParams(detokenize=False))
    assert detokenizer.append(tokens.encode("gene")) == ""
    assert detokenizer.finish() == ""
    assert detokenizer.text == ""
