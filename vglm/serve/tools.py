"""Function tools: what the model is told of them, and what it may write of calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vglm.errors import RequestError
from vglm.serve.schemas.tools import FlatTool, FlatToolChoice, Function, NamedToolChoice, Tool
from vglm.serve.tool_calls import call_text

_ANYTHING: Mapping[str, Any] = {"type": "object"}
_MAPS, _LISTS, _SINGLES = {"properties", "$defs", "definitions"}, {"anyOf", "oneOf", "prefixItems"}, {"items"}
_COMPOSED = {"allOf", "if", "then", "else", "not", "dependentSchemas", "$dynamicRef"}
_OPEN = {"additionalProperties", "patternProperties", "unevaluatedProperties"}
_INTRODUCTION = """\
# Tools

These functions can be called:
<tools>
{tools}
</tools>

To call one, write its name and its arguments as JSON between tags:
<tool_call>
{{"name": "the function's name", "arguments": {{"an argument": "its value"}}}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A function that the model may call; `parameters` is the JSON schema of its arguments, from a client."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]

    def as_mapping(self) -> dict[str, Any]:
        """The tool as chat templates want it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that a request offers.

    `callable_tools` may be called, `told` are those that the model is told of. `required`: it must call one.
    `parallel`: it may call several.
    """

    told: tuple[FunctionTool, ...]
    callable_tools: tuple[FunctionTool, ...]
    required: bool
    parallel: bool


def tool_use(
    tools: Sequence[Tool | FlatTool] | None,
    choice: str | NamedToolChoice | FlatToolChoice | None,
    parallel: bool | None,
) -> ToolUse | None:
    """What a request's `tools`, `tool_choice` and `parallel_tool_calls` mean; None: no tools. Raises RequestError."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise RequestError("tool_choice needs tools to choose from, but there are none", "tool_choice")
        return None
    told = tuple(_function_tool(tool.function if isinstance(tool, Tool) else tool) for tool in tools)
    by_name: dict[str, FunctionTool] = {}
    for i, tool in enumerate(told):
        if tool.name in by_name:
            raise RequestError(f"two tools have the name {tool.name!r}; names must differ", f"tools.{i}")
        by_name[tool.name] = tool
    if choice == "none":
        return None
    if choice is None or isinstance(choice, str):
        return ToolUse(told, told, choice == "required", parallel is not False)
    name = choice.function.name if isinstance(choice, NamedToolChoice) else choice.name
    if name not in by_name:
        raise RequestError(
            f"tool_choice names {name!r}, but the tools are {', '.join(by_name)}", "tool_choice"
        )
    return ToolUse(told, (by_name[name],), required=True, parallel=False)


def _function_tool(function: Function) -> FunctionTool:
    parameters = _ANYTHING if function.parameters is None else function.parameters
    return FunctionTool(function.name, function.description, parameters)


def closed(schema: Any) -> Any:
    """A schema of arguments whose objects have no properties but those that it names, unless it says otherwise itself.

    JSON schema allows further ones, but a function has no use for them. A schema that composes objects of several schemas
    stays as it is: what one of them does not name, another one may.
    """
    return schema if _composes(schema) else _closed(schema)


def _composes(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_composes, schema))
    if not isinstance(schema, Mapping):
        return False
    beside = "properties" in schema and bool({"$ref", "anyOf", "oneOf"} & schema.keys())
    return beside or bool(_COMPOSED & schema.keys()) or any(map(_composes, schema.values()))


def _closed(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    out = dict(schema)
    for name in _MAPS & out.keys():
        if isinstance(out[name], Mapping):
            out[name] = {key: _closed(inner) for key, inner in out[name].items()}
    for name in _LISTS & out.keys():
        if isinstance(out[name], list):
            out[name] = [_closed(inner) for inner in out[name]]
    for name in _SINGLES & out.keys():
        out[name] = _closed(out[name])
    if "properties" in out and not _OPEN & out.keys():
        out["additionalProperties"] = False
    return out


def introduce(messages: list[dict[str, Any]], tools: Sequence[FunctionTool]) -> list[dict[str, Any]]:
    """The messages with what the model must know of the tools, for templates that do not tell it."""
    lines = "\n".join(json.dumps(tool.as_mapping(), ensure_ascii=False) for tool in tools)
    text = _INTRODUCTION.format(tools=lines)
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def calls_as_text(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Earlier calls and what they gave as plain messages, for templates that would lose them."""
    out: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if out and out[-1].get("results"):
                out[-1]["content"] += "\n" + text  # several results are one turn
            else:
                out.append({"role": "user", "content": text, "results": True})
            continue
        plain = dict(message)
        calls = plain.pop("tool_calls", None) or ()
        texts = [plain["content"]] if plain["content"] else []
        texts += [call_text(call["function"]["name"], call["function"]["arguments"]) for call in calls]
        plain["content"] = "\n".join(texts)
        out.append(plain)
    for message in out:
        message.pop("results", None)
    return out
