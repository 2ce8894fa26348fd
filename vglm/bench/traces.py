"""Lengths of requests: from a trace of a real service, or drawn from a fit of one."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vglm.errors import ConfigError

_CONTEXT, _GENERATED = "ContextTokens", "GeneratedTokens"

# Mean and standard deviation of the logarithm of the lengths in the Azure LLM inference trace 2023
# (conversation, 19,366 requests, CC BY 4.0), and the largest lengths. The trace does not ship with vGLM.
_FIT_CONTEXT = (6.6333, 0.9852, 14050)
_FIT_GENERATED = (5.0190, 0.8591, 1000)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Prompt and output tokens of requests in order of arrival, and where the figures are from."""

    source: str
    prompts: list[int]
    outputs: list[int]

    def __len__(self) -> int:
        return len(self.prompts)

    def fitting(self, max_model_len: int, count: int) -> Lengths:
        """The first `count` requests that fit into `max_model_len` tokens."""
        fits = [(p, o) for p, o in zip(self.prompts, self.outputs, strict=True) if p + o <= max_model_len][
            :count
        ]
        if not fits:
            raise ConfigError(f"no request of {self.source} fits into {max_model_len} tokens")
        return Lengths(self.source, [p for p, _ in fits], [o for _, o in fits])

    def divided(self, by: int) -> Lengths:
        """Every length divided, rounded up."""
        return Lengths(self.source, [-(-p // by) for p in self.prompts], [-(-o // by) for o in self.outputs])


def read_trace(file: Path) -> Lengths:
    """Lengths from a CSV with columns ContextTokens and GeneratedTokens; ConfigError names bad lines."""
    prompts, outputs = [], []
    with file.open(newline="", encoding="utf-8", errors="replace") as lines:
        reader = csv.DictReader(lines)
        if not {_CONTEXT, _GENERATED} <= set(reader.fieldnames or ()):
            raise ConfigError(f"{file}: the first line must name the columns {_CONTEXT} and {_GENERATED}")
        for row in reader:
            try:
                prompt, output = int(row[_CONTEXT]), int(row[_GENERATED])
            except (TypeError, ValueError):
                raise ConfigError(f"{file}, line {reader.line_num}: lengths must be whole numbers") from None
            if prompt < 1 or output < 1:
                raise ConfigError(f"{file}, line {reader.line_num}: lengths must be positive")
            prompts.append(prompt)
            outputs.append(output)
    return Lengths(file.name, prompts, outputs)


def fitted_lengths(count: int, seed: int = 0) -> Lengths:
    """Log-normal lengths with the trace's parameters."""
    rng = np.random.default_rng(seed)

    def draw(mean: float, deviation: float, largest: int) -> list[int]:
        values = np.exp(rng.normal(mean, deviation, count))
        drawn: list[int] = np.clip(np.rint(values), 1, largest).astype(int).tolist()
        return drawn

    return Lengths(
        "log-normal fit of the Azure conversation trace", draw(*_FIT_CONTEXT), draw(*_FIT_GENERATED)
    )
