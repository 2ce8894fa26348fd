"""Bodies of /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from vglm.serve.schemas.common import Answer, Body, ModelName, TokenId


class TokenizeTextRequest(Body):
    """Tokens of a text."""

    model: ModelName | None = None
    prompt: str
    add_special_tokens: bool | None = Field(
        default=None, description="Add what begins and ends every prompt; true by default."
    )
    return_token_strs: bool | None = None

    model_config = ConfigDict(json_schema_extra={"example": {"prompt": "The capital of France"}})


class Detokenized(Answer):
    """The text of some tokens."""

    prompt: str


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
