"""What a caller may ask of the sampler, checked once so that nothing behind it has to check again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import NoneType
from typing import Any

from vglm.decode.structured import StructuredOutputs
from vglm.errors import RequestError

GREEDY_BELOW = 1e-5  # temperatures under this are greedy, as in vLLM; native/sampler.hpp has the same figure
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request, with vLLM's names and meanings.

    Values are normalised (`stop` and `stop_token_ids` become tuples, numbers plain int and float); an
    unusable one raises RequestError.

    Args:
        n: number of completions of the prompt.
        max_tokens: most tokens to generate; None means as many as the model's context allows.
        min_tokens: tokens before which neither end-of-text, stop token ids nor stop strings end the request.
        temperature: divides the logits; 0 (or less than 1e-5) is greedy.
        top_p: keep the most probable tokens until their mass reaches this.
        top_k: keep the k most probable tokens; 0 or -1 keeps all.
        min_p: keep tokens at least this fraction as probable as the most probable one.
        repetition_penalty: above 1 discourages tokens of the prompt and of the output so far.
        presence_penalty, frequency_penalty: subtracted once for a token in the output, or per occurrence.
        logit_bias: added to the logits of these token ids, -100 to 100.
        stop: strings that end the output when they appear in it.
        stop_token_ids: token ids that end the output.
        include_stop_str_in_output: whether the stop string (or stop token) stays in the text.
        ignore_eos: generate past the model's end-of-text tokens.
        seed: makes the output repeatable, whatever else is in the batch; None (or -1) draws a fresh one.
        logprobs: report the log-probability of the sampled token and of this many best tokens (0: of the
            sampled token alone, -1: of the whole vocabulary).
        prompt_logprobs: the same for the prompt's tokens.
        detokenize: whether to produce text at all.
        skip_special_tokens: leave special tokens out of the text.
        structured_outputs: what the text must be: JSON that fits a schema, a regular expression, a grammar, ...
            It ends where nothing can follow, even before min_tokens; ignore_eos means nothing then.
    """

    n: int = 1
    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        self._normalise("n", _integer("n", self.n, 1))
        if self.max_tokens is not None:
            self._normalise(
                "max_tokens", _integer("max_tokens", self.max_tokens, 1, none="the model's limit")
            )
        self._normalise("min_tokens", _integer("min_tokens", self.min_tokens, 0))
        self._normalise("temperature", _number("temperature", self.temperature, 0.0))
        self._normalise("top_p", _number("top_p", self.top_p, 0.0, 1.0, open_low=True))
        self._normalise("top_k", max(0, _integer("top_k", self.top_k, -1, note="0 and -1 mean all tokens")))
        self._normalise("min_p", _number("min_p", self.min_p, 0.0, 1.0))
        self._normalise(
            "repetition_penalty", _number("repetition_penalty", self.repetition_penalty, 0.0, open_low=True)
        )
        for name in ("presence_penalty", "frequency_penalty"):
            self._normalise(name, _number(name, getattr(self, name), -2.0, 2.0))
        self._normalise("logit_bias", _logit_bias(self.logit_bias))
        self._normalise("stop", _stop_strings(self.stop))
        self._normalise("stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        self._normalise("seed", _seed(self.seed))
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                value = _integer(
                    name, getattr(self, name), -1, none="none", note="-1 means the whole vocabulary"
                )
                self._normalise(name, value)
        for name in ("include_stop_str_in_output", "ignore_eos", "detokenize", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise _refused(name, getattr(self, name), "True or False")
        if not isinstance(self.structured_outputs, (StructuredOutputs, NoneType)):
            raise _refused("structured_outputs", self.structured_outputs, "a StructuredOutputs, or None")
        self._check_combinations()

    def _normalise(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_combinations(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _refused("min_tokens", self.min_tokens, f"at most max_tokens, which is {self.max_tokens}")
        if self.stop and not self.detokenize:
            raise _refused(
                "stop", self.stop, "empty when detokenize is False, as stop strings are found in text"
            )

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken; top_p, top_k, min_p and seed then mean nothing."""
        return self.temperature < GREEDY_BELOW

    @property
    def needs_penalties(self) -> bool:
        """Whether the sampler has to see the tokens of the prompt or of the output."""
        return self.repetition_penalty != 1.0 or self.needs_output_penalties

    @property
    def needs_output_penalties(self) -> bool:
        """Whether a penalty that counts output tokens only (presence, frequency) is on."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, none of them empty."""
        return self.stop  # type: ignore[return-value]  # normalised to a tuple when made

    @property
    def stop_ids(self) -> frozenset[int]:
        """The stop token ids as a set, without the model's own end-of-text tokens."""
        return frozenset(self.stop_token_ids or ())

    def num_logprobs(self, vocab_size: int) -> int | None:
        """How many best tokens to report for each generated token; None when no log-probability is wanted."""
        return _bounded_count(self.logprobs, vocab_size)

    def num_prompt_logprobs(self, vocab_size: int) -> int | None:
        """The same for each token of the prompt."""
        return _bounded_count(self.prompt_logprobs, vocab_size)

    def seed_for(self, index: int, drawn: int) -> int:
        """Unsigned 64-bit seed of completion `index` (0 to n - 1); `drawn` is used when no seed was given."""
        return ((drawn if self.seed is None else self.seed) + index) % 2**64

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises RequestError when a token id in the parameters is not in a vocabulary of this size."""
        for name, ids in (("stop_token_ids", self.stop_token_ids), ("logit_bias", self.logit_bias)):
            for token in ids or ():
                if token >= vocab_size:
                    raise _refused(name, token, f"token ids below {vocab_size}, the size of the vocabulary")


def _refused(name: str, value: object, allowed: str) -> RequestError:
    if isinstance(value, int) and value.bit_length() > 256:
        shown = "too large to print"  # and repr() would raise
    else:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return RequestError(f"{name} is {shown}, but must be {allowed}.", name.rsplit(" ", 1)[-1])


def _integer(name: str, value: Any, low: int, *, none: str = "", note: str = "") -> int:
    if isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= _INT32_MAX:
        return int(value)
    allowed = f"a whole number from {low} to {_INT32_MAX}"
    allowed += f" ({note})" if note else ""
    allowed += f", or None for {none}" if none else ""
    raise _refused(name, value, allowed)


def _number(name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and low <= number <= high and not (open_low and number == low):
            return number
    if math.isinf(high):
        allowed = f"a finite number {'above' if open_low else 'of at least'} {low:g}"
    elif open_low:
        allowed = f"a number above {low:g} and at most {high:g}"
    else:
        allowed = f"a number from {low:g} to {high:g}"
    raise _refused(name, value, allowed)


def _logit_bias(value: Any) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _refused("logit_bias", value, "a mapping from token ids to numbers, or None")
    biases = {}
    for token, bias in value.items():
        biases[_integer("a token id in logit_bias", token, 0)] = _number(
            f"bias of token {token} in logit_bias", bias, -100.0, 100.0
        )
    return biases or None


def _stop_strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, Iterable) or isinstance(strings, bytes | Mapping):
        raise _refused("stop", value, "a string, a list of strings, or None")
    strings = tuple(strings)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise _refused("stop", value, "made of strings, none of them empty")
    return strings


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        raise _refused(name, value, "a list of token ids, or None")
    return tuple(_integer(f"a token id in {name}", token, 0) for token in value)


def _seed(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, Integral) and not isinstance(value, bool) and -(2**63) <= int(value) < 2**64:
        return None if value == -1 else int(value)
    raise _refused("seed", value, "a whole number of 64 bits, or None for a fresh one")


def _bounded_count(count: int | None, vocab_size: int) -> int | None:
    return vocab_size if count == -1 else None if count is None else min(count, vocab_size)
