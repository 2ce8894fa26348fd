"""The inductive graph encoder: completes triples of any graph, with entities and relations that it was not trained on.

    encoder = RelationalEncoder.load(Path("models/open-autoglm-v1/encoder.safetensors"))
    scores = encoder.scores(graph, "HP:0001166", "is a")            # of each node as the target, in the graph's order
    scores = encoder.scores(graph, "HP:0001166", "is a", inverse=True)      # of each node as the source

The network is that of `vglm.train.relational_model`, here in NumPy and the native core. Methods may be called from many
threads at once; what depends on the graph alone is computed once and kept as long as the graph lives.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from vglm._native import available_isas, mix_messages, score_states
from vglm.encoder.relational_structure import Floats, RelationalStructure
from vglm.encoder.relational_weights import EPSILON, RelationalWeights, read_weights
from vglm.errors import GraphError
from vglm.graph.derived import once_per_graph
from vglm.graph.graph import Graph
from vglm.graph.limits import shown

_KEPT_QUERIES = 64  # relations whose vectors are kept per graph: under 1 MB each at a width of 32


class RelationalEncoder:
    """Scores entities by message passing; see `load` and `scores`."""

    def __init__(self, weights: RelationalWeights, isa: str | None = None) -> None:
        """`isa` is one of `vglm._native.available_isas()`; None: the best."""
        self.weights = weights
        self.isa = isa or available_isas()[0]
        self._prepared = once_per_graph(lambda graph: self.prepare(RelationalStructure.of_graph(graph)))

    @classmethod
    def load(cls, path: Path, isa: str | None = None) -> RelationalEncoder:
        """Read a file of weights. Raises ModelError when it is missing or damaged, or holds something else."""
        return cls(read_weights(path), isa)

    def scores(self, graph: Graph, head: str, relation: str, inverse: bool = False) -> Floats:
        """How plausible each node is as the target of (head, relation, ?), float32[N] in the graph's order.

        With `inverse`, as the source of (?, relation, head). The higher, the more plausible; comparable within one
        query. Raises GraphError for a node or relation that is not in the graph, and for too many relations.
        """
        index, code = graph.index_of(head), graph.relation_code(relation)
        if code < 0:
            names = ", ".join(shown(name) for name in graph.columns.relation_names[:8])
            raise GraphError(
                f"no edge of the graph has the relation {shown(relation)}; it has {names or 'none'}"
            )
        prepared = self._prepared(graph)
        return prepared.scores(index, code + prepared.structure.num_relations if inverse else code)

    def prepare(self, structure: RelationalStructure) -> PreparedGraph:
        """What answers queries about one graph, by numbers instead of names."""
        return PreparedGraph(self.weights, structure, self.isa)


class PreparedGraph:
    """An encoder and the structure of one graph; relation r + R asks for sources instead of targets."""

    def __init__(self, weights: RelationalWeights, structure: RelationalStructure, isa: str) -> None:
        self.weights = weights
        self.structure = structure
        self.isa = isa
        self._mean = (1 / (structure.degree + 1)).astype(np.float32)
        self._kept: OrderedDict[int, tuple[Floats, list[Floats]]] = OrderedDict()
        self._lock = threading.Lock()

    def scores(self, head: int, relation: int) -> Floats:
        """float32[N] for the query of a node number and a relation 0..2 R - 1."""
        query, edge_weights = self._vectors(relation)
        states = np.tile(self.weights.entity_start, (self.structure.num_nodes, 1))
        states[head] += query
        received = np.empty_like(states)
        for layer, edges in zip(self.weights.entity, edge_weights, strict=True):
            received[:] = 0
            received[head] = query
            self.structure.propagation.aggregate(states[None], edges[None], received[None])
            mix = layer.mix
            mix_messages(
                self.isa, states, received, self._mean, mix.weight, mix.bias, mix.gain, mix.shift, EPSILON
            )
        score = self.weights.score
        found = np.empty(len(states), np.float32)
        score_states(self.isa, states, score.states, score.query(query), score.out, score.out_bias, found)
        return found

    def _vectors(self, relation: int) -> tuple[Floats, list[Floats]]:
        """The queried relation's vector [width] and the weights of edges by relation, [2 R, width] per layer."""
        with self._lock:
            if relation in self._kept:
                self._kept.move_to_end(relation)
                return self._kept[relation]
        vectors = self.relation_vectors(relation)
        edges = [layer.weight(np.maximum(layer.hidden(vectors), 0)) for layer in self.weights.entity]
        with self._lock:
            self._kept[relation] = vectors[relation].copy(), edges
            while len(self._kept) > _KEPT_QUERIES:
                self._kept.popitem(last=False)
        return vectors[relation], edges

    def relation_vectors(self, relation: int) -> Floats:
        """A vector of each relation given the queried one, float32[2 R, width]."""
        interactions = self.structure.interactions
        states = np.zeros((interactions.shape[1], self.weights.width), np.float32)
        states[relation] = self.weights.relation_query
        for layer in self.weights.relation:
            near = (interactions @ states).transpose(1, 0, 2).reshape(len(states), -1)
            mixed = np.concatenate([states, near], axis=1) @ layer.weight + layer.bias
            mixed /= np.sqrt(np.square(mixed).mean(axis=1, keepdims=True) + np.float32(EPSILON))
            states += np.maximum(mixed * layer.gain + layer.shift, 0)
        return states
