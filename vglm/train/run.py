"""A training run: a folder that a kill at any moment leaves resumable, bit for bit.

    run = TrainingRun(folder, {"rate": 1e-3}, seed=0)
    run.track(model=model, optimizer=optimizer)
    for step in run.steps(1000):            # from where an earlier process stopped
        loss = train_one_step(model, optimizer)
        run.log(step, loss=float(loss))
    run.plot()

The folder holds settings.json, metrics.jsonl (a line per `log`), checkpoint.safetensors (the newest), and loss.png.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vglm.errors import ConfigError
from vglm.train.checkpoint import read_checkpoint, write_checkpoint
from vglm.train.random_states import random_states, seed_everything, set_random_states
from vglm.train.settings import check_settings

_NOT_KEPT = "not-kept"  # a file that says that the folder is gone when its training has ended


class Stopped(KeyboardInterrupt):
    """Ctrl-C was pressed; a checkpoint of the last whole step is on disk."""


class TrainingRun:
    """Settings, seeds, log, checkpoints and progress of one training in one folder.

    Python's, NumPy's and torch's global random states are seeded here and are part of each checkpoint. `values` is a
    dict for whatever else must survive (JSON values, tensors, nested dicts and lists of them).
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        seed: int,
        *,
        save_seconds: float = 60.0,
        show: bool = True,
    ) -> None:
        """Raises ConfigError when the folder holds a run with other settings, or is in use by another process."""
        self.folder = Path(folder)
        self.seed = seed
        self.save_seconds = save_seconds
        self.show = show
        self.values: dict[str, Any] = {}
        self._tracked: dict[str, Any] = {}
        self._seconds_before = 0.0
        self._started = self._saved = time.monotonic()
        self._stop = False
        self._shown: dict[str, str] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.folder)
        check_settings(self.folder / "settings.json", {"seed": seed, **settings})
        seed_everything(seed)

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def seconds(self) -> float:
        """Time spent in training, by this process and those before it."""
        return self._seconds_before + time.monotonic() - self._started

    def track(self, **parts: Any) -> None:
        """Name what checkpoints hold: anything with `state_dict` and `load_state_dict`, or a NumPy or torch generator."""
        self._tracked.update(parts)

    def resume(self) -> int:
        """Put everything tracked, `values` and the random states as the checkpoint has them; the number of steps done.

        0 when there is no checkpoint. Lines of the log from after the checkpoint are dropped: those steps run again.
        Raises ConfigError when the checkpoint cannot be read or holds other parts.
        """
        found = read_checkpoint(self.checkpoint_path)
        step = 0
        if found is not None:
            if set(found["parts"]) != set(self._tracked):
                names = ", ".join(sorted(set(found["parts"]) ^ set(self._tracked)))
                raise ConfigError(f"{self.checkpoint_path}: it and this program differ in the parts {names}")
            for name, part in self._tracked.items():
                try:
                    _restore(part, found["parts"][name])
                except RuntimeError as error:  # what load_state_dict raises for other names or shapes
                    raise ConfigError(
                        f"{self.checkpoint_path}: it does not fit the part {name}: {error}"
                    ) from error
            set_random_states(found["random"])
            self.values = found["values"]
            self._seconds_before = found["seconds"]
            step = found["step"]
        self._cut_log(step)
        self._started = self._saved = time.monotonic()
        return step

    def steps(self, total: int, what: str = "training") -> Iterator[int]:
        """Step numbers from where the checkpoint ends to `total`, with a progress bar.

        A checkpoint is written when one is due, at the end, and after Ctrl-C, which then raises `Stopped` between two
        steps. A second Ctrl-C does not wait for the step.
        """
        done = self.resume()
        with self._interruptible(), self._bar(total, done, what) as bar:
            for step in range(done, total):
                yield step
                bar.set_postfix(self._shown, refresh=False)
                bar.update()
                if self._stop:
                    self.save(step + 1)
                    bar.close()
                    raise self._stopped(step + 1, total)
                if self.should_save():
                    self.save(step + 1)
            if done < total:
                self.save(total)

    def log(self, step: int, **figures: float) -> None:
        """Append a line to metrics.jsonl; `loss` is shown beside the progress bar, with the peak memory."""
        line = {"step": step, "seconds": round(self.seconds, 3), **figures}
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if "loss" in figures:
            self._shown["loss"] = f"{figures['loss']:.4g}"
        self._shown["peak"] = f"{peak_memory() / 1e9:.2f} GB"

    def should_save(self) -> bool:
        """Whether the last checkpoint is `save_seconds` old."""
        return time.monotonic() - self._saved >= self.save_seconds

    def save(self, step: int) -> None:
        """Write the checkpoint after `step` whole steps. The one before stays until the new one is safely on disk."""
        content = {
            "step": step,
            "seconds": self.seconds,
            "parts": {name: _state(part) for name, part in self._tracked.items()},
            "random": random_states(),
            "values": self.values,
        }
        write_checkpoint(self.checkpoint_path, content)
        self._saved = time.monotonic()

    def close(self) -> None:
        """Let another run use the folder."""
        self._lock.close()

    def metrics(self) -> list[dict[str, float]]:
        """The lines of the log."""
        if not self.metrics_path.exists():
            return []
        with self.metrics_path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.endswith("\n")]

    def plot(self) -> Path:
        """Draw loss.png: losses above, other figures below, over steps. Raises ConfigError without matplotlib."""
        from vglm.train.curve import draw

        path = self.folder / "loss.png"
        draw(self.metrics(), path)
        return path

    def _cut_log(self, step: int) -> None:
        """Drop lines of steps that will run again, and a line that a kill cut off."""
        kept = [line for line in self.metrics() if line["step"] < step]
        temporary = self.metrics_path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.metrics_path)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C sets a flag meanwhile, so that no step is left half done."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread gets signals
            return
        before = signal.getsignal(signal.SIGINT)

        def ask_to_stop(number: int, frame: object) -> None:
            self._stop = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr)

        signal.signal(signal.SIGINT, ask_to_stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _stopped(self, step: int, total: int) -> Stopped:
        kept = not any((folder / _NOT_KEPT).exists() for folder in (self.folder, *self.folder.parents))
        after = (
            "saved. To resume, give the same command again"
            if kept
            else "not kept: it has no folder of its own"
        )
        message = f"stopped after step {step:,} of {total:,}; {after}."
        print(message, file=sys.stderr)
        return Stopped(message)

    def _bar(self, total: int, done: int, what: str) -> Any:
        from tqdm import tqdm

        hide = None if self.show else True  # None: on a terminal only
        return tqdm(total=total, initial=done, desc=what, unit="step", disable=hide, dynamic_ncols=True)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for trainings that nobody will resume, gone afterwards; they say so when they are stopped."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / _NOT_KEPT).touch()
        yield folder


def peak_memory() -> int:
    """The most bytes of memory that this process has held (resident)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _lock(folder: Path) -> Any:
    file = (folder / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"{folder}: another process trains in this folder; name another one") from None
    return file


def _state(part: Any) -> Any:
    if isinstance(part, np.random.Generator):
        return part.bit_generator.state
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def _restore(part: Any, state: Any) -> None:
    if isinstance(part, np.random.Generator):
        part.bit_generator.state = state
    elif isinstance(part, torch.Generator):
        part.set_state(state)
    else:
        part.load_state_dict(state)
