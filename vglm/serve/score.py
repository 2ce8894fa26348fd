"""/v1/score: how probable one text is after another, or how alike two texts are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from vglm.assemble import score_output
from vglm.engine.request import Request
from vglm.errors import RequestError
from vglm.prompts import EncodedPrompt
from vglm.serve import pooling
from vglm.serve.schemas.embeddings import EmbeddingUsage
from vglm.serve.schemas.score import ScoreAnswer, ScoreItem, ScoreRequest
from vglm.serve.serving import answer, of
from vglm.serve.token_logprobs import finite

router = APIRouter(tags=["score"])


@router.post("/v1/score", response_model=ScoreAnswer)
@router.post("/score", response_model=ScoreAnswer, operation_id="score_unversioned")
async def score(body: ScoreRequest, http: HttpRequest) -> Response:
    """Score pairs of texts: one text_1 with every text_2, or as many of one as of the other."""
    serving = of(http)
    model = serving.check_model(body.model)
    cosine = body.score_type == "cosine"
    add_special = body.add_special_tokens is not False
    firsts = await serving.encode(body.text_1, "text_1", add_special)
    seconds = await serving.encode(
        body.text_2, "text_2", add_special and cosine
    )  # a continuation begins nothing
    _check_counts(len(firsts), len(seconds))
    items, tokens = await (_cosines if cosine else _logprobs)(body, http, firsts, seconds)
    head = pooling.answer_head(serving, http, "score", model)
    usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
    return answer(ScoreAnswer(**head, data=items, usage=usage))


def _check_counts(firsts: int, seconds: int) -> None:
    if firsts not in (1, seconds):
        raise RequestError(
            f"text_1 has {firsts} texts and text_2 {seconds}; give as many of each, or one text_1", "text_1"
        )


async def _logprobs(
    body: ScoreRequest, http: HttpRequest, firsts: list[EncodedPrompt], seconds: list[EncodedPrompt]
) -> tuple[list[ScoreItem], int]:
    """The scores, and the tokens that were looked at."""
    serving = of(http)
    prompts = firsts * len(seconds) if len(firsts) == 1 else firsts
    targets = [second.token_ids for second in seconds]
    stream = pooling.prepare(
        serving, http, prompts, "text_1", "text_2", targets=targets, priority=body.priority
    )
    await serving.complete(http, stream)
    items = [_item(index, request) for index, request in enumerate(stream.requests)]
    return items, stream.num_prompt_tokens + sum(map(len, targets))


def _item(index: int, request: Request) -> ScoreItem:
    output = score_output(request)
    return ScoreItem(
        index=index,
        object="score",
        score=finite(output.logprob),
        num_tokens=len(output.token_logprobs),
        mean_logprob=finite(output.mean_logprob),
        is_greedy=output.is_greedy,
        token_logprobs=[finite(logprob) for logprob in output.token_logprobs],
    )


async def _cosines(
    body: ScoreRequest, http: HttpRequest, firsts: Sequence[EncodedPrompt], seconds: Sequence[EncodedPrompt]
) -> tuple[list[ScoreItem], int]:
    """The similarities, and the tokens that were looked at."""
    serving = of(http)
    streams = [  # both are checked before one begins
        pooling.prepare(serving, http, prompts, name, priority=body.priority)
        for name, prompts in (("text_1", firsts), ("text_2", seconds))
    ]
    left, right = [pooling.unit(await pooling.pooled(serving, http, stream)) for stream in streams]
    cosines = np.clip(np.sum(left * right, axis=1, dtype=np.float64), -1, 1)  # one text_1 stands for all
    items = [ScoreItem(index=i, object="score", score=float(cosine)) for i, cosine in enumerate(cosines)]
    return items, sum(stream.num_prompt_tokens for stream in streams)
