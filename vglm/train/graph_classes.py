"""Training of graph classifiers: kernel ridge regression, its one setting chosen by leave-one-out, in closed form.

Needs NumPy only, and is deterministic. Time and memory grow with the cube and the square of the number of graphs: 200
graphs take a second, 1,000 half a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vglm.encoder.graph_classifier import MAX_GRAPHS, MAX_VALUES, GraphClassifier, softmax
from vglm.encoder.graph_features import Counts, count
from vglm.encoder.graph_kernel import Kernel
from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.progress import progress_bar

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClassifierOptions:
    """`directed`: the direction of edges counts. `ridges`: the regularisation strengths that are tried."""

    directed: bool = False
    ridges: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


DEFAULTS = ClassifierOptions()


def train_classifier(
    graphs: Sequence[Graph],
    labels: Sequence[str],
    options: ClassifierOptions = DEFAULTS,
    *,
    show: bool = False,
) -> GraphClassifier:
    """A classifier of the graphs' classes. `show`: a progress bar.

    Raises GraphError for fewer than two classes, a class of one graph, other numbers of labels than graphs, and bad graphs.
    """
    if len(graphs) != len(labels):
        raise GraphError(f"there are {len(graphs):,} graphs and {len(labels):,} labels")
    return fit(count_all(graphs, directed=options.directed, show=show), labels, options)


def count_all(graphs: Sequence[Graph], *, directed: bool = False, show: bool = False) -> list[Counts]:
    """The features of each graph. Raises GraphError with the place of a bad graph."""
    counts = []
    with progress_bar(len(graphs), "counting substructures", unit="graph", show=show) as advance:
        for place, graph in enumerate(graphs):
            try:
                counts.append(count(graph, directed=directed))
            except GraphError as error:
                raise GraphError(f"graphs[{place}]: {error}") from None
            advance(place + 1)
    return counts


def fit(
    counts: Sequence[Counts], labels: Sequence[str], options: ClassifierOptions = DEFAULTS
) -> GraphClassifier:
    """`train_classifier` of graphs whose features are counted already."""
    classes = _classes(labels)
    targets = one_hot(labels, classes)
    prior = targets.mean(axis=0)
    kernel = Kernel.of(counts)
    if kernel.table.size > MAX_VALUES:
        raise GraphError(
            f"{len(counts):,} graphs of {kernel.table.shape[1]:,} features are too many to train on; take a sample"
        )
    ridge, coefficients, held_out = ridge_regression(kernel.matrix(), targets - prior, options.ridges)
    sharpness = best_sharpness(held_out, targets)
    found = (sharpness * held_out + np.log(prior)).argmax(axis=1)
    accuracy = float((found == targets.argmax(axis=1)).mean())
    about = {
        "graphs": str(len(counts)),
        "ridge": f"{ridge:g}",
        "leave-one-out accuracy": f"{accuracy:.4f}",
    }
    return GraphClassifier(classes, kernel, coefficients, prior, sharpness, options.directed, about)


def ridge_regression(
    matrix: Doubles, targets: Doubles, ridges: Sequence[float]
) -> tuple[float, Doubles, Doubles]:
    """The ridge with the least leave-one-out squared error, its coefficients [M, C], its leave-one-out predictions [M, C].

    With a = (K + r)^-1 y, leaving i out predicts y_i - a_i / (K + r)^-1_ii (Rifkin and Lippert, 2007); one
    eigendecomposition of K serves all ridges.
    """
    eigenvalues, vectors = np.linalg.eigh(matrix)
    eigenvalues = np.maximum(eigenvalues, 0)
    projected = vectors.T @ targets
    best: tuple[float, float, Doubles, Doubles] | None = None
    for ridge in ridges:
        inverse = 1 / (eigenvalues + ridge)
        coefficients = vectors @ (inverse[:, None] * projected)
        diagonal = (vectors * vectors) @ inverse
        held_out = targets - coefficients / diagonal[:, None]
        error = float(np.square(held_out - targets).mean())
        if best is None or error < best[0]:
            best = error, ridge, coefficients, held_out
    if best is None:
        raise ValueError("no ridge to try")
    return best[1:]


def best_sharpness(scores: Doubles, targets: Doubles) -> float:
    """The factor of scores [M, C], beside the classes' shares, with the least cross-entropy to one-hot targets.

    The targets are smoothed as Platt's (1999), or scores that happen to be right everywhere would seem certain.
    """
    count, classes = targets.shape
    prior = np.log(targets.mean(axis=0))
    smooth = (count * targets + 1) / (count + classes)
    factors = np.geomspace(0.25, 64, 80)
    losses = [-float((np.log(softmax(f * scores + prior) + 1e-12) * smooth).sum()) for f in factors]
    return float(factors[int(np.argmin(losses))])


def one_hot(labels: Sequence[str], classes: Sequence[str]) -> Doubles:
    """float64[M, C]."""
    places = {name: place for place, name in enumerate(classes)}
    return np.eye(len(classes))[[places[label] for label in labels]]


def _classes(labels: Sequence[str]) -> tuple[str, ...]:
    if len(labels) > MAX_GRAPHS:
        raise GraphError(f"{len(labels):,} graphs are too many to train on; take a sample of {MAX_GRAPHS:,}")
    names = sorted(set(labels))
    if len(names) < 2:
        raise GraphError("a classifier needs graphs of at least two classes")
    for name in names:
        if labels.count(name) < 2:
            raise GraphError(
                f"the class {name!r} has one graph; at least two are needed to learn and to judge"
            )
    return tuple(names)
