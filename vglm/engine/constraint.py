"""What the engine knows of constrained decoding: which tokens may come next, which must, and whether any can.

The masks of a step are filled by a thread of their own while the layers run.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

MaskArray = npt.NDArray[np.uint32]


class Constraint(Protocol):
    """The state of one sequence. Bit t % 32 of word t // 32 of a mask says whether token t may come next; the end
    token's bit is set exactly where the text may end.
    """

    @property
    def finished(self) -> bool:
        """Whether nothing can follow, not even an end token."""
        ...

    @property
    def error(self) -> str | None:
        """Why the last mask of this state allows nothing; None when it is as it should be."""
        ...

    def begin(self) -> list[int]:
        """The tokens that come first in any case; called once, before everything else."""
        ...

    def accept(self, token: int) -> list[int]:
        """Take a token over; returns those that must follow it, which are taken over, too. May raise."""
        ...

    def fill_mask(self, row: MaskArray) -> None:
        """Write the mask of the next token, uint32 [W]."""
        ...

    @staticmethod
    def fill_masks(constraints: Sequence[Any], masks: MaskArray, /) -> None:
        """The same for constraints of this class at once, uint32 [len(constraints), W]."""
        ...


class ConstraintFactory(Protocol):
    """What a request brings: makes the constraint of each of its sequences."""

    def start(self) -> Constraint:
        """A constraint before the first token. Called in any thread."""
        ...


def fill_masks(constraints: Sequence[Constraint], masks: MaskArray) -> None:
    """Fill row i of the masks, uint32 [len(constraints), W], for constraint i, those of a class together."""
    by_class: dict[type[Constraint], list[int]] = {}
    for row, constraint in enumerate(constraints):
        by_class.setdefault(type(constraint), []).append(row)
    for of_class, rows in by_class.items():
        if len(by_class) == 1:
            of_class.fill_masks(constraints, masks)
        else:
            part = np.zeros((len(rows), masks.shape[1]), np.uint32)
            of_class.fill_masks([constraints[row] for row in rows], part)
            masks[rows] = part


class MaskFiller:
    """Fills the masks of one step at a time in a thread of its own.

    Not one of a ThreadPoolExecutor: a Ctrl-C while that starts a thread leaves one that the interpreter waits for at its exit.

    Attributes:
        error: why the masks of the last step could not be filled: they then allow nothing. None if they could.
    """

    def __init__(self, vocab_size: int) -> None:
        self.error: str | None = None
        self._masks = np.zeros((1, -(-vocab_size // 32)), np.uint32)
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._done: Event | None = None
        weakref.finalize(self, self._queue.put, None)

    def start(self, constraints: Sequence[Constraint]) -> MaskArray:
        """Begin to fill the masks of these constraints; returns them, uint32 [len(constraints), W].

        They are complete when `wait` returns and stay valid until the next `start`.
        """
        self.finish()  # after an interrupt the last step's work may still go on
        if self._thread is None or not self._thread.is_alive():
            self._thread = Thread(target=_work_off, args=(self._queue,), name="vglm-masks", daemon=True)
            self._thread.start()
        if len(self._masks) < len(constraints):
            self._masks = np.zeros((len(constraints), self._masks.shape[1]), np.uint32)
        masks = self._masks[: len(constraints)]
        self.error = None
        done = Event()
        self._queue.put(partial(self._fill, list(constraints), masks, done))
        self._done = (
            done  # after the work is queued: an interrupt between the two must not leave a wait for nothing
        )
        return masks

    def _fill(self, constraints: Sequence[Constraint], masks: MaskArray, done: Event) -> None:
        try:
            fill_masks(constraints, masks)
        except Exception as error:
            masks[:] = 0
            self.error = f"{type(error).__name__}: {error}"
        finally:
            done.set()

    def wait(self) -> None:
        """Until the masks are complete."""
        if self._done is not None:
            self._done.wait()

    def finish(self) -> None:
        """The same, for the end of a step, however it ends."""
        self.wait()
        self._done = None


def _work_off(queue: SimpleQueue[Callable[[], None] | None]) -> None:
    """A worker's life; it must not keep who gives the work alive."""
    while (work := queue.get()) is not None:
        work()
        del work
