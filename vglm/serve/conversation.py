"""A client's messages as the model's chat template wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from vglm.errors import ModelError, RequestError
from vglm.model.chat import ChatFormat
from vglm.prompts import EncodedPrompt
from vglm.serve.json_depth import nested_deeper_than
from vglm.serve.schemas.chat import AssistantMessage, Message, RefusalPart, ToolMessage
from vglm.serve.schemas.tools import EarlierCall
from vglm.serve.serving import Serving, offload
from vglm.serve.tools import ToolUse, calls_as_text, introduce

#: A message as templates know it: role, content (text), name, tool_calls (their arguments as mappings), tool_call_id.
Plain = dict[str, Any]

_SET_HERE = ("messages", "tools", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token")
MAX_DEPTH = 64  # of a call's arguments
_MESSAGE_SIZE = 32  # what a message costs besides its characters, in characters


async def encode(
    serving: Serving,
    messages: list[Plain],
    tools: ToolUse | None = None,
    variables: dict[str, Any] | None = None,
    **options: bool,
) -> EncodedPrompt:
    """The prompt of a conversation. `variables` are the template's own; for `options` see `ChatFormat.encode`.

    Raises RequestError when the model has no chat template, or the template refuses the messages.
    """
    for name in _SET_HERE:
        if variables and name in variables:
            raise RequestError(
                f"chat_template_kwargs has {name}, which is set by the server", f"chat_template_kwargs.{name}"
            )
    try:
        chat = serving.llm.chat_format
    except RequestError as error:
        raise RequestError(str(error), "messages") from error
    size = sum(_MESSAGE_SIZE + len(message["content"]) for message in messages)
    return EncodedPrompt(None, await offload(size, _encode, chat, messages, tools, variables or {}, options))


def _encode(
    chat: ChatFormat,
    messages: list[Plain],
    tools: ToolUse | None,
    variables: dict[str, Any],
    options: dict[str, bool],
) -> list[int]:
    if not chat.mentions("developer"):
        messages = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
    told = None if tools is None else tools.told
    if not chat.writes_tool_calls:
        messages = calls_as_text(messages)
        if told:
            messages, told = introduce(messages, told), None
    try:
        tool_mappings = None if told is None else [tool.as_mapping() for tool in told]
        return chat.encode(messages, tools=tool_mappings, **variables, **options)
    except ModelError as error:  # the template's budget grows with the messages, but not without end
        raise RequestError(str(error), "messages") from error


def plain_messages(messages: Sequence[Message]) -> list[Plain]:
    """The messages of a chat request. Raises RequestError when an earlier call's arguments are no JSON object."""
    return [_plain(message, f"messages.{i}") for i, message in enumerate(messages)]


def _plain(message: Message, param: str) -> Plain:
    out: Plain = {"role": message.role, "content": _text(message)}
    if message.name is not None:
        out["name"] = message.name
    if isinstance(message, ToolMessage) and message.tool_call_id is not None:
        out["tool_call_id"] = message.tool_call_id
    if isinstance(message, AssistantMessage) and message.tool_calls:
        out["tool_calls"] = [
            _plain_call(call, f"{param}.tool_calls.{i}") for i, call in enumerate(message.tool_calls)
        ]
    return out


def _text(message: Message) -> str:
    """The text of a message; parts are lines."""
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        return (isinstance(message, AssistantMessage) and message.refusal) or ""
    return "\n".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in content)


def _plain_call(call: EarlierCall, param: str) -> Plain:
    function = call.function
    out = plain_call(function.name, function.arguments, f"{param}.function.arguments")
    return out if call.id is None else {"id": call.id, **out}


def plain_call(name: str, arguments: str, param: str) -> Plain:
    """An earlier call, whose arguments are JSON text. Raises RequestError when they are not, or no object."""
    text = arguments.encode("utf-8", "replace") or b"{}"
    if nested_deeper_than(MAX_DEPTH, text):
        raise RequestError(f"the arguments of a call are nested more than {MAX_DEPTH} deep", param)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the arguments of a call must be JSON: {error}", param) from error
    if not isinstance(value, dict):
        raise RequestError("the arguments of a call must be a JSON object", param)
    return {"type": "function", "function": {"name": name, "arguments": value}}
