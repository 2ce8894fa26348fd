"""What an evaluation found: figures with intervals, as tables for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from rich.console import Console

OURS = "open-autoglm-v1"
RESAMPLES = 2000  # of the bootstrap: the ends of an interval then move by about a tenth of its width
_CHUNK = 2_000_000  # resampled values held at once: 16 MB


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value; fractions are 0..1, never percent.

    `system` is `OURS` or the name of a baseline that the same evaluator scored in the same run. `low` and `high` bound
    the 95 % interval, `n` counts test cases, `seeds` how many times training was repeated (seeds 0, 1, ...).
    """

    task: str
    data: str
    system: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    seeds: int
    note: str = ""


def interval(values: npt.ArrayLike, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval (low, high) of the mean of `values`.

    `values` is float[n], a score per test case, or float[seeds, n], where row s scores the same cases with the model of
    seed s; then seeds and cases are both drawn anew, so that the interval covers the luck of training as well (Owen,
    "The pigeonhole bootstrap", 2007). One value has no interval: both ends are that value. Raises ValueError for none.
    """
    scores = np.atleast_2d(np.asarray(values, np.float64))
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"values: expected [n] or [seeds, n] with n > 0, found {scores.shape}")
    rows, columns = scores.shape
    random = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    step = max(1, _CHUNK // scores.size)
    for start in range(0, RESAMPLES, step):
        count = min(step, RESAMPLES - start)
        cases = random.integers(columns, size=(count, columns))
        per_row = scores[:, cases].mean(axis=2)  # [rows, count]
        drawn = random.integers(rows, size=(rows, count))
        means[start : start + count] = np.take_along_axis(per_row, drawn, axis=0).mean(axis=0)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return low, high


def summary(
    task: str,
    data: str,
    system: str,
    metric: str,
    scores: npt.ArrayLike | Sequence[npt.ArrayLike],
    note: str = "",
) -> Figure:
    """The figure of float[n] or float[seeds, n] scores, one per test case: their mean with `interval`.

    With several seeds the note says how far the seeds' means lie apart (standard deviation).
    """
    table = np.atleast_2d(np.asarray(scores, np.float64))
    low, high = interval(table)
    if len(table) > 1:
        spread = f"s.d. over seeds {table.mean(axis=1).std(ddof=1):.4f}"
        note = f"{note}; {spread}" if note else spread
    return Figure(
        task, data, system, metric, float(table.mean()), low, high, table.shape[1], len(table), note
    )


def show(figures: Iterable[Figure], out: Console | None = None) -> None:
    """Print a table per task and data set: a system a row, ours last, a metric a column; notes below."""
    from vglm.console import console, plain_table

    out = out or console()
    groups: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures:
        groups.setdefault((figure.task, figure.data), []).append(figure)
    for (task, data), group in groups.items():
        metrics = list(dict.fromkeys(figure.metric for figure in group))
        systems = sorted(dict.fromkeys(figure.system for figure in group), key=lambda name: name == OURS)
        table = plain_table("", *metrics, "n", "seeds", title=f"{task}: {data}", numbers_from=1)
        for system in systems:
            row = {figure.metric: figure for figure in group if figure.system == system}
            first = next(iter(row.values()))
            cells = [shown(row[metric]) if metric in row else "-" for metric in metrics]
            style = "bold" if system == OURS else None
            table.add_row(system, *cells, f"{first.n:,}", str(first.seeds), style=style)
        out.print(table)
        for note in dict.fromkeys(f"{figure.system}: {figure.note}" for figure in group if figure.note):
            out.print(f"  {note}", markup=False)


def shown(figure: Figure) -> str:
    """Value and interval as text: a fraction as percent, a reciprocal rank with three digits, all else as it is.

    Differences, which may be below 0, have a sign.
    """
    values = (figure.value, figure.low, figure.high)
    sign = "+" if figure.low < 0 else ""
    if "mrr" in figure.metric.lower():
        value, low, high = (f"{x:{sign}.3f}" for x in values)
    elif all(-1 <= x <= 1 for x in values):
        value, low, high = (f"{100 * x:{sign}.1f}" for x in values)
        return f"{value} % ({low}..{high})"
    else:
        value, low, high = (f"{x:.4g}" for x in values)
    return f"{value} ({low}..{high})"


def write_json(figures: Iterable[Figure], path: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Write the figures, the version, the machine and `settings` as JSON; `-` is standard output."""
    from vglm import __version__
    from vglm.bench.report import machine

    content = {
        "version": __version__,
        "machine": machine(),
        "settings": dict(settings or {}),
        "figures": [asdict(figure) for figure in figures],
    }
    text = json.dumps(content, indent=2, default=str)  # paths among the settings
    if path == Path("-"):
        print(text)
    else:
        path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> list[Figure]:
    """The figures that `write_json` wrote."""
    return [Figure(**figure) for figure in json.loads(path.read_text(encoding="utf-8"))["figures"]]
