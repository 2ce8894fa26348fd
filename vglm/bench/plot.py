"""A picture of a load: how latencies are distributed, and what happened when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vglm.bench.figures import latencies
from vglm.bench.load import Record, Run
from vglm.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {
    "ttft": "time to first token",
    "itl": "between messages (ITL)",
    "tpot": "per output token (TPOT)",
    "e2el": "end to end",
}
_BINS = 120  # of the timeline, at most
_LEAST_BIN = 0.05  # seconds: shorter ones show single steps of the server
Floats = npt.NDArray[np.float64]


def check_plot(path: Path | None) -> None:
    """Raise ConfigError before the work when a plot is wanted and cannot be drawn."""
    if path is None:
        return
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(f"--plot {path} needs matplotlib: pip install 'vglm[plot]'") from None
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"--plot {path}: the name must end in .png, .pdf or .svg")


def plot(run: Run, targets: dict[str, float], title: str, path: Path) -> None:
    """Draw latency distributions above, and throughput, concurrency and failures over time below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    FigureCanvasAgg(figure)  # needs no screen
    grid = figure.add_gridspec(2, 4)
    for i, name in enumerate(_TITLES):
        _distribution(figure.add_subplot(grid[0, i]), latencies(run.records, name), name, targets.get(name))
    _timeline(figure.add_subplot(grid[1, :]), run)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)


def _distribution(axes: Axes, values: Floats, name: str, target: float | None) -> None:
    axes.set_title(_TITLES[name], fontsize=9)
    axes.set_xlabel("milliseconds")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    if name == "ttft":
        axes.set_ylabel("share at or below")
    if not len(values):
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, color="grey")
        return
    ordered = np.sort(values)
    shares = np.arange(1, len(ordered) + 1) / len(ordered)
    axes.step(ordered, shares, where="post")
    if ordered[-1] > 20 * max(float(np.median(ordered)), 1e-3):
        axes.set_xscale("log")
    if target is not None:
        axes.axvline(target, color="tab:red", linestyle="--", linewidth=1, label=f"target {target:g} ms")
        axes.legend(fontsize=8, loc="lower right")


def _timeline(axes: Axes, run: Run) -> None:
    width = max(run.seconds / _BINS, _LEAST_BIN)
    edges = np.arange(0, run.seconds + width, width)
    tokens = tokens_over_time(run.records, edges) / width
    axes.plot(edges[:-1] + width / 2, tokens, label="output tokens/s")
    axes.set_xlabel("seconds")
    axes.set_ylabel("output tokens/s")
    axes.set_ylim(0, 1.2 * max(float(tokens.max()), 1.0))  # leaves room for the legend
    axes.grid(alpha=0.3)
    handles: list[Any] = list(axes.get_lines())
    other = axes.twinx()
    times, level = concurrency_over_time(run.records)
    handles += other.step(
        times, level, where="post", color="tab:orange", linewidth=1, label="requests in flight"
    )
    other.set_ylabel("requests in flight")
    other.set_ylim(0, 1.2 * max(run.peak_concurrency, 1))
    failed = [r.end for r in run.records if not r.ok]
    if failed:
        marks = other.plot(
            failed, np.zeros(len(failed)), "x", color="tab:red", label="failures", clip_on=False
        )
        handles += marks
    axes.legend(handles=handles, fontsize=8, loc="upper right")


def tokens_over_time(records: Sequence[Record], edges: Floats) -> Floats:
    """Output tokens in each interval between `edges` (seconds); a request's tokens are spread evenly over its messages."""
    counts = np.zeros(len(edges) - 1)
    for record in records:
        if not record.ok or not record.output_tokens:
            continue
        if np.isnan(record.first):  # not streamed: all at the end
            times = np.array([record.end])
        else:
            times = record.first + np.concatenate([[0.0], np.cumsum(np.asarray(record.gaps, np.float64))])
        counts += np.histogram(times, edges)[0] * (record.output_tokens / len(times))
    return counts


def concurrency_over_time(records: Sequence[Record]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Times (seconds) at which the number of requests in flight changes, and the number from then on."""
    starts = np.array([r.sent for r in records])
    ends = np.array([r.end for r in records])
    times = np.concatenate([starts, ends])
    changes = np.concatenate([np.ones(len(starts), np.int64), -np.ones(len(ends), np.int64)])
    order = np.argsort(times, kind="stable")
    return times[order], np.cumsum(changes[order])
