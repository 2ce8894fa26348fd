"""Bodies of /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue

from vglm.serve.schemas.common import (
    MAX_LOGPROBS,
    Answer,
    CompletionFields,
    ModelName,
    TokenId,
    Usage,
    Whole,
    served,
)
from vglm.serve.schemas.graphs import GraphAnswer, GraphFields
from vglm.serve.schemas.structured import StructuredFields

MAX_PROMPTS = 2048  # in one request, as OpenAI has it for embeddings

TokenIds = Annotated[list[TokenId], Field(min_length=1, json_schema_extra=served("token_ids"))]
Text = Annotated[str, Field(json_schema_extra=served("text"))]
Prompt = (
    Text
    | TokenIds
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
)


_EXAMPLES: list[JsonValue] = [
    {"prompt": "The capital of France is", "max_tokens": 8},
    {"prompt": "Once", "max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}},
    {
        "prompt": "Paris is the capital of",
        "max_tokens": 8,
        "graph": {
            "nodes": [{"id": "1", "name": "Paris"}, {"id": "2", "name": "France"}],
            "edges": [{"source": "1", "relation": "capital of", "target": "2"}],
        },
        "constraint": "answer",
    },
    {"prompt": [[504, 3575], [504]], "max_tokens": 1, "echo": True, "logprobs": 1},
]


class CompletionRequest(CompletionFields, StructuredFields, GraphFields):
    """Complete a prompt, or several."""

    model: ModelName | None = None
    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1), Whole] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), Whole] | None = None
    best_of: Annotated[int, Field(ge=1, le=1024, json_schema_extra=served("n")), Whole] | None = Field(
        default=None, description="The value of n, if it is given at all."
    )
    suffix: Annotated[str, Field(json_schema_extra={"maxLength": 0})] | None = Field(
        default=None, description="Not supported."
    )
    add_special_tokens: bool | None = None

    model_config = ConfigDict(json_schema_extra={"examples": _EXAMPLES})


class CompletionLogprobs(Answer):
    """Log-probabilities of a completion's tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Answer):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    graph: GraphAnswer | None = Field(default=None, description="Of a choice that has ended.")


class CompletionAnswer(Answer):
    """The answer, or one chunk of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
