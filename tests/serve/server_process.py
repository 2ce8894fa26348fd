"""A real server in a process of its own, for tests that harm it, limit it or watch it from outside."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

START = 120.0  # seconds: a start that takes longer has failed (the first one on a machine packs the weights)
MODEL = "smollm2-135m-instruct"


class ServerProcess:
    """`vglm serve` on a free port.

    Args:
        arguments: options after the model, as on the command line.
        kwargs: for subprocess.Popen.
    """

    def __init__(self, *arguments: str, model: str = MODEL, **kwargs: Any) -> None:
        self._errors = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115  # lives as long as the server
        kwargs.setdefault("stderr", self._errors)
        command = [sys.executable, "-m", "vglm", "serve", model, "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **kwargs)
        self.url = ""
        self.announcement = ""

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        self.announcement = self.process.stdout.readline()
        match = re.search(r"serving .* at (http://\S+)", self.announcement)
        if match is None:
            self.process.wait(10)
            raise AssertionError(f"the server did not start: {self.announcement!r} {self.errors()}")
        self.url = match[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(30)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._errors.close()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rsplit(":", 1)[1])

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def errors(self) -> str:
        """What it has written to standard error."""
        return Path(self._errors.name).read_text()

    def resident_bytes(self) -> int:
        """Memory that the process has now."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * 4096

    def open_files(self) -> int:
        """File descriptors of the process."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def terminate(self, sig: signal.Signals = signal.SIGTERM, timeout: float = 60.0) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(sig)
        return self.process.wait(timeout)


def wait_until(condition: Any, timeout: float = 60.0, what: str = "the condition") -> None:
    """Poll until the condition holds; AssertionError when it does not for `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.02)
