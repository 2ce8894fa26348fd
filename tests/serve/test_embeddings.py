"""/v1/embeddings: the offline embeddings, in either encoding, scaled to length 1 unless asked otherwise."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serve.contract import Contract
from vglm import LLM

URL = "/v1/embeddings"
TEXTS = ["Paris is the capital of France.", "A dog is an animal", "Water boils at one hundred degrees."]


def embed(http: httpx.Client, inputs: Any, **fields: Any) -> Any:
    response = http.post(URL, json={"input": inputs, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def rows(answer: Any) -> np.ndarray:
    assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
    return np.array([item["embedding"] for item in answer["data"]], np.float32)


def test_they_are_the_offline_ones_scaled_to_length_1(http: httpx.Client, llm: LLM) -> None:
    offline = np.stack([output.embedding for output in llm.encode(TEXTS, use_tqdm=False)])
    raw = rows(embed(http, TEXTS, normalize=False))
    assert np.array_equal(raw, offline), "the numbers come through JSON unchanged"
    scaled = rows(embed(http, TEXTS))
    assert np.allclose(np.linalg.norm(scaled, axis=1), 1, atol=1e-6)
    assert np.allclose(scaled, offline / np.linalg.norm(offline, axis=1, keepdims=True), atol=1e-6)


def test_text_and_tokens_alone_or_in_a_list_say_the_same(http: httpx.Client, llm: LLM) -> None:
    tokens = [llm.tokenizer.encode(text) for text in TEXTS]
    expected = rows(embed(http, TEXTS))
    assert np.array_equal(rows(embed(http, tokens)), expected)
    for i, text in enumerate(TEXTS):
        assert np.array_equal(rows(embed(http, text)), expected[i : i + 1])
        assert np.array_equal(rows(embed(http, tokens[i])), expected[i : i + 1])


def test_base64_holds_the_same_float32(http: httpx.Client) -> None:
    numbers = rows(embed(http, TEXTS, encoding_format="float"))
    encoded = embed(http, TEXTS, encoding_format="base64")
    decoded = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in encoded["data"]]
    assert np.array_equal(np.stack(decoded), numbers)


def test_the_answer_is_the_documented_one(http: httpx.Client, llm: LLM, model: str) -> None:
    answer = embed(http, TEXTS, user="somebody", dimensions=llm.config.hidden_size, model=model)
    Contract(http.get("/openapi.json").json()).check("EmbeddingAnswer", answer)
    tokens = sum(len(llm.tokenizer.encode(text)) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert answer["model"] == model


def test_special_tokens_are_left_out_when_asked(http: httpx.Client, llm: LLM) -> None:
    plain = llm.tokenizer.encode(TEXTS[0], add_special=False)
    assert np.array_equal(rows(embed(http, TEXTS[0], add_special_tokens=False)), rows(embed(http, plain)))


def test_a_batch_larger_than_a_step_is_whole_and_in_order(http: httpx.Client) -> None:
    texts = [f"number {i}" for i in range(300)]
    batch = rows(embed(http, texts))
    for i in (0, 63, 64, 299):
        assert np.array_equal(rows(embed(http, texts[i]))[0], batch[i])


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "input", "required"),
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "at least 1"),
        ({"input": ["a", ""]}, "input", "prompt 1"),
        ({"input": [[]]}, "input.0", "at least 1"),
        ({"input": [1, 10**6]}, "input", "vocabulary"),
        ({"input": [{}]}, "input.0", "string"),
        ({"input": {"text": "a"}}, "input", "string"),
        ({"input": "a " * 20_000}, "input", "max_model_len"),
        ({"input": ["a"] * 5000}, "input", "2048"),
        ({"input": "a", "dimensions": 64}, "dimensions", "576"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "base64"),
        ({"input": "a", "normalize": "yes"}, "normalize", "boolean"),
        ({"input": "a", "priority": "urgent"}, "priority", "low"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(
    http: httpx.Client, body: dict[str, Any], param: str, says: str
) -> None:
    response = http.post(URL, json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert says in error["message"]


def test_an_unknown_model_is_404(http: httpx.Client) -> None:
    response = http.post(URL, json={"input": "a", "model": "text-embedding-3-small"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
