"""Classification of graphs by their substructures, with evidence. NumPy only; `vglm.train.graph_classes` trains it.

Kernel ridge regression on one-hot classes: a class's score is a weighted sum of the similarities (`graph_kernel`) to the
training graphs. It says how far the class's share in training is to be corrected, so that a graph like none of them gets
those shares as its probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vglm.encoder.graph_features import Counts, count, substructures
from vglm.encoder.graph_kernel import INTERSECTIONS, USED, Floats, Kernel, log_counts, normalisers, own_sizes
from vglm.encoder.graph_structure import Structure
from vglm.errors import GraphError, ModelError, RequestError
from vglm.graph.graph import Graph

_FORMAT = "vglm-graph-classifier-1"
MAX_GRAPHS = 8_000  # to train on: half a gigabyte for their similarities, as much for the eigenvectors
MAX_VALUES = 200_000_000  # of training graphs times features: 0.8 GB
_MAX_OCCURRENCES = 20  # of one feature in an explanation


@dataclass(frozen=True, slots=True)
class Evidence:
    """A kind of substructure that spoke for a class.

    `weight` is by how much the class's log-odds would fall without it (negative: it spoke against). `nodes` are the
    ids of each occurrence's nodes (at most 20 occurrences), `edges` the places (`Graph.edge_at`) of the edges among them.
    """

    family: str
    name: str
    weight: float
    count: float
    nodes: tuple[tuple[str, ...], ...]
    edges: tuple[int, ...]


@dataclass(frozen=True)
class GraphClassifier:
    """Says which of `classes` a graph belongs to.

    `coefficients` float64[M, C] weigh the M training graphs for C classes, `prior` float64[C] are the classes' shares,
    `sharpness` turns scores into log-odds beyond the prior's. `directed`: whether the direction of edges counts. `about`
    are texts for people: what it was trained on, and how well it did there.
    """

    classes: tuple[str, ...]
    kernel: Kernel
    coefficients: npt.NDArray[np.float64]
    prior: npt.NDArray[np.float64]
    sharpness: float
    directed: bool = False
    about: Mapping[str, str] = field(default_factory=dict)

    def predict_proba(self, graphs: Sequence[Graph]) -> Floats:
        """Probabilities float32[B, C] of B graphs. Raises GraphError for an empty or too large graph, with its place."""
        return self.probabilities([self._count(graph, place) for place, graph in enumerate(graphs)])

    def predict(self, graphs: Sequence[Graph]) -> list[str]:
        """The likeliest class of each graph."""
        return [self.classes[best] for best in self.predict_proba(graphs).argmax(axis=1).tolist()]

    def probabilities(self, counts: Sequence[Counts]) -> Floats:
        """`predict_proba` of graphs whose features are counted already."""
        if not counts:
            return np.zeros((0, len(self.classes)), np.float32)
        scores = np.stack([self.kernel.similarity(each) for each in counts]) @ self.coefficients
        return softmax(self.sharpness * scores + np.log(self.prior)).astype(np.float32)

    def explain(self, graph: Graph, k: int = 5, label: str | None = None) -> list[Evidence]:
        """The k features that speak most for the class `label` (default: the likeliest), strongest first.

        Each feature of the graph is taken away by itself, and the fall of the class's log-odds is its weight. Only what
        consists of nodes is shown, not numbers of the whole graph. Raises RequestError for an unknown label.
        """
        if label is not None and label not in self.classes:
            raise RequestError(
                f"label: no class {label!r}; the classes are {', '.join(self.classes)}", "label"
            )
        if k < 1:
            raise RequestError(f"k must be at least 1, found {k}", "k")
        counts = self._count(graph, 0)
        target = int(self.probabilities([counts])[0].argmax()) if label is None else self.classes.index(label)
        weights = self._weights(counts, target)
        best = sorted(weights, key=lambda feature: (-weights[feature], feature))[:k]
        occurrences: dict[tuple[str, str], list[tuple[int, ...]]] = {feature: [] for feature in best}
        for family, name, nodes in substructures(Structure.of(graph, directed=self.directed)):
            found = occurrences.get((family, name))
            if found is not None and len(found) < _MAX_OCCURRENCES:
                found.append(nodes)
        return [
            _evidence(graph, family, name, weights[family, name], counts[family][name], nodes)
            for (family, name), nodes in occurrences.items()
        ]

    def _weights(self, counts: Counts, target: int) -> dict[tuple[str, str], float]:
        """Per feature of the graph: the class's log-odds with it minus those without it."""
        kernel = self.kernel
        row, own = kernel.row(counts), own_sizes(counts)
        distance, shared = kernel.distance(row), kernel.shared(row)
        before = self._log_odds(np.exp(-distance) * (shared / normalisers(kernel.sizes, own)).mean(0), target)
        found = {}
        for family, group in ((family, _group(family)) for family in USED if family != "whole"):
            for name in counts[family]:
                column = kernel.places[family].get(name)
                if column is None:
                    continue
                without, size, rest = distance, own.copy(), shared.copy()
                scale = float(kernel.scales[column])
                if scale:
                    logs = log_counts(kernel.table[:, column]) * scale
                    without = distance + np.abs(logs) - np.abs(logs - log_counts(row[column]) * scale)
                if group is not None:
                    rest[group] -= np.minimum(kernel.table[:, column], row[column])
                    size[group] -= row[column]
                overlap = (rest / normalisers(kernel.sizes, size)).mean(axis=0)
                found[family, name] = before - self._log_odds(np.exp(-without) * overlap, target)
        return found

    def _log_odds(self, similarity: npt.NDArray[np.float64], target: int) -> float:
        """log(p / (1 - p)) of a class."""
        scores = self.sharpness * (similarity @ self.coefficients) + np.log(self.prior)
        others = np.delete(scores, target)
        return float(scores[target] - np.logaddexp.reduce(others))

    def _count(self, graph: Graph, place: int) -> Counts:
        try:
            return count(graph, directed=self.directed)
        except GraphError as error:
            raise GraphError(f"graphs[{place}]: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write one safetensors file. The training graphs' counts are stored sparsely; their ids and texts are not."""
        table = np.ascontiguousarray(self.kernel.table)
        rows, columns = np.nonzero(table)
        tensors: dict[str, npt.NDArray[Any]] = {
            "values": table[rows, columns],
            "columns": columns.astype(np.int32),
            "rows": rows.astype(np.int32),
            "sizes": self.kernel.sizes,
            "coefficients": np.ascontiguousarray(self.coefficients),
            "prior": self.prior,
        }
        content = {
            "classes": self.classes,
            "names": self.kernel.names,
            "sharpness": self.sharpness,
            "directed": self.directed,
            "about": dict(self.about),
        }
        save_file(tensors, path, metadata={"format": _FORMAT, "content": json.dumps(content)})

    @classmethod
    def load(cls, path: str | Path) -> GraphClassifier:
        """Read what `save` wrote. Raises ModelError for any other file."""
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ModelError(f"{path}: not a graph classifier; make one with `vglm train classifier`")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            return cls._from(json.loads(metadata["content"]), tensors)
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file") from None
        except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ModelError(f"{path}: the graph classifier is damaged ({error})") from None

    @classmethod
    def _from(cls, content: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> GraphClassifier:
        names = {family: list(content["names"][family]) for family in USED}
        count, classes = tensors["coefficients"].shape
        if classes != len(content["classes"]) or tensors["prior"].shape != (classes,):
            raise ValueError("the number of classes differs between its parts")
        if not (tensors["prior"] > 0).all():
            raise ValueError("a class without a share")
        if tensors["sizes"].shape != (len(INTERSECTIONS), count):
            raise ValueError("the number of training graphs differs between its parts")
        rows, columns = tensors["rows"], tensors["columns"]
        if min(rows.min(initial=0), columns.min(initial=0)) < 0:
            raise ValueError("a negative place")
        features = sum(map(len, names.values()))
        if (
            count > MAX_GRAPHS or count * features > MAX_VALUES
        ):  # stored sparsely, so a small file can ask for much
            raise ValueError(f"{count:,} training graphs of {features:,} features are too many")
        table = np.zeros((count, features), np.float32, order="F")
        table[rows, columns] = tensors["values"]
        kernel = Kernel(names, table, tensors["sizes"])
        return cls(
            tuple(content["classes"]),
            kernel,
            tensors["coefficients"],
            tensors["prior"],
            float(content["sharpness"]),
            bool(content["directed"]),
            content["about"],
        )


def softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities [B, C] of scores [B, C]."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _group(family: str) -> int | None:
    """The intersection that a family counts in."""
    return next((place for place, group in enumerate(INTERSECTIONS) if family in group), None)


def _evidence(
    graph: Graph, family: str, name: str, weight: float, number: float, found: Sequence[tuple[int, ...]]
) -> Evidence:
    columns = graph.columns
    edges: set[int] = set()
    for nodes in found:
        inside = np.isin(columns.sources, nodes) & np.isin(columns.targets, nodes)
        edges.update(np.flatnonzero(inside).tolist())
    ids = tuple(tuple(graph.id_of(node) for node in nodes) for nodes in found)
    return Evidence(family, name, weight, number, ids, tuple(sorted(edges)))
