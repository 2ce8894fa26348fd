"""/tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from vglm.errors import RequestError
from vglm.serve import conversation
from vglm.serve.schemas.tokens import (
    Detokenized,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeChatRequest,
    TokenizeRequest,
    TokenizerInfo,
    TokenizeTextRequest,
)
from vglm.serve.serving import Serving, answer, of, offload
from vglm.serve.tools import tool_use

router = APIRouter(tags=["tokens"])


@router.post("/tokenize", response_model=TokenizeAnswer)
async def tokenize(body: TokenizeRequest, http: HttpRequest) -> Response:
    """The tokens of a text, or of the prompt that a conversation becomes."""
    serving = of(http)
    serving.check_model(body.model)
    tokens = await (
        _of_text(serving, body) if isinstance(body, TokenizeTextRequest) else _of_chat(serving, body)
    )
    fields: dict[str, Any] = {"count": len(tokens), "tokens": tokens}
    if body.return_token_strs:
        fields["token_strs"] = [serving.llm.tokenizer.id_to_token(token) or "" for token in tokens]
    return answer(TokenizeAnswer(max_model_len=serving.llm.engine.config.max_model_len, **fields))


async def _of_text(serving: Serving, body: TokenizeTextRequest) -> list[int]:
    if (body.model_extra or {}).get("messages") is not None:
        raise RequestError("give either prompt or messages", "messages")
    encoded = await serving.encode(body.prompt, "prompt", body.add_special_tokens is not False)
    return encoded[0].token_ids


async def _of_chat(serving: Serving, body: TokenizeChatRequest) -> list[int]:
    if body.add_generation_prompt and body.continue_final_message:
        raise RequestError(
            "continue_final_message leaves no place for a generation prompt; give one of the two",
            "continue_final_message",
        )
    prompt = await conversation.encode(
        serving,
        conversation.plain_messages(body.messages),
        tool_use(body.tools, None, None),
        body.chat_template_kwargs,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
    )
    return prompt.token_ids


@router.get("/tokenizer_info", response_model=TokenizerInfo)
async def tokenizer_info(http: HttpRequest) -> Response:
    """The tokenizer's control tokens and the chat template, for clients that tokenize over HTTP."""
    llm = of(http).llm
    tokenizer, config = llm.tokenizer, llm.engine.config
    bos, eos = tokenizer.bos_id, next(iter(config.eos_token_ids), tokenizer.eos_id)
    info = TokenizerInfo(
        tokenizer_class="vglm",
        vocab_size=config.vocab_size,
        model_max_length=config.max_model_len,
        add_bos_token=tokenizer.add_bos,
        bos_token=None if bos is None else tokenizer.id_to_token(bos),
        eos_token=None if eos is None else tokenizer.id_to_token(eos),
        pad_token=None,
        chat_template=llm.chat_format.source if llm.has_chat_format else None,
    )
    return answer(info)


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
