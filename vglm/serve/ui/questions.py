"""A question from the page on its way through the server: retrieval, admission, the engine, and what the answer rests on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.types import Message, Receive, Scope, Send

from vglm.decode.graph_outputs import GraphOutput
from vglm.decode.sampling_params import SamplingParams
from vglm.errors import RequestError
from vglm.graph.graph import Edge, Graph
from vglm.graph.linking import linker
from vglm.graph.paths import evidence
from vglm.serve.access_log import AccessLog
from vglm.serve.errors import ApiError, as_api_error, params_named
from vglm.serve.graph_errors import graph_errors
from vglm.serve.graph_requests import ENGINE_NAMES, constraints_of
from vglm.serve.streams import ClientGoneError, Stream
from vglm.serve.ui.visitor import Visitor
from vglm.tasks.asking import Asked, GraphQuery
from vglm.tasks.graph_output import MAX_PATHS, MAX_SOURCES, named

log = logging.getLogger("vglm.serve.ui")

NO_ENTITY = (
    "the question names nothing in this graph; use a name as the graph has it, or choose another graph"
)
MAX_TOKENS = 256  # of an answer
MAX_NAMED = 12  # entities that free text may name and evidence is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked. `form`: "answer", "walk", "mentions" or "" for free text; `types`: of the entity that answers."""

    graph: str
    text: str
    form: str = "answer"
    types: tuple[str, ...] = ()
    hops: int = 2
    budget: int = 1024
    mode: str = "auto"

    @property
    def constraint(self) -> dict[str, Any] | None:
        """For `vglm.decode.grounded.Grounding.parse`."""
        match self.form:
            case "answer":
                return {"kind": "answer", "types": list(self.types)}
            case "walk":
                return {"kind": "walk", "max_hops": max(1, self.hops), "inverse": True}
            case "mentions":
                return {"kind": "mentions"}
        return None


@dataclass(frozen=True, slots=True)
class Reading:
    """What the model reads: of which version of the graph which part."""

    name: str
    version: int
    graph: Graph
    scores: dict[str, float]
    entities: tuple[str, ...]
    left_out: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, whole or stopped; times are seconds from the click. `output` is None when it was stopped."""

    text: str
    reading: Reading
    output: GraphOutput | None
    first_token: float | None
    seconds: float
    num_tokens: int


class Asking:
    """Asks the questions of one visitor, one after the other."""

    def __init__(self, visitor: Visitor) -> None:
        self._visitor = visitor
        self._serving = visitor.host.serving
        self._stream: Stream | None = None
        self.stopped = False

    async def ask(
        self, question: Question, read: Callable[[Reading], None], written: Callable[[str], None]
    ) -> Answer:
        """The answer. `read` is told what the model reads, `written` the text so far, as it comes.

        It is logged and counted as a request of its own. Raises ApiError.
        """
        host = self._visitor.host
        self.stopped = False
        answer: Answer | None = None
        failure: ApiError | None = None

        async def run(scope: Scope, _: Receive, send: Send) -> None:
            nonlocal answer, failure
            try:
                async with asyncio.timeout(self._serving.options.request_timeout):
                    answer = await self._run(HttpRequest(scope), question, read, written)
            except Exception as error:
                failure = self._told(error)
            status = 200 if failure is None else failure.status
            await send({"type": "http.response.start", "status": status, "headers": []})

        scope = await self._visitor.scope()
        await AccessLog(run, host.observers, host.decode)(scope, _nothing, _nowhere)
        if answer is None:
            raise failure or ApiError(500, "the question was not answered")
        return answer

    def stop(self) -> None:
        """End the answer that is being written; what there is of it stays."""
        self.stopped = True
        if self._stream is not None:
            self._serving.engine.abort(self._stream, ClientGoneError())

    async def _run(
        self,
        http: HttpRequest,
        question: Question,
        read: Callable[[Reading], None],
        written: Callable[[str], None],
    ) -> Answer:
        serving, record = self._serving, http.state.record
        reading, asked, stream = await serving.graphs.run(self._prepared, http, question)
        read(reading)
        text, output = "", None
        close = serving.submit(http, stream)
        self._stream = stream
        try:
            if self.stopped:
                self.stop()
            async for increments in stream.increments():
                text += "".join(increment.text for increment in increments)
                written(text)
        except ClientGoneError:
            if not self.stopped:
                raise
        finally:
            self._stream = None
            serving.engine.abort(stream, ClientGoneError())
            close()
        if not self.stopped:
            output = await serving.graphs.run(_output, asked, stream, text)
        return Answer(
            text,
            reading,
            output,
            record.seconds_to_first_token,
            time.perf_counter() - record.started,
            stream.num_output_tokens,
        )

    def _prepared(self, http: HttpRequest, question: Question) -> tuple[Reading, Asked, Stream]:
        """What stands before the engine: retrieval, the prompt, the constraint. Called in a thread."""
        serving = self._serving
        with graph_errors("graph"):
            stored = serving.graphs.store.read(question.graph)
            query = GraphQuery(stored.graph, None, question.hops, question.budget)
            if not linker(stored.graph).link(question.text):
                raise RequestError(NO_ENTITY, "question")
            asked = serving.llm.asking.question(question.text, query, question.constraint, question.mode)
        params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
        with params_named({"prompt": "question", **ENGINE_NAMES}):
            stream = serving.generation(http, [asked.prompt], params, stream=True, **constraints_of([asked]))
        assert asked.retrieved is not None
        entities = dict.fromkeys(m.best.id for m in asked.retrieved.entities)
        reading = Reading(
            stored.name,
            stored.version,
            asked.graph,
            asked.retrieved.scores,
            tuple(entities),
            asked.retrieved.left_out.why,
        )
        return reading, asked, stream

    def _told(self, error: Exception) -> ApiError:
        """What the visitor is told of an error; of a defect the log has the rest."""
        if isinstance(error, TimeoutError):
            seconds = self._serving.options.request_timeout
            return ApiError(504, f"the question took more than {seconds:g} s and was ended; ask for less")
        told = as_api_error(error)
        if told.status == 500:
            log.error("a question from the page has failed", exc_info=error)
        return told


def _output(asked: Asked, stream: Stream, text: str) -> GraphOutput:
    """What a finished answer says of the graph; free text is searched for names of entities. Called in a thread."""
    request = stream.requests[0]
    output = asked.output(request, request.sequences[0], text)
    if asked.decoder is not None:
        cited = () if output.answer else output.citations
        ends = {end for path in output.evidence for edge in path for end in (edge.source, edge.target)}
        mentioned = tuple(named(asked.graph, node) for node in cited if node not in ends)
        return output if output.answer or not mentioned else replace(output, answer=mentioned)
    found = dict.fromkeys(m.best.id for m in linker(asked.graph).link(text, fuzzy=False))
    ids = tuple(found)[:MAX_NAMED]
    return replace(
        output,
        answer=tuple(named(asked.graph, node) for node in ids),
        evidence=_paths(asked.graph, [entity.id for entity in output.entities][:MAX_SOURCES], ids),
    )


def _paths(graph: Graph, sources: list[str], ends: tuple[str, ...]) -> tuple[tuple[Edge, ...], ...]:
    sources = [source for source in sources if source in graph]
    if not sources:
        return ()
    found = [
        tuple(graph.edge_at(edge) for edge in path)
        for end in ends
        if end not in sources
        for path in evidence(graph, sources, end, max_paths=MAX_PATHS)
    ]
    return tuple(found)


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _nowhere(_: Message) -> None:
    """The answer goes to the page."""
