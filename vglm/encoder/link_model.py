"""Link prediction with a trained model: what stands at the open end of (head, relation, ?) or (?, relation, tail).

A model is a list of parts (`vglm.encoder.link_parts`), each with one or more scores of a triple; the score of a candidate is
their sum, weighted per relation and direction. Relation r has the number r from head to tail and R + r from tail to head.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vglm.encoder.link_parts import Float32, Longs, Part, part_of
from vglm.errors import GraphError, ModelError, RequestError
from vglm.graph.graph import Graph
from vglm.graph.limits import shown

FORMAT = "vglm-links-1"


class LinkModel:
    """Scores of triples over the entities of the graph that it was trained on; immutable.

    Entities and relations are numbered as in `entities` and `relations`. Scores are logits: their softmax over all
    candidates is the model's probability, calibrated on the validation part where texts are a part of the model.
    """

    def __init__(
        self, entities: Sequence[str], relations: Sequence[str], parts: Sequence[Part], weights: Float32
    ) -> None:
        """`weights` float32 [2R, C], C channels in all parts. Raises ModelError when shapes do not fit."""
        self.entities, self.relations = tuple(entities), tuple(relations)
        self.parts, self.weights = tuple(parts), np.asarray(weights, np.float32)
        expected = (2 * len(relations), sum(part.num_channels for part in parts))
        if not parts or self.weights.shape != expected:
            raise ModelError(f"link model: weights of shape {self.weights.shape}, expected {expected}")
        for part in parts:
            if part.num_entities != len(self.entities):
                raise ModelError(
                    f"link model: {len(self.entities)} entities, but a part has {part.num_entities}"
                )
        self._numbers = {name: number for number, name in enumerate(self.entities)}

    @property
    def num_entities(self) -> int:
        """N."""
        return len(self.entities)

    def score_tails(self, head_ids: npt.ArrayLike, relation_ids: npt.ArrayLike) -> Float32:
        """Scores of every entity as tail of (head, relation, ?): numbers [B] and [B] to float32 [B, N]."""
        return self._checked(head_ids, relation_ids, 0)

    def score_heads(self, tail_ids: npt.ArrayLike, relation_ids: npt.ArrayLike) -> Float32:
        """Scores of every entity as head of (?, relation, tail): numbers [B] and [B] to float32 [B, N]."""
        return self._checked(tail_ids, relation_ids, len(self.relations))

    def entity_number(self, name: str) -> int:
        """Number of an entity; raises GraphError if the model was not trained on it."""
        number = self._numbers.get(name, -1)
        if number < 0:
            raise GraphError(
                f"the link model was not trained on the entity {shown(name)}; train it on this graph"
            )
        return number

    def relation_number(self, name: str) -> int:
        """Number of a relation; raises GraphError if the model was not trained on it."""
        if name not in self.relations:
            raise GraphError(
                f"the link model was not trained on the relation {shown(name)}; train it on this graph"
            )
        return self.relations.index(name)

    def nodes_of(self, graph: Graph) -> npt.NDArray[np.int32]:
        """Where the entities stand in a graph, int32 [N]; -1 for one that the graph does not have (any more).

        Raises GraphError when fewer than half of the entities are in the graph: it is another graph then.
        """
        nodes = graph.columns.ids.find_all(self.entities)
        found = int((nodes >= 0).sum())
        if 2 * found < len(nodes):
            raise GraphError(
                f"the link model was trained on {len(nodes):,} entities, of which this graph has {found:,}: "
                "it is a model of another graph; train one on this graph"
            )
        return nodes

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; names are in its metadata."""
        tensors: dict[str, npt.NDArray[np.generic]] = {"weights": self.weights}
        for number, part in enumerate(self.parts):
            tensors |= {f"part.{number}.{name}": tensor for name, tensor in part.tensors().items()}
        metadata = {
            "format": FORMAT,
            "entities": json.dumps(self.entities),
            "relations": json.dumps(self.relations),
            "parts": json.dumps([part.kind for part in self.parts]),
        }
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        save_file(contiguous, path, metadata)

    @classmethod
    def load(cls, path: str | Path) -> LinkModel:
        """Read what `save` wrote; raises ModelError for any other file."""
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ModelError(
                        f"{path}: not a link model (metadata 'format' is {metadata.get('format')!r})"
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            names = [json.loads(metadata[key]) for key in ("entities", "relations", "parts")]
            parts = []
            for number, kind in enumerate(names[2]):
                prefix = f"part.{number}."
                own = {
                    key.removeprefix(prefix): value
                    for key, value in tensors.items()
                    if key.startswith(prefix)
                }
                parts.append(part_of(kind, own))
            return cls(names[0], names[1], parts, tensors["weights"])
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ModelError(f"{path}: cannot be read as a link model: {error}") from error

    def score(self, given: Longs, relations: Longs) -> Float32:
        """float32 [B, N] for given entities and directed relations (0..2R-1), int64 [B] each, not checked."""
        scores = np.zeros((len(given), self.num_entities), np.float32)
        first = 0
        for part in self.parts:
            last = first + part.num_channels
            weights = self.weights[relations, first:last]
            for weight, channel in zip(weights.T, part.scores(given, relations), strict=True):
                scores += weight[:, None] * channel
            first = last
        return scores

    def _checked(self, given_ids: npt.ArrayLike, relation_ids: npt.ArrayLike, shift: int) -> Float32:
        given = _numbers(given_ids, self.num_entities, "entity")
        relations = _numbers(relation_ids, len(self.relations), "relation")
        if given.shape != relations.shape:
            raise RequestError(
                f"{len(given)} entities but {len(relations)} relations: give one relation for each"
            )
        return self.score(given, relations + shift)


@dataclass(frozen=True)
class RankedEntity:
    """A candidate of `rank_candidates`: its id and the model's probability, of all that are not known already."""

    id: str
    probability: float


def rank_candidates(
    model: LinkModel, graph: Graph, head: str | None, relation: str, tail: str | None, k: int = 10
) -> list[RankedEntity]:
    """The `k` most probable entities at the open end (None) of a triple, best first, without those that are known.

    Left out are entities whose edge the graph has already, and those that the graph does not have. Equal scores are
    ordered by id. Raises RequestError and GraphError when the question or the graph does not fit the model.
    """
    if (head is None) == (tail is None):
        raise RequestError("give either a head or a tail, and the other is looked for", "head")
    if k < 1:
        raise RequestError(f"k: expected at least 1, found {k}", "k")
    given = head if tail is None else tail
    assert given is not None
    node = graph.index_of(given)
    numbers = [model.entity_number(given)], [model.relation_number(relation)]
    scores = (model.score_heads if head is None else model.score_tails)(*numbers)[0]
    nodes = model.nodes_of(graph)
    edges = graph.edge_indices(node, "in" if head is None else "out", relation)
    ends = (graph.columns.sources if head is None else graph.columns.targets)[edges]
    scores[(nodes < 0) | np.isin(nodes, ends)] = -np.inf
    left = np.flatnonzero(np.isfinite(scores))
    if not len(left):
        return []
    best = left[np.lexsort((left, -scores[left]))[:k]]
    shifted = np.exp((scores - scores[best[0]]).astype(np.float64))
    return [RankedEntity(model.entities[i], float(shifted[i] / shifted.sum())) for i in best.tolist()]


def _numbers(values: npt.ArrayLike, limit: int, what: str) -> Longs:
    numbers = np.asarray(values)
    if numbers.ndim != 1 or not (np.issubdtype(numbers.dtype, np.integer) or not numbers.size):
        raise RequestError(
            f"{what} numbers: expected whole numbers [B], found {numbers.dtype} {numbers.shape}"
        )
    for number in numbers[(numbers < 0) | (numbers >= limit)][:1].tolist():
        raise RequestError(f"{what} number {number} is not in 0..{limit - 1}")
    return numbers.astype(np.int64)
