"""What a graph says of the entities that a question names, repeated in a line before the question.

A small language model reads a fact that stands next to the question far better than one that it has to find among many
records, and finding it is exact. The line depends on the graph's content and the question alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vglm.graph.graph import Graph
from vglm.graph.records import Records
from vglm.graph.text import one_line

Fits = npt.NDArray[np.bool_]  # by relation: whether it is a word of the question

MOST_EDGES = 16
MOST_NAMES = 24  # of a kind
_LOOKED_AT = 512  # edges of the named entities: of more, those whose relation the question has
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_LEAST = 3  # letters of a word that counts
_ALIKE = 4  # letters in which two words are alike at the beginning
_EMPTY = frozenset(
    {
        "the",
        "and",
        "are",
        "was",
        "has",
        "have",
        "had",
        "does",
        "did",
        "who",
        "whom",
        "whose",
        "what",
        "which",
        "where",
    }
    | {"when", "why", "how", "for", "from", "with", "that", "there"}
)
_PLURALS = {"person": "people", "child": "children"}


def named_facts(graph: Graph, nodes: Sequence[int], question: str) -> str:
    """The edges of the named `nodes` (indices) that fit the question best; where none is named, the entities of a kind that it
    asks for, or the edges that fit.

    Edges between two named entities come first, or that there are none, then edges whose relation is a word of the question,
    also one step further. Empty if there is nothing to say.

    >>> edge = {"source": "a", "relation": "owns", "target": "b"}
    >>> nodes = [{"id": "a", "type": "firm"}, {"id": "b"}]
    >>> named_facts(Graph.from_dict({"nodes": nodes, "edges": [edge]}), [0], "What does a own?")
    'a is a firm; a owns b.'
    """
    asked = _content_words(question)
    fits = np.array([_fits(name, asked) for name in graph.columns.relation_names], bool)
    if nodes:
        edges = np.unique(np.concatenate([graph.edge_indices(node, "both") for node in nodes]))
    else:
        if kinds := _kinds(graph, question):
            return kinds
        edges = np.flatnonzero(fits[graph.columns.relations])
        if not len(edges):
            return ""
    return _Line(graph, nodes, fits).of(edges)


class _Line:
    """Writes the line of some named nodes."""

    def __init__(self, graph: Graph, nodes: Sequence[int], fits: Fits) -> None:
        self._graph, self._nodes, self._named, self._fits = graph, nodes, set(nodes), fits
        self._records = Records(graph, shared_names=frozenset())

    def of(self, edges: npt.NDArray[np.integer]) -> str:
        """The best of the edges of the nodes, and what they lead to."""
        chosen = sorted(self._looked_at(edges), key=self._rank)[:MOST_EDGES]
        said = [*self._nodes_alone(chosen), *map(self._words, chosen)]
        further = self._further(chosen) - set(chosen) if len(chosen) < MOST_EDGES else set()
        said += sorted(map(self._words, further))[: MOST_EDGES - len(chosen)]
        if not len(edges):
            said.append("no edges")
        left = len(edges) - len(chosen)
        return "; ".join(said) + (f"; and {left:,} more." if left else ".")

    def _nodes_alone(self, chosen: Sequence[int]) -> list[str]:
        """What kind of thing the only node is, or that two have nothing to do with each other."""
        names, columns = [self._records.short_name(node) for node in self._nodes], self._graph.columns
        if len(self._named) == 1:
            kind = one_line(columns.type_names[columns.node_types[self._nodes[0]]])
            return [f"{names[0]} is a {kind}"] if kind else []
        if len(self._named) == 2 and not any(self._joins(edge) for edge in chosen[:1]):
            return [f"no edge joins {' and '.join(names)}"]
        return []

    def _looked_at(self, edges: npt.NDArray[np.integer]) -> list[int]:
        """At most _LOOKED_AT of the edges, those that fit first."""
        if len(edges) > _LOOKED_AT:
            fits = self._fits[self._graph.columns.relations[edges]]
            edges = np.concatenate([edges[fits], edges[~fits]])[:_LOOKED_AT]
        return [int(edge) for edge in edges]

    def _joins(self, edge: int) -> bool:
        columns = self._graph.columns
        return int(columns.sources[edge]) in self._named and int(columns.targets[edge]) in self._named

    def _is_fit(self, edge: int) -> bool:
        return bool(self._fits[self._graph.columns.relations[edge]])

    def _rank(self, edge: int) -> tuple[int, str]:
        return -2 * self._joins(edge) - self._is_fit(edge), self._words(edge)

    def _further(self, chosen: Sequence[int]) -> set[int]:
        """Edges one step further along edges that fit, which fit themselves."""
        columns = self._graph.columns
        ends = {
            int(at[edge])
            for edge in chosen
            if self._is_fit(edge)
            for at in (columns.sources, columns.targets)
        }
        found: set[int] = set()
        for node in sorted(ends - self._named)[:MOST_EDGES] if self._named else ():
            near = self._graph.edge_indices(node, "both")[:_LOOKED_AT]
            found |= {int(edge) for edge in near if self._is_fit(int(edge))}
        return found

    def _words(self, edge: int) -> str:
        columns, name = self._graph.columns, self._records.short_name
        relation = one_line(columns.relation_names[columns.relations[edge]])
        return f"{name(int(columns.sources[edge]))} {relation} {name(int(columns.targets[edge]))}"


def _kinds(graph: Graph, question: str) -> str:
    """The entities of each type that the question speaks of."""
    words = {word.lower() for word in re.findall(r"\w+", question)}
    columns = graph.columns
    said = []
    for code, name in enumerate(columns.type_names):
        kind = one_line(name).lower()
        if not kind or not words & {kind, _PLURALS.get(kind, ""), f"{kind}s", f"{kind}es", f"{kind[:-1]}ies"}:
            continue
        found = np.flatnonzero(columns.node_types == code)
        names = sorted(one_line(columns.names[int(node)]) for node in found[:1_000])
        more = f", and {len(found) - MOST_NAMES:,} more" if len(found) > MOST_NAMES else ""
        said.append(f"{len(found):,} {one_line(name)}: {', '.join(names[:MOST_NAMES])}{more}.")
    return " ".join(said)


def _fits(relation: str, asked: set[str]) -> bool:
    """Whether a word of a relation and one of the question begin alike: "directorOf" and "direct", "owns" and "own"."""
    words = _content_words(relation)
    return any(
        word.startswith(other[:_ALIKE]) or other.startswith(word[:_ALIKE])
        for word in words
        for other in asked
    )


def _content_words(text: str) -> set[str]:
    words = {word.lower() for word in _WORD.findall(text)}
    return {word for word in words if len(word) >= _LEAST} - _EMPTY
