"""What a request has used."""

from __future__ import annotations

from vglm.serve.schemas.common import PromptTokensDetails, Usage
from vglm.serve.streams import Stream


def usage_of(stream: Stream, completion_tokens: int | None = None) -> Usage:
    """Tokens so far; `completion_tokens` where not all that were generated count."""
    generated = stream.num_output_tokens if completion_tokens is None else completion_tokens
    prompt = stream.num_prompt_tokens
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=generated,
        total_tokens=prompt + generated,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=stream.num_cached_tokens),
    )
