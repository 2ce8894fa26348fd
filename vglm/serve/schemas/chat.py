"""Bodies of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

from vglm.serve.schemas.common import Answer, Body, CompletionFields, Count, ModelName, Usage, Whole
from vglm.serve.schemas.graphs import GraphAnswer, GraphFields
from vglm.serve.schemas.structured import StructuredFields
from vglm.serve.schemas.tools import (
    MAX_TOOLS,
    AnsweredCall,
    CallDelta,
    EarlierCall,
    FunctionsOnly,
    NamedToolChoice,
    Tool,
    ToolMode,
)

MAX_TOP_LOGPROBS = 20
MAX_MESSAGES = 1 << 16


def text_only(value: Any) -> Any:
    """Say of a part that is no text what is wrong with it."""
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in ("text", "input_text", "output_text", "refusal"):
        raise PydanticCustomError(
            "not_text",
            "a part of type {kind} is not supported; the model reads text only",
            {"kind": repr(kind[:40])},
        )
    return value


class TextPart(Body):
    """Text in a message."""

    type: Literal["text"]
    text: str


class RefusalPart(Body):
    """What the assistant said in place of an answer."""

    type: Literal["refusal"]
    refusal: str


Text = Annotated[TextPart, BeforeValidator(text_only)]
Content = str | Annotated[list[Text], Field(min_length=1, max_length=4096)]
AssistantPart = Annotated[
    Annotated[TextPart | RefusalPart, Field(discriminator="type")], BeforeValidator(text_only)
]


class SystemMessage(Body):
    """What holds for the whole conversation."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Body):
    """What the user says."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(Body):
    """What the model has said before, or called."""

    role: Literal["assistant"]
    content: str | Annotated[list[AssistantPart], Field(min_length=1, max_length=4096)] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[EarlierCall], Field(max_length=4096)] | None = None


class ToolMessage(Body):
    """What a call has given."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str | None = None
    name: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


_HELLO: list[JsonValue] = [{"role": "user", "content": "Hello!"}]
_EXAMPLES: list[JsonValue] = [
    {"messages": _HELLO, "max_tokens": 8},
    {"messages": _HELLO, "max_tokens": 8, "stream": True, "logprobs": True, "top_logprobs": 2},
    {"messages": _HELLO, "max_tokens": 8, "graph": {"nodes": [{"id": "1", "name": "Greeting"}]}},
    {"messages": _HELLO, "max_tokens": 8, "response_format": {"type": "json_object"}},
]


class ChatRequest(CompletionFields, StructuredFields, GraphFields):
    """Answer a conversation."""

    model: ModelName | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Count | None = Field(
        default=None, description="Most tokens of an answer; by default as many as the context allows."
    )
    max_tokens: Count | None = Field(default=None, description="The older name of max_completion_tokens.")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), Whole] | None = None
    tools: Annotated[list[FunctionsOnly[Tool]], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolMode | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    # beyond OpenAI, with vLLM's names
    echo: bool | None = Field(
        default=None, description="Begin the answer with the message that it continues."
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    model_config = ConfigDict(json_schema_extra={"examples": _EXAMPLES})


class TopLogprob(Answer):
    """A token and its log-probability; `bytes` is its UTF-8, which may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of an answer and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """Log-probabilities of an answer's tokens."""

    content: list[TokenLogprob] | None


class AnswerMessage(Answer):
    """The model's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    tool_calls: list[AnsweredCall] | None = None


class ChatChoice(Answer):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    graph: GraphAnswer | None = None


class ChatAnswer(Answer):
    """The answer, or several."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    prompt_token_ids: list[int] | None = None


class Delta(Answer):
    """What is new of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChunkChoice(Answer):
    """What is new of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    graph: GraphAnswer | None = Field(default=None, description="With the last chunk of a choice.")


class ChatChunk(Answer):
    """One event of a streamed answer; the last one before [DONE] has the usage and no choices, when that is asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    prompt_token_ids: list[int] | None = None
