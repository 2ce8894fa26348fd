"""/tokenize, /detokenize and /tokenizer_info: the model's own tokens, there and back."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.contract import Contract
from vglm import LLM

CHAT = [{"role": "user", "content": "What is the capital of France?"}]


def post(http: httpx.Client, url: str, **body: Any) -> Any:
    response = http.post(url, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_tokens_of_a_text(http: httpx.Client, llm: LLM) -> None:
    text = "The capital of France is Paris, naïve \U0001f600."
    answer = post(http, "/tokenize", prompt=text, return_token_strs=True)
    tokens = llm.tokenizer.encode(text)
    assert answer == {
        "count": len(tokens),
        "max_model_len": llm.engine.config.max_model_len,
        "tokens": tokens,
        "token_strs": [llm.tokenizer.id_to_token(token) for token in tokens],
    }
    assert "token_strs" not in post(http, "/tokenize", prompt=text)
    plain = post(http, "/tokenize", prompt=text, add_special_tokens=False)
    assert plain["tokens"] == llm.tokenizer.encode(text, add_special=False)
    assert post(http, "/tokenize", prompt="")["count"] == 0


def test_tokens_of_a_conversation_are_those_that_the_model_gets(http: httpx.Client) -> None:
    answer = post(http, "/tokenize", messages=CHAT)
    chat = post(http, "/v1/chat/completions", messages=CHAT, max_tokens=1, return_token_ids=True)
    assert answer["tokens"] == chat["prompt_token_ids"]
    assert answer["count"] == chat["usage"]["prompt_tokens"]
    shorter = post(http, "/tokenize", messages=CHAT, add_generation_prompt=False)
    assert answer["tokens"][: shorter["count"]] == shorter["tokens"]
    assert shorter["count"] < answer["count"]


def test_a_conversation_can_be_left_open(http: httpx.Client, llm: LLM) -> None:
    started = [*CHAT, {"role": "assistant", "content": "The capital is"}]
    answer = post(
        http, "/tokenize", messages=started, continue_final_message=True, add_generation_prompt=False
    )
    assert llm.tokenizer.decode(answer["tokens"], skip_special=False).endswith("The capital is")


def test_text_of_tokens(http: httpx.Client, llm: LLM) -> None:
    bos = llm.tokenizer.bos_id
    text = "Bonjour, le monde: 12345 \U0001f40d"
    tokens = [bos, *llm.tokenizer.encode(text)]
    assert post(http, "/detokenize", tokens=tokens) == {"prompt": llm.tokenizer.id_to_token(bos) + text}
    assert post(http, "/detokenize", tokens=[]) == {"prompt": ""}
    assert post(http, "/detokenize", tokens=[float(token) for token in tokens])["prompt"].endswith(text)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=40, deadline=None)
def test_any_text_as_offline(http: httpx.Client, llm: LLM, text: str) -> None:
    tokens = post(http, "/tokenize", prompt=text, add_special_tokens=False)["tokens"]
    assert tokens == llm.tokenizer.encode(text, add_special=False)
    assert post(http, "/detokenize", tokens=tokens)["prompt"] == llm.tokenizer.decode(
        tokens, skip_special=False
    )


def test_what_a_client_needs_to_tokenize_from_afar(http: httpx.Client, llm: LLM) -> None:
    info = http.get("/tokenizer_info").json()
    Contract(http.get("/openapi.json").json()).check("TokenizerInfo", info)
    assert post(http, "/tokenize", prompt=info["eos_token"])["tokens"] == [llm.config.eos_token_ids[0]]
    assert post(http, "/tokenize", prompt=info["bos_token"])["tokens"] == [llm.tokenizer.bos_id]
    assert "messages" in info["chat_template"]
    assert info["model_max_length"] == llm.engine.config.max_model_len


def test_answers_are_the_documented_ones(http: httpx.Client) -> None:
    contract = Contract(http.get("/openapi.json").json())
    contract.check("TokenizeAnswer", post(http, "/tokenize", prompt="a", return_token_strs=True))
    contract.check("TokenizeAnswer", post(http, "/tokenize", messages=CHAT))
    contract.check("Detokenized", post(http, "/detokenize", tokens=[1]))


@pytest.mark.parametrize(
    ("url", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": CHAT}, "messages"),
        ("/tokenize", {"messages": [{"role": "wizard", "content": "a"}]}, "messages.0"),
        ("/tokenize", {"messages": CHAT, "add_generation_prompt": True, "continue_final_message": True},
         "continue_final_message"),
        ("/tokenize", {"prompt": "a", "return_token_strs": 1}, "return_token_strs"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": [1.5]}, "tokens.0"),
        ("/detokenize", {"tokens": [True]}, "tokens.0"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [10**30]}, "tokens.0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(http: httpx.Client, url: str, body: dict[str, Any], param: str) -> None:
    response = http.post(url, json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
