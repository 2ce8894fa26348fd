"""Bodies of /v1/score."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from vglm.serve.schemas.common import Answer, Body, ModelName, Priority
from vglm.serve.schemas.completions import Prompt
from vglm.serve.schemas.embeddings import EmbeddingUsage


class ScoreRequest(Body):
    """Score pairs of texts: one text_1 with every text_2, or as many of one as of the other."""

    model: ModelName | None = None
    text_1: Prompt = Field(description="Text or token ids, or a list of either.")
    text_2: Prompt = Field(
        description="Text or token ids, or a list of either; as many as text_1 has, unless that is one."
    )
    score_type: Literal["logprob", "cosine"] | None = Field(
        default=None,
        description="logprob (the default): the log-probability in nats of text_2 after text_1. "
        "cosine: the similarity of the two embeddings, -1 to 1.",
    )
    user: str | None = None
    add_special_tokens: bool | None = None
    priority: Priority = None

    model_config = ConfigDict(
        json_schema_extra={"example": {"text_1": "The capital of France is", "text_2": [" Paris", " Rome"]}}
    )


class ScoreItem(Answer):
    """The score of one pair; what follows it is there for log-probabilities only."""

    index: int
    object: Literal["score"] = "score"
    score: float
    num_tokens: int | None = Field(default=None, description="Tokens of text_2.")
    mean_logprob: float | None = Field(
        default=None, description="The score by token: compares texts of different lengths."
    )
    is_greedy: bool | None = Field(default=None, description="Whether greedy decoding would write text_2.")
    token_logprobs: list[float] | None = None


class ScoreAnswer(Answer):
    """One score for each pair, in their order."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreItem]
    usage: EmbeddingUsage
