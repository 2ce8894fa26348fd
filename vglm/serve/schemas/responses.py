"""Bodies of /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag

from vglm.serve.schemas.chat import MAX_MESSAGES, RefusalPart, text_only
from vglm.serve.schemas.common import Answer, Body, Count, ModelName, OnlyFalse, SamplingFields
from vglm.serve.schemas.structured import (
    JSONObjectFormat,
    NamedSchema,
    StructuredOutputsFields,
    TextFormat,
)
from vglm.serve.schemas.tools import MAX_TOOLS, FlatTool, FlatToolChoice, FunctionsOnly, ToolMode

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Body):
    """Text in a message: of the user, or of an earlier answer."""

    type: Literal["input_text", "output_text"]
    text: str


InputPart = Annotated[
    Annotated[InputText | RefusalPart, Field(discriminator="type")], BeforeValidator(text_only)
]
InputContent = str | Annotated[list[InputPart], Field(max_length=4096)]


class InputMessage(Body):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: InputContent


class InputCall(Body):
    """A call that the model has made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str = Field(description="JSON text.")


class InputCallOutput(Body):
    """What a call has given."""

    type: Literal["function_call_output"]
    call_id: str
    output: InputContent


def _kind(item: Any) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return kind if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputCallOutput, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type="unknown_item",
        custom_error_message="An item must be a message, a function_call or a function_call_output",
    ),
]


class FlatSchemaFormat(NamedSchema):
    """JSON that fits a schema."""

    type: Literal["json_schema"]


class TextConfig(Body):
    """What the text of the answer must look like."""

    format: (
        Annotated[TextFormat | JSONObjectFormat | FlatSchemaFormat, Field(discriminator="type")] | None
    ) = None


class ResponseRequest(SamplingFields):
    """Answer an input."""

    model: ModelName | None = None
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = Field(default=None, description="A system message before the input.")
    max_output_tokens: Count | None = Field(
        default=None, description="Most tokens of the answer; by default as many as the context allows."
    )
    text: TextConfig | None = None
    tools: Annotated[list[FunctionsOnly[FlatTool]], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolMode | FlatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    metadata: dict[str, str] | None = None
    truncation: Literal["disabled"] | None = None
    background: OnlyFalse | None = None
    store: bool | None = Field(default=None, description="Accepted; nothing is ever stored.")
    # beyond OpenAI, with vLLM's name
    structured_outputs: StructuredOutputsFields | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "Hello!", "max_output_tokens": 8},
                {"input": "Hello!", "max_output_tokens": 8, "stream": True},
            ]
        }
    )


class OutputText(Answer):
    """Text of the answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(Answer):
    """A message of the model's."""

    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Status
    content: list[OutputText]


class OutputCall(Answer):
    """A call of the model's; `arguments` is JSON text."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


OutputItem = Annotated[OutputMessage | OutputCall, Field(discriminator="type")]


class ResponseError(Answer):
    """Why a response has failed."""

    code: str
    message: str


class IncompleteDetails(Answer):
    """Why a response is cut short."""

    reason: Literal["max_output_tokens"]


class InputTokensDetails(Answer):
    """What the input's tokens cost."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Answer):
    """What the answer's tokens were for."""

    reasoning_tokens: int


class ResponseUsage(Answer):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseAnswer(Answer):
    """A response: what was asked for, and what has come of it."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None
    store: Literal[False]
    background: Literal[False]
    temperature: float
    top_p: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None


class _Event(Answer):
    sequence_number: int


class ResponseEvent(_Event):
    """The response as a whole, at its beginning and its end."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: ResponseAnswer


class ItemEvent(_Event):
    """An item of the output begins or ends."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class PartEvent(_Event):
    """A part of a message begins or ends."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    item_id: str
    output_index: int
    content_index: int
    part: OutputText


class TextDeltaEvent(_Event):
    """More text."""

    type: Literal["response.output_text.delta"]
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[Any]


class TextDoneEvent(_Event):
    """A text is complete."""

    type: Literal["response.output_text.done"]
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[Any]


class ArgumentsDeltaEvent(_Event):
    """More of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"]
    item_id: str
    output_index: int
    delta: str


class ArgumentsDoneEvent(_Event):
    """A call's arguments are complete."""

    type: Literal["response.function_call_arguments.done"]
    item_id: str
    output_index: int
    name: str
    arguments: str


ResponseStreamEvent = (
    ResponseEvent
    | ItemEvent
    | PartEvent
    | TextDeltaEvent
    | TextDoneEvent
    | ArgumentsDeltaEvent
    | ArgumentsDoneEvent
)
