"""The zero-shot benchmark on data sets small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vglm.errors import GraphError  # noqa: E402
from vglm.evaluate import zero_shot  # noqa: E402
from vglm.evaluate.report import OURS  # noqa: E402
from vglm.train.relational import RelationalSettings  # noqa: E402

TINY = RelationalSettings(width=16, relation_layers=1, entity_layers=2, steps=6, queries=4)


def write(folder, name, train, valid=(), test=()):
    place = folder / "kg" / name
    place.mkdir(parents=True)
    for part, rows in {"train": train, "valid": valid, "test": test}.items():
        text = "".join("\t".join(row) + "\n" for row in rows)
        (place / f"{part}.txt").write_text(text, encoding="utf-8")


def random_rows(seed, count=80, nodes=20, relations=3):
    rng = np.random.default_rng(seed)
    rows = {(f"e{a}", f"r{b}", f"e{c}") for a, b, c in rng.integers(0, [nodes, relations, nodes], (count, 3))}
    return sorted(rows)


@pytest.fixture
def path_of_four(tmp_path):
    """a - b - c - d in the training part; b and d, a and c are asked about."""
    train = [("a", "r", "b"), ("b", "r", "c"), ("c", "s", "d")]
    write(tmp_path, "umls", train, test=[("b", "r", "d"), ("a", "s", "c")])
    return zero_shot.DataSet.load(tmp_path, "umls")


def test_questions_are_asked_both_ways(path_of_four):
    assert path_of_four.benchmark.questions.tolist() == [[1, 0, 3], [0, 1, 2], [3, 2, 1], [2, 3, 0]]
    assert path_of_four.graph.triples.tolist() == [[0, 0, 1], [1, 0, 2], [2, 1, 3]]


def test_heuristics_by_hand(path_of_four):
    scorers = zero_shot.heuristics(path_of_four.graph.structure)
    given, relations = np.array([1, 0]), np.array([0, 3])
    rows = {name: scorer(given, relations) for name, scorer in scorers.items()}
    assert rows["degree"].tolist() == [[1, 2, 2, 1]] * 2
    assert rows["degree in the relation"].tolist() == [[0, 1, 1, 0], [0, 0, 1, 0]]
    assert rows["common neighbours"].tolist() == [[0, 2, 0, 1], [1, 0, 1, 0]]
    rarity = 1 / np.log(2)
    np.testing.assert_allclose(
        rows["Adamic-Adar"], [[0, 2 * rarity, 0, rarity], [rarity, 0, rarity, 0]], rtol=1e-6
    )
    paths = np.array([[1, 0.1, 1, 0.05], [0.05, 1, 0.05, 0]]) + 0.0025 * np.array(
        [[2, 0, 3, 0], [0, 2, 0, 1]]
    )
    np.testing.assert_allclose(rows["Katz, up to 3 edges"], paths, rtol=1e-5)
    assert rows["random"].shape == (2, 4)


def test_other_right_answers_are_left_out_and_ties_shared(path_of_four):
    """(b, r, ?) is c in the training part, so that three entities are left."""

    def constant(given, relations):
        return np.zeros((len(given), 4), np.float32)

    assert path_of_four.reciprocal_ranks(constant)[0] == 1 / 2
    assert len(path_of_four.reciprocal_ranks(constant, limit=3)) == 3


def test_run_has_every_system_on_every_transfer(tmp_path):
    for seed, name in enumerate(("umls", "kinships")):
        rows = random_rows(seed)
        write(tmp_path, name, rows[:60], rows[60:64], rows[64:])
    transfers = (("umls", ("kinships",)), ("kinships", ("umls",)))
    figures = zero_shot.run(
        tmp_path, seeds=2, settings=TINY, transfers=transfers, supervised=["umls"], folder=tmp_path / "runs"
    )
    tables = {(figure.task, figure.data) for figure in figures}
    assert tables == {
        (zero_shot.TASK, "umls, trained on kinships"),
        (zero_shot.TASK, "kinships, trained on umls"),
        (zero_shot.SUPERVISED, "umls"),
    }
    ours = [figure for figure in figures if figure.system == OURS]
    assert [figure.metric for figure in ours] == ["MRR", "Hits@1", "Hits@3", "Hits@10"] * 3
    assert all(figure.seeds == 2 and 0 <= figure.low <= figure.value <= figure.high <= 1 for figure in ours)
    assert {figure.system for figure in figures if figure.data == "umls, trained on kinships"} == {
        *(
            "random",
            "degree",
            "degree in the relation",
            "common neighbours",
            "Adamic-Adar",
            "Katz, up to 3 edges",
        ),
        OURS,
    }
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        *("kinships-0", "kinships-1", "umls-0", "umls-1"),
    ]


def test_a_damaged_line_is_named(tmp_path):
    write(tmp_path, "umls", [("a", "r", "b"), ("a", "b")])
    with pytest.raises(GraphError, match=r"train.txt, line 2: expected head, relation"):
        zero_shot.DataSet.load(tmp_path, "umls")
