"""/v1/responses: text or a conversation in, items out: messages and calls of functions. Nothing is kept between requests."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from vglm.decode.sampling_params import SamplingParams
from vglm.serve import conversation
from vglm.serve.conversation import Plain, plain_call
from vglm.serve.errors import ApiError, params_named
from vglm.serve.response_items import Event, OutputItems
from vglm.serve.schemas.chat import RefusalPart
from vglm.serve.schemas.common import MAX_INT32
from vglm.serve.schemas.responses import (
    InputCall,
    InputCallOutput,
    InputContent,
    ResponseAnswer,
    ResponseRequest,
)
from vglm.serve.serving import answer, of, refuse_given
from vglm.serve.sse import event
from vglm.serve.streams import Increment, Stream
from vglm.serve.tool_calls import Piece, ToolCallReader
from vglm.serve.tools import ToolUse, tool_use
from vglm.serve.usage import usage_of

NOT_SUPPORTED = {
    "previous_response_id": "responses are not kept; give the whole conversation as input",
    "conversation": "conversations are not kept; give the whole conversation as input",
    "prompt": "there are no stored prompts; give instructions and input",
    "include": "there is nothing more to tell; /v1/chat/completions has log-probabilities",
    "top_logprobs": "/v1/chat/completions has log-probabilities",
    "graph": "/v1/chat/completions takes graphs",
    "constraint": "/v1/chat/completions takes graphs, and constraints over them",
}
_NAMES = {"prompt": "input", "messages": "input", "max_tokens": "max_output_tokens"}

router = APIRouter(tags=["responses"])


@router.post("/v1/responses", response_model=ResponseAnswer)
async def responses(body: ResponseRequest, http: HttpRequest) -> Response:
    """Answer an input."""
    serving = of(http)
    model = serving.check_model(body.model)
    refuse_given(body, NOT_SUPPORTED)
    tools = tool_use(body.tools, body.tool_choice, body.parallel_tool_calls)
    with params_named(_NAMES):
        params = _params(body)
        prompt = await conversation.encode(serving, _plain_input(body), tools)
        options = await serving.request_options(body, tools)
        stream = serving.generation(http, [prompt], params, stream=bool(body.stream), **options)
    response = _Response(body, model, serving.request_id(http), stream, tools)
    if body.stream:
        return serving.respond(http, stream, response.events(), response.error_event)
    (increment,) = await serving.complete(http, stream)
    response.take(increment)
    return answer(ResponseAnswer.model_validate(response.snapshot()))


def _params(body: ResponseRequest) -> SamplingParams:
    return body.sampling_params(max_tokens=body.max_output_tokens or MAX_INT32)


def _plain_input(body: ResponseRequest) -> list[Plain]:
    """The conversation. Raises RequestError when an earlier call's arguments are no JSON object."""
    out: list[Plain] = []
    if body.instructions is not None:
        out.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*out, {"role": "user", "content": body.input}]
    for i, item in enumerate(body.input):
        if isinstance(item, InputCall):
            if not out or out[-1]["role"] != "assistant":
                out.append({"role": "assistant", "content": ""})
            call = plain_call(item.name, item.arguments, f"input.{i}.arguments")
            out[-1].setdefault("tool_calls", []).append({"id": item.call_id, **call})
        elif isinstance(item, InputCallOutput):
            out.append({"role": "tool", "content": _text(item.output), "tool_call_id": item.call_id})
        else:
            out.append({"role": item.role, "content": _text(item.content)})
    return out


def _text(content: InputContent) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in content)


class _Response:
    """One response in the making."""

    def __init__(
        self, body: ResponseRequest, model: str, request_id: str, stream: Stream, tools: ToolUse | None
    ) -> None:
        self._stream = stream
        self._reader = None if tools is None else ToolCallReader()
        self._output = OutputItems(request_id)
        self._state = _state(body, model, f"resp_{request_id}")
        self._sequence_number = 0

    def take(self, increment: Increment) -> list[Event]:
        """Take in an increment; returns the events that tell of it."""
        pieces: list[Piece] = [increment.text] if self._reader is None else self._reader.feed(increment.text)
        if increment.finish_reason is None:
            return self._output.add(pieces)
        if self._reader is not None:
            pieces.append(self._reader.finish())
        complete = increment.finish_reason != "length"
        self._state["status"] = "completed" if complete else "incomplete"
        self._state["incomplete_details"] = None if complete else {"reason": "max_output_tokens"}
        self._state["completed_at"] = int(time.time()) if complete else None
        return self._output.add(pieces) + self._output.finish(complete)

    def snapshot(self) -> dict[str, Any]:
        """The response as it is now."""
        usage = None if self._state["status"] == "in_progress" else _usage(self._stream)
        return {**self._state, "output": self._output.items, "usage": usage}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a streamed response."""
        for kind in ("response.created", "response.in_progress"):
            yield self._numbered({"type": kind, "response": self.snapshot()})
        async for increments in self._stream.increments():
            events = [told for increment in increments for told in self.take(increment)]
            if data := b"".join(map(self._numbered, events)):
                yield data
        yield self._numbered({"type": f"response.{self._state['status']}", "response": self.snapshot()})

    def error_event(self, error: ApiError) -> bytes:
        """The last events of a response that fails on the way."""
        told = self._output.cut_short()
        self._state["status"] = "failed"
        self._state["error"] = {"code": "server_error", "message": error.message}
        told.append({"type": "response.failed", "response": self.snapshot()})
        return b"".join(map(self._numbered, told))

    def _numbered(self, told: Event) -> bytes:
        told["sequence_number"] = self._sequence_number
        self._sequence_number += 1
        return event(told, told["type"])


def _state(body: ResponseRequest, model: str, response_id: str) -> dict[str, Any]:
    """A response as it begins, without its output."""
    text: dict[str, Any] = {"format": {"type": "text"}}
    if body.text is not None and body.text.format is not None:
        text["format"] = body.text.format.model_dump(exclude_unset=True, by_alias=True)
    choice = body.tool_choice
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "background": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "text": text,
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump() if choice else "auto",
        "tools": [tool.model_dump(exclude_unset=True) for tool in body.tools or ()],
        "truncation": "disabled",
        "user": body.user,
    }


def _usage(stream: Stream) -> dict[str, Any]:
    usage = usage_of(stream)
    cached = stream.num_cached_tokens
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
