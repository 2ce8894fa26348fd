"""How the command line looks: tables, sizes, progress. Imports rich: commands import it when they run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_PIPE_WIDTH = 160  # a table that goes into a file is not squeezed to 80 columns


def console(*, stderr: bool = False) -> Console:
    """A console that does not squeeze tables when it is not a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else _PIPE_WIDTH)


def plain_table(
    *columns: str, title: str | None = None, numbers_from: int | None = None, header: bool = True
) -> Table:
    """A table without vertical lines; columns from `numbers_from` on are aligned to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=header)
    for i, name in enumerate(columns):
        right = numbers_from is not None and i >= numbers_from
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    return table


def size(count: float) -> str:
    """Bytes in the unit that reads best, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


@contextmanager
def progress_bar(what: str, total: float) -> Iterator[_Bar]:
    """A progress bar on standard error, shown on a terminal only."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as progress:
        task = progress.add_task(what, total=total)
        yield _Bar(progress, task)


class _Bar:
    def __init__(self, progress: Progress, task: object) -> None:
        self._progress = progress
        self._task = task

    def advance(self, amount: float = 1, what: str | None = None) -> None:
        """Count `amount` more as done; `what` replaces the text."""
        self._progress.update(self._task, advance=amount, description=what)  # type: ignore[arg-type]
