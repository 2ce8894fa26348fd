"""Bodies against the server's own OpenAPI document, and streams as their clients put them together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import jsonschema


class Contract:
    """The schemas in a server's OpenAPI document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def check(self, name: str, body: Any) -> None:
        """AssertionError when a body does not fit the schema called `name`, or has a field that is not in it."""
        schema = {**self._document, "$ref": f"#/components/schemas/{name}"}
        validator = jsonschema.Draft202012Validator(schema)
        errors = [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(body)]
        assert not errors, (name, errors, body)
        unknown = set(body) - set(self._document["components"]["schemas"][name]["properties"])
        assert not unknown, f"{name} does not document {unknown}"


def events_of(response: httpx.Response) -> Iterator[tuple[str | None, Any]]:
    """(name, data) of each server-sent event; the data of the last one may be "[DONE]"."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == "", "the last event is complete"
    for block in blocks:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        assert set(fields) <= {"event", "data"}
        data = fields["data"]
        yield fields.get("event"), data if data == "[DONE]" else json.loads(data)


@dataclass
class Choice:
    """What the chunks of one choice of a chat completion add up to."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[dict[str, str]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None


def put_together(chunks: Iterable[Any]) -> dict[int, Choice]:
    """The choices that chunks of a chat completion tell of, by index; checks what every stream must keep to."""
    choices: dict[int, Choice] = {}
    for chunk in chunks:
        for told in chunk["choices"]:
            first = told["index"] not in choices
            choice = choices.setdefault(told["index"], Choice())
            assert choice.finish_reason is None, "nothing comes after the end"
            delta = told["delta"]
            assert ("role" in delta) == first, "the first delta has the role, no other"
            choice.role = delta.get("role", choice.role)
            if delta.get("content") is not None:
                choice.content = (choice.content or "") + delta["content"]
            for call in delta.get("tool_calls", ()):
                _add_call(choice.tool_calls, call)
            choice.token_ids += told.get("token_ids") or ()
            choice.logprobs += (told.get("logprobs") or {}).get("content", ())
            choice.finish_reason = told["finish_reason"]
    assert all(choice.finish_reason for choice in choices.values()), "every choice has an end"
    return choices


def _add_call(calls: list[dict[str, str]], told: dict[str, Any]) -> None:
    function = told["function"]
    if told["index"] == len(calls):
        assert told["type"] == "function"
        calls.append({"id": told["id"], "name": function["name"], "arguments": ""})
    assert told["index"] == len(calls) - 1, "calls come one after the other"
    calls[-1]["arguments"] += function["arguments"]
