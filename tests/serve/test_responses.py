"""/v1/responses through OpenAI's client and over the wire: items, typed events in their order, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseOutputMessage

from tests.serve.contract import Contract, events_of
from vglm import LLM, SamplingParams

DEEP = '{"a":' + "[" * 999 + "]" * 999 + "}"

URL = "/v1/responses"
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def ask(http: httpx.Client, **fields: Any) -> Any:
    response = http.post(URL, json={"input": QUESTION, "temperature": 0, "max_output_tokens": 24} | fields)
    assert response.status_code == 200, response.text
    return response.json()


def stream(http: httpx.Client, **fields: Any) -> list[Any]:
    """The events of a streamed response; their names and numbers are checked."""
    body = {"input": QUESTION, "temperature": 0, "max_output_tokens": 24, "stream": True} | fields
    events = list(events_of(http.post(URL, json=body)))
    assert all(name == data["type"] for name, data in events)
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    return [data for _, data in events]


def text_of(response: Any) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def without_ids(response: Any) -> Any:
    """What must not depend on how and when a response was asked for."""
    output = [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in response["output"]]
    usage = {k: v for k, v in response["usage"].items() if k != "input_tokens_details"}
    changing = ("id", "created_at", "completed_at", "output", "usage")
    return {k: v for k, v in response.items() if k not in changing}, output, usage


def test_a_text_in_the_client(openai_client: openai.OpenAI, model: str) -> None:
    response = openai_client.responses.create(model=model, input=QUESTION, temperature=0)
    assert isinstance(response, Response)
    assert response.status == "completed"
    assert response.output_text == ANSWER
    assert response.model == model
    assert response.error is None
    (message,) = response.output
    assert isinstance(message, ResponseOutputMessage)
    assert (message.role, message.status, message.content[0].type) == (
        "assistant",
        "completed",
        "output_text",
    )
    usage = response.usage
    assert usage is not None
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens == 8
    assert usage.input_tokens_details.cached_tokens >= 0
    assert usage.output_tokens_details.reasoning_tokens == 0


def test_it_is_the_chat_answer_and_the_offline_one(http: httpx.Client, llm: LLM) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    (offline,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
    response = ask(http, instructions="Be brief.")
    assert text_of(response) == offline.text
    assert response["usage"]["input_tokens"] == len(offline.prompt_token_ids)
    assert response["instructions"] == "Be brief."


def test_items_are_a_conversation(http: httpx.Client, llm: LLM) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Name\nanother."},
    ]
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Name a colour."}]},
        {
            "type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
            "content": [{"type": "output_text", "text": "Red.", "annotations": []}],
        },
        {"role": "user", "content": [{"type": "input_text", "text": "Name"}, {"type": "input_text", "text": "another."}]},
    ]  # fmt: skip
    (offline,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
    response = ask(http, input=items)
    assert response["usage"]["input_tokens"] == len(offline.prompt_token_ids)
    assert text_of(response) == offline.text


def test_an_answer_goes_back_in_as_it_came(openai_client: openai.OpenAI, model: str) -> None:
    first = openai_client.responses.create(model=model, input=QUESTION, temperature=0, max_output_tokens=16)
    history: list[Any] = [{"role": "user", "content": QUESTION}]
    history += [item.model_dump() for item in first.output]
    history.append({"role": "user", "content": "And of Italy?"})
    second = openai_client.responses.create(model=model, input=history, temperature=0, max_output_tokens=16)
    assert second.output_text
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens


def test_the_order_of_events(http: httpx.Client) -> None:
    events = stream(http)
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert deltas > 3
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * deltas,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    created, added, item_done, completed = events[0], events[2], events[-2], events[-1]
    assert created["response"]["status"] == "in_progress"
    assert created["response"]["output"] == []
    assert created["response"]["usage"] is None
    assert (added["item"]["status"], added["item"]["content"]) == ("in_progress", [])
    assert item_done["item"] == completed["response"]["output"][0]
    text = "".join(event.get("delta", "") for event in events)
    done, part = events[-4], events[-3]["part"]
    assert text == done["text"] == part["text"] == text_of(completed["response"]) == ANSWER
    item_ids = {event["item_id"] for event in events if "item_id" in event}
    assert item_ids == {added["item"]["id"]}
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_output_tokens": 3},
        {"temperature": 1.2, "seed": 5, "top_p": 0.9},
        {"stop": [" France"]},
        {"instructions": "Answer in French."},
    ],
)  # fmt: skip
def test_streamed_responses_are_the_unary_ones(http: httpx.Client, fields: dict[str, Any]) -> None:
    unary = ask(http, **fields)
    last = stream(http, **fields)[-1]
    assert last["type"] == f"response.{unary['status']}"
    assert without_ids(last["response"]) == without_ids(unary)


def test_a_response_cut_short_is_incomplete(
    http: httpx.Client, openai_client: openai.OpenAI, model: str
) -> None:
    response = openai_client.responses.create(model=model, input=QUESTION, temperature=0, max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    (message,) = response.output
    assert isinstance(message, ResponseOutputMessage)
    assert message.status == "incomplete"
    assert stream(http, max_output_tokens=3)[-1]["type"] == "response.incomplete"


def test_an_answer_without_a_word_is_an_empty_message(http: httpx.Client) -> None:
    response = ask(http, stop=["T", "P"])
    (message,) = response["output"]
    assert message["content"][0]["text"] == ""
    events = stream(http, stop=["T", "P"])
    assert [event["type"] for event in events].count("response.output_text.done") == 1
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_a_stream_in_the_client(openai_client: openai.OpenAI, model: str) -> None:
    with openai_client.responses.stream(model=model, input=QUESTION, temperature=0) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        final = events.get_final_response()
    assert final.output_text == text == ANSWER


def test_what_was_asked_for_is_told(http: httpx.Client) -> None:
    asked: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.25,
        "metadata": {"a": "b"},
        "user": "u",
        "store": True,
    }
    response = ask(http, **asked, parallel_tool_calls=False, max_output_tokens=5)
    for name in ("temperature", "top_p", "metadata", "user"):
        assert response[name] == asked[name]
    assert response["max_output_tokens"] == 5
    assert response["parallel_tool_calls"] is False
    assert response["store"] is False, "nothing is kept"
    assert response["text"] == {"format": {"type": "text"}}
    assert (response["tools"], response["tool_choice"]) == ([], "auto")


def test_bodies_fit_the_document(http: httpx.Client, contract: Contract) -> None:
    contract.check("ResponseAnswer", ask(http))
    contract.check("ResponseAnswer", ask(http, max_output_tokens=2, metadata={"a": "b"}))
    for event in stream(http):
        kind = event["type"]
        name = next(name for name, kinds in EVENTS.items() if kind in kinds)
        contract.check(name, event)


EVENTS = {
    "ResponseEvent": {
        f"response.{s}" for s in ("created", "in_progress", "completed", "incomplete", "failed")
    },
    "ItemEvent": {"response.output_item.added", "response.output_item.done"},
    "PartEvent": {"response.content_part.added", "response.content_part.done"},
    "TextDeltaEvent": {"response.output_text.delta"},
    "TextDoneEvent": {"response.output_text.done"},
    "ArgumentsDeltaEvent": {"response.function_call_arguments.delta"},
    "ArgumentsDoneEvent": {"response.function_call_arguments.done"},
}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": []}, "input"),
    ({"input": 3}, "input"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "input.0"),
    ({"input": [{"type": ["x"]}]}, "input.0"),
    ({"input": ["text"]}, "input.0"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]}, "input.0.arguments"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[]"}]}, "input.0.arguments"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": DEEP}]}, "input.0.arguments"),
    ({"input": "x " * 20000}, "input"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"background": True}, "background"),
    ({"truncation": "auto"}, "truncation"),
    ({"include": ["message.output_text.logprobs"]}, "include"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 2, "min_tokens": 3}, "min_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"tools": [{"type": "web_search"}]}, "tools.0"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools.0.name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"text": {"format": {"type": "yaml"}}}, "text.format"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[f"{p}-{i}" for i, (_, p) in enumerate(REFUSED)])
@pytest.mark.parametrize("streamed", [False, True])
def test_refusals_name_the_parameter(
    http: httpx.Client, fields: dict[str, Any], param: str, streamed: bool
) -> None:
    response = http.post(URL, json={"input": QUESTION, "stream": streamed} | fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error


def test_nothing_is_kept(http: httpx.Client, openai_client: openai.OpenAI) -> None:
    response = ask(http, store=True)
    for call in (
        openai_client.responses.retrieve,
        openai_client.responses.cancel,
        openai_client.responses.delete,
    ):
        with pytest.raises(openai.NotFoundError):
            call(response["id"])
