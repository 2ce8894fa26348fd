"""/v1/completions: text or token ids in, their continuation out; what evaluation harnesses need is here too."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.request import Request
from vglm.errors import RequestError
from vglm.prompts import EncodedPrompt, is_single
from vglm.serve.errors import params_named
from vglm.serve.graph_requests import ENGINE_NAMES, GraphAnswers, ask, check_graph_fields, constraints_of
from vglm.serve.json_body import JSONBodyRoute
from vglm.serve.schemas.common import Usage
from vglm.serve.schemas.completions import (
    CompletionAnswer,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from vglm.serve.serving import Serving, answer, of
from vglm.serve.sse import DONE, event
from vglm.serve.streams import Increment, Stream
from vglm.serve.token_logprobs import TokenNames, completion_logprobs, prompt_logprobs
from vglm.serve.usage import usage_of

if TYPE_CHECKING:
    from vglm.tasks.asking import Asked, GraphSource

DEFAULT_MAX_TOKENS = 16  # OpenAI's

router = APIRouter(tags=["completions"], route_class=JSONBodyRoute)


@router.post("/v1/completions", response_model=CompletionAnswer)
async def completions(body: CompletionRequest, http: HttpRequest) -> Response:
    """Complete a prompt, or several; choices of prompt i are numbered from i * n."""
    serving = of(http)
    model = serving.check_model(body.model)
    params = _params(body)
    check_graph_fields(body)
    options = await serving.request_options(body)
    graphs: GraphAnswers | None = None
    if body.graph is not None:
        prompts, stream, graphs = await _with_graph(serving, http, body, params, options)
    else:
        prompts = await serving.encode(body.prompt, add_special=body.add_special_tokens is not False)
        stream = serving.generation(http, prompts, params, stream=bool(body.stream), **options)
    completion = _Completion(
        serving, body, model, f"cmpl-{serving.request_id(http)}", prompts, stream, graphs
    )
    if body.stream:
        return serving.respond(http, stream, completion.events())
    increments = await serving.complete(http, stream)
    if graphs is not None:
        await graphs.read(increments)
    return answer(completion.answer([completion.choice(increment) for increment in increments], usage=True))


async def _with_graph(
    serving: Serving,
    http: HttpRequest,
    body: CompletionRequest,
    params: SamplingParams,
    options: dict[str, Any],
) -> tuple[Sequence[EncodedPrompt], Stream, GraphAnswers]:
    """The prompts after their graph, their stream, and what will be said of the graph."""
    many: Any = [body.prompt] if is_single(body.prompt) else body.prompt

    def each(source: GraphSource, constraint: Any, mode: str) -> list[Asked]:
        return [serving.llm.asking.complete(prompt, source, constraint, mode) for prompt in many]

    asked = await ask(serving, body, each)
    prompts = [one.prompt for one in asked]
    with params_named(ENGINE_NAMES):
        stream = await serving.graphs.run(
            serving.generation,
            http,
            prompts,
            params,
            stream=bool(body.stream),
            **constraints_of(asked),
            **options,
        )
    return prompts, stream, GraphAnswers(serving, stream, asked, body.n or 1, body.return_graph)


def _params(body: CompletionRequest) -> SamplingParams:
    if body.suffix:
        raise RequestError("suffix is not supported: the model completes a prompt's end only", "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise RequestError(f"best_of is {body.best_of}, but only the value of n is supported", "best_of")
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if max_tokens == 0 and not body.echo:
        raise RequestError("max_tokens is 0, which makes sense with echo only", "max_tokens")
    fields: dict[str, Any] = {"max_tokens": max(1, max_tokens), "logprobs": body.logprobs}
    if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
        fields["prompt_logprobs"] = body.logprobs
    return body.sampling_params(**fields)


class _Completion:
    """One answer in the making."""

    def __init__(
        self,
        serving: Serving,
        body: CompletionRequest,
        model: str,
        answer_id: str,
        prompts: Sequence[EncodedPrompt],
        stream: Stream,
        graphs: GraphAnswers | None,
    ) -> None:
        self._body = body
        self._stream = stream
        self._graphs = graphs
        self._prompts = prompts
        self._tokenizer = serving.llm.tokenizer
        self._names = TokenNames(serving.llm.tokenizer, bool(body.return_tokens_as_token_ids))
        self._head = {"id": answer_id, "created": int(time.time()), "model": model}
        self._n = body.n or 1
        self._offsets: dict[int, int] = {}  # by choice: characters told so far, once something was
        self._none_generated = (
            body.max_tokens == 0
        )  # the prompt alone is wanted; the engine makes a token all the same

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The chunks of a streamed answer."""
        body = self._body
        async for increments in self._stream.increments():
            if self._graphs is not None:
                await self._graphs.read(increments)
            chunks = (self.answer([self.choice(i)], usage=body.wants_continuous_usage) for i in increments)
            yield b"".join(event(chunk.model_dump(exclude_unset=True)) for chunk in chunks)
        if body.wants_usage:
            yield event(self.answer([], usage=True).model_dump(exclude_unset=True))
        yield DONE

    def answer(self, choices: list[CompletionChoice], usage: bool) -> CompletionAnswer:
        """The answer, or a chunk of it, with these choices."""
        fields: dict[str, Any] = {"object": "text_completion", **self._head, "choices": choices}
        if usage:
            fields["usage"] = self._usage()
        return CompletionAnswer(**fields)

    def _usage(self) -> Usage:
        return usage_of(self._stream, 0 if self._none_generated else None)

    def choice(self, increment: Increment) -> CompletionChoice:
        """An increment as a choice; the first of each repeats the prompt when that is asked for."""
        body, index = self._body, increment.index
        first = index not in self._offsets
        prompt = index // self._n
        request = self._stream.requests[prompt]
        token_ids = [] if self._none_generated else increment.token_ids
        text = "" if self._none_generated else increment.text
        reason = "length" if self._none_generated and increment.finish_reason else increment.finish_reason
        echoed = self._echo(prompt) if first and body.echo else ""
        fields: dict[str, Any] = {
            "index": index,
            "text": echoed + text,
            "logprobs": None,
            "finish_reason": reason,
        }
        if body.logprobs is not None:
            fields["logprobs"] = self._logprobs(increment, token_ids, request, first and bool(body.echo))
        if reason is not None:
            fields["stop_reason"] = increment.stop_reason
        if self._graphs is not None:
            fields |= self._graphs.fields(index)
        if first and body.prompt_logprobs is not None:
            fields["prompt_logprobs"] = prompt_logprobs(request, self._names)
        if body.return_token_ids:
            fields["token_ids"] = token_ids
            if first:
                fields["prompt_token_ids"] = request.prompt_token_ids
        self._offsets[index] = self._offsets.get(index, 0) + len(echoed) + len(text)
        return CompletionChoice(**fields)

    def _echo(self, prompt: int) -> str:
        encoded = self._prompts[prompt]
        return encoded.text if encoded.text is not None else self._tokenizer.decode(encoded.token_ids, False)

    def _logprobs(
        self, increment: Increment, token_ids: list[int], request: Request, echo: bool
    ) -> CompletionLogprobs:
        entries = list(increment.logprobs[: len(token_ids)])
        if echo:
            token_ids = request.prompt_token_ids + token_ids
            return self._named([None, *request.prompt_logprobs, *entries], token_ids, 0)
        return self._named(entries, token_ids, self._offsets.get(increment.index, 0))

    def _named(self, entries: Any, token_ids: list[int], offset: int) -> CompletionLogprobs:
        return completion_logprobs(entries, token_ids, self._names, self._body.logprobs or 0, offset)
