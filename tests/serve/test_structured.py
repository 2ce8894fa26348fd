"""Structured output and constrained tool calls over HTTP."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import jsonschema
import pytest

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a term up.",
        "parameters": {
            "type": "object",
            "properties": {"term": {"type": "string", "maxLength": 16}, "limit": {"enum": [1, 5, 10]}},
            "required": ["term", "limit"],
            "additionalProperties": False,
        },
    },
}
MESSAGES = [{"role": "user", "content": "Describe a person, or look up Marfan syndrome."}]


def post(url: str, path: str, **body: Any) -> httpx.Response:
    fields = {"max_tokens": 128, "temperature": 1.2, "seed": 3, **body}
    return httpx.post(f"{url}{path}", json=fields, timeout=120)


def chat(url: str, **body: Any) -> dict[str, Any]:
    answer = post(url, "/v1/chat/completions", messages=MESSAGES, **body)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
        {"guided_json": SCHEMA},
    ],
)
def test_answers_fit_the_schema(server_url: str, fields: dict[str, Any]) -> None:
    for seed in range(3):
        choice = chat(server_url, **{**fields, "seed": seed})
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "[0-9]{3}-[a-f]{2}"}}, "[0-9]{3}-[a-f]{2}"),
        ({"structured_outputs": {"choice": ["yes", "no", "perhaps"]}}, "yes|no|perhaps"),
        ({"guided_choice": ["alpha", "beta"]}, "alpha|beta"),
        ({"structured_outputs": {"grammar": 'start: "a" | "b" start'}}, "b*a"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_completions_follow_their_grammar(
    server_url: str, fields: dict[str, Any], pattern: str, stream: bool
) -> None:
    answer = post(server_url, "/v1/completions", prompt="Answer:", stream=stream, **fields)
    if stream:
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        text = "".join(event["choices"][0]["text"] for event in events)
    else:
        text = answer.json()["choices"][0]["text"]
    assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look_up"}}])
def test_a_required_call_fits_the_tool_s_schema(server_url: str, choice: Any) -> None:
    for seed in range(3):
        answer = chat(server_url, tools=[TOOL], tool_choice=choice, seed=seed, parallel_tool_calls=False)
        assert answer["finish_reason"] == "tool_calls"
        (call,) = answer["message"]["tool_calls"]
        assert call["function"]["name"] == "look_up"
        jsonschema.validate(json.loads(call["function"]["arguments"]), TOOL["function"]["parameters"])


def test_a_call_has_no_arguments_but_the_tool_s(server_url: str) -> None:
    """Although its schema would let any others through."""
    nothing = {"name": "now", "parameters": {"type": "object", "properties": {}}}
    for seed in range(3):
        tools = [{"type": "function", "function": nothing}]
        answer = chat(server_url, tools=tools, tool_choice="required", seed=seed, parallel_tool_calls=False)
        (call,) = answer["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {}


def test_a_call_that_the_model_begins_by_itself_fits_too(server_url: str) -> None:
    body = {"messages": [*MESSAGES, {"role": "assistant", "content": "<tool_call>"}]}
    answer = post(
        server_url,
        "/v1/chat/completions",
        **body,
        tools=[TOOL],
        continue_final_message=True,
        add_generation_prompt=False,
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"guided_regex": "(?=a)b"}, "guided_regex"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
         "response_format"),
        ({"response_format": {"type": "json_object"}, "guided_choice": ["a"]}, "response_format"),
        ({"response_format": {"type": "json_object"}, "tools": [TOOL]}, "response_format"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_with_its_name(
    server_url: str, fields: dict[str, Any], param: str
) -> None:
    answer = post(server_url, "/v1/chat/completions", messages=MESSAGES, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
