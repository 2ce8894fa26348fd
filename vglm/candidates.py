"""Candidate continuations: what a caller may give, what the engine gets of it, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from vglm.decode.outputs import CandidateScore
from vglm.engine.tree import Tree
from vglm.engine.trie import MAX_CANDIDATES
from vglm.errors import RequestError
from vglm.model.tokenizer import Tokenizer
from vglm.prompts import token_ids

Candidate = str | Sequence[int]
Normalize = Literal["tokens"] | None

MAX_TEXT = 1 << 23  # characters of all candidates together


def encode_candidates(
    candidates: Sequence[Candidate], tokenizer: Tokenizer, end_id: int | None
) -> list[list[int]]:
    """The tokens of each candidate, `end_id` at its end if there is one.

    Text is encoded by itself, as in `LLM.score`, but a control token that is spelled in it stays text: names are not
    trusted. Raises RequestError that names the candidate.
    """
    if not isinstance(candidates, Sequence) or isinstance(candidates, (str, bytes, bytearray)):
        raise RequestError(
            f"candidates must be a list of texts or of token ids; got {type(candidates).__name__}",
            "candidates",
        )
    if len(candidates) > MAX_CANDIDATES:
        raise RequestError(
            f"there are {len(candidates)} candidates; at most {MAX_CANDIDATES} can be scored at once",
            "candidates",
        )
    texts = [candidate for candidate in candidates if isinstance(candidate, str)]
    if sum(map(len, texts)) > MAX_TEXT:
        raise RequestError(
            f"the candidates have {sum(map(len, texts))} characters; at most {MAX_TEXT} can be scored at once",
            "candidates",
        )
    encoded = iter(tokenizer.encode_batch(texts, False, allow_special_tokens=False) if texts else [])
    end = [] if end_id is None else [end_id]
    found = []
    for index, candidate in enumerate(candidates):
        ids = next(encoded) if isinstance(candidate, str) else token_ids(candidate, f"candidate {index}")
        if not ids:
            raise RequestError(f"candidate {index} is empty; give at least one token", "candidates")
        found.append(ids + end)
    return found


def candidate_scores(
    candidates: Sequence[Candidate], tree: Tree, tokenizer: Tokenizer, normalize: Normalize
) -> list[CandidateScore]:
    """The scores of a finished TREE request, in the order of the candidates."""
    found = []
    for candidate, logprobs in zip(candidates, tree.token_logprobs(), strict=True):
        text = candidate if isinstance(candidate, str) else tokenizer.decode(candidate)
        total = sum(logprobs)
        found.append(CandidateScore(text, total / len(logprobs) if normalize else total, logprobs))
    return found


def check_normalize(value: Any) -> None:
    """Raises RequestError unless `value` is None or "tokens"."""
    if value is not None and value != "tokens":
        raise RequestError(f"normalize is {str(value)[:40]!r}; choose None or 'tokens'", "normalize")
