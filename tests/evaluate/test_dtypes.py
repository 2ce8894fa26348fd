"""Weight types side by side: names, and paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from vglm.errors import ConfigError
from vglm.evaluate.dtypes import costs, labelled, parse_dtypes
from vglm.evaluate.report import shown, summary


def test_dtypes_are_lists_with_commas() -> None:
    assert parse_dtypes(["int8,bf16", "int4", "bf16"]) == ("int8", "bf16", "int4")
    for bad in (["fp8"], ["int8,"], ["auto"], [""]):
        with pytest.raises(ConfigError, match="choose among bf16, int8, int4"):
            parse_dtypes(bad)


def test_names_in_the_table() -> None:
    assert labelled("m", "auto") == "m"
    assert labelled("m", "auto", "sequential") == "m (sequential)"
    assert labelled("m", "int4", "sequential") == "m (int4, sequential)"


def test_a_cost_is_the_difference_case_by_case() -> None:
    base = np.random.default_rng(0).integers(0, 2, 200).astype(float)
    worse = base.copy()
    worse[np.flatnonzero(base)[:4]] = 0.0
    scores = {"int8": worse, "bf16": base, "int4": 1 - base}
    first, second = costs("t", "d", "m", "accuracy", scores)
    assert (first.system, second.system) == ("m (int8 less bf16)", "m (int4 less bf16)")
    assert first.value == pytest.approx(-0.02)
    assert -0.05 < first.low < first.value < first.high <= 0.0
    alone = summary("t", "d", "m", "accuracy", worse)
    assert first.high - first.low < (alone.high - alone.low) / 3  # what both have in common falls out
    assert shown(first).startswith("-2.0 % (-")
    assert costs("t", "d", "m", "accuracy", {"bf16": base}) == []
    assert [one.system for one in costs("t", "d", "m", "x", {"int8": base, "int4": base})] == [
        "m (int4 less int8)"
    ]
