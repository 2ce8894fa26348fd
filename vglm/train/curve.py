"""The loss curve as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vglm.errors import ConfigError

_SMOOTH_ABOVE = 200  # lines: below, the points themselves are legible


def draw_all(folder: Path) -> list[Path]:
    """Draw a curve beside every log below a folder; see `draw`."""
    drawn = []
    for log in sorted(folder.rglob("metrics.jsonl")):
        with log.open(encoding="utf-8") as file:
            metrics = [json.loads(line) for line in file if line.endswith("\n")]
        draw(metrics, log.with_name("loss.png"))
        drawn.append(log.with_name("loss.png"))
    return drawn


def draw(metrics: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw what a training logged, over steps: names with "loss" above, other figures below.

    Raises ConfigError without matplotlib, and when nothing was logged.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ConfigError(f"{path}: a loss curve needs matplotlib: pip install 'vglm[plot]'") from None
    names = sorted({name for line in metrics for name in line} - {"step", "seconds"})
    if not names:
        raise ConfigError(f"{path}: nothing was logged yet")
    losses = [name for name in names if "loss" in name]
    panels = [panel for panel in (losses, [name for name in names if name not in losses]) if panel]
    figure = Figure(figsize=(9, 3.5 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)  # needs no screen
    for row, panel in enumerate(panels, 1):
        axes = figure.add_subplot(len(panels), 1, row)
        for name in panel:
            steps = [line["step"] for line in metrics if name in line]
            values = [line[name] for line in metrics if name in line]
            if len(values) > _SMOOTH_ABOVE:
                axes.plot(steps, values, alpha=0.2, linewidth=0.5)
                axes.plot(steps, _smoothed(values), label=name, color=axes.get_lines()[-1].get_color())
            else:
                axes.plot(steps, values, marker=".", label=name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        axes.set_xlabel("step")
    figure.savefig(path, dpi=120)


def _smoothed(values: Sequence[float]) -> list[float]:
    """The exponential moving average over about a fiftieth of the curve, free of the start's bias."""
    keep = 1 - 50 / len(values)
    average, weight, smooth = 0.0, 0.0, []
    for value in values:
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(average / weight)
    return smooth
