"""Graph classification: repeated stratified 10-fold cross-validation on sets in the TU format.

Nested: the ridge, the vocabulary of features and their scales come from the training folds alone (the ridge by
leave-one-out); the test fold is only scored. The families of features and the kernel are not nested: they were designed
while looking at cross-validated accuracy on these two sets, so expect some optimism. Published figures of graph networks
mostly nest nothing: GIN's 89.4 and 76.2 are of the epoch with the best mean accuracy on the test folds (Xu et al.,
ICLR 2019); with selection inside, Errica et al. (ICLR 2020) found 73.3 for GIN on PROTEINS and 75.8 for a network
that sees no edges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vglm.encoder.graph_features import Counts
from vglm.errors import ConfigError
from vglm.evaluate.report import OURS, Figure, summary
from vglm.graph.graph import Graph
from vglm.progress import progress_bar
from vglm.train.graph_classes import count_all, fit, one_hot, ridge_regression

TASK = "graph classification"
SETS = ("MUTAG", "PROTEINS")
NOTE = (
    "ridge and scales are chosen inside the training folds, families and kernel were designed on these sets; GIN as "
    "published (89.4 MUTAG, 76.2 PROTEINS) chose its epoch on the test folds"
)
_LEAST = 4  # graphs of a class: of fewer, some training fold could hold less than the two that training needs
_RIDGES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
Predict = Callable[[Sequence[Counts], Sequence[str], Sequence[Counts]], list[str]]


def run(
    data: Path, *, sets: Sequence[str] = SETS, seeds: int = 5, folds: int = 10, show: bool = False
) -> list[Figure]:
    """Accuracy on each set below `data`/graphcls, of the baselines and of ours; seed s decides how folds are drawn.

    Raises ConfigError for a set that is not there. Ours is deterministic: the seeds vary the folds alone.
    """
    figures: list[Figure] = []
    for name in sets:
        path = data / "graphcls" / name
        if not path.is_dir():
            raise ConfigError(f"{path}: no such folder; expected a set of graphs in the TU format")
        graphs, labels = Graph.load_set(path)
        counts = count_all(graphs, show=show)
        found = cross_validate(name, counts, labels, seeds=seeds, folds=folds, show=show)
        figures += [replace(one, note=f"{one.note}; {NOTE}") if one.system == OURS else one for one in found]
    return figures


def cross_validate(
    name: str,
    counts: Sequence[Counts],
    labels: Sequence[str],
    *,
    seeds: int = 5,
    folds: int = 10,
    show: bool = False,
) -> list[Figure]:
    """Accuracy of every system on graphs whose features are counted; each graph is a test case once per seed.

    Raises ConfigError for a class of fewer than four graphs.
    """
    for label, number in Counter(labels).items():
        if number < _LEAST:
            raise ConfigError(
                f"{name}: the class {label!r} has {number} graphs; cross-validation needs {_LEAST} of each class"
            )
    right = {system: np.zeros((seeds, len(labels))) for system in SYSTEMS}
    with progress_bar(seeds * folds, name, unit="fold", show=show) as advance:
        for seed in range(seeds):
            fold_of = stratified_folds(labels, folds, seed)
            for fold in range(folds):
                train, test = (np.flatnonzero(of).tolist() for of in (fold_of != fold, fold_of == fold))
                known, asked = [counts[i] for i in train], [counts[i] for i in test]
                for system, predict in SYSTEMS.items():
                    found = predict(known, [labels[i] for i in train], asked)
                    right[system][seed, test] = [labels[i] == one for i, one in zip(test, found, strict=True)]
                advance(seed * folds + fold + 1)
    return [summary(TASK, name, system, "accuracy", rows) for system, rows in right.items()]


def stratified_folds(labels: Sequence[str], folds: int, seed: int) -> npt.NDArray[np.int64]:
    """int64[n]: the fold of each case; every fold has its share of every class, to one."""
    names = np.array(labels)
    random = np.random.default_rng(seed)
    fold_of = np.zeros(len(labels), np.int64)
    dealt = 0
    for label in sorted(set(labels)):
        places = random.permutation(np.flatnonzero(names == label))
        fold_of[places] = (dealt + np.arange(len(places))) % folds
        dealt += len(places)
    return fold_of


def _majority(train: Sequence[Counts], labels: Sequence[str], test: Sequence[Counts]) -> list[str]:
    most = max(sorted(set(labels)), key=list(labels).count)
    return [most] * len(test)


def _linear(*families: str) -> Predict:
    """Linear ridge regression on square roots of counts, centred; its strength is chosen by leave-one-out."""

    def predict(train: Sequence[Counts], labels: Sequence[str], test: Sequence[Counts]) -> list[str]:
        holders = Counter((family, name) for graph in train for family in families for name in graph[family])
        places = {feature: place for place, feature in enumerate(f for f, n in holders.items() if n > 1)}
        known, asked = _table(train, places), _table(test, places)
        mean = known.mean(axis=0)
        known, asked = known - mean, asked - mean
        scale = float(np.square(known).sum(axis=1).mean()) or 1.0  # 0 where all graphs are alike
        classes = sorted(set(labels))
        targets = one_hot(labels, classes)
        prior = targets.mean(axis=0)
        products = (known @ known.T / scale).astype(np.float64)
        _, coefficients, _ = ridge_regression(products, targets - prior, _RIDGES)
        scores = asked @ known.T / scale @ coefficients + prior
        return [classes[best] for best in scores.argmax(axis=1).tolist()]

    return predict


def _table(counts: Sequence[Counts], places: Mapping[tuple[str, str], int]) -> npt.NDArray[np.float32]:
    """Square roots of the counts, float32[n, F]."""
    found = np.zeros((len(counts), len(places)), np.float32)
    for row, graph in enumerate(counts):
        for family in {family for family, _ in places}:
            for name, value in graph[family].items():
                place = places.get((family, name))
                if place is not None:
                    found[row, place] = value
    return np.sqrt(found)


def _ours(train: Sequence[Counts], labels: Sequence[str], test: Sequence[Counts]) -> list[str]:
    classifier = fit(train, labels)
    return [classifier.classes[best] for best in classifier.probabilities(test).argmax(axis=1).tolist()]


SYSTEMS: dict[str, Predict] = {
    "majority class": _majority,
    "counts of node types": _linear("types"),
    "Weisfeiler-Leman, 2 rounds": _linear("types", "around", "far"),
    OURS: _ours,
}
