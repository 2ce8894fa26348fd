"""/v1/graphs/{id}/suggest: which diseases fit a patient's findings; the ranking at once, explanations as they are written."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from vglm.graph.evidence import Evidence
from vglm.graph.graph import Edge
from vglm.serve.errors import params_named
from vglm.serve.graph_errors import graph_errors
from vglm.serve.graph_requests import ENGINE_NAMES, cited_path, constraints_of, graph_answer
from vglm.serve.graph_tasks import NOTHING, stored_graph
from vglm.serve.graphs import GraphId
from vglm.serve.json_body import JSONBodyRoute
from vglm.serve.schemas.suggest import (
    PhenotypeFound,
    SuggestAnswer,
    SuggestChunk,
    SuggestedDisease,
    SuggestedEvidence,
    SuggestionDelta,
    SuggestionText,
    SuggestRequest,
    WeightedEdge,
)
from vglm.serve.serving import Serving, answer, of
from vglm.serve.sse import DONE, EventStream, event
from vglm.serve.streams import Increment, Stream
from vglm.serve.token_logprobs import finite
from vglm.serve.usage import usage_of
from vglm.tasks.findings import Finding
from vglm.tasks.suggestion import SuggestionExplained, SuggestionTask, WhyTask, suggestion_task

router = APIRouter(tags=["graphs"], route_class=JSONBodyRoute)


@router.post("/v1/graphs/{graph}/suggest", response_model=SuggestAnswer)
async def suggest_diseases(graph: GraphId, body: SuggestRequest, http: HttpRequest) -> Response:
    """Rank the diseases of a graph by a patient's findings, with the evidence, and explain the best. Not a medical device."""
    serving = of(http)
    model = serving.check_model(body.model)
    greedy: dict[str, Any] = {} if body.temperature is not None else {"temperature": 0.0}
    params = body.sampling_params(max_tokens=body.max_tokens, **greedy)

    def prepare() -> tuple[int, SuggestionTask, Stream | None]:
        with graph_errors("graph", within=""):
            read, version = stored_graph(serving, graph, body.version)
            task = suggestion_task(
                serving.llm.asking,
                serving.llm.disease_ranking,
                read,
                body.findings,
                body.excluded or (),
                top=body.top,
                explain=body.explain,
                graph_mode=body.graph_mode or "auto",
                max_tokens=body.max_tokens,
            )
        asked = [one.asked for one in task.tasks if one.asked is not None]
        if not asked:
            return version, task, None
        with params_named({"prompt": "findings", **ENGINE_NAMES}):
            stream = serving.generation(
                http,
                [one.prompt for one in asked],
                params,
                stream=bool(body.stream),
                priority=body.priority or 0,
                **constraints_of(asked),
            )
        return version, task, stream

    version, task, stream = await serving.graphs.run(prepare)
    request_id = serving.request_id(http)
    head = {"id": f"graph-{request_id}", "created": int(time.time()), "model": model}
    suggestion = _Suggestion(serving, head, version, task, stream)
    if body.stream:
        if stream is None:
            return EventStream(suggestion.events(), _nothing, _nothing)
        return serving.respond(http, stream, suggestion.events())
    if stream is not None:
        await suggestion.read(await serving.complete(http, stream))
    return answer(suggestion.answer())


def _nothing() -> None:
    """What there is to end of an answer that needs no engine."""


class _Suggestion:
    """One answer in the making."""

    def __init__(
        self,
        serving: Serving,
        head: dict[str, Any],
        version: int,
        task: SuggestionTask,
        stream: Stream | None,
    ) -> None:
        self._serving = serving
        self._head = head
        self._version = version
        self._task = task
        self._stream = stream
        self._asked = [
            one for one in task.tasks if one.asked is not None
        ]  # one for each of the stream's requests
        self._texts: dict[int, str] = defaultdict(str)
        self._done = {
            one.candidate.place: _text_of(one.explained()) for one in task.tasks if one.asked is None
        }

    def answer(self) -> SuggestAnswer:
        """The answer, with the explanations that are done."""
        suggested = self._task.suggested
        return SuggestAnswer(
            object="graph.suggestion",
            **self._head,
            version=self._version,
            findings=_found(suggested.findings),
            excluded=_found(suggested.excluded),
            candidates=[
                SuggestedDisease(
                    place=one.place,
                    id=one.id,
                    name=one.name,
                    probability=one.probability,
                    score=finite(one.candidate.score),
                    evidence=_evidence(one.candidate.evidence),
                    against=_evidence(one.candidate.against),
                    edges=[_weighted(edge) for edge in one.edges],
                )
                for one in suggested.candidates
            ],
            num_candidates=suggested.num_diseases,
            explanations=[self._done[place] for place in sorted(self._done)],
            usage=NOTHING if self._stream is None else usage_of(self._stream),
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The ranking, then pieces of explanations."""
        yield event(self.answer().model_dump(exclude_unset=True))
        if self._stream is not None:
            for task in self._asked:
                if task.lead:
                    yield self._event([SuggestionDelta(place=task.candidate.place, text=task.lead)])
            async for increments in self._stream.increments():
                yield self._event(await self.read(increments))
        usage = NOTHING if self._stream is None else usage_of(self._stream)
        yield event(SuggestChunk(**self._fields(), deltas=[], usage=usage).model_dump(exclude_unset=True))
        yield DONE

    def _fields(self) -> dict[str, Any]:
        return {"object": "graph.suggestion.chunk", **self._head}

    def _event(self, deltas: list[SuggestionDelta]) -> bytes:
        return event(SuggestChunk(**self._fields(), deltas=deltas).model_dump(exclude_unset=True))

    async def read(self, increments: Sequence[Increment]) -> list[SuggestionDelta]:
        """What is new; of explanations that have ended all, which is read in another thread."""
        deltas = []
        for increment in increments:
            task = self._asked[increment.index]
            place = task.candidate.place
            self._texts[place] += increment.text
            delta: dict[str, Any] = {"place": place, "text": increment.text}
            if increment.finish_reason is not None:
                self._done[place] = await self._serving.graphs.run(self._read, task, increment)
                delta["explanation"] = self._done[place]
            deltas.append(SuggestionDelta(**delta))
        return deltas

    def _read(self, task: WhyTask, increment: Increment) -> SuggestionText:
        assert self._stream is not None
        assert task.asked is not None
        request = self._stream.requests[increment.index]
        text = self._texts[task.candidate.place]
        output = task.asked.output(request, request.sequences[0], text)
        return _text_of(task.explained(text, increment.finish_reason, output))


def _text_of(said: SuggestionExplained) -> SuggestionText:
    fields: dict[str, Any] = {
        "place": said.place,
        "id": said.id,
        "text": said.text if said.graph is not None else None,
        "reason": said.reason or None,
        "edges": cited_path(said.edges),
        "finish_reason": said.finish_reason,
        "graph": None if said.graph is None else graph_answer(said.graph),
    }
    return SuggestionText(**fields)


def _found(findings: Sequence[Finding]) -> list[PhenotypeFound]:
    return [PhenotypeFound(id=one.id, name=one.name, given=one.given) for one in findings]


def _evidence(items: Sequence[Evidence]) -> list[SuggestedEvidence]:
    return [
        SuggestedEvidence(
            finding=item.finding,
            finding_name=item.finding_name,
            matched=item.matched,
            matched_name=item.matched_name,
            exact=item.exact,
            explained=item.explained,
            frequency=item.frequency,
            references=list(item.references),
            weight=finite(item.log_ratio),
        )
        for item in items
    ]


def _weighted(edge: Edge) -> WeightedEdge:
    fields = {"source": edge.source, "relation": edge.relation, "target": edge.target}
    frequency = edge.attributes.get("frequency_label", edge.attributes.get("frequency"))
    return WeightedEdge(**fields, frequency=None if frequency is None else str(frequency))
