"""Bodies of /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Discriminator, Field, Tag

from vglm.serve.schemas.chat import MAX_MESSAGES, Message
from vglm.serve.schemas.common import Answer, Body, ModelName, TokenId
from vglm.serve.schemas.tools import MAX_TOOLS, Tool


class TokenizeTextRequest(Body):
    """Tokens of a text."""

    model: ModelName | None = None
    prompt: str
    add_special_tokens: bool | None = Field(
        default=None, description="Add what begins and ends every prompt; true by default."
    )
    return_token_strs: bool | None = None

    model_config = ConfigDict(json_schema_extra={"example": {"prompt": "The capital of France"}})


class TokenizeChatRequest(Body):
    """Tokens of a conversation, as /v1/chat/completions makes a prompt of it."""

    model: ModelName | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    add_generation_prompt: bool | None = Field(default=None, description="True by default.")
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None

    model_config = ConfigDict(
        json_schema_extra={"example": {"messages": [{"role": "user", "content": "Hello!"}]}}
    )


def _kind(body: Any) -> str:
    return (
        "a conversation"
        if isinstance(body, dict) and body.get("messages") and "prompt" not in body
        else "a text"
    )


TokenizeRequest = Annotated[
    Annotated[TokenizeTextRequest, Tag("a text")] | Annotated[TokenizeChatRequest, Tag("a conversation")],
    Discriminator(_kind),
]


class TokenizeAnswer(Answer):
    """The tokens, their number, and how many the model takes."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = Field(
        default=None, description="The tokens as the vocabulary spells them."
    )


class DetokenizeRequest(Body):
    """Text of tokens."""

    model: ModelName | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20)]

    model_config = ConfigDict(json_schema_extra={"example": {"tokens": [1, 2, 3]}})


class Detokenized(Answer):
    """The text of some tokens."""

    prompt: str


class TokenizerInfo(Answer):
    """What a client needs in order to use the tokenizer from afar; tokens by their names in the vocabulary."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    add_bos_token: bool
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None
