"""Disease ranking on published cases whose disease was never trained on: Top-1, Top-3, Top-10 and MRR among all diseases.

Five folds over diseases: each case is ranked by a model that was trained on the other folds. Diseases with a gene or a named
series in common are in one fold. Only "uncited" cases are scored (vglm/train/disease_cases.py says why). Cohorts are
very unequal (one disease has 462 of 2,354 cases), so means over diseases are given beside means over cases, and intervals
come from drawing diseases anew, not cases. "Without prior" ranks candidates that were chosen with it. The inputs of the
model and of its prior were chosen while looking at these cases: no fold was trained on its own diseases, but the choice saw
all of them, so expect some optimism."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vglm.encoder.disease_candidates import DiseaseIndex
from vglm.encoder.disease_index import disease_index
from vglm.encoder.disease_ranker import CANDIDATES, Weights
from vglm.errors import ConfigError
from vglm.evaluate.report import OURS, RESAMPLES, Figure
from vglm.graph.hpo import HPO, load_hpo
from vglm.train.disease_cases import PATIENTS, Case, family_keys, folds, read_cases
from vglm.train.disease_examples import Example, example, thinned
from vglm.train.disease_genes import gene_table
from vglm.train.disease_ranking import calibrate, choose_cases, fit, score

FOLDS = 5
TASK = "disease from findings, uncited cases"
NOTE = "features and prior were chosen while looking at these cases: expect some optimism"
WITHOUT_PRIOR = f"{OURS} without prior"
Floats = npt.NDArray[np.float64]
METRICS = ("Top-1", "Top-3", "Top-10", "MRR")


def run(data: Path, hpo_directory: Path | None = None, limit: int | None = None) -> list[Figure]:
    """The figures of the model with and without its prior, of the screening alone, and of both baselines.

    `limit` takes that many cases at random. Memory: about 2 GB; time: one to two minutes on one core. Raises ConfigError when
    the cases are missing, GraphError when the ontology is.
    """
    from vglm.model.pull import home, pull_hpo

    hpo = load_hpo(hpo_directory or pull_hpo(progress=False), home() / "graphs")
    genes = (hpo_directory or pull_hpo(progress=False)) / "genes_to_phenotype.txt"
    cases, left_out = read_cases(data / PATIENTS, hpo)
    if limit is not None:
        chosen = np.random.default_rng(0).permutation(len(cases))[:limit]
        cases = [cases[i] for i in sorted(chosen.tolist())]
    note = ", ".join(f"{count:,} cases left out: {why}" for why, count in left_out.items() if count)
    return figures(cross_validate(hpo, cases, genes, cache_dir=home() / "graphs"), note)


@dataclass(frozen=True)
class Validated:
    """N uncited cases: the `places` float64[N] of the true disease by each system, and the calibration of the model,
    float32[2], by all of them; `training` are the thinned examples of all folds, `genes` int32[P, 2] the table of genes."""

    cases: list[Case]
    places: dict[str, Floats]
    calibration: npt.NDArray[np.float32]
    training: list[Example]
    genes: npt.NDArray[np.int32]

    def train(self) -> Weights:
        """The weights to ship: trained on all folds, and calibrated."""
        return replace(fit(self.training), calibration=self.calibration, genes=self.genes)


def cross_validate(
    hpo: HPO, cases: Sequence[Case], genes: Path | None, seed: int = 0, cache_dir: Path | None = None
) -> Validated:
    """Ranks every uncited case by a model that was trained on the other folds; raises ConfigError when there is none."""
    fold_of = folds([case.disease for case in cases], family_keys(hpo, cases, genes), FOLDS, seed)
    table = gene_table(genes)
    index = disease_index(hpo.graph, cache_dir).with_genes(hpo.graph, table)
    training, tested = _examples(hpo, index, cases, seed)
    if not tested:
        raise ConfigError("no published case whose papers its disease does not cite: nothing to evaluate")
    tested.sort(key=lambda e: fold_of[e.case.disease])
    places = {name: [e.places[name] for e in tested] for name in ("resnik", "likelihood", "screening")}
    scores: list[npt.NDArray[np.float32]] = []
    for name, prior in ((WITHOUT_PRIOR, False), (OURS, True)):
        scores = []
        for fold in sorted({fold_of[e.case.disease] for e in tested}):
            weights = fit([e for e in training if fold_of[e.case.disease] != fold], prior=prior)
            scores += [score(weights, e) for e in tested if fold_of[e.case.disease] == fold]
        places[name] = [_place(e, found) for e, found in zip(tested, scores, strict=True)]
    ranked = [e.case for e in tested]
    inside = [e.places["screening"] <= CANDIDATES for e in tested]
    calibration = calibrate(list(zip(scores, inside, _disease_weights(ranked).tolist(), strict=True)))
    by_system = {name: np.array(found) for name, found in places.items()}
    return Validated(ranked, by_system, calibration, training, table)


def _examples(
    hpo: HPO, index: DiseaseIndex, cases: Sequence[Case], seed: int
) -> tuple[list[Example], list[Example]]:
    """Thinned examples to train on, and whole ones of the uncited cases to test."""
    random = np.random.default_rng(seed)
    chosen = {id(case) for case in choose_cases(cases, seed)}
    training: list[Example] = []
    tested: list[Example] = []
    for case in cases:
        if case.cited and id(case) not in chosen:
            continue
        found = example(hpo, index, case, resnik=not case.cited)
        if found is None:
            continue
        if id(case) in chosen:
            training.append(thinned(found, random))
        if not case.cited:
            tested.append(found)
    return training, tested


def _place(of: Example, scores: npt.NDArray[np.float32]) -> float:
    """Place of the true disease among all; one that is no candidate keeps that of the screening."""
    if of.places["screening"] > CANDIDATES:
        return of.places["screening"]
    others = scores[1:]
    return 1 + float((others > scores[0]).sum()) + float((others == scores[0]).sum()) / 2


def _disease_weights(cases: Sequence[Case]) -> Floats:
    counts = Counter(case.disease for case in cases)
    return np.array([1 / counts[case.disease] for case in cases])


def figures(validated: Validated, note: str = "") -> list[Figure]:
    """Every metric of every system, as means over cases and over diseases."""
    diseases = np.unique([case.disease for case in validated.cases], return_inverse=True)[1]
    sums = np.bincount(diseases).astype(np.float64)
    found: list[Figure] = []
    for name, places in validated.places.items():
        for metric in METRICS:
            values = np.bincount(diseases, _values(metric, places)).astype(np.float64)
            for data, weights in (("by case", sums), ("by disease", np.ones(len(sums)))):
                totals = values if data == "by case" else values / sums
                value = float(totals.sum() / weights.sum())
                low, high = _interval(totals, weights)
                size = len(places) if data == "by case" else len(sums)
                said = "; ".join(filter(None, (NOTE, note))) if name == OURS else ""
                found.append(Figure(TASK, data, name, metric, value, low, high, size, 1, said))
    return found


def _values(metric: str, places: Floats) -> Floats:
    if metric == "MRR":
        return 1 / places
    return (places <= int(metric.removeprefix("Top-"))).astype(np.float64)


def _interval(totals: Floats, weights: Floats, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of sum(totals) / sum(weights), drawing diseases: float64[diseases] each."""
    drawn = np.random.default_rng(seed).integers(len(totals), size=(RESAMPLES, len(totals)))
    low, high = np.quantile(totals[drawn].sum(axis=1) / weights[drawn].sum(axis=1), [0.025, 0.975]).tolist()
    return low, high
