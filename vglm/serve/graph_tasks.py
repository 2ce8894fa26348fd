"""/v1/graphs/{id}/complete, /classify and /explain: what a graph lacks, what it is, how two of its entities are joined."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.request import RequestKind
from vglm.graph.graph import Graph
from vglm.serve.errors import params_named
from vglm.serve.graph_errors import graph_errors
from vglm.serve.graph_requests import (
    ENGINE_NAMES,
    cited_path,
    constraints_of,
    graph_answer,
    inline_graph,
    named_entity,
)
from vglm.serve.graphs import GraphId, known_name, version_of
from vglm.serve.json_body import JSONBodyRoute
from vglm.serve.schemas.common import PromptTokensDetails, Usage
from vglm.serve.schemas.graph_tasks import (
    ClassifyAnswer,
    ClassifyRequest,
    ClassifyStoredRequest,
    ExplainAnswer,
    ExplainRequest,
    LinkAnswer,
    LinkRequest,
    RankedEntity,
    RankedLabel,
    RankingFields,
)
from vglm.serve.serving import Serving, answer, of
from vglm.serve.streams import Stream
from vglm.serve.token_logprobs import finite
from vglm.serve.usage import usage_of
from vglm.tasks.classification import classification_task
from vglm.tasks.completion import completion_task, open_end
from vglm.tasks.explanation import ExplanationTask, explanation_task
from vglm.tasks.links import encoded_links
from vglm.tasks.ranking import Ranked, RankingTask
from vglm.tasks.trained_classes import trained_classes

_RANKING = SamplingParams(max_tokens=1)
NOTHING = Usage(
    prompt_tokens=0,
    completion_tokens=0,
    total_tokens=0,
    prompt_tokens_details=PromptTokensDetails(cached_tokens=0),
)

router = APIRouter(tags=["graphs"], route_class=JSONBodyRoute)


@router.post("/v1/graphs/{graph}/complete", response_model=LinkAnswer)
async def complete_triple(graph: GraphId, body: LinkRequest, http: HttpRequest) -> Response:
    """Rank what may stand at the open end of a triple: the likeliest tails of (head, relation, ?), or heads."""
    serving = of(http)
    model = serving.check_model(body.model)
    version = 0

    def task() -> RankingTask | Ranked:
        nonlocal version
        read, version = stored_graph(serving, graph, body.version)
        encoder = serving.llm.link_encoder(read, body.scorer or "auto")
        end = open_end(
            read,
            relation=body.relation,
            head=body.head,
            tail=body.tail,
            filtered=bool(body.filtered),
            candidates=body.candidates,
            types=body.types or (),
        )
        if encoder is not None:
            return encoded_links(encoder, read, end, body.top, body.temperature or 1.0)
        return completion_task(serving.llm.asking, read, end, top=body.top, **_options(body))

    ranked = await _rank(serving, http, body, task)
    given = {"head": body.head} if body.head is not None else {"tail": body.tail}
    return answer(
        LinkAnswer(
            **_head(serving, http, "graph.completion", model),
            version=version,
            relation=body.relation,
            **given,
            candidates=[
                RankedEntity(**named_entity(one), logprob=finite(one.logprob), known=one.known)
                for one in ranked.candidates
            ],
            num_candidates=ranked.num_candidates,
            **_about(ranked),
        )
    )


@router.post("/v1/graphs/{graph}/classify", response_model=ClassifyAnswer)
async def classify_stored(graph: GraphId, body: ClassifyStoredRequest, http: HttpRequest) -> Response:
    """Rank labels by how well they fit an entity of a stored graph and what is near it, or the whole graph."""
    serving = of(http)
    model = serving.check_model(body.model)
    version = 0

    def task() -> RankingTask | Ranked:
        nonlocal version
        read, version = stored_graph(serving, graph, body.version)
        return _classification(serving, read, body)

    ranked = await _rank(serving, http, body, task)
    return answer(_labels(ranked, version=version, **_head(serving, http, "graph.classification", model)))


@router.post("/v1/classify", response_model=ClassifyAnswer)
async def classify_inline(body: ClassifyRequest, http: HttpRequest) -> Response:
    """Rank labels by how well they fit a graph that the request brings, or an entity in it."""
    serving = of(http)
    model = serving.check_model(body.model)

    def task() -> RankingTask | Ranked:
        with graph_errors("graph"):
            read = inline_graph(serving, body.graph)
        return _classification(serving, read, body)

    ranked = await _rank(serving, http, body, task)
    return answer(_labels(ranked, **_head(serving, http, "graph.classification", model)))


@router.post("/v1/graphs/{graph}/explain", response_model=ExplainAnswer)
async def explain_relation(graph: GraphId, body: ExplainRequest, http: HttpRequest) -> Response:
    """The paths of edges that join two entities, and an explanation in which every name in [brackets] is one of theirs."""
    serving = of(http)
    model = serving.check_model(body.model)
    greedy: dict[str, Any] = {} if body.temperature is not None else {"temperature": 0.0}
    params = body.sampling_params(max_tokens=body.max_tokens, **greedy)

    def prepare() -> tuple[int, ExplanationTask, Stream | None]:
        with graph_errors("graph", within=""):
            read, version = stored_graph(serving, graph, body.version)
            task = explanation_task(
                serving.llm.asking,
                read,
                body.source,
                body.target,
                question=body.question,
                max_paths=body.max_paths,
                max_hops=body.max_hops,
                graph_mode=body.graph_mode or "auto",
            )
        if task.asked is None:
            return version, task, None
        with params_named({"prompt": "question", **ENGINE_NAMES}):
            stream = serving.generation(
                http,
                [task.asked.prompt],
                params,
                stream=False,
                priority=body.priority or 0,
                **constraints_of([task.asked]),
            )
        return version, task, stream

    version, task, stream = await serving.graphs.run(prepare)
    fields = {
        **_head(serving, http, "graph.explanation", model),
        "version": version,
        "source": body.source,
        "target": body.target,
        "paths": [cited_path(path) for path in task.paths],
        "explanation": None,
        "reason": task.reason or None,
        "finish_reason": None,
        "graph": None,
        "usage": NOTHING,
    }
    if stream is not None and task.asked is not None:
        (increment,) = await serving.complete(http, stream)
        sequence = stream.requests[0].sequences[0]
        output = await serving.graphs.run(task.asked.output, stream.requests[0], sequence, increment.text)
        explained = task.explained(increment.text, increment.finish_reason, output)
        fields |= {"explanation": explained.text, "finish_reason": explained.finish_reason}
        fields |= {"graph": graph_answer(output if explained.graph is None else explained.graph)}
        fields["usage"] = usage_of(stream)
    return answer(ExplainAnswer(**fields))


def stored_graph(serving: Serving, name: str, version: int | str | None) -> tuple[Graph, int]:
    """A stored graph and its version; called in a thread."""
    stored = serving.graphs.store.read(known_name(name), version_of(version))
    return stored.graph, stored.version


def _classification(
    serving: Serving, graph: Graph, body: ClassifyStoredRequest | ClassifyRequest
) -> RankingTask | Ranked:
    if body.classifier is not None:
        temperature = 1.0 if body.temperature is None else body.temperature
        unread = {"entity": body.entity, "question": body.question}
        return trained_classes(serving.classifier(body.classifier), graph, body.labels, temperature, **unread)
    return classification_task(
        serving.llm.asking,
        graph,
        body.labels,
        entity=body.entity,
        question=body.question,
        **_options(body),
    )


def _options(body: RankingFields) -> dict[str, Any]:
    return {
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "hops": body.hops,
        "budget": body.budget,
        "graph_mode": body.graph_mode or "auto",
    }


async def _rank(
    serving: Serving, http: HttpRequest, body: RankingFields, task: Callable[[], RankingTask | Ranked]
) -> Ranked:
    """Prepare a ranking in a thread, run it where the language model ranks, and read what has come of it."""

    def prepare() -> tuple[RankingTask | Ranked, Stream | None]:
        with graph_errors("graph", within=""):
            made = task()
        if isinstance(made, Ranked):
            return made, None
        with params_named({"prompt": "graph", **ENGINE_NAMES}):
            stream = serving.generation(
                http,
                [made.asked.prompt],
                _RANKING,
                stream=False,
                kind=RequestKind.TREE,
                candidates=made.targets,
                priority=body.priority or 0,
            )
        return made, stream

    made, stream = await serving.graphs.run(prepare)
    if isinstance(made, Ranked):
        return made
    assert stream is not None
    await serving.complete(http, stream)
    return await serving.graphs.run(made.ranked, stream.requests[0])


def _labels(ranked: Ranked, **fields: Any) -> ClassifyAnswer:
    labels = [
        RankedLabel(label=one.name, score=one.score or 0.0, logprob=finite(one.logprob))
        for one in ranked.candidates
    ]
    return ClassifyAnswer(**fields, labels=labels, **_about(ranked))


def _head(serving: Serving, http: HttpRequest, kind: str, model: str) -> dict[str, Any]:
    """How an answer begins."""
    request_id = serving.request_id(http)
    return {"id": f"graph-{request_id}", "object": kind, "created": int(time.time()), "model": model}


def _about(ranked: Ranked) -> dict[str, Any]:
    """What the answers of rankings end with."""
    tokens = ranked.num_prompt_tokens + ranked.num_candidate_tokens
    usage = Usage(
        prompt_tokens=tokens,
        completion_tokens=0,
        total_tokens=tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=ranked.num_cached_tokens),
    )
    return {"temperature": ranked.temperature, "graph": graph_answer(ranked.graph), "usage": usage}
