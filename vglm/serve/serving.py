"""What every endpoint shares: the model, the engine thread, admission, and the way of a request through them."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from vglm.decode.detokenizer import Detokenizer
from vglm.decode.sampling_params import SamplingParams
from vglm.engine.request import Request, RequestKind, TokenHook
from vglm.errors import RequestError
from vglm.prompts import EncodedPrompt, encode_prompts
from vglm.serve.access_log import RequestRecord
from vglm.serve.admission import Admission, Ticket
from vglm.serve.engine_thread import EngineThread
from vglm.serve.errors import ApiError, params_named
from vglm.serve.graph_service import GraphService
from vglm.serve.options import ServeOptions
from vglm.serve.schemas.common import SamplingFields
from vglm.serve.sse import ErrorEvent, EventStream, cancelled_on_disconnect
from vglm.serve.streams import AbortedError, ClientGoneError, Increment, Stream, TextHook
from vglm.serve.structured import structured_outputs

if TYPE_CHECKING:
    from vglm.encoder.graph_classifier import GraphClassifier
    from vglm.engine.constraint import ConstraintFactory
    from vglm.llm import LLM
    from vglm.serve.logs import LogWriter
    from vglm.serve.protocol import LimitedProtocol
    from vglm.serve.tools import ToolUse

MAX_CHOICES = 4096  # completions of one HTTP request, which is prepared in the event loop
OFFLOAD_ABOVE = 4096  # characters of text whose tokenising would hold up the event loop
T = TypeVar("T")


class Serving:
    """One model behind one server. Everything here runs in the event loop."""

    def __init__(self, llm: LLM, options: ServeOptions) -> None:
        self.llm = llm
        self.options = options
        self.engine = EngineThread(llm.engine)
        self.graphs = GraphService(options)
        self._classifiers = {name: llm.parts.classifier(path) for name, path in options.classifiers}
        self.model_names = options.served_model_names or (llm.model,)
        self.started = time.time()
        self.protocol: type[LimitedProtocol] | None = None  # set by the server that listens, for the metrics
        self.log_writer: LogWriter | None = None
        self.num_connections: Callable[[], int] | None = None
        max_running = llm.options.max_num_seqs
        self.admission = Admission(max_running, options.max_queue, options.per_key_limit)
        self._active: set[Stream] = set()
        self._idle = asyncio.Event()
        self._compiling = asyncio.Semaphore(1)
        self._ids = itertools.count()
        self._run = secrets.token_hex(4)  # so that ids of two runs of the server differ

    def request_id(self, http: HttpRequest) -> str:
        """The id of an HTTP request: the client's own, or one that the access log has made."""
        known: str | None = getattr(http.state, "request_id", None)
        return known or f"{self._run}{next(self._ids):08x}"

    def check_model(self, name: str | None) -> str:
        """The served name of the model that a client asks for. Raises ApiError (404)."""
        if not name:
            return self.model_names[0]
        if name not in self.model_names:
            known = ", ".join(self.model_names)
            raise ApiError(
                404, f"there is no model {name!r}; there is {known}", param="model", code="model_not_found"
            )
        return name

    def classifier(self, name: str) -> GraphClassifier:
        """A trained classifier that the server was given, or the model's own; never a file. Raises RequestError."""
        found = self._classifiers.get(name) or self.llm.parts.own_classifier(name)
        if found is None:
            known = ", ".join(map(repr, self._classifiers)) or "none"
            raise RequestError(
                f"there is no classifier {name!r}; the server was started with {known} (--classifier NAME=FILE)",
                "classifier",
            )
        return found

    # ---- prompts ------------------------------------------------------------------------------------------

    async def encode(
        self, prompts: Any, param: str = "prompt", add_special: bool = True
    ) -> list[EncodedPrompt]:
        """Prompts (text, token ids, or a list of either) as tokens. Raises ApiError that names `param`."""
        try:
            return await offload(_size(prompts), encode_prompts, prompts, self.llm.tokenizer, add_special)
        except RequestError as error:
            raise ApiError(400, str(error), param=param) from error

    async def request_options(self, body: SamplingFields, tools: ToolUse | None = None) -> dict[str, Any]:
        """What a body says about a request besides its prompt and sampling. Raises RequestError.

        Grammars are compiled in another thread, one at a time: a hostile one delays other grammars, and nobody else.
        """
        options: dict[str, Any] = {"priority": body.priority or 0}
        wanted = structured_outputs(body, tools)
        if wanted is not None:
            param, structured = wanted
            with params_named({"structured_outputs": param}):
                async with self._compiling:
                    options["constraint"] = await asyncio.to_thread(self.llm.compile_structured, structured)
        return options

    # ---- generation ---------------------------------------------------------------------------------------

    def generation(
        self,
        http: HttpRequest,
        prompts: Sequence[EncodedPrompt],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        stream: bool,
        kind: RequestKind = RequestKind.GENERATE,
        targets: Sequence[Sequence[int]] = (),
        constraints: Sequence[ConstraintFactory | None] = (),
        **options: Any,
    ) -> Stream:
        """The stream of one HTTP request's prompts, checked and not yet begun. May be called in any thread.

        `targets`: the continuation of each prompt, for SCORE requests. `constraints`: of each prompt's sequences. `options`
        go to `EngineCore.prepare_request`. Raises RequestError when one of them cannot be served.
        """
        many = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        self._check_n([own.n for own in many])
        request_id = self.request_id(http)
        requests: list[Request] = []
        detokenizers: list[list[Detokenizer]] = []
        for i, (prompt, own) in enumerate(zip(prompts, many, strict=True)):
            of_prompt = [Detokenizer(self.llm.tokenizer, prompt.token_ids, own) for _ in range(own.n)]
            if constraints:
                options["constraint"] = constraints[i]
            hook: TokenHook | None = TextHook(of_prompt) if own.stop_strings else None
            try:
                request = self.llm.engine.prepare_request(
                    f"{request_id}-{next(self._ids)}",
                    prompt.token_ids,
                    own,
                    kind=kind,
                    target_token_ids=targets[i] if targets else (),
                    on_token=hook,
                    **prompt.options(),
                    **options,
                )
            except RequestError as error:
                if len(prompts) == 1 or error.param not in ("prompt", "continuation"):
                    raise
                raise RequestError(f"prompt {i}: {error}", error.param) from error
            requests.append(request)
            detokenizers.append(of_prompt)
        record: RequestRecord | None = getattr(http.state, "record", None)
        if record is not None:
            record.add(requests)
        most = 1 if stream and not self.options.coalesce else None
        return Stream(requests, detokenizers, incremental=stream, most=most)

    def _check_n(self, counts: Sequence[int]) -> None:
        most, n = self.llm.options.max_num_seqs, max(counts)
        if n > most:
            raise RequestError(f"n is {n}, but this server runs at most {most} sequences at once", "n")
        if sum(counts) > MAX_CHOICES:
            raise RequestError(
                f"{sum(counts)} completions are asked for (n for each prompt), but at most {MAX_CHOICES} in one request",
                "n",
            )

    def submit(self, http: HttpRequest, stream: Stream) -> Callable[[], None]:
        """Hand a stream to the engine. Returns what must be called when its answer has ended.

        Raises ApiError (429, 503) when there is no room, and EngineDeadError.
        """
        key: str | None = getattr(http.state, "api_key_name", None)
        limit: int | None = getattr(http.state, "api_key_limit", None)
        ticket = self.admission.admit(key, weight=stream.num_choices, key_limit=limit)
        try:
            self.engine.submit(stream)
        except BaseException:
            ticket.release()
            raise
        self._active.add(stream)
        return lambda: self._close(stream, ticket)

    def _close(self, stream: Stream, ticket: Ticket) -> None:
        ticket.release()
        self._active.discard(stream)
        if not self._active:
            self._idle.set()

    @property
    def draining(self) -> bool:
        """Whether no request is taken any more."""
        return self.admission.draining

    @property
    def num_active(self) -> int:
        """Answers that are not complete."""
        return len(self._active)

    async def wait_idle(self, timeout: float) -> bool:
        """Whether every answer is complete within `timeout` seconds."""
        if self._active:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), timeout)
            except TimeoutError:
                return False
        return True

    def abort_all(self) -> None:
        """End every request, as the server is about to."""
        for stream in list(self._active):
            self.engine.abort(stream, AbortedError("the request was ended: the server is shutting down"))

    async def complete(self, http: HttpRequest, stream: Stream) -> list[Increment]:
        """Run a stream to its end, or abort it when its client goes away (AbortedError)."""

        def cancel() -> None:
            self.engine.abort(stream, ClientGoneError())

        close = self.submit(http, stream)
        try:
            async with cancelled_on_disconnect(http.receive, cancel):
                return await stream.complete()
        finally:
            cancel()
            close()

    def respond(
        self,
        http: HttpRequest,
        stream: Stream,
        events: AsyncGenerator[bytes, None],
        error_event: ErrorEvent | None = None,
    ) -> EventStream:
        """Run a stream and answer with the events that are made of it."""
        close = self.submit(http, stream)
        return EventStream(events, lambda: self.engine.abort(stream, ClientGoneError()), close, error_event)


def of(http: HttpRequest) -> Serving:
    """The serving of the app that an HTTP request has come to."""
    serving: Serving = http.app.state.serving
    return serving


def answer(body: BaseModel, status: int = 200) -> Response:
    """A body as the answer: what was given to it, nulls included, and nothing else."""
    return Response(body.model_dump_json(exclude_unset=True), status, media_type="application/json")


def refuse_given(body: BaseModel, reasons: Mapping[str, str]) -> None:
    """Raises RequestError when a body has one of these fields, which would mean something but is not supported."""
    for name, reason in reasons.items():
        if (body.model_extra or {}).get(name) is not None:
            raise RequestError(f"{name} is not supported: {reason}", name)


async def offload(size: int, function: Callable[..., T], *args: Any) -> T:
    """Call a function here, or in another thread when there is much to do."""
    if size <= OFFLOAD_ABOVE:
        return function(*args)
    return await asyncio.to_thread(function, *args)


def _size(prompts: Any) -> int:
    """Characters of a prompt, or of all prompts of a list."""
    if isinstance(prompts, str):
        return len(prompts)
    return (
        sum(len(prompt) for prompt in prompts if isinstance(prompt, str)) if isinstance(prompts, list) else 0
    )
