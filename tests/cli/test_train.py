"""vglm train and vglm eval: small real trainings, Ctrl-C and going on, refusals without a traceback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.cli.conftest import COMMAND, Run
from tests.encoder.test_graph_classifier import molecule
from vglm.cli import app
from vglm.cli_eval import TASKS
from vglm.encoder.graph_classifier import GraphClassifier
from vglm.encoder.link_model import LinkModel
from vglm.encoder.relational import RelationalEncoder

Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Here:
    """Runs `vglm` in this process, in a directory of its own: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            app([str(argument) for argument in arguments], prog_name="vglm")
        output, errors = capsys.readouterr()
        return int(left.value.code or 0), output, errors

    return run


@pytest.fixture(scope="module")
def triples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of 40 people; friends of a colour like the things of that colour."""
    random = np.random.default_rng(0)
    lines = set()
    for person in range(40):
        lines |= {
            f"p{person}\tfriend of\tp{other}" for other in range(person % 4, 40, 4) if random.random() < 0.4
        }
        lines |= {f"p{person}\tlikes\tthing{person % 4}-{k}" for k in range(3) if random.random() < 0.8}
    path = tmp_path_factory.mktemp("graph") / "people.tsv"
    path.write_text("\n".join(sorted(lines)) + "\n")
    return path


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a set of 40 molecules in the TU format, called MUTAG and PROTEINS."""
    data = tmp_path_factory.mktemp("data")
    graphs = [molecule(seed, nitro=seed % 2 == 0) for seed in range(40)]
    for name in ("MUTAG", "PROTEINS"):
        folder = data / "graphcls" / name
        folder.mkdir(parents=True)
        edges, kinds, owners, first = [], [], [], 1
        for number, graph in enumerate(graphs, 1):
            places = {node.id: first + place for place, node in enumerate(graph.nodes())}
            edges += [f"{places[edge.source]}, {places[edge.target]}" for edge in graph.edges()]
            kinds += [{"C": "0", "N": "1", "O": "2"}[node.type] for node in graph.nodes()]
            owners += [str(number)] * graph.num_nodes
            first += graph.num_nodes
        labels = [str(seed % 2) for seed in range(40)]
        for part, lines in (
            ("A", edges),
            ("node_labels", kinds),
            ("graph_indicator", owners),
            ("graph_labels", labels),
        ):
            (folder / f"{name}_{part}.txt").write_text("\n".join(lines) + "\n")
    return data


def test_help_has_examples_for_every_command(here: Here) -> None:
    for command in (
        ["train", "links"],
        ["train", "encoder"],
        ["train", "classifier"],
        ["train", "diseases"],
        ["train", "adapter"],
        ["distill"],
        ["eval"],
    ):
        status, output, _ = here(*command, "--help")
        assert status == 0
        assert f"vglm {' '.join(command)}" in output
        assert "xample" in output
    assert all(task in here("eval", "--help")[1] for task in TASKS)


@pytest.mark.parametrize("share", ["stance", "stance=", "stance=-1", "stance=nan", "stance=much", "=1e999"])
def test_a_share_that_is_none(here: Here, triples: Path, share: str) -> None:
    status, _, errors = here("train", "adapter", triples, "--out", "m", "--share", share)
    assert status != 0
    assert f"--share {share}: give a lesson and a number" in errors
    assert not Path("m").exists()


def test_a_classifier(here: Here, molecules: Path) -> None:
    folder = molecules / "graphcls" / "MUTAG"
    status, output, errors = here(
        "train", "classifier", folder, "--out", "m.safetensors", "--cross-validate", 2
    )
    assert status == 0, errors
    assert output.splitlines()[-1] == "m.safetensors"
    assert "majority class" in output
    assert "40 graphs, classes 0 (20), 1 (20)" in errors
    model = GraphClassifier.load("m.safetensors")
    assert float(model.about["leave-one-out accuracy"]) > 0.9


def test_a_link_model_is_interrupted_and_refuses_other_settings(
    here: Here, triples: Path, tmp_path: Path
) -> None:
    arguments = ["train", "links", str(triples), "--out", "links.safetensors", "--threads", "1", "--epochs"]
    process = subprocess.Popen(
        [*COMMAND, *arguments, "3000"],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    log = tmp_path / "links.training" / "complex" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "give the same command again" in errors
    assert log.read_text().count("\n") < 3000

    status, _, errors = here(*arguments, 5)
    assert status == 2
    assert "complex.epochs was 3000, now 5" in errors
    status, output, errors = here(*arguments, 5, "--folder", "again")
    assert status == 0, errors
    assert output.strip() == "links.safetensors"
    assert "peak memory" in errors
    assert Path("again/complex/loss.png").exists()
    assert LinkModel.load("links.safetensors").relations == ("friend of", "likes")


def test_an_encoder_of_two_graphs(here: Here, triples: Path) -> None:
    status, output, errors = here(
        "train", "encoder", triples, triples, "--steps", 2, "--out", "e.safetensors"
    )
    assert status == 0, errors
    assert output.strip() == "e.safetensors"
    assert RelationalEncoder.load(Path("e.safetensors")).weights
    assert Path("e.training/loss.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "links", "nowhere.json"], "nowhere.json"),
        (["train", "links", "{triples}", "--out", "x.bin"], "--out x.bin: the name must end in .safetensors"),
        (["train", "links", "{triples}", "--out", "no/x.safetensors"], "no/x.safetensors: cannot be written"),
        (["train", "links", "{triples}", "--folder", "{triples}"], "is a file; give another --folder"),
        (["train", "classifier", "nowhere"], "nowhere"),
        (
            ["train", "diseases", "{triples}", "--out", "no/x.safetensors"],
            "no/x.safetensors: cannot be written",
        ),
        (["train", "diseases", "{triples}", "--hpo", "nowhere"], "nowhere"),
        (["train", "links", "/nonexistent"], "error: /nonexistent: no such file or folder"),
        (
            ["train", "links", "nothing"],
            "nothing: no such file or folder, and in the store there is no graph",
        ),
        (["train", "adapter", "empty.json", "--out", "m"], "empty.json: has no edges"),
        (["train", "encoder", "empty.json"], "empty.json: has no edges"),
        (["eval", "poetry", "--data", "."], "no task 'poetry'; there are disease_ranking"),
        (["eval", "--data", "nowhere"], "--data nowhere: no such folder; docs/training.md"),
        (["eval", "graph_classes", "--data", "."], "graphcls/MUTAG: no such folder"),
        (
            ["eval", "graph_classes", "--data", ".", "--json", "no/x.json"],
            "--json no/x.json: cannot be written",
        ),
        (["eval", "language", "--data", ".", "--dtype", "int8,fp8"], "--dtype 'fp8': choose among bf16"),
        (["eval", "language", "--data", ".", "--text", "none.txt"], "none.txt: no such file"),
        (
            ["eval", "graph_classes", "--data", ".", "--dtype", "int4"],
            "--dtype is for reasoning",
        ),
        (["eval", "reasoning", "--data", ".", "--text", "x"], "--text is for language, and none of them"),
        (
            ["eval", "explanation", "--data", ".", "--samples", "no/x.md"],
            "--samples no/x.md: cannot be written",
        ),
    ],
)
def test_refusals(here: Here, triples: Path, arguments: list[str], message: str) -> None:
    Path("empty.json").write_text('{"nodes": [{"id": "a"}], "edges": []}')
    status, _, errors = here(*(argument.format(triples=triples) for argument in arguments))
    assert status == 2
    assert message in errors
    assert errors.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in errors


def test_evaluation_as_tables_and_as_json(here: Here, molecules: Path) -> None:
    status, output, errors = here(
        "eval", "graph_classes", "--data", molecules, "--seeds", 1, "--json", "out.json"
    )
    assert status == 0, errors
    assert "graph classification: MUTAG" in output
    content = json.loads(Path("out.json").read_text())
    assert content["settings"]["seeds"] == 1
    ours = [figure for figure in content["figures"] if figure["system"] == "open-autoglm-v1"]
    assert [figure["data"] for figure in ours] == ["MUTAG", "PROTEINS"]
    assert ours[0]["value"] > 0.85
    status, output, _ = here("eval", "graph_classes", "--data", molecules, "--seeds", 1, "--json", "-")
    assert json.loads(output)["figures"] == content["figures"]


def test_without_torch_the_extra_is_named(vglm: Run, triples: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
    )
    done = vglm("train", "links", str(triples), cwd=tmp_path, environment={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr.startswith("error: this command needs PyTorch: pip install 'vglm[train]'")
    assert "Traceback" not in done.stderr
    code = "import sys; import vglm.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_evaluation_goes_on_without_what_is_missing(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_task(name: str, data: Path, given: dict[str, object]) -> list[object]:
        if name == "completion":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        (data / "gone.tsv").read_text()
        return []

    monkeypatch.setattr("vglm.cli_eval.run_task", run_task)
    status, _, errors = here("eval", "--data", ".")
    assert status == 0
    assert "left out: needs torch: pip install 'vglm[train]'" in errors
    assert errors.count("left out: gone.tsv: No such file or directory") == len(TASKS) - 1
    status, _, errors = here("eval", "language", "--data", ".")
    assert status == 2
    assert "error: language: gone.tsv: No such file or directory; docs/training.md" in errors
    assert "PyTorch" in here("eval", "completion", "--data", ".")[2]
