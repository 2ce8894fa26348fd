"""OpenAI's Python client against the server: models, completions, embeddings, its raw and async forms, its errors.

Chat completions and responses have files of their own.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.serve.server_process import ServerProcess
from vglm import LLM, SamplingParams

FRANCE = "The capital of France is"
KEY = "sk-client-test"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def offline(llm: LLM) -> str:
    """What the model says after FRANCE."""
    params = SamplingParams(temperature=0, max_tokens=12)
    return llm.generate(FRANCE, params, use_tqdm=False)[0].text


@pytest.fixture(scope="module")
def keyed_url() -> Iterator[str]:
    """A server that wants a key, and takes one request of it at a time."""
    options = ("--api-key", KEY, "--per-key-limit", "1", "--kv-cache-memory", "100M")
    with ServerProcess(*options) as server:
        yield f"{server.url}/v1"


# ---- models -----------------------------------------------------------------------------------------------


def test_models_are_listed_and_retrieved(openai_client: openai.OpenAI, model: str) -> None:
    page = openai_client.models.list()
    assert [card.id for card in page] == [model]
    card = openai_client.models.retrieve(model)
    assert (card.id, card.object, card.owned_by) == (model, "model", "vglm")
    assert card == page.data[0]
    with pytest.raises(openai.NotFoundError) as caught:
        openai_client.models.retrieve("no/such model")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


# ---- completions ------------------------------------------------------------------------------------------


def test_a_completion(openai_client: openai.OpenAI, model: str, llm: LLM, offline: str) -> None:
    done = openai_client.completions.create(model=model, prompt=FRANCE, **GREEDY)
    (choice,) = done.choices
    assert (choice.text, choice.index, choice.finish_reason) == (offline, 0, "length")
    assert (done.object, done.model) == ("text_completion", model)
    assert done.id.startswith("cmpl-")
    assert done.usage is not None
    prompt_tokens = len(llm.tokenizer.encode(FRANCE))
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (prompt_tokens, 12)
    assert done.usage.total_tokens == prompt_tokens + 12


def test_a_streamed_completion_adds_up_to_the_whole_one(
    openai_client: openai.OpenAI, model: str, offline: str
) -> None:
    with openai_client.completions.create(
        model=model, prompt=FRANCE, stream=True, stream_options={"include_usage": True}, **GREEDY
    ) as stream:
        chunks = list(stream)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == offline
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] == "length"
    assert not any(reasons[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_many_prompts_and_choices(openai_client: openai.OpenAI, model: str, llm: LLM) -> None:
    prompts = [FRANCE, "A dog is an"]
    done = openai_client.completions.create(
        model=model, prompt=prompts, n=2, seed=7, max_tokens=6, temperature=1
    )
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    params = SamplingParams(n=2, seed=7, max_tokens=6, temperature=1)
    offline = llm.generate(prompts, params, use_tqdm=False)
    assert [choice.text for choice in done.choices] == [o.text for output in offline for o in output.outputs]


def test_log_probabilities_stop_and_bias(openai_client: openai.OpenAI, model: str, llm: LLM) -> None:
    done = openai_client.completions.create(model=model, prompt=FRANCE, logprobs=2, stop=["."], **GREEDY)
    (choice,) = done.choices
    assert choice.finish_reason == "stop"
    assert "." not in choice.text
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.token_logprobs is not None
    assert "".join(choice.logprobs.tokens).startswith(choice.text)
    assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.tokens)
    (paris,) = llm.tokenizer.encode(" Paris")
    biased = openai_client.completions.create(
        model=model, prompt=FRANCE, max_tokens=3, temperature=0, logit_bias={str(paris): -100}
    )
    assert "Paris" not in biased.choices[0].text


def test_what_goes_beyond_openai_goes_into_extra_body(openai_client: openai.OpenAI, model: str) -> None:
    done = openai_client.completions.create(
        model=model,
        prompt=[1, 2, 3],
        extra_body={"top_k": 1, "return_token_ids": True, "priority": "high"},
        max_tokens=4,
    )
    extra = done.choices[0].model_extra
    assert extra is not None
    assert extra["prompt_token_ids"] == [1, 2, 3]
    assert len(extra["token_ids"]) <= 4


# ---- embeddings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_embeddings(openai_client: openai.OpenAI, model: str, llm: LLM, encoding: Any) -> None:
    """The client asks for base64 when it is told nothing, and decodes it."""
    fields = {} if encoding is None else {"encoding_format": encoding}
    texts = [FRANCE, "A dog is an animal"]
    answer = openai_client.embeddings.create(model=model, input=texts, **fields)
    expected = np.stack([output.embedding for output in llm.encode(texts, use_tqdm=False)])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert answer.object == "list"
    assert answer.usage.prompt_tokens == sum(len(llm.tokenizer.encode(text)) for text in texts)
    for i, item in enumerate(answer.data):
        assert item.index == i
        row: Any = item.embedding
        if encoding == "base64":  # asked for, so left as it is
            row = np.frombuffer(base64.b64decode(row), "<f4")
        assert np.allclose(row, expected[i], atol=1e-6)


# ---- other forms of the client ----------------------------------------------------------------------------


def test_raw_and_streaming_responses(openai_client: openai.OpenAI, model: str, offline: str) -> None:
    raw = openai_client.completions.with_raw_response.create(model=model, prompt=FRANCE, **GREEDY)
    assert raw.status_code == 200
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].text == offline
    with openai_client.completions.with_streaming_response.create(
        model=model, prompt=FRANCE, **GREEDY
    ) as streaming:
        assert streaming.parse().choices[0].text == offline
    with openai_client.models.with_streaming_response.list() as listing:
        assert [line for line in listing.iter_lines() if model in line]
    event_stream = openai_client.completions.with_raw_response.create(
        model=model, prompt=FRANCE, stream=True, **GREEDY
    )
    assert event_stream.headers["content-type"].startswith("text/event-stream")
    assert "".join(chunk.choices[0].text for chunk in event_stream.parse()) == offline


def test_the_async_client_with_many_requests_at_once(
    server_url: str, model: str, llm: LLM, offline: str
) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as client:
            whole = [client.completions.create(model=model, prompt=FRANCE, **GREEDY) for _ in range(8)]
            assert [done.choices[0].text for done in await asyncio.gather(*whole)] == [offline] * 8
            stream = await client.completions.create(model=model, prompt=FRANCE, stream=True, **GREEDY)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == offline
            assert [card.id async for card in client.models.list()] == [model]
            embedded = await client.embeddings.create(model=model, input=FRANCE)
            assert len(embedded.data[0].embedding) == llm.config.hidden_size

    asyncio.run(ask())


def test_a_client_that_loses_patience_frees_its_request(
    openai_client: openai.OpenAI, http: httpx.Client, model: str
) -> None:
    with pytest.raises(openai.APITimeoutError):
        openai_client.with_options(timeout=0.3).completions.create(
            model=model, prompt=FRANCE, max_tokens=8000, extra_body={"ignore_eos": True}
        )
    for _ in range(500):
        if http.get("/load").json()["num_requests_running"] == 0:
            return
    pytest.fail("the request that nobody waits for goes on")


# ---- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": "a " * 20_000}, "prompt"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"suffix": "the end"}, "suffix"),
        ({"stop": [""]}, "stop.0"),
        ({"stream": True, "max_tokens": -5}, "max_tokens"),
    ],
)
def test_a_bad_request_names_its_parameter(
    openai_client: openai.OpenAI, model: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.completions.create(**{"model": model, "prompt": FRANCE, "max_tokens": 4} | fields)
    error = caught.value
    assert (error.status_code, error.param, error.type) == (400, param, "invalid_request_error")


def test_unknown_models_and_paths(openai_client: openai.OpenAI) -> None:
    for call in (openai_client.completions.create, openai_client.embeddings.create):
        with pytest.raises(openai.NotFoundError) as caught:
            call(
                model="gpt-4",
                **({"prompt": "a"} if call == openai_client.completions.create else {"input": "a"}),
            )
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="there is no path"):
        openai_client.moderations.create(input="a")


def test_keys(keyed_url: str, model: str) -> None:
    with openai.OpenAI(base_url=keyed_url, api_key="sk-wrong", max_retries=0) as stranger:
        for call in (stranger.models.list, lambda: stranger.completions.create(model=model, prompt="a")):
            with pytest.raises(openai.AuthenticationError) as caught:
                call()
            assert caught.value.type == "authentication_error"
    with openai.OpenAI(base_url=keyed_url, api_key=KEY, max_retries=0) as client:
        assert [card.id for card in client.models.list()] == [model]
        assert client.completions.create(model=model, prompt="a", max_tokens=1).choices


def test_a_limit_that_is_reached_is_429_and_the_clients_own_retries_get_through(
    keyed_url: str, model: str
) -> None:
    long: dict[str, Any] = {
        "model": model, "prompt": "Once", "max_tokens": 200, "extra_body": {"ignore_eos": True}
    }  # fmt: skip
    with (
        openai.OpenAI(base_url=keyed_url, api_key=KEY, max_retries=0) as client,
        client.completions.create(stream=True, **long) as stream,
    ):
        next(stream)
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model=model, prompt="a", max_tokens=1)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.type == "rate_limit_error"
        patient = client.with_options(max_retries=60)  # each waits as long as the server has said
        assert patient.completions.create(model=model, prompt="a", max_tokens=1).choices
