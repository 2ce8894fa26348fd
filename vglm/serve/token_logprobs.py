"""Log-probabilities of tokens, in the forms that the endpoints give them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vglm.engine.request import Request, TokenLogprobs
from vglm.model.tokenizer import Tokenizer
from vglm.serve.schemas.completions import CompletionLogprobs

LEAST = -9999.0  # what JSON gets for minus infinity


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else LEAST


class TokenNames:
    """The text of single tokens, or "token_id:123" for clients that ask for it."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def __call__(self, token_id: int) -> str:
        if self._as_ids:
            return f"token_id:{token_id}"
        return self._tokenizer.decode([token_id], skip_special=False)

    def utf8(self, token_id: int) -> list[int]:
        """The bytes that a token stands for."""
        return list(self._tokenizer.token_bytes(token_id))


def completion_logprobs(
    entries: Sequence[TokenLogprobs | None],
    token_ids: Sequence[int],
    names: TokenNames,
    num_top: int,
    offset: int,
) -> CompletionLogprobs:
    """The form of /v1/completions. None stands for the first token of a prompt, which nothing predicts.

    `offset` is the character of the text at which the tokens begin.
    """
    out = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    tops: list[dict[str, float] | None] = []
    for token, entry in zip(token_ids, entries, strict=True):
        name = names(token)
        out.tokens.append(name)
        out.text_offset.append(offset)
        offset += len(name)
        out.token_logprobs.append(None if entry is None else finite(entry.logprob))
        tops.append(None if entry is None else _top(entry, names, num_top))
    out.top_logprobs = tops
    return out


def _top(entry: TokenLogprobs, names: TokenNames, num_top: int) -> dict[str, float]:
    """The best tokens and the one that was taken."""
    best = zip(entry.top_ids[:num_top], entry.top_logprobs[:num_top], strict=True)
    top: dict[str, float] = {}
    for token, logprob in best:
        top.setdefault(names(token), finite(logprob))  # two tokens may have one text: the likelier one counts
    top.setdefault(names(entry.token_id), finite(entry.logprob))
    return top


def chat_logprobs(entries: Sequence[TokenLogprobs], names: TokenNames, num_top: int) -> dict[str, Any]:
    """The form of /v1/chat/completions (see `ChatLogprobs`)."""

    def named(token_id: int, logprob: float) -> dict[str, Any]:
        return {"token": names(token_id), "logprob": finite(logprob), "bytes": names.utf8(token_id)}

    content = []
    for entry in entries:
        best = zip(entry.top_ids[:num_top], entry.top_logprobs[:num_top], strict=True)
        top = [named(token, logprob) for token, logprob in best]
        content.append({**named(entry.token_id, entry.logprob), "top_logprobs": top})
    return {"content": content}


def prompt_logprobs(request: Request, names: TokenNames) -> list[dict[str, Any] | None] | None:
    """The form of vLLM's `prompt_logprobs`: {token id: {logprob, rank, decoded_token}} for each token of the prompt."""
    if request.params.prompt_logprobs is None:
        return None
    out: list[dict[str, Any] | None] = [None]
    for entry in request.prompt_logprobs:
        row: dict[str, Any] = {
            str(token): {"logprob": finite(logprob), "rank": rank + 1, "decoded_token": names(token)}
            for rank, (token, logprob) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True))
        }
        own = {"logprob": finite(entry.logprob), "rank": entry.rank, "decoded_token": names(entry.token_id)}
        row.setdefault(str(entry.token_id), own)
        out.append(row)
    return out
