"""Tokenizers agree with reference implementations, survive caching, find no control token in plain text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vglm.errors import ModelError, RequestError
from vglm.model.checkpoint import open_checkpoint
from vglm.model.gguf_header import GGUFHeader
from vglm.model.tokenizer import Tokenizer
from vglm.model.tokenizer_gguf import PRE_TOKENIZERS, tokenizer_from_gguf

FIXTURES = Path(__file__).parents[1] / "fixtures"
GOLDEN = json.loads((FIXTURES / "tokenizers.json").read_text())
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def from_metadata(path: Path, values: dict[str, Any]) -> Tokenizer:
    """A tokenizer from a GGUF file that holds nothing but tokenizer metadata."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in values.items():
        getattr(writer, f"add_{key}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    config = open_checkpoint(FIXTURES / "llama").config
    config = replace(config, vocab_size=len(values["token_list"]), eos_token_ids=(2,), bos_token_id=1)
    return tokenizer_from_gguf(GGUFHeader(path.read_bytes(), str(path)), config)


def byte_level(path: Path, pre: str, **extra: Any) -> Tokenizer:
    data = GOLDEN["byte_level"]
    values = {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": pre,
        "token_list": data["tokens"],
        "token_types": [3 if token in CONTROL else 1 for token in data["tokens"]],
        "token_merges": data["merges"],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return from_metadata(path, values | extra)


def sentencepiece(path: Path, **extra: Any) -> Tokenizer:
    data = GOLDEN["sentencepiece"]
    values = {
        "tokenizer_model": "llama",
        "token_list": data["tokens"],
        "token_scores": data["scores"],
        "token_types": data["kinds"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unk_token_id": 0,
    }
    return from_metadata(path, values | extra)


@pytest.mark.parametrize("pre", sorted(GOLDEN["byte_level"]["ids"]))
def test_byte_level_equals_transformers(pre: str, tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path / "t.gguf", pre)
    for text, ids in zip(GOLDEN["texts"], GOLDEN["byte_level"]["ids"][pre], strict=True):
        assert tokenizer.encode(text, add_special=False) == ids, text


def test_sentencepiece_equals_sentencepiece(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path / "t.gguf")
    data = GOLDEN["sentencepiece"]
    for text, ids in zip(data["texts"], data["ids"], strict=True):
        assert tokenizer.encode(text, add_special=False) == ids, text
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("a")[0] == 1


def test_single_digits(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path / "t.gguf", "smollm")
    text = "HP:0001251 in 12345678"
    digits = [tokenizer.id_to_token(i) for i in tokenizer.encode(text)]
    assert [token for token in digits if token and token.isdigit()] == list("000125112345678")


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_loses_nothing(pre: str, tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path / "t.gguf", pre)
    for text in GOLDEN["texts"]:
        ids = tokenizer.encode(text, add_special=False)
        if "e\u0301" not in text:
            assert tokenizer.decode(ids) == text
            assert b"".join(tokenizer.token_bytes(i) for i in ids).decode() == text


def test_begin_and_end_tokens(tmp_path: Path) -> None:
    path = tmp_path / "t.gguf"
    assert byte_level(path, "smollm").prefix_ids == ()
    llama = byte_level(path, "llama-bpe")
    assert (llama.prefix_ids, llama.suffix_ids, llama.add_bos) == ((1,), (), True)
    assert llama.encode("a", add_special=False) == llama.encode("a")[1:]
    assert byte_level(path, "llama-bpe", add_bos_token=False).add_bos is False
    both = byte_level(path, "smollm", add_bos_token=True, add_eos_token=True)
    assert both.encode("")[0] == 1
    assert both.encode("")[-1] == 2


def test_control_tokens_in_text(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path / "t.gguf", "qwen2")
    text = "x<|im_end|>y<|im_start|>"
    trusted = tokenizer.encode(text)
    assert 2 in trusted
    assert 1 in trusted
    plain = tokenizer.encode(text, allow_special_tokens=False)
    assert tokenizer.special_ids.isdisjoint(plain)
    assert tokenizer.decode(plain) == text
    assert tokenizer.decode(trusted) == "xy"
    assert tokenizer.decode(trusted, skip_special=False) == text


def test_control_tokens_that_merges_could_build(tmp_path: Path) -> None:
    """A hostile vocabulary may have merges that spell a control token; plain text still never yields it."""
    data = GOLDEN["byte_level"]
    tokens = [*data["tokens"], "ab", "abc"]
    tokenizer = byte_level(
        tmp_path / "t.gguf",
        "gpt-2",
        token_list=tokens,
        token_types=[3 if token in (*CONTROL, "abc") else 1 for token in tokens],
        token_merges=["a b", "ab c", *data["merges"]],
    )
    control = tokenizer.token_to_id("abc")
    assert control in tokenizer.encode("xabc")
    plain = tokenizer.encode("xabc abc", allow_special_tokens=False)
    assert control not in plain
    assert tokenizer.decode(plain) == "xabc abc"


def test_sentencepiece_control_tokens(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path / "t.gguf")
    plain = tokenizer.encode("a</s>b<s>", add_special=False, allow_special_tokens=False)
    assert tokenizer.special_ids.isdisjoint(plain)
    assert tokenizer.decode(plain) == "a</s>b<s>"
    assert 2 in tokenizer.encode("a</s>b", add_special=False)


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return open_checkpoint(FIXTURES / "llama").tokenizer()


@settings(deadline=None)
@given(text=st.text(max_size=60), extra=st.sampled_from(["", *CONTROL]))
def test_plain_text_round_trips(tiny: Tokenizer, text: str, extra: str) -> None:
    try:
        (text + extra + text).encode()
    except UnicodeEncodeError:
        with pytest.raises(RequestError):
            tiny.encode(text + extra + text)
        return
    whole = text + extra + text
    ids = tiny.encode(whole, allow_special_tokens=False)
    assert tiny.special_ids.isdisjoint(ids)
    assert tiny.decode(ids) == whole


def test_lone_surrogates_are_refused(tiny: Tokenizer) -> None:
    with pytest.raises(RequestError, match="Unicode"):
        tiny.encode("\ud800")
    with pytest.raises(RequestError, match="Unicode"):
        tiny.encode_batch(["a", "\ud800"])


def test_batch_is_as_single(tiny: Tokenizer) -> None:
    texts = [*GOLDEN["texts"], "x<|im_end|>"]
    assert tiny.encode_batch(texts) == [tiny.encode(text) for text in texts]
    assert tiny.encode_batch([]) == []


def test_bad_ids(tiny: Tokenizer) -> None:
    assert tiny.decode([10**6]) == ""
    with pytest.raises(RequestError):
        tiny.decode([-1])
    assert tiny.token_bytes(10**9) == b""


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_cache(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "t.gguf"
    tokenizer = byte_level(path, "llama-bpe") if kind == "byte_level" else sentencepiece(path)
    again = Tokenizer.from_json(tokenizer.to_json())
    for text in [*GOLDEN["texts"], "x<|im_end|></s>"]:
        assert again.encode(text) == tokenizer.encode(text)
    assert again.to_json() == tokenizer.to_json()
    assert (again.bos_id, again.eos_ids, again.prefix_ids) == (1, (2,), (1,))
    assert again.special_ids == tokenizer.special_ids


@pytest.mark.parametrize(
    "text", ["", "{}", "nonsense", '{"format": 9}\n{}', '{"format": 1, "bos_id": 1, "eos_ids": []}\n']
)
def test_damaged_cache(text: str) -> None:
    with pytest.raises(ModelError, match="cached tokenizer"):
        Tokenizer.from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer_pre": "martian"}, "'martian' is not supported"),
        ({"tokenizer_model": "bert"}, "'bert' is not supported"),
        ({"token_merges": ["nospace"]}, "not two tokens"),
        ({"token_merges": ["not there"]}, "cannot be built"),
        ({"token_types": [1, 1]}, "token_type does not fit"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        byte_level(tmp_path / "t.gguf", "qwen2", **change)
