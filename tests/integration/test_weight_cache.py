"""Packed weights on disk: used when they are whole and current, made again when not, never in the way."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.integration.helpers import tiny_model, write_llama
from vglm.errors import ModelError
from vglm.model.packed_file import PackedModel
from vglm.model.weight_cache import load_packed

ROOT = Path(__file__).parents[2]
SIGNATURE = """
import hashlib, sys
from pathlib import Path
from vglm.model.weight_cache import load_packed
packed_now = []
model = load_packed(Path(sys.argv[1]), "int8", packed_now.append)
digest = hashlib.sha256()
for name in sorted(model.arrays):
    digest.update(name.encode() + model.arrays[name].tobytes())
print(digest.hexdigest(), len(packed_now))
"""


@pytest.fixture
def source(tmp_path: Path, home: Path) -> Path:
    return tiny_model(tmp_path / "source")


def load(source: Path, dtype: str = "int8") -> tuple[PackedModel, bool]:
    """The model, and whether it was packed now."""
    progress: list[float] = []
    model = load_packed(source, dtype, progress.append)
    return model, bool(progress)


def equal(a: PackedModel, b: PackedModel) -> bool:
    same = all(np.array_equal(a.arrays[n], b.arrays[n]) for n in a.arrays)
    texts = (a.tokenizer_json, a.chat_template) == (b.tokenizer_json, b.chat_template)
    return a.config == b.config and a.arrays.keys() == b.arrays.keys() and same and texts


def replace(file: Path, content: bytes) -> None:
    """A new file in its place: what a model has mapped must not change under it."""
    file.unlink()
    file.write_bytes(content)


def cached(home: Path) -> Path:
    (file,) = home.glob("packed/*.safetensors")
    return file


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
def test_the_second_start_packs_nothing(source: Path, home: Path, dtype: str) -> None:
    first, packed_now = load(source, dtype)
    assert packed_now
    changed = cached(home).stat().st_mtime_ns
    second, packed_now = load(source, dtype)
    assert not packed_now
    assert equal(first, second)
    assert cached(home).stat().st_mtime_ns == changed
    assert all(a.ctypes.data % 64 == 0 and not a.flags.writeable for a in second.arrays.values())


def test_each_dtype_has_a_file(source: Path, home: Path) -> None:
    for dtype in ("bf16", "int8", "int4", "bf16", "int8"):
        load(source, dtype)
    assert len(list(home.glob("packed/*.safetensors"))) == 3


def test_a_damaged_byte_anywhere_is_noticed(
    source: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the length, in the header (sizes, config, checksum) and in the data; the copy is then made again."""
    good, _ = load(source)
    file = cached(home)
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    places = [0, 3, 7, 8, header - 1, header, len(whole) - 1, whole.index(b'\\"norm_eps') + 14]
    places += rng.integers(8, header, 20).tolist() + rng.integers(header, len(whole), 10).tolist()
    for at in places:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        replace(file, damaged)
        caplog.clear()
        model, packed_now = load(source)
        assert packed_now, f"byte {at} of {len(whole)} (header: {header})"
        assert "packing again" in caplog.text
        assert equal(model, good)
        assert file.read_bytes() == whole


def test_a_file_that_is_cut_short_is_packed_again(source: Path, home: Path) -> None:
    good, _ = load(source)
    file = cached(home)
    whole = file.read_bytes()
    for size in (0, 1, 7, 8, 9, 1000, len(whole) // 2, len(whole) - 64, len(whole) - 1):
        replace(file, whole[:size])
        model, packed_now = load(source)
        assert packed_now
        assert equal(model, good)
    replace(file, whole + b"\0")
    assert load(source)[1]


@pytest.mark.parametrize("content", [b"[]", b"{}", b"null", b"7", b'"x"', b'{"__metadata__": {}}', b"\xff"])
def test_another_file_in_its_place(source: Path, home: Path, content: bytes) -> None:
    load(source)
    replace(cached(home), len(content).to_bytes(8, "little") + content)
    assert load(source)[1]
    assert not load(source)[1]


def test_a_directory_in_its_place(source: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, _ = load(source)
    file = cached(home)
    file.unlink()
    file.mkdir()
    model, packed_now = load(source)
    assert packed_now
    assert equal(model, good)
    assert "cannot keep" in caplog.text
    assert not list(home.glob("packed/*.tmp"))


def test_a_changed_source_is_packed_again_and_the_old_copy_removed(tmp_path: Path, home: Path) -> None:
    source = write_llama(tmp_path / "model [1]*")  # a name that is a pattern, too
    first, _ = load(source)
    file = cached(home)
    data = bytearray((source / "model.safetensors").read_bytes())
    data[-2] ^= 0x40  # in the mantissa of the last weight
    (source / "model.safetensors").write_bytes(data)
    second, packed_now = load(source)
    assert packed_now
    assert not equal(first, second)
    assert cached(home) != file
    assert first.arrays["final_norm"].sum() > 0, "what an engine has mapped stays readable"


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_a_weight_that_overflows_spoils_no_other(tmp_path: Path, home: Path) -> None:
    """int8 packing runs the model on a text to balance its channels; that run may overflow."""
    source = write_llama(tmp_path / "model")
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = np.float32(3e38)
    save_file(tensors, file)
    model, _ = load(source)
    for name, array in model.arrays.items():
        if name.endswith(("scale", "norm")):
            assert np.isfinite(array).all(), name
            assert (array > 0).sum() >= 32, name


def test_a_source_that_is_gone_or_wrong(source: Path, home: Path) -> None:
    load(source)
    (source / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError):
        load(source)
    shutil.rmtree(source)
    with pytest.raises(ModelError):
        load(source)
    assert not list(home.glob("packed/*.tmp"))


@pytest.mark.parametrize("place", ["file", "file/below", "/dev/null/x", "/proc/nowhere"])
def test_a_cache_that_cannot_be_written_costs_a_warning(
    source: Path, home: Path, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    good, _ = load(source)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("VGLM_HOME", str(tmp_path / place))
    with caplog.at_level(logging.WARNING):
        model, packed_now = load(source)
    assert packed_now
    assert equal(model, good)
    assert "cannot keep packed weights" in caplog.text


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def start(source: Path, script: str = SIGNATURE, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(source)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_full_disk(source: Path, home: Path) -> None:
    """Writing fails in the middle: the model works, nothing is left; with room again it is kept."""
    process = start(source, preexec_fn=limit_file_size)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "cannot keep packed weights" in errors
    assert not list(home.glob("packed/*.safetensors")) + list(home.glob("packed/*.tmp"))
    again, _ = start(source).communicate(timeout=60)
    assert again.split()[0] == out.split()[0]
    cached(home)


def test_processes_that_start_at_once(source: Path, home: Path) -> None:
    """Four at the same time: one packs, all have the same weights, one file is left."""
    outputs = [p.communicate(timeout=120) for p in [start(source) for _ in range(4)]]
    results = [out.split() for out, _ in outputs]
    assert all(len(r) == 2 for r in results), outputs
    assert len({r[0] for r in results}) == 1
    assert sum(int(r[1]) > 0 for r in results) == 1
    cached(home)
    assert not list(home.glob("packed/*.tmp"))


STOPS = """
import os, sys, time
from pathlib import Path
from vglm.model import weight_cache
real = os.fsync
def wait(descriptor):
    real(descriptor)
    print("written", flush=True)
    time.sleep(60)
os.fsync = wait
weight_cache.load_packed(Path(sys.argv[1]), "int8", lambda _: None)
"""


def test_a_process_killed_while_it_writes(source: Path, home: Path) -> None:
    """Its temporary file is never taken for the model, and the next start removes it."""
    process = start(source, STOPS)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.communicate()
    assert len(list(home.glob("packed/*.tmp"))) == 1
    assert not list(home.glob("packed/*.safetensors"))
    _, packed_now = load(source)
    assert packed_now
    cached(home)
    assert not list(home.glob("packed/*.tmp"))


def test_a_process_killed_at_any_moment(source: Path, home: Path) -> None:
    good, _ = load(source)
    shutil.rmtree(home)
    for delay in (0.15, 0.2, 0.25, 0.3, 0.35, 0.4):
        process = start(source)
        time.sleep(delay)
        process.kill()
        process.communicate()
        model, _ = load(source)
        assert equal(model, good)
        assert not list(home.glob("packed/*.tmp"))
        os.remove(cached(home))
