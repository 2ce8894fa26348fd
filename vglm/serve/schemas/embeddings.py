"""Bodies of /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from vglm.serve.schemas.common import Answer, Body, ModelName, Priority, Whole, served
from vglm.serve.schemas.completions import Prompt


class EmbeddingRequest(Body):
    """Embed a text, or several: the mean of the model's last hidden states, scaled to length 1."""

    model: ModelName | None = None
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, json_schema_extra=served("dimensions")), Whole] | None = Field(
        default=None,
        description="The model's own number of dimensions; it was not trained to be cut shorter.",
    )
    user: str | None = None
    # beyond OpenAI
    normalize: bool | None = Field(default=None, description="false: the mean itself, not scaled to length 1")
    add_special_tokens: bool | None = None
    priority: Priority = None

    model_config = ConfigDict(json_schema_extra={"example": {"input": "The capital of France is Paris."}})


class EmbeddingItem(Answer):
    """The embedding of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="Numbers, or base64 of little-endian float32.")


class EmbeddingUsage(Answer):
    """Tokens of the inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(Answer):
    """One embedding for each input, in their order."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[EmbeddingItem]
    usage: EmbeddingUsage
