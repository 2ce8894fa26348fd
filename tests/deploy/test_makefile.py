"""What `make` would do, without doing it: the demo installs no more than it needs, and help is printed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make(*arguments: str) -> str:
    done = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_says_what_there_is() -> None:
    said = make("help")
    assert all(f"make {target}" in said for target in ("demo", "test", "lint", "install", "bench", "clean"))
    assert "#" not in said


def test_the_demo_installs_no_more_than_it_needs(tmp_path: Path) -> None:
    steps = make("-n", "demo", f"VENV={tmp_path}/venv")
    assert "pip install --quiet --disable-pip-version-check -e . " in steps
    assert "[dev]" not in steps
    assert steps.index("pip install") < steps.index("vglm demo")


def test_the_tests_install_everything_at_once(tmp_path: Path) -> None:
    steps = make("-n", "test", f"VENV={tmp_path}/venv")
    assert steps.count("pip install") == 1
    assert "-e '.[dev]'" in steps


@pytest.mark.parametrize("target", ["demo", "test"])
def test_what_is_installed_is_not_installed_again(tmp_path: Path, target: str) -> None:
    (tmp_path / "bin").mkdir()
    for made in ("bin/python", ".vglm-installed", ".vglm-tools-installed"):
        (tmp_path / made).touch()
    assert "pip install" not in make("-n", target, f"VENV={tmp_path}")
