"""What a caller may give as a prompt, and what the engine gets of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vglm.engine.request import PromptEmbeds
from vglm.errors import RequestError
from vglm.model.tokenizer import Tokenizer

#: text; token ids; or a mapping with "prompt" or "prompt_token_ids", and "prompt_embeds": {position: vector [hidden]}
Prompt = str | Sequence[int] | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as tokens; `text` is None when it was given as tokens."""

    text: str | None
    token_ids: list[int]
    embeds: PromptEmbeds | None = None


def is_single(prompts: object) -> bool:
    """Whether this is one prompt rather than a list of them."""
    if isinstance(prompts, (str, Mapping)):
        return True
    return isinstance(prompts, Sequence) and len(prompts) > 0 and _is_id(prompts[0])


def encode_prompts(prompts: Prompt | Sequence[Prompt], tokenizer: Tokenizer) -> list[EncodedPrompt]:
    """Tokens of one or many prompts; texts are encoded together. Raises RequestError that names the bad prompt."""
    many: Sequence[Any] = [prompts] if is_single(prompts) else prompts  # type: ignore[list-item,assignment]
    if not isinstance(many, Sequence) or isinstance(many, (bytes, bytearray)):
        raise RequestError(f"prompts must be text, token ids, a mapping, or a list of these; got {type(prompts).__name__}")
    texts = [_text(prompt, i) for i, prompt in enumerate(many)]
    encoded = iter(tokenizer.encode_batch([t for t in texts if t is not None]) if any(t is not None for t in texts) else [])
    out = []
    for i, (prompt, text) in enumerate(zip(many, texts, strict=True)):
        ids = next(encoded) if text is not None else _ids(prompt, i)
        embeds = _embeds(prompt["prompt_embeds"], i) if isinstance(prompt, Mapping) and "prompt_embeds" in prompt else None
        out.append(EncodedPrompt(text, ids, embeds))
    return out


def _text(prompt: Any, index: int) -> str | None:
    if isinstance(prompt, Mapping):
        unknown = set(prompt) - {"prompt", "prompt_token_ids", "prompt_embeds"}
        if unknown or ("prompt" in prompt) == ("prompt_token_ids" in prompt):
            raise RequestError(f"prompt {index}: a mapping has either 'prompt' or 'prompt_token_ids', and may have 'prompt_embeds'")
        prompt = prompt.get("prompt")
        if prompt is not None and not isinstance(prompt, str):
            raise RequestError(f"prompt {index}: 'prompt' must be text")
    return prompt if isinstance(prompt, str) else None


def _ids(prompt: Any, index: int) -> list[int]:
    values = prompt["prompt_token_ids"] if isinstance(prompt, Mapping) else prompt
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, Sequence) or not all(_is_id(v) for v in values):
        raise RequestError(f"prompt {index}: token ids must be a list of whole numbers")
    return [int(v) for v in values]


def _embeds(values: Any, index: int) -> PromptEmbeds:
    try:
        positions = sorted(int(p) for p in values)
        rows = np.stack([np.asarray(values[p], np.float32).reshape(-1) for p in positions])
    except (TypeError, ValueError, KeyError) as error:
        raise RequestError(f"prompt {index}: prompt_embeds must map positions to vectors of equal size ({error})") from error
    return PromptEmbeds(np.array(positions, np.int32), np.ascontiguousarray(rows))


def _is_id(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
