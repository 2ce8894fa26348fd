"""The evaluation of graph classification: folds, baselines, no leak from test folds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.encoder.test_graph_classifier import molecule
from vglm.encoder.graph_features import Counts, count
from vglm.errors import ConfigError
from vglm.evaluate.graph_classes import SYSTEMS, cross_validate, run, stratified_folds
from vglm.evaluate.report import OURS


@pytest.fixture(scope="module")
def cases() -> tuple[list[Counts], list[str]]:
    flags = [seed % 3 != 0 for seed in range(45)]
    graphs = [molecule(seed, nitro=flag) for seed, flag in enumerate(flags)]
    return [count(graph) for graph in graphs], ["active" if flag else "not" for flag in flags]


@pytest.mark.parametrize("seed", range(5))
def test_every_fold_has_its_share_of_every_class(seed: int) -> None:
    labels = ["a"] * 63 + ["b"] * 125 + ["c"] * 4
    fold_of = stratified_folds(labels, 10, seed)
    assert Counter(fold_of.tolist()).keys() == set(range(10))
    sizes = np.bincount(fold_of, minlength=10)
    assert sizes.max() - sizes.min() <= 1
    for label in "abc":
        members = np.bincount(fold_of[[one == label for one in labels]], minlength=10)
        assert members.max() - members.min() <= 1
    np.testing.assert_array_equal(fold_of, stratified_folds(labels, 10, seed))
    assert not np.array_equal(fold_of, stratified_folds(labels, 10, seed + 1))


def test_a_planted_group_is_found_and_the_majority_is_not_enough(
    cases: tuple[list[Counts], list[str]],
) -> None:
    figures = {figure.system: figure for figure in cross_validate("planted", *cases, seeds=2, folds=5)}
    assert figures.keys() == SYSTEMS.keys()
    assert figures["majority class"].value == pytest.approx(2 / 3)
    assert figures[OURS].value > 0.9
    assert figures["Weisfeiler-Leman, 2 rounds"].value > 0.8
    for figure in figures.values():
        assert (figure.n, figure.seeds, figure.metric) == (45, 2, "accuracy")
        assert figure.low <= figure.value <= figure.high


def test_labels_that_mean_nothing_cannot_be_predicted(cases: tuple[list[Counts], list[str]]) -> None:
    """Were a test fold seen in training, these would be right far more often."""
    labels = np.random.default_rng(0).permutation(["x"] * 22 + ["y"] * 23).tolist()
    for figure in cross_validate("noise", cases[0], labels, seeds=3, folds=5):
        assert figure.value < 0.7, figure


def test_graphs_that_are_all_alike_get_the_majority_class(cases: tuple[list[Counts], list[str]]) -> None:
    figures = cross_validate("alike", [cases[0][0]] * 12, ["x"] * 8 + ["y"] * 4, seeds=1, folds=4)
    assert {figure.value for figure in figures} == {8 / 12}


def test_a_class_of_few_graphs_is_refused(cases: tuple[list[Counts], list[str]]) -> None:
    with pytest.raises(ConfigError, match="few: the class 'y' has 3 graphs; cross-validation needs 4"):
        cross_validate("few", cases[0], ["x"] * 42 + ["y"] * 3)


def test_a_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MUTAG: no such folder"):
        run(tmp_path)
