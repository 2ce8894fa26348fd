"""Progress bars for long work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


@contextmanager
def progress_bar(
    total: int, description: str, *, unit: str = "it", show: bool = True, delay: float = 0.0
) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes how much is done so far. The bar appears after `delay` seconds."""
    bar: tqdm[Any] | None = _bar(total, description, unit, 0.0) if show and not delay else None

    def advance(done: int) -> None:
        nonlocal bar
        if bar is None and show:
            bar = _bar(total, description, unit, delay)
        if bar is not None and done > bar.n:
            bar.update(done - bar.n)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()


def _bar(total: int, description: str, unit: str, delay: float) -> tqdm[Any]:
    from tqdm import tqdm

    # A bar that only appears when something takes long is for people; None shows it on a terminal alone.
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        delay=delay,
        disable=None if delay else False,
        dynamic_ncols=True,
        leave=not delay,
    )
