from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.train.test_disease_ranking import hpo, patients  # noqa: F401
from vglm.errors import ConfigError
from vglm.evaluate.disease_ranking import NOTE, WITHOUT_PRIOR, Validated, cross_validate, figures
from vglm.evaluate.report import OURS
from vglm.graph.hpo import HPO
from vglm.train.disease_cases import Case


def test_every_case_is_ranked_once_by_every_system(hpo: HPO) -> None:  # noqa: F811
    cases = patients(hpo, 60)
    found = cross_validate(hpo, cases, None)
    assert sorted(map(id, found.cases)) == sorted(map(id, cases))
    assert set(found.places) == {"resnik", "likelihood", "screening", WITHOUT_PRIOR, OURS}
    assert all(
        len(places) == 60 and places.min() >= 1 and places.max() <= 40 for places in found.places.values()
    )
    assert found.places[OURS].mean() < 12  # chance is 20.5
    assert found.calibration[0] > 0
    assert 0 < found.calibration[1] <= 1
    assert (found.train().calibration == found.calibration).all()


def test_means_by_case_and_by_disease() -> None:
    cases = [Case(disease, False, frozenset(), [], []) for disease in "aaab"]
    places = {OURS: np.array([1, 1, 1, 10.0])}
    shown = figures(
        Validated(cases, places, np.ones(2, np.float32), [], np.zeros((0, 2), np.int32)), "a note"
    )
    assert {one.note for one in shown} == {f"{NOTE}; a note"}
    found = {(f.data, f.metric): f for f in shown}
    assert found["by case", "Top-1"].value == 0.75
    assert found["by disease", "Top-1"].value == 0.5
    assert found["by disease", "Top-10"].value == 1
    assert found["by case", "MRR"].value == pytest.approx(3.1 / 4)
    assert (found["by case", "MRR"].n, found["by disease", "MRR"].n) == (4, 2)
    assert (found["by disease", "Top-1"].low, found["by disease", "Top-1"].high) == (0, 1)


def test_a_constant_scorer_does_not_win(hpo: HPO) -> None:  # noqa: F811
    from vglm.encoder.disease_index import disease_index
    from vglm.evaluate.disease_ranking import _place
    from vglm.train.disease_examples import example

    found = example(hpo, disease_index(hpo.graph), patients(hpo, 1)[0])
    assert found is not None
    assert _place(found, np.zeros(len(found.first), np.float32)) == (1 + len(found.first)) / 2


def test_nothing_to_evaluate(hpo: HPO) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        cross_validate(hpo, [], None)
