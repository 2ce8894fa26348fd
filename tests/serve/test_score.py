"""/v1/score: log-probabilities of continuations as offline, and similarities of embeddings."""

from __future__ import annotations

import math
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serve.contract import Contract
from vglm import LLM

URL = "/v1/score"
FRANCE = "The capital of France is"
CITIES = [" Paris", " Rome", " a city that lies on the Seine"]


def score(http: httpx.Client, text_1: Any, text_2: Any, url: str = URL, **fields: Any) -> Any:
    response = http.post(url, json={"text_1": text_1, "text_2": text_2, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_one_text_scores_each_continuation_as_offline(http: httpx.Client, llm: LLM) -> None:
    answer = score(http, FRANCE, CITIES)
    for i, (item, offline) in enumerate(
        zip(answer["data"], llm.score(FRANCE, CITIES, use_tqdm=False), strict=True)
    ):
        assert item == {
            "index": i,
            "object": "score",
            "score": offline.logprob,
            "num_tokens": len(offline.continuation_token_ids),
            "mean_logprob": offline.mean_logprob,
            "is_greedy": offline.is_greedy,
            "token_logprobs": offline.token_logprobs,
        }
    assert answer["data"][0]["score"] > answer["data"][1]["score"], "Paris is the better answer"


def test_texts_in_pairs(http: httpx.Client, llm: LLM) -> None:
    firsts = [FRANCE, "A dog is an", "Two plus two is"]
    seconds = [" Paris", " animal", " four"]
    answer = score(http, firsts, seconds)
    offline = llm.score(firsts, seconds, use_tqdm=False)
    assert [item["score"] for item in answer["data"]] == [output.logprob for output in offline]


def test_token_ids_in_place_of_texts(http: httpx.Client, llm: LLM) -> None:
    first = llm.tokenizer.encode(FRANCE)
    seconds = [llm.tokenizer.encode(city, add_special=False) for city in CITIES]
    assert score(http, first, seconds)["data"] == score(http, FRANCE, CITIES)["data"]
    assert score(http, first, seconds[0])["data"] == score(http, FRANCE, CITIES[0])["data"]


def test_cosine_is_that_of_the_embeddings(http: httpx.Client, llm: LLM) -> None:
    texts = ["A cat sleeps.", "A kitten is asleep.", "Interest rates rose in May."]
    rows = np.stack([output.embedding for output in llm.encode(texts, use_tqdm=False)]).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    answer = score(http, texts[0], texts, score_type="cosine")
    assert np.allclose([item["score"] for item in answer["data"]], rows @ rows[0], atol=1e-6)
    assert answer["data"][0].keys() == {"index", "object", "score"}
    same, near, far = (item["score"] for item in answer["data"])
    assert math.isclose(same, 1, abs_tol=1e-6)
    assert same > near > far
    pairs = score(http, texts, texts, score_type="cosine")
    assert np.allclose([item["score"] for item in pairs["data"]], 1, atol=1e-6)


def test_both_paths_and_the_documented_answer(http: httpx.Client, llm: LLM, model: str) -> None:
    contract = Contract(http.get("/openapi.json").json())
    for url in (URL, "/score"):
        for score_type in ("logprob", "cosine"):
            answer = score(http, FRANCE, CITIES, url, score_type=score_type, model=model)
            contract.check("ScoreAnswer", answer)
            assert answer["model"] == model
    tokens = sum(len(llm.tokenizer.encode(FRANCE + city)) for city in CITIES)
    assert score(http, FRANCE, CITIES)["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


@pytest.mark.parametrize("score_type", ["logprob", "cosine"])
@pytest.mark.parametrize(
    ("text_1", "text_2", "param"),
    [
        (["a", "b"], ["c"], "text_1"),
        (["a", "b"], ["c", "d", "e"], "text_1"),
        ("", "b", "text_1"),
        ("a", "", "text_2"),
        ("a", ["b", ""], "text_2"),
        ([10**6], "b", "text_1"),
        ("a", [[10**6]], "text_2"),
        ("a", [], "text_2"),
        ("a", None, "text_2"),
        ("a " * 20_000, "b", "text_1"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(
    http: httpx.Client, text_1: Any, text_2: Any, param: str, score_type: str
) -> None:
    response = http.post(URL, json={"text_1": text_1, "text_2": text_2, "score_type": score_type})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
