"""Whether a model reads a graph: which questions are asked, what counts as right, and a run over a tiny real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.helpers import tiny_model
from vglm.evaluate import reading
from vglm.train.data.asking import NOT_SAID
from vglm.train.data.world import HELD_OUT


@pytest.mark.parametrize(
    ("said", "wanted", "right"),
    [
        ("Ann Lee, Bob Ray", "Bob Ray, Ann Lee", True),
        ("ann lee.", "Ann Lee", True),
        (" Yes.", "Yes.", True),
        ("No.", "Yes.", False),
        ("Ann Lee", "Ann Lee, Bob Ray", False),
        ("Ann Lee, Bob Ray, Eva Orr", "Ann Lee, Bob Ray", False),
        ("The graph does not say.", NOT_SAID, True),
        ("Ann Lee", NOT_SAID, False),
        ("", "Ann Lee", False),
        ("a, b: 2", "b, a: 2", False),  # a number belongs to its place
    ],
)
def test_what_is_right(said: str, wanted: str, right: bool) -> None:
    assert reading.is_right(said, wanted) == right


def test_questions_are_the_same_every_time_and_of_the_relations_they_should_be(tmp_path: Path) -> None:
    sets = reading.question_sets(tmp_path)
    assert sets == reading.question_sets(tmp_path)
    assert {name: len(samples) for name, samples in sets.items()} == dict.fromkeys(sets, reading.GRAPHS)
    unseen = {relation.words.replace(" ", "") for relation in HELD_OUT}
    for sample in sets["invented graphs, unseen relations"]:
        assert sample.graph is not None
        names = {
            name.replace("_", "").replace(" ", "").lower() for name in sample.graph.columns.relation_names
        }
        assert names <= unseen


def test_a_run_has_a_row_for_each_system_and_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "GRAPHS", 3)
    monkeypatch.setattr(reading, "MOST_TOKENS", 4)
    folder = tmp_path / "kg/nations"
    folder.mkdir(parents=True)
    for part in ("train", "valid", "test"):
        (folder / f"{part}.txt").write_text("".join(f"n{i}\tborders\tn{i + 1}\n" for i in range(20)))
    model = str(tiny_model(tmp_path))
    figures = reading.run(tmp_path, model=model, base=model, dtypes=("bf16", "int8"))
    assert [figure.data for figure in figures if "less" in figure.system] == list(
        reading.question_sets(tmp_path)
    )
    assert len(figures) == 3 * 4  # the base, two weight types, and their difference
    assert all(figure.n > 0 for figure in figures)
