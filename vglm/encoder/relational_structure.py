"""What the relational encoder sees of a graph: its edges both ways, and how its relations go together.

Nothing here depends on which entities or relations they are, so a trained encoder reads any graph. Relation r of R has the
inverse r + R; edges (u, r, v) are listed as (v, r + R, u) too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vglm._native import Propagation
from vglm.errors import GraphError
from vglm.graph.graph import Graph

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

MAX_RELATIONS = 512  # interactions are dense: 10 x 1024 x 1024 floats are 42 MB
NUM_INTERACTIONS = 10
_CHUNK = 4_000_000  # pairs that are counted at once


@dataclass(frozen=True, eq=False)
class RelationalStructure:
    """Edges of N nodes under 2 R relations, by (target, source, relation), each once.

    `start` int64[N + 1] says where the edges into a node are in `source` and `relation`, int32[2 E].
    """

    num_nodes: int
    num_relations: int  # R, without the inverses
    start: Longs
    source: Ints
    relation: Ints

    @classmethod
    def of_graph(cls, graph: Graph) -> RelationalStructure:
        """Raises GraphError when the graph has more than MAX_RELATIONS relations."""
        columns = graph.columns
        return cls.of_triples(
            graph.num_nodes, len(columns.relation_names), columns.sources, columns.relations, columns.targets
        )

    @classmethod
    def of_triples(
        cls, num_nodes: int, num_relations: int, sources: Ints, relations: Ints, targets: Ints
    ) -> RelationalStructure:
        """Of edges int32[E] each; equal ones count once. Raises GraphError for too many relations."""
        if num_relations > MAX_RELATIONS:
            raise GraphError(
                f"the graph has {num_relations:,} relations; the encoder takes {MAX_RELATIONS}: "
                "choose a subgraph of the relations that matter"
            )
        from_ends = np.concatenate([sources, targets]).astype(np.int64)
        to_ends = np.concatenate([targets, sources]).astype(np.int64)
        codes = np.concatenate([relations, relations + np.int32(num_relations)]).astype(np.int64)
        double = max(2 * num_relations, 1)
        keys = np.unique((to_ends * num_nodes + from_ends) * double + codes)
        pairs, codes = np.divmod(keys, double)
        to_ends, from_ends = np.divmod(pairs, max(num_nodes, 1))
        start = np.zeros(num_nodes + 1, np.int64)
        np.cumsum(np.bincount(to_ends, minlength=num_nodes), out=start[1:])
        return cls(num_nodes, num_relations, start, from_ends.astype(np.int32), codes.astype(np.int32))

    @property
    def target(self) -> Ints:
        """The node that each edge leads to, int32[2 E]."""
        return np.repeat(np.arange(self.num_nodes, dtype=np.int32), np.diff(self.start))

    @property
    def degree(self) -> Longs:
        """Edges into each node, both ways, int64[N]."""
        return np.diff(self.start)

    def inverse(self, relation: Ints) -> Ints:
        """The inverses of relations; of an inverse, the relation itself."""
        count = np.int32(self.num_relations)
        return np.where(relation < count, relation + count, relation - count).astype(np.int32)

    def without(self, dropped: npt.NDArray[np.bool_]) -> RelationalStructure:
        """The structure without the edges flagged in `dropped` bool[2 E]; for a few edges: the interactions stay."""
        kept = ~dropped
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
        rest = RelationalStructure(
            self.num_nodes, self.num_relations, before[self.start], self.source[kept], self.relation[kept]
        )
        rest.__dict__["interactions"] = self.interactions  # where cached_property keeps it
        return rest

    @cached_property
    def propagation(self) -> Propagation:
        """The kernel that passes messages along the edges."""
        return Propagation(self.start, self.source, self.relation, 2 * self.num_relations)

    @cached_property
    def interactions(self) -> Floats:
        """How strongly relation j bears on relation i, float32[NUM_INTERACTIONS, 2 R, 2 R] in 0..1.

        ULTRA's four kinds (Galkin et al., "Towards Foundation Models for Knowledge Graph Reasoning", 2024): i and j share
        heads; a head of i is a tail of j; a tail of i is a head of j; they share tails; and a fifth: they join the same
        pairs of nodes, the rule "i implies j". Each as the share of i's ends that j has too, then of j's that i has.
        """
        double = 2 * self.num_relations
        inverse = self.inverse(np.arange(double, dtype=np.int32))
        heads = _together(self.source.astype(np.int64), self.relation, double)
        pairs = _together(self.source * np.int64(self.num_nodes) + self.target, self.relation, double)
        both = _shares(heads), _shares(heads).T, _shares(pairs), _shares(pairs).T
        ends = [
            shares[rows][:, columns]
            for shares in both[:2]
            for rows in (slice(None), inverse)
            for columns in (slice(None), inverse)
        ]
        return np.ascontiguousarray(np.stack([*ends, *both[2:]]), np.float32)


def _together(groups: Longs, members: Ints, size: int) -> npt.NDArray[np.float64]:
    """In how many groups both i and j are, float64[size, size], of pairs of a group and a member 0..size - 1."""
    keys = np.unique(groups * size + members)
    if not len(keys):
        return np.zeros((size, size))
    group, member = np.divmod(keys, size)
    first = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    lengths = np.diff(np.append(first, len(keys)))
    partners = np.repeat(lengths, lengths)  # of each member: as many as its group has
    begins = np.repeat(first, lengths)
    counts = np.zeros(size * size, np.int64)
    ends = np.cumsum(partners)
    low = 0
    while low < len(keys):
        done = ends[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(ends, done + _CHUNK, "right")))
        repeats = partners[low:high]
        one = np.repeat(member[low:high], repeats)
        offset = np.arange(len(one)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        other = member[np.repeat(begins[low:high], repeats) + offset]
        counts += np.bincount(one * size + other, minlength=size * size)
        low = high
    return counts.reshape(size, size).astype(np.float64)


def _shares(together: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of the groups of i, the share that j is in as well."""
    return together / np.maximum(np.diag(together), 1.0)[:, None]
