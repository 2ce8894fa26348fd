"""What embeddings and scores share: prompts run through the model for what it makes of them, not for what follows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request as HttpRequest

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.request import RequestKind
from vglm.errors import VGLMError
from vglm.prompts import EncodedPrompt
from vglm.serve.errors import params_named
from vglm.serve.serving import Serving
from vglm.serve.streams import Stream

_PARAMS = SamplingParams(max_tokens=1)


def prepare(
    serving: Serving,
    http: HttpRequest,
    prompts: Sequence[EncodedPrompt],
    *names: str,
    targets: Sequence[Sequence[int]] = (),
    priority: int | str | None = None,
) -> Stream:
    """Requests for embeddings of the prompts, or for scores of their `targets`; checked and not yet begun.

    `names`: what the body calls the prompts and the targets. Raises RequestError that names one of them.
    """
    kind = RequestKind.SCORE if targets else RequestKind.ENCODE
    with params_named(dict(zip(("prompt", "continuation"), names, strict=False))):
        return serving.generation(
            http, prompts, _PARAMS, stream=False, kind=kind, targets=targets, priority=priority or 0
        )


async def pooled(serving: Serving, http: HttpRequest, stream: Stream) -> npt.NDArray[np.float32]:
    """The mean hidden state of each prompt of a stream, float32 [prompts, hidden_size].

    Raises as `Serving.complete` does, and VGLMError when a mean is not finite.
    """
    await serving.complete(http, stream)
    rows = np.stack([np.asarray(request.pooled, np.float32) for request in stream.requests])
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise VGLMError(f"the embedding of input {int(np.argmin(finite))} is not finite")
    return rows


def unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The rows scaled to length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def answer_head(serving: Serving, http: HttpRequest, prefix: str, model: str) -> dict[str, Any]:
    """How the answers with a list of results begin."""
    return {
        "id": f"{prefix}-{serving.request_id(http)}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
    }
