"""--request-timeout through a real server: every kind of answer ends in time, says why, and holds nothing afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.serve.contract import Contract, events_of
from tests.serve.server_process import MODEL, ServerProcess, wait_until

SECONDS = 1.0
ENDLESS = {"ignore_eos": True, "temperature": 0}  # to the end of the context: several times as long
PATIENCE = 120.0


@pytest.fixture(scope="module")
def hasty() -> Iterator[ServerProcess]:
    """A server with little patience."""
    with ServerProcess("--request-timeout", str(SECONDS)) as process:
        yield process
        assert "Traceback" not in process.errors()


@pytest.fixture(autouse=True)
def _nothing_left(hasty: ServerProcess) -> Iterator[None]:
    yield
    wait_until(lambda: httpx.get(f"{hasty.url}/load", timeout=PATIENCE).json()["server_load"] == 0)
    wait_until(lambda: "vglm:num_requests_running{" in (text := metrics(hasty)) and idle(text))


def metrics(server: ServerProcess) -> str:
    return httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text


def idle(text: str) -> bool:
    names = ("vglm:num_requests_running{", "vglm:kv_cache_usage_perc{")
    values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(names)]
    return [float(value) for value in values] == [0, 0]


def bodies(path: str) -> dict[str, Any]:
    if path == "/v1/completions":
        return {"prompt": "Once upon a time", "max_tokens": 8000, **ENDLESS}
    messages = [{"role": "user", "content": "Once upon a time"}]
    if path == "/v1/chat/completions":
        return {"messages": messages, "max_tokens": 8000, **ENDLESS}
    return {"input": messages, "max_output_tokens": 8000, **ENDLESS}


PATHS = ["/v1/completions", "/v1/chat/completions", "/v1/responses"]


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_in_one_piece(hasty: ServerProcess, path: str) -> None:
    answer = httpx.post(f"{hasty.url}{path}", json=bodies(path), timeout=PATIENCE)
    assert answer.status_code == 504
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "request_timeout")
    assert f"more than {SECONDS:g} s" in error["message"]


@pytest.mark.parametrize("path", PATHS[:2])
def test_a_stream_of_chunks(hasty: ServerProcess, path: str) -> None:
    answer = httpx.post(f"{hasty.url}{path}", json={**bodies(path), "stream": True}, timeout=PATIENCE)
    *chunks, (_, error), (_, done) = events_of(answer)
    assert len(chunks) > 3
    assert all(chunk["choices"] for _, chunk in chunks)
    assert error["error"]["code"] == "request_timeout"
    assert done == "[DONE]"


def test_a_stream_of_typed_events(hasty: ServerProcess) -> None:
    path = "/v1/responses"
    answer = httpx.post(f"{hasty.url}{path}", json={**bodies(path), "stream": True}, timeout=PATIENCE)
    events = list(events_of(answer))
    assert all(name == event["type"] for name, event in events)
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
    kinds = [name for name, _ in events]
    assert "response.output_text.delta" in kinds
    assert kinds[-2:] == ["response.output_item.done", "response.failed"]
    response = events[-1][1]["response"]
    Contract(httpx.get(f"{hasty.url}/openapi.json").json()).check("ResponseAnswer", response)
    assert response["status"] == "failed"
    assert f"more than {SECONDS:g} s" in response["error"]["message"]
    (message,) = response["output"]
    assert message["status"] == "incomplete"
    assert message["content"][0]["text"] == "".join(e["delta"] for _, e in events if "delta" in e)


def test_openai_s_client_sees_the_failure(hasty: ServerProcess) -> None:
    client = openai.OpenAI(base_url=f"{hasty.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
    fields = bodies("/v1/responses")
    with client.responses.stream(
        model=MODEL, input="Once", max_output_tokens=8000, extra_body={"ignore_eos": fields["ignore_eos"]}
    ) as stream:
        last = list(stream)[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    with pytest.raises(openai.APIError, match="more than"):
        list(
            client.completions.create(
                model=MODEL, stream=True, prompt="Once", max_tokens=8000, extra_body=ENDLESS
            )
        )


def test_a_body_that_does_not_come(hasty: ServerProcess) -> None:
    def slowly() -> Iterator[bytes]:
        yield b'{"prompt": "'
        time.sleep(3 * SECONDS)
        yield b'x"}'

    answer = httpx.post(f"{hasty.url}/v1/completions", content=slowly(), timeout=PATIENCE)
    assert answer.status_code == 408
    assert answer.json()["error"]["code"] == "request_timeout"


def test_a_request_in_time_is_answered(hasty: ServerProcess) -> None:
    body = {"prompt": "The capital of France is", "max_tokens": 1, "temperature": 0, "stream": True}
    answer = httpx.post(f"{hasty.url}/v1/completions", json=body, timeout=PATIENCE)
    texts = [json.loads(line[6:])["choices"][0]["text"] for line in answer.text.splitlines() if "{" in line]
    assert "".join(texts) == " Paris"
