"""What happens to a request before it is queued: checked, its parameters resolved, its sequences made.

Everything but `number_sequences` looks only at the request, the configuration and immutable spans, so a
server can do it in any thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vglm.engine.request import IntArray, Request, RequestKind, Sequence, Status
from vglm.engine.span_cache import SpanCache
from vglm.errors import RequestError, VGLMError

if TYPE_CHECKING:
    from vglm.engine.config import EngineConfig
    from vglm.engine.constraint import ConstraintFactory

MAX_SPANS = 65_536  # of one request's context
FIRST_CAPACITY = 256  # output tokens that a sequence has room for before its array grows


def check_request(request: Request, config: EngineConfig, cache: SpanCache) -> None:
    """Raises RequestError when the request is malformed or could never run."""
    if request.first_position < 0:
        raise RequestError(
            f"first_position is {request.first_position}; it must not be negative", "first_position"
        )
    _check_tokens("prompt", request.prompt_token_ids, config.vocab_size)
    if request.kind is RequestKind.SCORE:
        _check_tokens("continuation", request.target_token_ids, config.vocab_size)
    elif request.target_token_ids:
        raise RequestError(
            f"target tokens are for score requests, this is a {request.kind.value} request", "continuation"
        )
    request.params.check_vocabulary(config.vocab_size)
    if request.params.n > config.max_num_seqs:
        raise RequestError(
            f"n={request.params.n} needs more sequences at once than max_num_seqs={config.max_num_seqs}",
            "n",
        )
    if request.params.n > 1 and request.kind is not RequestKind.GENERATE:
        raise RequestError(f"n={request.params.n} makes no sense for a {request.kind.value} request", "n")
    _check_constraint(request)
    _check_embeds(request, config)
    _check_length(request, config, cache)


def check_spans(request: Request, config: EngineConfig) -> None:
    """Raises RequestError when the specification of the request's context is malformed."""
    specs = request.span_specs
    if not specs:
        return
    if request.context:
        raise RequestError("give a request either spans or specifications of spans, not both", "context")
    if len(specs) > MAX_SPANS:
        raise RequestError(f"the context has {len(specs)} spans; at most {MAX_SPANS} are allowed", "context")
    lengths = [len(spec.tokens) for spec in specs]
    if not all(lengths):
        raise RequestError(f"span {lengths.index(0)} of the context is empty", "context")
    _check_tokens("context", np.concatenate([spec.tokens for spec in specs]), config.vocab_size)
    ends: list[int] = []
    for index, (spec, length) in enumerate(zip(specs, lengths, strict=True)):
        earliest = 0
        for parent in spec.parents:
            if not 0 <= parent < index:
                raise RequestError(
                    f"span {index} names {parent} as its parent; parents come before", "context"
                )
            earliest = max(earliest, ends[parent])
        if spec.first_position < earliest:
            raise RequestError(
                f"span {index} begins at position {spec.first_position}, but a parent ends at {earliest}",
                "context",
            )
        ends.append(spec.first_position + length)
    if request.first_position < max(ends):
        raise RequestError(
            f"the prompt begins at position {request.first_position}, but its context ends at {max(ends)}",
            "first_position",
        )


def _check_constraint(request: Request) -> None:
    if request.params.structured_outputs is not None and request.constraint is None:
        raise RequestError(
            "structured_outputs have to be compiled and given to the engine as the constraint",
            "structured_outputs",
        )
    if request.constraint is not None and request.kind is not RequestKind.GENERATE:
        raise RequestError(
            f"a constraint makes no sense for a {request.kind.value} request", "structured_outputs"
        )


def _check_tokens(what: str, tokens: list[int] | IntArray, vocab_size: int) -> None:
    if not len(tokens):
        raise RequestError(f"the {what} is empty; give at least one token", what)
    array = np.asarray(tokens)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise RequestError(f"the {what} must be a list of whole numbers, the token ids", what)
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise RequestError(
            f"the {what} has token id {wrong}; the vocabulary has ids 0 to {vocab_size - 1}", what
        )


def _check_embeds(request: Request, config: EngineConfig) -> None:
    embeds = request.embeds
    if embeds is None:
        return
    positions, rows = embeds.positions, embeds.rows
    if rows.shape != (len(positions), config.hidden_size):
        raise RequestError(
            f"prompt embeddings have shape {rows.shape}; {len(positions)} positions of this model need "
            f"({len(positions)}, {config.hidden_size})",
            "prompt_embeds",
        )
    ascending = np.all(np.diff(positions) > 0)
    if len(positions) and not (
        ascending and positions[0] >= 0 and positions[-1] < len(request.prompt_token_ids)
    ):
        raise RequestError(
            f"prompt embedding positions must ascend within 0 to {len(request.prompt_token_ids) - 1}",
            "prompt_embeds",
        )
    if not np.isfinite(rows).all():
        raise RequestError("prompt embeddings must be finite numbers", "prompt_embeds")
    if request.params.prompt_logprobs is not None:
        raise RequestError(
            "prompt_logprobs cannot be given for a prompt with embeddings in place of tokens",
            "prompt_logprobs",
        )


def _check_length(request: Request, config: EngineConfig, cache: SpanCache) -> None:
    num_prompt = len(request.prompt_token_ids)
    longest = len(request.target_token_ids) if request.tree is None else request.tree.trie.longest
    num_tokens = num_prompt + max(0, longest - 1)
    wanted = num_tokens + (request.kind is RequestKind.GENERATE)
    if request.first_position + wanted > config.max_model_len:
        start = f" from position {request.first_position}" if request.first_position else ""
        raise RequestError(
            f"the request needs {wanted} tokens{start} (prompt of {num_prompt}), but max_model_len is "
            f"{config.max_model_len}; shorten it or raise max_model_len",
            "prompt",
        )
    check_context(request, cache)
    room = _room(request, cache)
    if request.tree is not None and num_prompt % cache.pool.block_size:
        room -= cache.pool.block_size  # branches copy the prompt's last page
    if wanted > room:
        total = cache.pool.num_blocks * cache.pool.block_size
        raise RequestError(
            f"the request needs {wanted} tokens after a context that takes {total - room} of the {total} that the "
            "KV cache has room for; give it a smaller context, or raise kv_cache_memory",
            "prompt" if room > 0 else "context",
        )


def check_context(request: Request, cache: SpanCache) -> None:
    """Raises RequestError when a span of the context has left the cache."""
    if len(set(request.context)) < len(request.context):
        raise RequestError("a span is more than once in the context", "context")
    if any(cache.get(span.key) is not span for span in request.context):
        raise RequestError(
            "a span of the context is no longer in the cache; hold spans until they are used", "context"
        )


def _room(request: Request, cache: SpanCache) -> int:
    """Tokens of its own that a sequence of the request can have when it is alone in the KV cache."""
    context = sum(len(span.blocks) for span in request.context)
    if request.span_specs:
        lengths = {
            key: len(spec.tokens) for key, spec in zip(request.context_keys, request.span_specs, strict=True)
        }
        context = sum(cache.pool.blocks_for(length) for length in lengths.values())
    return (cache.pool.num_blocks - context) * cache.pool.block_size


def make_sequences(request: Request, config: EngineConfig, cache: SpanCache) -> None:
    """Resolve the request's parameters and make its n sequences; sequence 0 computes the prompt for all."""
    params = request.params
    request.stop_ids = params.stop_ids
    if (
        not params.ignore_eos or request.constraint is not None
    ):  # a constraint says itself when the text may end
        request.stop_ids |= frozenset(config.eos_token_ids)
    num_prompt = len(request.prompt_token_ids)
    longest = min(config.max_model_len - request.first_position, _room(request, cache))
    request.max_tokens = min(params.max_tokens or longest, longest - num_prompt)
    if request.tree is not None:
        request.max_tokens = (
            request.tree.trie.longest + cache.pool.block_size
        )  # a page of the prompt is copied
    request.num_logprobs = _or_none(params.num_logprobs(config.vocab_size))
    request.num_prompt_logprobs = _or_none(params.num_prompt_logprobs(config.vocab_size))
    if request.kind is RequestKind.SCORE:
        request.num_prompt_logprobs = max(0, request.num_prompt_logprobs)
    request.plain = not (params.logit_bias or params.min_tokens or params.needs_penalties)
    known = request.prompt_token_ids + request.target_token_ids
    num_tokens = len(known) - bool(request.target_token_ids)  # the last target is predicted, never computed
    tokens = np.zeros(len(known) + min(request.max_tokens, FIRST_CAPACITY), np.int32)
    tokens[: len(known)] = known
    for index in range(params.n):
        sequence = Sequence(request, index, tokens.copy(), num_tokens)
        if index:
            sequence.status = Status.FORKING
        if request.constraint is not None:
            _constrain(sequence, request.constraint)
        request.sequences.append(sequence)
    request.forks = request.sequences[1:]


def _constrain(sequence: Sequence, factory: ConstraintFactory) -> None:
    """Give a sequence its constraint, and the tokens that its output begins with in any case."""
    request = sequence.request
    sequence.constraint = constraint = factory.start()
    try:
        forced = constraint.begin()
    except VGLMError as error:
        raise RequestError(f"structured output failed at its start: {error}", "structured_outputs") from error
    sequence.held_back = forced[: request.max_tokens]
    for token in sequence.held_back:
        sequence.append(token)
    if constraint.finished and len(forced) <= request.max_tokens:
        sequence.ending = "stop"
    elif len(forced) >= request.max_tokens:
        sequence.ending = "length"
    if sequence.ending is not None:
        sequence.compute_logprobs_only()
    if request.num_logprobs < 0 and request.params.prompt_logprobs is None:
        sequence.wanted_from = sequence.num_tokens - 1  # what the cache has of the rows before may be used


def number_sequences(request: Request, arrival: int, drawn: int) -> None:
    """Give an admitted request its place in line, and a random seed if it brings none."""
    request.arrival = arrival
    for sequence in request.sequences:
        sequence.order = (request.priority, arrival, sequence.index)
        sequence.seed = request.params.seed_for(sequence.index, drawn)


def _or_none(count: int | None) -> int:
    return -1 if count is None else count
