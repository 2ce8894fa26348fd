"""Whether an adapted model is still a language model: perplexity on plain text, against its base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vglm.errors import ConfigError
from vglm.evaluate.dtypes import OWN, differences, labelled, opened
from vglm.evaluate.report import OURS, Figure

if TYPE_CHECKING:
    from vglm import LLM

TASK = "still a language model"
CONTEXT = 512
RESAMPLES = 2_000
Floats = npt.NDArray[np.float64]


def run(
    data: Path,
    *,
    model: str = OURS,
    base: str = "smollm2-135m-instruct",
    texts: Sequence[Path] = (),
    tokens: int = 20_480,
    dtypes: Sequence[str] = (OWN,),
) -> list[Figure]:
    """Perplexity of both on each text, in each of `dtypes`, and the model's change against its base in the same dtype.

    Intervals are over pieces of CONTEXT tokens. With several dtypes also how much each changes the perplexity of the model
    against bf16 (the first, if that is not among them). Without `texts`: definitions of the Disease Ontology, which no lesson
    shows. Raises ConfigError for a text that is missing or too short.
    """
    paths = list(texts) or [data / "medical/doid/description.tsv"]
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; give a text with --text")
    figures: list[Figure] = []
    for path in paths:
        ours: dict[str, Floats] = {}
        for dtype in dtypes:
            theirs, ours[dtype] = (_losses(name, dtype, path, tokens) for name in (base, model))
            for name, values in ((base, theirs), (model, ours[dtype])):
                figures.append(_figure(path, labelled(name, dtype), "perplexity", values))
            figures.append(_figure(path, labelled(model, dtype), "change", ours[dtype] - theirs))
        for dtype, against, change in differences(ours):
            figures.append(_figure(path, labelled(model, f"{dtype} less {against}"), "change", change))
    return figures


def _figure(path: Path, system: str, metric: str, losses: Floats) -> Figure:
    """exp(mean) of losses a token, of each piece; for a change, of differences of losses, less 1."""
    less = metric == "change"
    low, high = (bound - less for bound in _bootstrap(losses))
    value = math.exp(float(losses.mean())) - less
    return Figure(TASK, path.name, system, metric, value, low, high, len(losses), 1)


def _losses(model: str, dtype: str, path: Path, tokens: int) -> Floats:
    """Mean negative log-likelihood, nats a token, of each piece of the text."""
    with opened(model, dtype) as llm:
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
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no UTF-8 text (byte {error.start})") from error
    if path.suffix != ".tsv":
        return text
    return "\n".join(line.partition("\t")[2] for line in text.splitlines()[1:])


def _bootstrap(values: Floats) -> tuple[float, float]:
    """The 95 % interval of exp(mean)."""
    random = np.random.default_rng(0)
    means = values[random.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.exp(np.quantile(means, [0.025, 0.975])).tolist()
    return low, high
