"""What several bodies share: numbers, sampling parameters, usage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

from vglm.decode.sampling_params import SamplingParams

MAX_N = 1024
MAX_INT32 = 2**31 - 1
MAX_LOGPROBS = 20  # best tokens for each token, as in vLLM: a whole vocabulary for each would fill the memory
SERVED_MARK = "x-served"


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 16.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _not_true(value: bool) -> bool:
    if value:
        raise PydanticCustomError("not_supported", "true is not supported")
    return value


def served(fact: str) -> dict[str, JsonValue]:
    """Schema extra: `vglm.serve.openapi` puts in what the model that is served, or the server's options, say about it."""
    return {SERVED_MARK: fact}


# Stands after the bounds, as in Annotated[int, Field(ge=1), Whole]: before them, they would not reach the OpenAPI document.
Whole = BeforeValidator(_whole)
OnlyFalse = Annotated[
    bool, AfterValidator(_not_true), Field(json_schema_extra={"const": False})
]  # Literal[False] takes 0
Count = Annotated[int, Field(ge=1, le=MAX_INT32), Whole]
ModelName = Annotated[str, Field(json_schema_extra=served("model_names"))]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT32, json_schema_extra=served("token_id")), Whole]
Priority = Annotated[int, Field(ge=-100, le=100), Whole] | Literal["high", "normal", "low"] | None
StopString = Annotated[str, Field(min_length=1)]
Stop = StopString | Annotated[list[StopString], Field(max_length=64)] | None
LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]],
    Field(json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,10}$"}}),
]


class Body(BaseModel):
    """Base of every request body: types are not converted, unknown fields are let through."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class Answer(BaseModel):
    """Base of every response body."""

    model_config = ConfigDict(protected_namespaces=())


class StreamOptions(Body):
    """What a stream says besides its increments."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(Body):
    """Sampling parameters, and what else a client may say about any generation."""

    temperature: Annotated[float, Field(ge=0, le=1e6)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1), Whole] | None = None
    stop: Stop = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    user: str | None = None
    # beyond OpenAI, with vLLM's names
    top_k: Annotated[int, Field(ge=-1, le=MAX_INT32), Whole] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=1e6)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INT32), Whole] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Priority = None

    def sampling_params(self, **fields: Any) -> SamplingParams:
        """The engine's parameters: what was given here, and `fields` of the particular body.

        Raises RequestError that names the parameter.
        """
        given = {name: getattr(self, name) for name in _COPIED if name in type(self).model_fields}
        if self.logit_bias is not None:
            given["logit_bias"] = token_biases(self.logit_bias)
        given.update(fields)
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})


class CompletionFields(SamplingFields):
    """What completions and chat completions share."""

    n: Annotated[int, Field(ge=1, le=MAX_N, json_schema_extra=served("n")), Whole] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # beyond OpenAI, with vLLM's names
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), Whole] | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def wants_continuous_usage(self) -> bool:
        """Whether every chunk of a stream has the usage so far."""
        return self.wants_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


_COPIED = (
    "n", "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "top_k", "min_p",
    "repetition_penalty", "min_tokens", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
    "skip_special_tokens", "prompt_logprobs",
)  # fmt: skip


def token_biases(biases: dict[str, float]) -> dict[int, float]:
    """logit_bias with its keys, which JSON makes text, as token ids. Raises RequestError."""
    from vglm.errors import RequestError

    out = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise RequestError(f"logit_bias has the key {key[:40]!r}; keys are token ids", "logit_bias")
        out[int(key)] = float(bias)
    return out


class PromptTokensDetails(Answer):
    """What the prompt's tokens cost."""

    cached_tokens: int = 0


class Usage(Answer):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class ErrorDetail(Answer):
    """What was wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(Answer):
    """The body of every answer that is not a success."""

    error: ErrorDetail
