"""Figures, intervals, tables."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from vglm.evaluate.report import OURS, Figure, interval, read_json, show, shown, summary, write_json


def naive_interval(scores: np.ndarray, seed: int) -> tuple[float, float]:
    """One resample after the other."""
    random = np.random.default_rng(seed)
    means = []
    for _ in range(2000):
        cases = random.integers(scores.shape[1], size=scores.shape[1])
        rows = random.integers(len(scores), size=len(scores))
        means.append(np.mean([scores[row][cases].mean() for row in rows]))
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


@pytest.mark.parametrize("shape", [(1, 40), (5, 40), (5, 1)])
def test_interval_is_that_of_the_naive_bootstrap(shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(3).random(shape)
    expected = naive_interval(scores, seed=1)
    assert interval(scores) == pytest.approx(expected, abs=0.02)
    assert interval(scores) == interval(scores)
    assert interval(scores[0] if len(scores) == 1 else scores, seed=7) == pytest.approx(expected, abs=0.02)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        low, high = interval(random.random(60) < 0.7)
        hits += low <= 0.7 <= high
    assert hits >= 88


def test_interval_of_one_value_and_of_none() -> None:
    assert interval([0.25]) == (0.25, 0.25)
    for bad in ([], np.zeros((2, 0)), np.zeros((1, 2, 3))):
        with pytest.raises(ValueError, match="expected"):
            interval(bad)


def test_interval_of_many_cases_is_made_in_parts() -> None:
    low, high = interval(np.tile([0.0, 1.0], 20_000))
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / 200, abs=5e-4)
    assert high == pytest.approx(0.5 + 1.96 * 0.5 / 200, abs=5e-4)


def test_summary_over_seeds() -> None:
    figure = summary("classes", "MUTAG", OURS, "accuracy", [[1, 0, 1, 1], [1, 1, 1, 1]], note="nested")
    assert (figure.value, figure.n, figure.seeds) == (0.875, 4, 2)
    assert figure.low <= figure.value <= figure.high
    assert figure.note == "nested; s.d. over seeds 0.1768"
    assert summary("t", "d", "s", "m", [0.0, 1.0]).note == ""


def test_tables_put_ours_last_and_show_notes_once() -> None:
    figures = [
        Figure("classes", "MUTAG", OURS, "accuracy", 0.91, 0.88, 0.94, 188, 5, "note [of] ours"),
        Figure("classes", "MUTAG", OURS, "MRR", 0.5, 0.4, 0.6, 188, 5, "note [of] ours"),
        Figure("classes", "MUTAG", "majority", "accuracy", 0.665, 0.6, 0.7, 188, 1),
        Figure("language", "text", OURS, "perplexity", 17.123, 16.9, 17.4, 100, 1),
    ]
    out = io.StringIO()
    show(figures, Console(file=out, width=120))
    text = out.getvalue()
    assert text.index("majority") < text.index("open-autoglm-v1")
    assert "91.0 % (88.0..94.0)" in text
    assert "0.500 (0.400..0.600)" in text
    assert "17.12 (16.9..17.4)" in text
    assert text.count("note [of] ours") == 1
    assert "classes: MUTAG" in text
    assert shown(figures[2]) == "66.5 % (60.0..70.0)"


def test_json_comes_back_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = [Figure("classes", "MUTAG", OURS, "accuracy", 0.91, 0.88, 0.94, 188, 5, "note")]
    write_json(figures, tmp_path / "out.json", {"seeds": 5})
    assert read_json(tmp_path / "out.json") == figures
    write_json(figures, Path("-"), {"seeds": 5})
    content = json.loads(capsys.readouterr().out)
    assert content["settings"] == {"seeds": 5}
    assert content["machine"]["processors"] >= 1
