"""What a caller may give as a prompt, and what the engine gets of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vglm.engine.request import PromptEmbeds, SpanSpec
from vglm.errors import RequestError
from vglm.model.tokenizer import Tokenizer

#: text; token ids; or a mapping with "prompt" or "prompt_token_ids", and "prompt_embeds": {position: vector [hidden]}
Prompt = str | Sequence[int] | Mapping[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")  # of messages


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as tokens from `first_position` on, after the spans of `span_specs`; `text` is None when it was given
    as tokens.
    """

    text: str | None
    token_ids: list[int]
    embeds: PromptEmbeds | None = None
    first_position: int = 0
    span_specs: tuple[SpanSpec, ...] = ()

    def options(self) -> dict[str, Any]:
        """What `EngineCore.prepare_request` needs to know of it besides the tokens."""
        return {"embeds": self.embeds, "first_position": self.first_position, "span_specs": self.span_specs}


def is_single(prompts: object) -> bool:
    """Whether this is one prompt rather than a list of them."""
    if isinstance(prompts, (str, Mapping)):
        return True
    return isinstance(prompts, Sequence) and len(prompts) > 0 and _is_id(prompts[0])


def encode_prompts(
    prompts: Prompt | Sequence[Prompt], tokenizer: Tokenizer, add_special: bool = True
) -> list[EncodedPrompt]:
    """Tokens of one or many prompts; texts are encoded together, `add_special` with what the model puts around them.

    Raises RequestError that names the bad prompt.
    """
    many: Sequence[Any] = [prompts] if is_single(prompts) else prompts  # type: ignore[assignment]
    if not isinstance(many, Sequence) or isinstance(many, (bytes, bytearray)):
        raise RequestError(
            f"prompts must be text, token ids, a mapping, or a list of these; got {type(prompts).__name__}"
        )
    texts = [_text(prompt, i) for i, prompt in enumerate(many)]
    encoded = iter(
        tokenizer.encode_batch([t for t in texts if t is not None], add_special)
        if any(t is not None for t in texts)
        else []
    )
    out = []
    for i, (prompt, text) in enumerate(zip(many, texts, strict=True)):
        ids = next(encoded) if text is not None else _ids(prompt, i)
        embeds = (
            _embeds(prompt["prompt_embeds"], i)
            if isinstance(prompt, Mapping) and "prompt_embeds" in prompt
            else None
        )
        out.append(EncodedPrompt(text, ids, embeds))
    return out


def _text(prompt: Any, index: int) -> str | None:
    if isinstance(prompt, Mapping):
        unknown = set(prompt) - {"prompt", "prompt_token_ids", "prompt_embeds"}
        if unknown or ("prompt" in prompt) == ("prompt_token_ids" in prompt):
            raise RequestError(
                f"prompt {index}: a mapping has either 'prompt' or 'prompt_token_ids', and may have 'prompt_embeds'"
            )
        if "prompt" not in prompt:
            return None
        prompt = prompt["prompt"]
        if not isinstance(prompt, str):
            raise RequestError(f"prompt {index}: 'prompt' must be text")
    return prompt if isinstance(prompt, str) else None


def _ids(prompt: Any, index: int) -> list[int]:
    return token_ids(prompt["prompt_token_ids"] if isinstance(prompt, Mapping) else prompt, f"prompt {index}")


def token_ids(values: Any, what: str) -> list[int]:
    """Token ids from a list or array. Raises RequestError that names `what` when they are none."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if (
        not isinstance(values, Sequence)
        or isinstance(values, (bytes, bytearray))
        or not all(_is_id(v) for v in values)
    ):
        raise RequestError(f"{what}: token ids must be a list of whole numbers")
    ids = [int(v) for v in values]
    if ids and not 0 <= min(ids) <= max(ids) < 1 << 31:
        raise RequestError(f"{what}: token ids must be from 0 to the size of the vocabulary")
    return ids


def _embeds(values: Any, index: int) -> PromptEmbeds:
    try:
        if not isinstance(values, Mapping) or not all(_is_id(p) for p in values):
            raise ValueError("the keys must be whole numbers")
        positions = sorted(values)
        vectors = [np.asarray(values[p]) for p in positions]
        if any(v.ndim != 1 or v.dtype.kind not in "fiu" for v in vectors):
            raise ValueError("a vector is one-dimensional and of real numbers")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused as such
            rows = np.stack(vectors).astype(np.float32)
        return PromptEmbeds(np.array(positions, np.int32), rows)
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(
            f"prompt {index}: prompt_embeds must map positions to vectors of equal size ({error})"
        ) from error


def _is_id(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_messages(messages: object) -> None:
    """Raises RequestError for what is no conversation: each message is a mapping with a role that there is, and a content.

    A template would take any role for a word, and complain of what is missing in its own words or not at all.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise RequestError(f"messages must be a list of mappings; got {type(messages).__name__}", "messages")
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, Mapping):
            raise RequestError(
                f"{where} must be a mapping with a role and a content; got {type(message).__name__}",
                "messages",
            )
        if message.get("role") not in ROLES:
            given = "has no role" if "role" not in message else f"has the role {message['role']!r:.40}"
            raise RequestError(f"{where} {given}; choose {', '.join(ROLES)}", "messages")
        if message.get("content") is None and not message.get("tool_calls"):
            raise RequestError(f"{where} has no content; give it a text", "messages")
