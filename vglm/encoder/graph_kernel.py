"""How alike two graphs are, by their counted features.

The similarity is a product of two kernels, each positive definite and 1 for a graph with itself:

- the Laplace kernel exp(-d): d sums, over families of features, the mean absolute difference of standardised
  log-counts. Like a forest it bends along one feature at a time, and no single feature can dominate;
- the mean of three normalised histogram intersections of counts: Weisfeiler-Leman colours (the optimal assignment of
  nodes, Kriege et al., NeurIPS 2016), ring-aware colours, and distances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vglm.encoder.graph_features import Counts

Floats = npt.NDArray[np.float32]

LAPLACE_WEIGHTS = {
    "whole": 0.7,
    "around": 0.3,
    "ring types": 0.3,
    "walks": 0.3,
    "distances": 0.3,
    "ring systems": 0.3,
}
INTERSECTIONS = (("types", "around", "far"), ("ring types", "ring around"), ("distances",))
USED = tuple(dict.fromkeys([*LAPLACE_WEIGHTS, *(name for names in INTERSECTIONS for name in names)]))
_LEAST_COMMON = 5  # graphs that have a feature, for the Laplace kernel; rarer ones only add noise
_LEAST_SHARED = 2  # for intersections: what one graph alone has cannot be shared
Vocabulary = dict[str, list[str]]


def vocabulary(counts: Sequence[Counts]) -> Vocabulary:
    """The features, by family and in the order of their names, that at least two of the graphs have."""
    found: Vocabulary = {}
    for family in USED:
        holders = Counter(name for graph in counts for name, value in graph[family].items() if value)
        found[family] = sorted(name for name, number in holders.items() if number >= _LEAST_SHARED)
    return found


@dataclass(frozen=True)
class Kernel:
    """Similarity to M reference graphs; `table` float32[M, F] holds their counts, families in the order of `USED`.

    `sizes` float64[3, M] are the sums of all their counts in each intersection, features outside the vocabulary
    included: a graph full of what was never seen in training is like no other.
    """

    names: Vocabulary
    table: Floats  # by columns (Fortran order): a graph reads those that it has
    sizes: npt.NDArray[np.float64]

    @classmethod
    def of(cls, counts: Sequence[Counts]) -> Kernel:
        """The kernel whose references, vocabulary and scales are those of `counts`."""
        names = vocabulary(counts)
        empty = cls(names, np.zeros((0, sum(map(len, names.values()))), np.float32), np.zeros((3, 0)))
        table = np.asfortranarray(np.stack([empty.row(graph) for graph in counts]))
        return cls(names, table, np.stack([own_sizes(graph) for graph in counts], axis=1))

    @cached_property
    def ranges(self) -> dict[str, slice]:
        """Columns of each family."""
        found, start = {}, 0
        for family in USED:
            found[family] = slice(start, start + len(self.names[family]))
            start += len(self.names[family])
        return found

    @cached_property
    def places(self) -> dict[str, dict[str, int]]:
        """Column of each feature, by family and name."""
        return {
            family: {name: self.ranges[family].start + place for place, name in enumerate(names)}
            for family, names in self.names.items()
        }

    @cached_property
    def scales(self) -> Floats:
        """float32[F]: what a unit of a standardised log-count adds to the Laplace kernel's distance."""
        logs = log_counts(self.table).astype(np.float64)
        spread = logs.std(axis=0)
        holders = (self.table != 0).sum(axis=0)
        common = np.minimum(holders, len(logs) * (spread > 1e-9)) >= _LEAST_COMMON
        scales = np.zeros(self.table.shape[1])
        for family, weight in LAPLACE_WEIGHTS.items():
            columns = self.ranges[family]
            use = common[columns]
            scales[columns] = np.where(use, weight / np.maximum(spread[columns], 1e-9) / max(1, use.sum()), 0)
        return scales.astype(np.float32)

    @cached_property
    def logs(self) -> Floats:
        """float32[M, L]: scaled log-counts of the references, the columns of the Laplace kernel only."""
        return np.ascontiguousarray((log_counts(self.table) * self.scales)[:, self.scales > 0])

    def columns(self, families: Sequence[str]) -> npt.NDArray[np.int64]:
        """Columns of several families."""
        return np.concatenate([np.arange(self.ranges[f].start, self.ranges[f].stop) for f in families])

    def row(self, counts: Counts) -> Floats:
        """float32[F]: a graph's counts in the order of the vocabulary."""
        found = np.zeros(self.table.shape[1], np.float32)
        for family in USED:
            places = self.places[family]
            for name, value in counts[family].items():
                place = places.get(name)
                if place is not None:
                    found[place] = value
        return found

    def similarity(self, counts: Counts) -> npt.NDArray[np.float64]:
        """float64[M]: similarity of a graph to every reference, 0..1."""
        row = self.row(counts)
        return np.exp(-self.distance(row)) * self.overlap(row, own_sizes(counts))

    def matrix(self) -> npt.NDArray[np.float64]:
        """float64[M, M]: `similarity` between all references, at about half its cost."""
        count = len(self.table)
        distances = np.zeros((count, count))
        for place in range(count):
            apart = np.abs(self.logs[place:] - self.logs[place]).sum(axis=1, dtype=np.float64)
            distances[place, place:] = distances[place:, place] = apart
        overlap = np.zeros((count, count))
        for group, sizes in zip(INTERSECTIONS, self.sizes, strict=True):
            shared = np.zeros((count, count))
            for column in self.columns(group).tolist():
                holders = np.flatnonzero(self.table[:, column])
                values = self.table[holders, column]
                shared[np.ix_(holders, holders)] += np.minimum.outer(values, values)
            overlap += shared / np.maximum(np.sqrt(np.outer(sizes, sizes)), 1e-9)
        return np.exp(-distances) * overlap / len(INTERSECTIONS)

    def distance(self, row: Floats) -> npt.NDArray[np.float64]:
        """float64[M]: the Laplace kernel's distance to every reference."""
        logs = (log_counts(row) * self.scales)[self.scales > 0]
        found: npt.NDArray[np.float64] = np.abs(self.logs - logs).sum(axis=1, dtype=np.float64)
        return found

    def overlap(self, row: Floats, own: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """float64[M]: the mean of the intersections; `own` float64[3] are the sums of all the graph's counts."""
        found: npt.NDArray[np.float64] = (self.shared(row) / normalisers(self.sizes, own)).mean(axis=0)
        return found

    def shared(self, row: Floats) -> npt.NDArray[np.float64]:
        """float64[3, M]: histogram intersections with every reference. Only columns that the graph has are read."""
        found = np.zeros((len(INTERSECTIONS), len(self.table)))
        for place, group in enumerate(INTERSECTIONS):
            columns = self.columns(group)
            columns = columns[row[columns] > 0]
            found[place] = np.minimum(self.table[:, columns], row[columns]).sum(axis=1, dtype=np.float64)
        return found


def own_sizes(counts: Mapping[str, Mapping[str, float]]) -> npt.NDArray[np.float64]:
    """float64[3]: the sum of all of a graph's counts in each intersection, unseen features included."""
    return np.array([sum(sum(counts[family].values()) for family in group) for group in INTERSECTIONS])


def normalisers(sizes: npt.NDArray[np.float64], own: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """float64[3, M] for sizes [3, M] and own [3]: what an intersection is divided by to be 1 for equal graphs."""
    return np.maximum(np.sqrt(sizes * own[:, None]), 1e-9)


def log_counts(values: Floats) -> Floats:
    """log(1 + |x|) with the sign of x: counts of 1 and 2 differ as much as those of 10 and 20."""
    return np.sign(values) * np.log1p(np.abs(values))
