"""Function tools, in the two spellings that OpenAI has for them: nested in /v1/chat/completions, flat in /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from vglm.serve.schemas.common import Answer, Body

MAX_TOOLS = 128
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
ToolMode = Literal["none", "auto", "required"]


class Function(Body):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="JSON schema of the arguments.")
    strict: bool | None = Field(
        default=None, description="Arguments always fit the schema, whatever it says."
    )


class Tool(Body):
    """A tool of a chat completion."""

    type: Literal["function"]
    function: Function


def _functions_only(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise PydanticCustomError(
            "no_function",
            "a tool of type {kind} is not supported; there are functions only",
            {"kind": repr(kind[:40])},
        )
    return value


T = TypeVar("T")
FunctionsOnly = Annotated[T, BeforeValidator(_functions_only)]


class NamedFunction(Body):
    """A function by its name."""

    name: FunctionName


class NamedToolChoice(Body):
    """Call this function."""

    type: Literal["function"]
    function: NamedFunction


class FlatTool(Function):
    """A tool of a response."""

    type: Literal["function"]


class FlatToolChoice(NamedFunction):
    """Call this function."""

    type: Literal["function"]


class CalledFunction(Body):
    """Name and arguments of a call."""

    name: str
    arguments: str = Field(description="JSON text.")


class EarlierCall(Body):
    """A call in an earlier message of the assistant."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class AnsweredFunction(Answer):
    """Name and arguments of a call; a stream sends the arguments in pieces."""

    name: str | None = None
    arguments: str


class AnsweredCall(Answer):
    """A call of the model's."""

    id: str
    type: Literal["function"] = "function"
    function: AnsweredFunction


class CallDelta(Answer):
    """What is new of a call; `id`, `type` and the name come with its first piece."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: AnsweredFunction
