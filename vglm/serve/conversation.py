"""A client's messages as the model's chat template wants them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from vglm.errors import ModelError, RequestError
from vglm.model.chat import ChatFormat
from vglm.prompts import EncodedPrompt
from vglm.serve.json_depth import nested_deeper_than
from vglm.serve.schemas.chat import AssistantMessage, Message, RefusalPart, ToolMessage
from vglm.serve.schemas.tools import EarlierCall
from vglm.serve.serving import Serving, offload
from vglm.serve.tools import ToolUse, calls_as_text, introduce

if TYPE_CHECKING:
    from vglm.tasks.asking import Asked, GraphSource

#: A message as templates know it: role, content (text), name, tool_calls (their arguments as mappings), tool_call_id.
Plain = dict[str, Any]

_SET_HERE = ("messages", "tools", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token")
MAX_DEPTH = 64  # of a call's arguments
_MESSAGE_SIZE = 32  # what a message costs besides its characters, in characters


@dataclass(frozen=True, slots=True)
class Told:
    """A conversation as a client tells it; `variables` are the template's own, for `options` see `ChatFormat.encode`."""

    messages: list[Plain]
    tools: ToolUse | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    options: dict[str, bool] = field(default_factory=dict)


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
    return await encode_told(serving, Told(messages, tools, variables or {}, options))


async def encode_told(serving: Serving, told: Told) -> EncodedPrompt:
    """`encode` of a conversation with all that belongs to it."""
    chat = _chat_format(serving, told)
    size = sum(_MESSAGE_SIZE + len(message["content"]) for message in told.messages)
    return EncodedPrompt(None, await offload(size, _encode, chat, told))


def ask(serving: Serving, told: Told, source: GraphSource, constraint: Any, mode: str) -> Asked:
    """The prompt of a conversation about a graph; called in a thread. Raises RequestError and GraphError."""
    messages, options = _as_template_wants(_chat_format(serving, told), told)
    with _budget():
        return serving.llm.asking.chat(messages, source, constraint, mode, **options)


def _chat_format(serving: Serving, told: Told) -> ChatFormat:
    for name in _SET_HERE:
        if name in told.variables:
            raise RequestError(
                f"chat_template_kwargs has {name}, which is set by the server", f"chat_template_kwargs.{name}"
            )
    try:
        return serving.llm.chat_format
    except RequestError as error:
        raise RequestError(str(error), "messages") from error


def _encode(chat: ChatFormat, told: Told) -> list[int]:
    messages, options = _as_template_wants(chat, told)
    with _budget():
        return chat.encode(messages, **options)


def _as_template_wants(chat: ChatFormat, told: Told) -> tuple[list[Plain], dict[str, Any]]:
    """The messages, and the options of `ChatFormat.encode`, with tools where the template takes them."""
    messages = told.messages
    if not chat.mentions("developer"):
        messages = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
    tools = None if told.tools is None else told.tools.told
    if not chat.writes_tool_calls:
        messages = calls_as_text(messages)
        if tools:
            messages, tools = introduce(messages, tools), None
    mappings = None if tools is None else [tool.as_mapping() for tool in tools]
    return messages, {"tools": mappings, **told.variables, **told.options}


@contextmanager
def _budget() -> Iterator[None]:
    """The template's budget grows with the messages, but not without end."""
    try:
        yield
    except ModelError as error:
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
