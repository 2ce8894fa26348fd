"""One model in several weight types: their names in a table, and what each costs, case by case."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vglm.errors import ConfigError
from vglm.evaluate.report import Figure, summary

if TYPE_CHECKING:
    from vglm import LLM

OWN = "auto"  # what a model is opened as by default: int8, or what it was exported as
KNOWN = ("bf16", "int8", "int4")
REFERENCE = "bf16"  # what the others are compared with, where it is among them


@contextmanager
def opened(model: str, dtype: str = OWN) -> Iterator[LLM]:
    """The model, and its memory given back afterwards."""
    from vglm import LLM

    llm = LLM(model=model, dtype=dtype)
    try:
        yield llm
    finally:
        del llm
        gc.collect()


def parse_dtypes(given: Sequence[str]) -> tuple[str, ...]:
    """The weight types of "int8,bf16" and the like, each once. Raises ConfigError for one that there is not."""
    names = tuple(dict.fromkeys(name.strip() for text in given for name in text.split(",")))
    for name in names:
        if name not in KNOWN:
            raise ConfigError(f"--dtype {name!r}: choose among {', '.join(KNOWN)}")
    return names


def labelled(model: str, dtype: str, *more: str) -> str:
    """The model's row in a table: "model (int8, sequential)"; its own weight type is not said."""
    said = [name for name in (dtype, *more) if name != OWN]
    return f"{model} ({', '.join(said)})" if said else model


def costs(
    task: str, data: str, model: str, metric: str, scores: Mapping[str, npt.ArrayLike], *more: str
) -> list[Figure]:
    """The difference of each weight type's float[n] scores from the reference's, with the interval of the paired difference.

    The reference is bf16, or the first if it is not among them; alone it has no difference.
    """
    return [
        summary(task, data, labelled(model, f"{dtype} less {against}", *more), metric, difference)
        for dtype, against, difference in differences(scores)
    ]


def differences(
    scores: Mapping[str, npt.ArrayLike],
) -> Iterator[tuple[str, str, npt.NDArray[np.float64]]]:
    """(weight type, reference, float64[n] differences case by case) of each but the reference."""
    if not scores:
        return
    against = REFERENCE if REFERENCE in scores else next(iter(scores))
    base = np.asarray(scores[against], np.float64)
    for dtype, values in scores.items():
        if dtype != against:
            yield dtype, against, np.asarray(values, np.float64) - base
