"""What a ranking needs to know about the diseases of a graph, in arrays; nothing of it depends on the
patient."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError
from vglm.graph.annotations import HAS_PHENOTYPE, Annotations, phenotype_edges, pool
from vglm.graph.closure import ancestor_closure
from vglm.graph.graph import Graph
from vglm.graph.obo import IS_A

MAX_FREQUENCY = 0.99


@dataclass(frozen=True)
class RankingIndex:
    """N nodes, D diseases, A annotations, H pairs (ancestor, disease that has an annotation at or below it).

    Three CSR tables: the ancestors of a node, itself included; the annotated terms of a disease with P(term
    | disease); the holders of an ancestor, as disease rows, with P(ancestor | disease). Disease rows are
    ascending node indices; each has an annotation, so diseases that are only said to lack phenotypes have none.
    """

    diseases: npt.NDArray[np.int32]  # [D] node indices
    closure_starts: npt.NDArray[np.int64]  # [N + 1]
    closure_nodes: npt.NDArray[np.int32]
    annotation_starts: npt.NDArray[np.int64]  # [D + 1]
    annotation_terms: npt.NDArray[np.int32]  # [A]
    annotation_frequencies: npt.NDArray[np.float32]  # [A]
    holder_starts: npt.NDArray[np.int64]  # [N + 1]
    holder_rows: npt.NDArray[np.int32]  # [H] ascending within an ancestor
    holder_frequencies: npt.NDArray[np.float32]  # [H]

    @classmethod
    def build(cls, graph: Graph) -> RankingIndex:
        """From the `is a` and `has phenotype` edges; raises GraphError when there are none of the latter."""
        annotations = pool(graph, phenotype_edges(graph))
        if len(annotations.terms) == 0:
            raise GraphError(
                f"the graph has no {HAS_PHENOTYPE!r} edges with a frequency above 0: nothing to rank"
            )
        starts, ancestors = ancestor_closure(graph, IS_A)
        diseases = np.unique(annotations.diseases)
        rows = np.searchsorted(diseases, annotations.diseases)
        holder_starts, holder_rows, holder_frequencies = _propagate(
            starts, ancestors, rows, annotations, graph.num_nodes, len(diseases)
        )
        return cls(
            diseases=diseases,
            closure_starts=starts,
            closure_nodes=ancestors,
            annotation_starts=np.searchsorted(rows, np.arange(len(diseases) + 1)),
            annotation_terms=annotations.terms,
            annotation_frequencies=annotations.frequencies,
            holder_starts=holder_starts,
            holder_rows=holder_rows,
            holder_frequencies=holder_frequencies,
        )

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[Any]]) -> RankingIndex:
        """What `to_arrays` gave; other names are ignored."""
        return cls(**{field.name: arrays[f"ranking.{field.name}"] for field in fields(cls)})

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Named arrays, for the cache."""
        return {f"ranking.{field.name}": getattr(self, field.name) for field in fields(self)}

    def ancestors(self, node: int) -> npt.NDArray[np.int32]:
        """The node and its ancestors, ascending."""
        return self.closure_nodes[self.closure_starts[node] : self.closure_starts[node + 1]]

    def holders(self, node: int) -> slice:
        """Where the diseases with an annotation at or below `node` stand in the holder arrays."""
        return slice(int(self.holder_starts[node]), int(self.holder_starts[node + 1]))

    def annotations(self, row: int) -> Annotations:
        """The annotations of the disease in a row."""
        own = slice(int(self.annotation_starts[row]), int(self.annotation_starts[row + 1]))
        diseases = np.full(own.stop - own.start, self.diseases[row], np.int32)
        return Annotations(diseases, self.annotation_terms[own], self.annotation_frequencies[own])

    @cached_property
    def information_content(self) -> npt.NDArray[np.float32]:
        """-log of the share of diseases at or below each node, float32[N] in nats; 0 where no disease is."""
        holders = np.diff(self.holder_starts)
        return np.where(holders > 0, -np.log(np.maximum(holders, 1) / len(self.diseases)), 0).astype(
            np.float32
        )

    @cached_property
    def background(self) -> npt.NDArray[np.float32]:
        """P(node) as the mean over all diseases, float32[N]; never below a quarter of a case in all
        diseases."""
        sums = np.concatenate(([0.0], np.cumsum(self.holder_frequencies, dtype=np.float64)))
        total = sums[self.holder_starts[1:]] - sums[self.holder_starts[:-1]]
        return np.maximum(total / len(self.diseases), 0.25 / len(self.diseases)).astype(np.float32)

    @cached_property
    def lift(self) -> npt.NDArray[np.float32]:
        """P(ancestor | disease) / P(ancestor) for every holder pair, float32[H]."""
        background = np.repeat(self.background, np.diff(self.holder_starts))
        return (self.holder_frequencies / background).astype(np.float32)

    @cached_property
    def expected_findings(self) -> npt.NDArray[np.float64]:
        """Sum of each disease's annotated frequencies, float64[D]."""
        sums = np.concatenate(([0.0], np.cumsum(self.annotation_frequencies, dtype=np.float64)))
        return sums[self.annotation_starts[1:]] - sums[self.annotation_starts[:-1]]


def _propagate(
    starts: npt.NDArray[np.int64],
    nodes: npt.NDArray[np.int32],
    rows: npt.NDArray[np.integer],
    annotations: Annotations,
    num_nodes: int,
    num_diseases: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Carries every annotation to its ancestors and joins those that meet there by noisy or: CSR by
    ancestor."""
    terms = annotations.terms
    lengths = starts[terms + 1] - starts[terms]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ancestors = nodes[np.repeat(starts[terms], lengths) + within].astype(np.int64)
    keys = ancestors * num_diseases + np.repeat(rows, lengths)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    absent = np.log1p(-np.minimum(annotations.frequencies, MAX_FREQUENCY).astype(np.float64))
    joined = 1 - np.exp(np.add.reduceat(np.repeat(absent, lengths)[order], first))
    holders, holder_rows = np.divmod(keys[first], num_diseases)
    holder_starts = np.searchsorted(holders, np.arange(num_nodes + 1))
    return holder_starts, holder_rows.astype(np.int32), np.minimum(joined, MAX_FREQUENCY).astype(np.float32)
