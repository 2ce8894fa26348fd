"""Training runs: killed, interrupted, resumed, refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("torch")

import torch

from vglm.errors import ConfigError
from vglm.train.checkpoint import read_checkpoint, write_checkpoint
from vglm.train.run import Stopped, TrainingRun, peak_memory, temporary_folder

STEPS = 60


def train(folder: Path, pause: float) -> None:
    """A small real training whose every step draws from four random generators."""
    torch.set_num_threads(1)
    run = TrainingRun(folder, {"rate": 0.01}, seed=5, save_seconds=0.0 if pause else 60.0, show=False)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data = np.random.default_rng(9)
    run.track(model=model, optimizer=optimizer, data=data)
    for step in run.steps(STEPS):
        x = torch.from_numpy(data.normal(size=(32, 8)).astype(np.float32)) + random.random()
        y = x[:, :1] * 2 + float(np.random.normal()) * 0.01
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.values["seen"] = run.values.get("seen", 0) + 32
        run.log(step, loss=float(loss))
        time.sleep(pause)


def start(folder: Path, pause: float) -> BaseProcess:
    """A process of its own, forked: importing torch anew takes seconds."""

    def body() -> None:
        folder.mkdir(exist_ok=True)
        with (folder / "errors").open("w") as errors:
            os.dup2(errors.fileno(), 2)
            sys.stderr = errors
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                train(folder, pause)
            except Stopped:
                raise SystemExit(130) from None

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process


def wait_for_step(folder: Path, step: int, process: BaseProcess) -> None:
    path = folder / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (path.exists() and len(path.read_text().splitlines()) > step):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


def test_killed_and_interrupted_runs_end_in_the_same_bits(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    torch.optim.AdamW([torch.zeros(1)])  # imports much, once for all the processes
    unbroken = start(whole, 0.0)
    for step in (3, 7, 16, 21, 30):  # while checkpoints are written one after the other
        process = start(broken, 0.002)
        wait_for_step(broken, step, process)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert read_checkpoint(broken / "checkpoint.safetensors") is not None
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 59, "lo')  # what a kill in mid-line leaves

    process = start(broken, 0.02)
    wait_for_step(broken, 35, process)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join()
    errors = (broken / "errors").read_text()
    assert process.exitcode == 130, errors
    assert "Traceback" not in errors
    assert "give the same command again" in errors

    last = start(broken, 0.0)
    for process in (unbroken, last):
        process.join()
        assert process.exitcode == 0
    one, other = (load_file(folder / "checkpoint.safetensors") for folder in (whole, broken))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], strict=True)
    contents = [read_checkpoint(folder / "checkpoint.safetensors") for folder in (whole, broken)]
    assert [content["values"] for content in contents if content] == [{"seen": 32 * STEPS}] * 2
    assert losses(whole) == losses(broken)
    assert [step for step, _ in losses(whole)] == list(range(STEPS))


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    TrainingRun(tmp_path, {"model": {"rate": 0.1, "width": 8}}, seed=0).close()
    TrainingRun(tmp_path, {"model": {"rate": 0.1, "width": 8}}, seed=0).close()
    with pytest.raises(ConfigError, match=r"model\.rate was 0\.1, now 0\.2"):
        TrainingRun(tmp_path, {"model": {"rate": 0.2, "width": 8}}, seed=0)
    with pytest.raises(ConfigError, match=r"seed was 0, now 1"):
        TrainingRun(tmp_path, {"model": {"rate": 0.1, "width": 8}}, seed=1)
    with pytest.raises(ConfigError, match=r"model\.width was 8, now \(none\)"):
        TrainingRun(tmp_path, {"model": {"rate": 0.1}}, seed=0)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        TrainingRun(tmp_path, {}, seed=0)


def test_a_folder_serves_one_process(tmp_path: Path) -> None:
    first = TrainingRun(tmp_path, {}, seed=0)
    with pytest.raises(ConfigError, match="another process"):
        TrainingRun(tmp_path, {}, seed=0)
    first.close()
    TrainingRun(tmp_path, {}, seed=0).close()


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path, {}, seed=0, show=False)
    run.save(3)
    whole = run.checkpoint_path.read_bytes()
    run.checkpoint_path.write_bytes(whole[: len(whole) - 10])
    with pytest.raises(ConfigError, match="damaged"):
        run.resume()
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, run.checkpoint_path)
    with pytest.raises(ConfigError, match="not a checkpoint"):
        run.resume()
    run.checkpoint_path.write_bytes(whole)
    run.track(model=torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="parts model"):
        run.resume()
    run.save(3)
    run.track(model=torch.nn.Linear(3, 2))
    with pytest.raises(ConfigError, match="does not fit the part model"):
        run.resume()


def test_checkpoints_hold_nested_values(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    content = {
        "state": {0: {"exp": shared, "again": shared.T}, 1: (1, 2.5, None, [True, "x"])},
        "big": 2**127,
        "nan": float("nan"),
        "array": np.arange(3, dtype=np.uint32),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "count": np.int64(4),
    }
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, content)
    found = read_checkpoint(path)
    assert found is not None
    assert torch.equal(found["state"][0]["again"], shared.T)
    assert found["state"][1] == (1, 2.5, None, [True, "x"])
    assert found["big"] == 2**127
    assert found["nan"] != found["nan"]
    assert found["array"].dtype == np.uint32
    assert found["half"].dtype == torch.bfloat16
    assert found["count"] == 4
    assert read_checkpoint(tmp_path / "none") is None
    with pytest.raises(TypeError, match="a checkpoint cannot hold a Path"):
        write_checkpoint(path, {"x": {"y": object.__new__(type("Path", (), {}))}})


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, {"step": 1})

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint(path, {"step": 2})
    assert read_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_ctrl_c_in_this_process(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path, {}, seed=0, show=False)
    seen: list[int] = []

    def train() -> None:
        for step in run.steps(10):
            seen.append(step)
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        train()
    assert seen == [0, 1, 2, 3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run.close()
    again = TrainingRun(tmp_path, {}, seed=0, show=False)
    assert list(again.steps(10)) == [4, 5, 6, 7, 8, 9]
    assert list(again.steps(10)) == []


def test_a_training_that_is_not_kept_says_so_when_it_is_stopped() -> None:
    def train(run: TrainingRun) -> None:
        for _ in run.steps(10):
            os.kill(os.getpid(), signal.SIGINT)

    with temporary_folder() as folder:
        run = TrainingRun(folder / "stage", {}, seed=0, show=False)
        with pytest.raises(Stopped, match=r"stopped after step 1 of 10; not kept: it has no folder"):
            train(run)
        run.close()
    assert not folder.exists()


def test_loss_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainingRun(tmp_path, {}, seed=0, show=False)
    with pytest.raises(ConfigError, match="nothing was logged"):
        run.plot()
    for step in run.steps(300):
        run.log(step, loss=1 / (step + 1), **({"accuracy": step / 300} if step % 50 == 0 else {}))
    assert run.plot().read_bytes().startswith(b"\x89PNG")
    assert run.metrics()[-1]["step"] == 299
    assert peak_memory() > 10_000_000
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'vglm\[plot\]'"):
        run.plot()
