"""/tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from vglm.errors import RequestError
from vglm.serve.schemas.tokens import Detokenized, DetokenizeRequest, TokenizeAnswer, TokenizeTextRequest
from vglm.serve.serving import answer, of, offload

router = APIRouter(tags=["tokens"])


@router.post("/tokenize", response_model=TokenizeAnswer)
async def tokenize(body: TokenizeTextRequest, http: HttpRequest) -> Response:
    """The tokens of a text."""
    serving = of(http)
    serving.check_model(body.model)
    encoded = await serving.encode(body.prompt, "prompt", body.add_special_tokens is not False)
    tokens = encoded[0].token_ids
    fields: dict[str, Any] = {"count": len(tokens), "tokens": tokens}
    if body.return_token_strs:
        fields["token_strs"] = [serving.llm.tokenizer.id_to_token(token) or "" for token in tokens]
    return answer(TokenizeAnswer(max_model_len=serving.llm.engine.config.max_model_len, **fields))


@router.post("/detokenize", response_model=Detokenized)
async def detokenize(body: DetokenizeRequest, http: HttpRequest) -> Response:
    """The text of tokens, control tokens included."""
    serving = of(http)
    serving.check_model(body.model)
    vocab_size = serving.llm.engine.config.vocab_size
    if body.tokens and max(body.tokens) >= vocab_size:
        raise RequestError(
            f"tokens has {max(body.tokens)}; the vocabulary has ids 0 to {vocab_size - 1}", "tokens"
        )
    text = await offload(len(body.tokens), serving.llm.tokenizer.decode, body.tokens, False)
    return answer(Detokenized(prompt=text))
