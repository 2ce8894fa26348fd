"""The completion benchmark on a small data set of its own: figures, baselines, damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from vglm.errors import GraphError
from vglm.evaluate.completion import WITHOUT_COUNTS, Setting, load, run
from vglm.evaluate.report import OURS
from vglm.train.links import LinkOptions
from vglm.train.links_complex import ComplexOptions
from vglm.train.text_links import TextOptions

OPTIONS = LinkOptions(
    complex=ComplexOptions(rank=8, epochs=6, batch=32),
    text=TextOptions(epochs=1, inner=8, negatives=8),
    validate_every=3,
)
SETTINGS = {
    "rings": Setting("rings", OPTIONS, 1),
    "texts": Setting("rings", OPTIONS, 1, texts="texts.txt"),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "kg" / "rings"
    folder.mkdir(parents=True)
    lines = []
    for ring in range(12):
        for i in range(5):
            here, after = f"n{ring}.{i}", f"n{ring}.{(i + 1) % 5}"
            lines += [f"{here}\tnext\t{after}", f"{after}\tprevious\t{here}"]
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for i, line in enumerate(lines):
        parts["valid" if i % 11 == 3 else "test" if i % 11 == 7 else "train"].append(line)
    for name, part in parts.items():
        (folder / f"{name}.txt").write_text("\n".join(part) + "\n")
    entities = sorted({line.split("\t")[0] for line in lines})
    (folder / "texts.txt").write_text("".join(f"{name}\t{name}, of a ring\n" for name in entities))
    return tmp_path


def test_ours_and_the_baselines(data: Path) -> None:
    figures = run(data, sets=["rings"], seeds=2, settings=SETTINGS)
    assert {figure.system for figure in figures} == {OURS, "frequency", "DistMult", "ComplEx"}
    assert {figure.metric for figure in figures} == {"MRR", "Hits@1", "Hits@3", "Hits@10"}
    value = {(figure.system, figure.metric): figure for figure in figures}
    ours = value[OURS, "MRR"]
    assert (ours.seeds, ours.n) == (2, 2 * len(load(data / "kg" / "rings", SETTINGS["rings"]).data.true))
    assert ours.value > value["frequency", "MRR"].value
    assert value[OURS, "Hits@1"].value <= value[OURS, "Hits@10"].value
    assert all(0 <= figure.low <= figure.value <= figure.high <= 1 for figure in figures)


def test_texts_have_parts_as_baselines(data: Path) -> None:
    def encoder(texts: object) -> np.ndarray:
        assert "n0.0: of a ring" in texts  # type: ignore[operator]
        return np.eye(len(texts), 64, dtype=np.float32)  # type: ignore[arg-type]

    figures = run(data, sets=["texts"], encoder=encoder, settings=SETTINGS)
    systems = {figure.system for figure in figures}
    assert systems == {OURS, WITHOUT_COUNTS, "frequency", "ComplEx, relation prediction", "texts alone"}


def test_bad_data_is_refused(data: Path) -> None:
    with pytest.raises(GraphError, match="no completion benchmark"):
        run(data, sets=["other"])
    with pytest.raises(GraphError, match="cannot be read"):
        run(data, sets=["umls"])
    train = data / "kg" / "rings" / "train.txt"
    train.write_text(train.read_text() + "a\tb\n")
    with pytest.raises(GraphError, match="line 99: expected head"):
        run(data, sets=["rings"], settings=SETTINGS)


def test_a_missing_set_is_refused_before_anything_is_trained(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[object] = []
    monkeypatch.setattr(
        "vglm.evaluate.completion.train_links", lambda *given, **options: trained.append(given)
    )
    with pytest.raises(GraphError, match="cannot be read"):
        run(data, sets=["rings", "gone"], settings=SETTINGS | {"gone": Setting("gone", OPTIONS, 1)})
    assert not trained
