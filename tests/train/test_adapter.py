"""Training an adapter and distilling it, on a tiny real model: it learns, and resumes to the bit."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.integration.helpers import tiny_model
from vglm.errors import ConfigError, ModelError
from vglm.graph.graph import Graph
from vglm.model.adapter import open_bundle
from vglm.model.bundle import ADAPTER, read_card
from vglm.train.adapter import AdapterOptions, schedule
from vglm.train.data.general import text_samples, write_replies
from vglm.train.program import Plan, distill_model, train_model

OPTIONS = AdapterOptions(steps=12, learning_rate=5e-3, warmup=2, rank=4, alpha=8.0, compiled=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("models")))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vglm.train.lessons.BATCH_TOKENS", 512)


def small_graph() -> Graph:
    nodes = [{"id": f"n{i}", "name": f"thing {i}", "type": "thing"} for i in range(12)]
    edges = [{"source": f"n{i}", "relation": "likes", "target": f"n{(3 * i + 1) % 12}"} for i in range(12)]
    return Graph.from_dict({"nodes": nodes, "edges": edges})


def plan(base: str, out: Path, **options: object) -> Plan:
    folder = out / "training"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "replies.jsonl").write_text('["What is rain?", "Rain is water that falls."]\n', "utf-8")
    return Plan(out, [small_graph()], base=base, threads=1, options=replace(OPTIONS, **options))  # type: ignore[arg-type]


def adapter_of(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / ADAPTER)


def losses(folder: Path) -> list[float]:
    lines = (folder / "training/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_training_learns_and_writes_a_model_that_opens(base: str, tmp_path: Path) -> None:
    out = train_model(plan(base, tmp_path / "m", steps=30))
    found = losses(out)
    assert len(found) == 30
    assert np.mean(found[-6:]) < 0.9 * np.mean(found[:6])
    assert read_card(out).base_model == base
    checkpoint = open_bundle(out)
    assert checkpoint.graph_card is not None
    assert checkpoint.graph_card.spans
    assert checkpoint.graph_card.facts
    name = "layers.0.q_proj"
    assert not np.array_equal(checkpoint.tensor(name), checkpoint.base.tensor(name))


def test_a_training_that_was_cut_off_ends_as_an_unbroken_one(base: str, tmp_path: Path) -> None:
    whole = train_model(plan(base, tmp_path / "whole"))
    code = (
        "import sys; from pathlib import Path; from tests.train.test_adapter import plan; import vglm.train.program as p\n"
        "from vglm.train.run import TrainingRun\n"
        "log = TrainingRun.log\n"
        "def stop(self, step, **figures):\n"
        "    log(self, step, **figures)\n"
        "    if step == 5: self.save(step + 1)\n"
        "    if step == 7: import os; os.kill(os.getpid(), 9)\n"
        "TrainingRun.log = stop\n"
        "import vglm.train.lessons as lessons; lessons.BATCH_TOKENS = 512\n"
        "p.train_model(plan(sys.argv[1], Path(sys.argv[2])))"
    )
    out = tmp_path / "cut"
    killed = subprocess.run([sys.executable, "-c", code, base, str(out)], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    train_model(plan(base, out))
    for name, value in adapter_of(whole).items():
        assert np.array_equal(value, adapter_of(out)[name]), name


def test_a_student_learns_from_its_teacher(base: str, tmp_path: Path) -> None:
    teacher = train_model(plan(base, tmp_path / "teacher", steps=20, sequential=1.0))
    student = distill_model(plan(base, tmp_path / "student", steps=20), teacher)
    found = losses(student)
    assert np.mean(found[-5:]) < np.mean(found[:5])
    first, last = adapter_of(teacher), adapter_of(student)
    assert any(not np.array_equal(first[name], last[name]) for name in first)


def test_nothing_to_train_on_is_said_before_anything_runs(base: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to train on"):
        train_model(replace(plan(base, tmp_path / "m"), graphs=[]))


def test_a_graph_without_edges_has_no_lesson(base: str, tmp_path: Path) -> None:
    empty = Graph.from_dict({"nodes": [{"id": "a"}], "edges": []})
    with pytest.raises(ConfigError, match=r"graphs\[1\] has no edges"):
        train_model(replace(plan(base, tmp_path / "m"), graphs=[small_graph(), empty]))


def test_what_is_wrong_is_said_before_the_base_replies(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vglm.train.program._general", lambda *_: pytest.fail("the base was asked"))
    mine = replace(plan(base, tmp_path / "m"), graphs=[Graph.from_dict({"nodes": [], "edges": []})])
    with pytest.raises(ConfigError, match="has no edges"):
        train_model(mine)
    with pytest.raises(ConfigError, match="no lesson is called 'reeding'"):
        train_model(replace(plan(base, tmp_path / "n"), shares={"reeding": 1}))
    monkeypatch.setattr("vglm.train.lessons.reading.reading_sample", lambda *_: None)
    with pytest.raises(ConfigError, match="lesson 'reading 0': no sample fits"):
        train_model(plan(base, tmp_path / "o"))


def test_a_base_beside_the_caller_is_found_from_anywhere(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(Path(base).parent)
    out = train_model(plan(f"./{Path(base).name}", tmp_path / "m", steps=1))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_bundle(out).base.path == Path(base)


def test_a_teacher_with_another_base_is_refused(base: str, tmp_path: Path) -> None:
    teacher = train_model(plan(base, tmp_path / "teacher", steps=1))
    with pytest.raises(ModelError, match="its base is"):
        distill_model(replace(plan(base, tmp_path / "student"), base="other"), teacher)


def test_a_teacher_that_cannot_be_one_is_refused_before_anything_is_generated(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = train_model(plan(base, tmp_path / "teacher", steps=1))
    monkeypatch.setattr("vglm.train.program._general", None)
    with pytest.raises(ModelError, match=r"its rank is 4 and its alpha 8; .* rank 2 and alpha 8"):
        distill_model(plan(base, tmp_path / "student", rank=2), teacher)
    with pytest.raises(ModelError, match=r"its rank is 4 and its alpha 8; .* rank 4 and alpha 4"):
        distill_model(plan(base, tmp_path / "student", alpha=4.0), teacher)
    content = (teacher / ADAPTER).read_bytes()
    (teacher / ADAPTER).write_bytes(content[:-10])
    with pytest.raises(ModelError, match="damaged"):
        distill_model(plan(base, tmp_path / "student"), teacher)
    (teacher / ADAPTER).unlink()
    with pytest.raises(ModelError, match="the card lists it"):
        distill_model(plan(base, tmp_path / "student"), teacher)


def test_other_settings_in_the_same_folder_are_refused(base: str, tmp_path: Path) -> None:
    out = train_model(plan(base, tmp_path / "m", steps=1))
    with pytest.raises(ConfigError, match="learning_rate"):
        train_model(plan(base, out, steps=1, learning_rate=1e-4))


def test_other_data_in_the_same_folder_are_refused(base: str, tmp_path: Path) -> None:
    mine = plan(base, tmp_path / "m", steps=1)
    out = train_model(mine)
    other = Graph.from_dict(
        {"nodes": [{"id": "a"}, {"id": "b"}], "edges": [{"source": "a", "relation": "r", "target": "b"}]}
    )
    with pytest.raises(ConfigError, match="graphs was"):
        train_model(replace(mine, graphs=[other]))
    with pytest.raises(ConfigError, match="teacher was"):
        train_model(mine, teacher=out)


def test_a_training_begins_with_another_model(base: str, tmp_path: Path) -> None:
    first = train_model(plan(base, tmp_path / "first", steps=20))
    on = train_model(replace(plan(base, tmp_path / "on", steps=1, learning_rate=1e-7), begin=first))
    anew = train_model(plan(base, tmp_path / "anew", steps=1, learning_rate=1e-7))
    before, after, other = adapter_of(first), adapter_of(on), adapter_of(anew)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=0, atol=1e-5)
    assert any(not np.allclose(other[name], value, rtol=0, atol=1e-3) for name, value in before.items())
    with pytest.raises(ConfigError, match="begin was"):
        train_model(plan(base, on, steps=1, learning_rate=1e-7))


def test_shares_of_lessons(base: str, tmp_path: Path) -> None:
    out = train_model(replace(plan(base, tmp_path / "m", steps=6), shares={"general": 0, "world": 0}))
    lines = [json.loads(line) for line in (out / "training/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all("loss reading 0" in line for line in lines)
    with pytest.raises(
        ConfigError, match=r"no lesson is called 'reeding'; there are general, reading, world$"
    ):
        train_model(replace(plan(base, tmp_path / "n"), shares={"reeding": 1}))
    with pytest.raises(ConfigError, match="at least one must be above 0"):
        train_model(replace(plan(base, tmp_path / "o"), shares={"general": 0, "reading": 0, "world": 0}))


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [schedule(step, 100, 10) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == 1.0
    assert 0.05 <= min(rates[10:]) < 0.06


def test_replies_of_the_base_are_written_and_read(base: str, tmp_path: Path) -> None:
    from vglm import LLM
    from vglm.train.data.general import read_replies

    write_replies(LLM(base), tmp_path / "r.jsonl", count=4)
    assert all(sample.turns[0].question for sample in read_replies(tmp_path / "r.jsonl"))


def test_texts_are_cut_into_pieces() -> None:
    samples = text_samples(["word " * 1_000], random.Random(0), length=500)
    assert len(samples) == 10
    assert all(sample.raw for sample in samples)
