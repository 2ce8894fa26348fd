"""/v1/chat/completions: a conversation in, the model's message out, or its calls of tools."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from vglm.decode.sampling_params import SamplingParams
from vglm.errors import RequestError
from vglm.serve import conversation
from vglm.serve.errors import params_named
from vglm.serve.graph_requests import ENGINE_NAMES, GraphAnswers, ask, check_graph_fields, constraints_of
from vglm.serve.json_body import JSONBodyRoute
from vglm.serve.schemas.chat import AssistantMessage, ChatAnswer, ChatRequest
from vglm.serve.schemas.common import MAX_INT32
from vglm.serve.serving import Serving, answer, of, refuse_given
from vglm.serve.sse import DONE, event
from vglm.serve.streams import Increment, Stream
from vglm.serve.token_logprobs import TokenNames, chat_logprobs, prompt_logprobs
from vglm.serve.tool_calls import CallNews, ToolCall, ToolCallReader
from vglm.serve.tools import tool_use
from vglm.serve.usage import usage_of

if TYPE_CHECKING:
    from vglm.tasks.asking import Asked, GraphSource

NOT_SUPPORTED = {
    "functions": "give tools instead",
    "function_call": "give tool_choice instead",
    "audio": "the model answers in text only",
    "chat_template": "the model brings its own; chat_template_kwargs are passed to it",
}

router = APIRouter(tags=["chat"], route_class=JSONBodyRoute)


@router.post("/v1/chat/completions", response_model=ChatAnswer)
async def chat_completions(body: ChatRequest, http: HttpRequest) -> Response:
    """Answer a conversation."""
    serving = of(http)
    model = serving.check_model(body.model)
    params = _params(body)
    tools = tool_use(body.tools, body.tool_choice, body.parallel_tool_calls)
    messages = conversation.plain_messages(body.messages)
    check_graph_fields(body, tools)
    options = await serving.request_options(body, tools)
    told = conversation.Told(
        messages,
        tools,
        body.chat_template_kwargs or {},
        {
            "add_generation_prompt": body.add_generation_prompt is not False,
            "continue_final_message": bool(body.continue_final_message),
        },
    )
    graphs: GraphAnswers | None = None
    with params_named({"prompt": "messages", **ENGINE_NAMES}):
        if body.graph is not None:
            stream, graphs = await _with_graph(serving, http, body, told, params, options)
        else:
            prompt = await conversation.encode_told(serving, told)
            stream = serving.generation(http, [prompt], params, stream=bool(body.stream), **options)
    echoed = messages[-1]["content"] if body.echo and isinstance(body.messages[-1], AssistantMessage) else ""
    chat = _Chat(
        serving,
        body,
        model,
        f"chatcmpl-{serving.request_id(http)}",
        stream,
        echoed,
        tools is not None,
        graphs,
    )
    if body.stream:
        return serving.respond(http, stream, chat.events())
    increments = await serving.complete(http, stream)
    if graphs is not None:
        await graphs.read(increments)
    return answer(chat.answer(increments))


async def _with_graph(
    serving: Serving,
    http: HttpRequest,
    body: ChatRequest,
    told: conversation.Told,
    params: SamplingParams,
    options: dict[str, Any],
) -> tuple[Stream, GraphAnswers]:
    """The stream of a conversation about a graph, and what will be said of the graph."""

    def one(source: GraphSource, constraint: Any, mode: str) -> list[Asked]:
        return [conversation.ask(serving, told, source, constraint, mode)]

    asked = await ask(serving, body, one)
    prompts = [asked[0].prompt]
    stream = await serving.graphs.run(
        serving.generation,
        http,
        prompts,
        params,
        stream=bool(body.stream),
        **constraints_of(asked),
        **options,
    )
    return stream, GraphAnswers(serving, stream, asked, body.n or 1, body.return_graph)


def _params(body: ChatRequest) -> SamplingParams:
    refuse_given(body, NOT_SUPPORTED)
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
    if body.add_generation_prompt and body.continue_final_message:
        raise RequestError(
            "continue_final_message leaves no place for a generation prompt; give one of the two",
            "continue_final_message",
        )
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return body.sampling_params(
        max_tokens=MAX_INT32 if limit is None else limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


class _Chat:
    """One answer in the making."""

    def __init__(
        self,
        serving: Serving,
        body: ChatRequest,
        model: str,
        answer_id: str,
        stream: Stream,
        echoed: str,
        reads_calls: bool,
        graphs: GraphAnswers | None,
    ) -> None:
        self._body = body
        self._stream = stream
        self._graphs = graphs
        self._echoed = echoed
        self._names = TokenNames(serving.llm.tokenizer, bool(body.return_tokens_as_token_ids))
        self._head = {"id": answer_id, "created": int(time.time()), "model": model}
        self._begun: set[int] = set()  # choices of which something has been told
        self._readers = [ToolCallReader() for _ in range(body.n or 1)] if reads_calls else []

    def answer(self, increments: list[Increment]) -> ChatAnswer:
        """The whole answer; each increment is a whole choice."""
        fields = {"object": "chat.completion", **self._head, **self._about_prompt()}
        choices = [self._choice(increment) for increment in increments]
        return ChatAnswer.model_validate({**fields, "choices": choices, "usage": usage_of(self._stream)})

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The chunks of a streamed answer."""
        async for increments in self._stream.increments():
            if self._graphs is not None:
                await self._graphs.read(increments)
            if events := b"".join(map(self._event, increments)):
                yield events
        if self._body.wants_usage:
            yield self._chunk([], usage=True)
        yield DONE

    def _about_prompt(self) -> dict[str, Any]:
        body, request = self._body, self._stream.requests[0]
        fields: dict[str, Any] = {}
        if body.prompt_logprobs is not None:
            fields["prompt_logprobs"] = prompt_logprobs(request, self._names)
        if body.return_token_ids:
            fields["prompt_token_ids"] = request.prompt_token_ids
        return fields

    def _chunk(self, choices: list[dict[str, Any]], usage: bool, **fields: Any) -> bytes:
        chunk = {"object": "chat.completion.chunk", **self._head, "choices": choices, **fields}
        if usage:
            chunk["usage"] = usage_of(self._stream).model_dump(exclude_unset=True)
        return event(chunk)

    def _event(self, increment: Increment) -> bytes:
        """An increment as a chunk; nothing when the reader of calls holds all of it back."""
        text, news = self._read(increment)
        delta: dict[str, Any] = {}
        about_prompt = {} if self._begun else self._about_prompt()
        if increment.index not in self._begun:
            self._begun.add(increment.index)
            text = self._echoed + text
            delta["role"] = "assistant"
            delta["content"] = text if text or not news else None
        elif text or not self._readers:
            delta["content"] = text
        if news:
            delta["tool_calls"] = [_call_delta(one) for one in news]
        choice = {"index": increment.index, "delta": delta, **self._about_choice(increment)}
        if not delta and increment.finish_reason is None and not self._wants_tokens:
            return b""
        return self._chunk([choice], self._body.wants_continuous_usage, **about_prompt)

    def _choice(self, increment: Increment) -> dict[str, Any]:
        text, _ = self._read(increment)
        message: dict[str, Any] = {"role": "assistant", "content": self._echoed + text, "refusal": None}
        if self._readers and (calls := self._readers[increment.index].calls):
            message["content"] = message["content"] or None
            message["tool_calls"] = [_whole_call(call) for call in calls]
        return {"index": increment.index, "message": message, **self._about_choice(increment)}

    @property
    def _wants_tokens(self) -> bool:
        """Whether a chunk says something about tokens besides their text."""
        return bool(self._body.logprobs or self._body.return_token_ids or self._body.wants_continuous_usage)

    def _about_choice(self, increment: Increment) -> dict[str, Any]:
        """What chunks and whole choices both say."""
        body, reason = self._body, increment.finish_reason
        fields: dict[str, Any] = {"logprobs": None, "finish_reason": reason}
        if body.logprobs:
            fields["logprobs"] = chat_logprobs(increment.logprobs, self._names, body.top_logprobs or 0)
        if reason is not None:
            fields["stop_reason"] = increment.stop_reason
            if reason == "stop" and self._readers and self._readers[increment.index].calls:
                fields["finish_reason"] = "tool_calls"
        if body.return_token_ids:
            fields["token_ids"] = increment.token_ids
        if self._graphs is not None:
            fields |= self._graphs.fields(increment.index)
        return fields

    def _read(self, increment: Increment) -> tuple[str, list[CallNews]]:
        """The text of an increment outside of calls, and the news of calls in it."""
        if not self._readers:
            return increment.text, []
        reader = self._readers[increment.index]
        pieces = reader.feed(increment.text)
        if increment.finish_reason is not None:
            pieces.append(reader.finish())
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        return text, [piece for piece in pieces if isinstance(piece, CallNews)]


def _whole_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _call_delta(news: CallNews) -> dict[str, Any]:
    call = news.call
    if not news.begins:
        return {"index": call.index, "function": {"arguments": news.arguments}}
    function = {"name": call.name, "arguments": news.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}
