"""/v1/embeddings: the mean of the last hidden states of each input, scaled to length 1."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from vglm.errors import RequestError
from vglm.serve import pooling
from vglm.serve.schemas.embeddings import EmbeddingAnswer, EmbeddingRequest
from vglm.serve.serving import of, offload

router = APIRouter(tags=["embeddings"])


@router.post("/v1/embeddings", response_model=EmbeddingAnswer)
async def embeddings(body: EmbeddingRequest, http: HttpRequest) -> Response:
    """Embed a text, or several."""
    serving = of(http)
    model = serving.check_model(body.model)
    _check_dimensions(body.dimensions, serving.llm.engine.config.hidden_size)
    prompts = await serving.encode(body.input, "input", body.add_special_tokens is not False)
    stream = pooling.prepare(serving, http, prompts, "input", priority=body.priority)
    rows = await pooling.pooled(serving, http, stream)
    if body.normalize is not False:
        rows = pooling.unit(rows)
    tokens = stream.num_prompt_tokens
    head = pooling.answer_head(serving, http, "embd", model)
    head["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    # Ten thousand numbers are written in half a millisecond.
    content = await offload(rows.size // 4, _written, head, rows, body.encoding_format == "base64")
    return Response(content, media_type="application/json")


def _check_dimensions(wanted: int | None, hidden_size: int) -> None:
    if wanted is not None and wanted != hidden_size:
        raise RequestError(
            f"dimensions is {wanted}, but this model's embeddings have {hidden_size} and were not trained to be cut; "
            "leave it out, and shorten them yourself if you must",
            "dimensions",
        )


def _written(head: dict[str, Any], rows: npt.NDArray[np.float32], as_base64: bool) -> bytes:
    """The answer as JSON."""
    values = map(_base64, rows) if as_base64 else rows
    data = [{"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(values)]
    return orjson.dumps({**head, "data": data}, option=orjson.OPT_SERIALIZE_NUMPY)


def _base64(row: npt.NDArray[np.float32]) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
