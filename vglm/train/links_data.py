"""Triples to train and choose on: numbered entities and relations, both directions, what is known already."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import xxhash

from vglm.errors import GraphError, ModelError
from vglm.graph.graph import Graph

Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Names = tuple[str, str, str]
Scorer = Callable[[Longs, Longs], npt.NDArray[np.float32]]
_LEAST_TO_HOLD_OUT = 100  # with fewer edges than this, a held-out part says nothing


def _no_triples() -> Longs:
    return np.zeros((0, 3), np.int64)


@dataclass(frozen=True)
class Triples:
    """A graph as numbers. `train` and `valid` are int64 [n, 3] of (head, relation, tail); `texts` may be empty.

    `true` int64 [n, 3] are triples that are neither trained nor chosen on, but known to be no wrong answers: validation
    leaves them out of its ranks, as the filtered setting of the literature does with the test part.
    """

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    train: Longs
    valid: Longs
    texts: tuple[str, ...] = field(default=(), repr=False)
    true: Longs = field(default_factory=_no_triples, repr=False)

    @property
    def digest(self) -> str:
        """Of the content, hexadecimal: equal for equal triples, names and texts."""
        found = xxhash.xxh3_128(json.dumps([self.entities, self.relations, self.texts]).encode())
        for part in (self.train, self.valid, self.true):
            found.update(f"{part.shape}".encode())
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()

    @classmethod
    def from_graph(cls, graph: Graph, *, holdout: float = 0.05, seed: int = 0) -> Triples:
        """The distinct edges of a graph, a random share `holdout` of them for validation (at most 3,000).

        The text of a node is "name: text", or its name. Only edges whose ends and relation also occur in other edges are
        held out, as nothing could be learnt about them otherwise. Raises GraphError for a graph without edges.
        """
        columns = graph.columns
        if not graph.num_edges:
            raise GraphError("the graph has no edges, so there is nothing to learn link prediction from")
        edges = np.stack([columns.sources, columns.relations, columns.targets], axis=1).astype(np.int64)
        edges = np.unique(edges, axis=0)
        chosen = _holdout(edges, graph.num_nodes, holdout, seed)
        texts = tuple(
            f"{columns.names[i]}: {columns.texts[i]}" if columns.texts[i] else columns.names[i]
            for i in range(graph.num_nodes)
        )
        ids = tuple(columns.ids[i] for i in range(graph.num_nodes))
        return cls(ids, columns.relation_names, edges[~chosen], edges[chosen], texts)

    @classmethod
    def from_names(
        cls,
        train: Iterable[Names],
        valid: Iterable[Names] = (),
        texts: Mapping[str, str] | None = None,
        true: Iterable[Names] = (),
    ) -> Triples:
        """Triples of names. Raises GraphError for no triples, an entity without a text, an unknown relation."""
        train, others = list(train), (list(valid), list(true))
        if not train:
            raise GraphError("there are no triples to train on")
        every = [*train, *others[0], *others[1]]
        names = sorted({name for head, _, tail in every for name in (head, tail)})
        relations = sorted({relation for _, relation, _ in train})
        unknown = sorted({relation for _, relation, _ in every} - set(relations))
        if unknown:
            raise GraphError(f"relation {unknown[0]!r} occurs in no training triple")
        missing = next((name for name in names if texts is not None and name not in texts), None)
        if missing is not None:
            raise GraphError(f"entity {missing!r} has no text; give one for every entity, or none at all")
        written = () if texts is None else tuple(texts[name] for name in names)
        empty = cls(tuple(names), tuple(relations), _no_triples(), _no_triples(), written)
        numbers = [empty.numbers(part) for part in (train, *others)]
        return replace(empty, train=numbers[0], valid=numbers[1], true=numbers[2])

    def numbers(self, triples: Iterable[Names]) -> Longs:
        """int64 [n, 3] of triples of names. Raises GraphError for a name that is not there."""
        entity = {name: number for number, name in enumerate(self.entities)}
        relation = {name: number for number, name in enumerate(self.relations)}
        try:
            rows = [(entity[head], relation[name], entity[tail]) for head, name, tail in triples]
        except KeyError as error:
            raise GraphError(f"{error.args[0]!r} is no entity or relation of the training data") from error
        return np.array(rows, np.int64).reshape(-1, 3)

    @property
    def num_entities(self) -> int:
        return len(self.entities)

    @property
    def num_relations(self) -> int:
        """R; directed relations are numbered 0..2R-1."""
        return len(self.relations)


def both_directions(triples: Longs, num_relations: int) -> Longs:
    """int64 [2n, 3] of (given, directed relation, wanted): first the tails of all triples, then their heads."""
    heads, relations, tails = triples.T
    return np.concatenate([triples, np.stack([tails, relations + num_relations, heads], axis=1)])


class KnownAnswers:
    """The known answers of every (given, directed relation): what the filtered setting leaves out."""

    def __init__(self, questions: Longs, num_relations: int) -> None:
        """`questions` int64 [n, 3] as `both_directions` gives them."""
        self._width = 2 * num_relations
        codes = questions[:, 0] * self._width + questions[:, 1]
        order = np.argsort(codes, kind="stable")
        self._codes, self._answers = codes[order], questions[order, 2]

    def pairs(self, given: Longs, relations: Longs) -> tuple[Longs, Longs]:
        """For questions int64 [B]: (row, known answer) of each known answer, both int64 [m]."""
        codes = given * self._width + relations
        first = np.searchsorted(self._codes, codes, "left")
        counts = np.searchsorted(self._codes, codes, "right") - first
        rows = np.repeat(np.arange(len(codes)), counts)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self._answers[np.repeat(first, counts) + offsets]


def _holdout(edges: Longs, num_nodes: int, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which edges are held out, bool [n]."""
    chosen = np.zeros(len(edges), bool)
    wanted = min(int(len(edges) * share), 3000)
    if len(edges) < _LEAST_TO_HOLD_OUT or not wanted:
        return chosen
    left = np.bincount(edges[:, [0, 2]].ravel(), minlength=num_nodes)
    of_relation = np.bincount(edges[:, 1])
    for index in np.random.default_rng(seed).permutation(len(edges)).tolist():
        head, relation, tail = edges[index].tolist()
        if min(left[head], left[tail]) > 1 and of_relation[relation] > 1 and head != tail:
            chosen[index] = True
            left[head] -= 1
            left[tail] -= 1
            of_relation[relation] -= 1
            wanted -= 1
            if not wanted:
                break
    return chosen


def filtered_ranks(score: Scorer, questions: Longs, known: KnownAnswers, batch: int = 256) -> Floats:
    """Places of the wanted entities among all, without other known answers (Bordes et al., 2013), float64 [n].

    `questions` int64 [n, 3] of (given, directed relation, wanted); `score` gives float32 [B, N]. Ties share the mean of
    their places, so that a constant score is no better than chance. Raises ModelError for scores that are no numbers.
    """
    ranks = np.empty(len(questions))
    for start in range(0, len(questions), batch):
        given, relations, wanted = questions[start : start + batch].T
        scores = score(given, relations)
        if not np.isfinite(scores).all():
            raise ModelError(
                "a model scored a triple with a value that is no number: its training has diverged"
            )
        own = np.take_along_axis(scores, wanted[:, None], axis=1)
        scores[known.pairs(given, relations)] = -np.inf
        np.put_along_axis(scores, wanted[:, None], own, axis=1)
        above, equal = (scores > own).sum(axis=1), (scores == own).sum(axis=1)  # the wanted one is an equal
        ranks[start : start + batch] = above + (equal + 1) / 2
    return ranks
