"""What a graph says about its diseases' phenotypes: `has phenotype` edges pooled into one frequency per
pair."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.graph.limits import shown

HAS_PHENOTYPE = "has phenotype"
UNKNOWN_FREQUENCY = 0.7  # of an annotation that states none
_COUNTS = re.compile(r"(\d{1,9})/(\d{1,9})")


@dataclass(frozen=True, slots=True)
class Annotations:
    """A annotated pairs, by (disease, term): node indices int32[A], and P(term | disease) float32[A] in 0..1.

    Counts are pooled over references and smoothed, (n + 1) / (m + 2); a stated range stands for its midpoint.
    Pairs that were looked for and never seen (every reference states a frequency of zero) are left out.
    """

    diseases: npt.NDArray[np.int32]
    terms: npt.NDArray[np.int32]
    frequencies: npt.NDArray[np.float32]


def phenotype_edges(graph: Graph) -> npt.NDArray[np.int64]:
    """Indices of the graph's `has phenotype` edges, ascending."""
    return np.flatnonzero(graph.columns.relations == graph.relation_code(HAS_PHENOTYPE))


def pool(graph: Graph, edges: npt.NDArray[np.integer]) -> Annotations:
    """Joins parallel edges (`edges` ascending) into one annotation per pair; raises GraphError for a bad
    frequency."""
    columns = graph.columns
    if len(edges) == 0:
        return Annotations(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    diseases, terms = columns.sources[edges], columns.targets[edges]
    codes, positions = np.unique(columns.edge_attributes[edges], return_inverse=True)
    stated = np.array([_stated(columns.edge_attribute_texts[int(code)]) for code in codes])[positions]
    first = np.flatnonzero(np.append(True, (diseases[1:] != diseases[:-1]) | (terms[1:] != terms[:-1])))
    value, lowest = np.maximum.reduceat(stated[:, 0], first), np.minimum.reduceat(stated[:, 0], first)
    affected, examined = np.add.reduceat(stated[:, 1:], first).T
    smoothed = np.where(value > 0, value, UNKNOWN_FREQUENCY)
    smoothed = np.where(examined > 0, (affected + 1) / (examined + 2), smoothed)
    kept = (value > 0) | (lowest < 0)
    return Annotations(diseases[first][kept], terms[first][kept], smoothed[kept].astype(np.float32))


def _stated(attributes: str) -> tuple[float, int, int]:
    """(value, affected, examined) of an edge's attributes; value -1 when no frequency is stated."""
    if '"frequency"' not in attributes:
        return -1.0, 0, 0
    fields = json.loads(attributes)
    value = fields["frequency"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise GraphError(f"edge attribute frequency: expected a number in 0..1, found {shown(value)}")
    counts = _COUNTS.fullmatch(str(fields.get("frequency_label", "")))
    if counts is None:
        return float(value), 0, 0
    affected, examined = int(counts[1]), int(counts[2])
    if not affected <= examined or examined == 0:
        raise GraphError(f"edge attribute frequency_label: expected n/m with n <= m, found {counts[0]}")
    return float(value), affected, examined
