"""Requests of a load: prompts without meaning, of chosen or recorded lengths; the same for the same seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vglm.bench.fast_json import dumps
from vglm.bench.traces import Trace
from vglm.errors import ConfigError

# Numbers that keep the streams of random numbers apart: what is drawn for one purpose never depends on another.
_REQUEST, _PREFIX, _BLOCK = 0, 1, 2

# Common words that the tokenizers in use have as one token each, so that n words are about n tokens.
_TEXT = """
the of and to in is that for it was on are as with his they at be this from have or by one had not but what all
were when we there can an your which their said if do will each about how up out them then she many some so these
would other into has more her two like him see time could no make than first been its who now people my made over
did down only way find use may water long little very after words called just where most know get through back
much before go good new write our used me man too any day same right look think also around another came come
work three word must because does part even place well such here take why things help put years different away
again off went old number great tell men say small every found still between name should home big give air line
set own under read last never us left end along while might next sound below saw something thought both few those
always looked show large often together asked house world going want school important until form food keep children
feet land side without boy once animals life enough took sometimes four head above kind began almost live page got
"""
_WORDS = tuple(_TEXT.split())


class Lengths(Protocol):
    """Where the lengths of requests come from."""

    def of(self, index: int, rng: np.random.Generator) -> tuple[int, int]:
        """Prompt and output tokens of request `index`."""
        ...


@dataclass(frozen=True, slots=True)
class Ranges:
    """Lengths that are drawn evenly, both ends included."""

    prompt: tuple[int, int]
    output: tuple[int, int]

    def of(self, index: int, rng: np.random.Generator) -> tuple[int, int]:
        """Prompt and output tokens of request `index`."""
        return (
            int(rng.integers(self.prompt[0], self.prompt[1] + 1)),
            int(rng.integers(self.output[0], self.output[1] + 1)),
        )


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: its JSON body, the output tokens that it asks for, and its priority class."""

    body: bytes
    output_tokens: int
    priority: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Makes the body of every request.

    Args:
        model, chat: who answers, and through which of the two endpoints.
        lengths, or trace: tokens of each request. A trace's equal block ids become equal parts of prompts.
        prefix_len: tokens that every prompt begins with, besides its own.
        text: prompts are words instead of token ids; chat always has words.
        token_range: ids that prompts are made of, both ends included.
        priority_mix: share of each priority class.
        fields: more of the body, the same in each request.
    """

    model: str
    chat: bool = False
    lengths: Ranges | None = None
    trace: Trace | None = None
    prefix_len: int = 0
    text: bool = False
    token_range: tuple[int, int] = (1000, 16000)
    priority_mix: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    stream: bool = True
    ignore_eos: bool = True
    temperature: float = 0.0
    token_ids: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)

    def ask(self, index: int) -> Ask:
        """Request `index`; negative ones are for warming up."""
        rng = np.random.default_rng((self.seed, _REQUEST, 2 * index if index >= 0 else -2 * index - 1))
        blocks: Sequence[int] = ()
        if self.trace is not None:
            traced = self.trace.requests[index % len(self.trace.requests)]
            prompt_len, output_len, blocks = traced.prompt, traced.output, traced.hash_ids
        else:
            assert self.lengths is not None
            prompt_len, output_len = self.lengths.of(index, rng)
        priority = self._priority(rng)
        pieces = [self._piece(self.prefix_len, _PREFIX, 0)] if self.prefix_len else []
        if blocks:
            pieces += self._blocks(blocks, prompt_len)
        else:
            pieces.append(self._draw(rng, prompt_len))
        drawn = np.concatenate(pieces).tolist()
        body = self._body(drawn, output_len, priority)
        return Ask(dumps(body), output_len, priority)

    def _blocks(self, ids: Sequence[int], length: int) -> list[np.ndarray[Any, Any]]:
        assert self.trace is not None
        size = self.trace.block
        parts, left = [], length
        for block in ids:
            parts.append(self._piece(size, _BLOCK, block)[:left])
            left -= len(parts[-1])
        return parts

    def _piece(self, length: int, purpose: int, number: int) -> np.ndarray[Any, Any]:
        return self._draw(np.random.default_rng((self.seed, purpose, number)), length)

    def _draw(self, rng: np.random.Generator, length: int) -> np.ndarray[Any, Any]:
        if self.text or self.chat:
            return rng.integers(0, len(_WORDS), length)
        return rng.integers(self.token_range[0], self.token_range[1] + 1, length)

    def _priority(self, rng: np.random.Generator) -> str | None:
        if not self.priority_mix:
            return None
        names = list(self.priority_mix)
        shares = np.array(list(self.priority_mix.values()))
        return names[int(rng.choice(len(names), p=shares / shares.sum()))]

    def _body(self, drawn: list[int], output_len: int, priority: str | None) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model}
        if self.chat:
            body["messages"] = [{"role": "user", "content": _words(drawn)}]
        else:
            body["prompt"] = _words(drawn) if self.text else drawn
        body |= {"max_tokens": output_len, "temperature": self.temperature, "stream": self.stream}
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.token_ids:
            body["return_token_ids"] = True
        if priority is not None:
            body["priority"] = int(priority) if priority.lstrip("-").isdigit() else priority
        return body | dict(self.fields)


def _words(numbers: list[int]) -> str:
    return " ".join(_WORDS[i] for i in numbers)


def parse_range(text: str, option: str, least: int = 1) -> tuple[int, int]:
    """From N or LOW:HIGH. Raises ConfigError."""
    low, _, high = text.partition(":")
    try:
        found = (int(low), int(high) if ":" in text else int(low))
    except ValueError:
        raise ConfigError(f"{option} {text}: write a whole number, or a range as in 100:500") from None
    if not least <= found[0] <= found[1]:
        raise ConfigError(f"{option} {text}: the range must be ascending and begin at {least} or above")
    return found


def parse_mix(text: str) -> dict[str, float]:
    """Shares of priority classes, from high:0.1,normal:0.6,low:0.3 (or integers as classes). Raises ConfigError."""
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, colon, share = part.strip().partition(":")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not name or not colon or not 0 < value < float("inf") or name in mix:
            raise ConfigError(
                f"--priority-mix {text}: write each class once with its share, as in high:0.1,low:0.9"
            )
        mix[name] = value
    return mix
