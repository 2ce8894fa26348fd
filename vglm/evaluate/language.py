"""Whether an adapted model is still a language model: perplexity on plain text, against its base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vglm.errors import ConfigError
from vglm.evaluate.reasoning import opened
from vglm.evaluate.report import OURS, Figure

if TYPE_CHECKING:
    from vglm import LLM

TASK = "still a language model"
CONTEXT = 512
RESAMPLES = 2_000


def run(
    data: Path,
    *,
    model: str = OURS,
    base: str = "smollm2-135m-instruct",
    texts: Sequence[Path] = (),
    tokens: int = 20_480,
) -> list[Figure]:
    """Perplexity of both on each text, and its change with an interval over pieces of CONTEXT tokens.

    Without `texts`: definitions of the Disease Ontology, which no lesson shows. Raises ConfigError if too short.
    """
    paths = list(texts) or [data / "medical/doid/description.tsv"]
    figures: list[Figure] = []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: no such file; give a text with --text")
        losses = {name: _losses(name, path, tokens) for name in (base, model)}
        for name, values in losses.items():
            low, high = _bootstrap(values)
            value = math.exp(float(values.mean()))
            figures.append(Figure(TASK, path.name, name, "perplexity", value, low, high, len(values), 1))
        change = losses[model] - losses[base]
        low, high = (bound - 1 for bound in _bootstrap(change))
        value = math.exp(float(change.mean())) - 1
        figures.append(Figure(TASK, path.name, model, "change", value, low, high, len(change), 1))
    return figures


def _losses(model: str, path: Path, tokens: int) -> np.ndarray:
    """Mean negative log-likelihood, nats a token, of each piece of the text."""
    with opened(model) as llm:
        ids = llm.tokenizer.encode(_plain(path), add_special=False)[:tokens]
        pieces = [ids[i : i + CONTEXT] for i in range(0, len(ids) - CONTEXT + 1, CONTEXT)]
        if len(pieces) < 4:
            raise ConfigError(f"{path}: too short; it has {len(ids):,} tokens, {4 * CONTEXT:,} are needed")
        return np.array([_loss(llm, piece) for piece in pieces])


def _loss(llm: LLM, piece: list[int]) -> float:
    (scored,) = llm.score([piece[:1]], [piece[1:]], use_tqdm=False)
    return -scored.logprob / (len(piece) - 1)


def _plain(path: Path) -> str:
    """A file's text; of a table of ids and texts the texts."""
    text = path.read_text("utf-8")
    if path.suffix != ".tsv":
        return text
    return "\n".join(line.partition("\t")[2] for line in text.splitlines()[1:])


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of exp(mean)."""
    random = np.random.default_rng(0)
    means = values[random.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.exp(np.quantile(means, [0.025, 0.975])).tolist()
    return low, high
