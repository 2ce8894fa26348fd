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
    relevant = np.array([_fits(name, asked) for name in graph.columns.relation_names], bool)
    if not nodes and (kinds := _kinds(graph, question)):
        return kinds
    near = [graph.edge_indices(node, "both") for node in nodes] or [
        np.flatnonzero(relevant[graph.columns.relations])
    ]
    own = np.unique(np.concatenate(near))
    if not nodes and not len(own):
        return ""
    columns, records = graph.columns, Records(graph, shared_names=frozenset())
    named = set(nodes)

    def rank(edge: int) -> tuple[int, str]:
        both = int(columns.sources[edge]) in named and int(columns.targets[edge]) in named
        return -2 * both - int(relevant[columns.relations[edge]]), _words(graph, records, edge)

    chosen = sorted(_looked_at(graph, own, relevant), key=rank)[:MOST_EDGES]
    said = [_words(graph, records, edge) for edge in chosen]
    if len(named) == 1 and (kind := one_line(columns.type_names[columns.node_types[nodes[0]]])):
        said.insert(0, f"{records.short_name(nodes[0])} is a {kind}")
    if len(named) == 2 and (not chosen or rank(chosen[0])[0] > -2):
        said.insert(0, f"no edge joins {' and '.join(records.short_name(node) for node in nodes)}")
    if len(chosen) < MOST_EDGES:
        further = _further(graph, chosen, relevant, named) - set(chosen)
        said += sorted(_words(graph, records, edge) for edge in further)[: MOST_EDGES - len(chosen)]
    left = len(own) - len(chosen)
    if not len(own):
        said.append("no edges")
    return "; ".join(said) + (f"; and {left:,} more." if left else ".")


def _looked_at(graph: Graph, edges: npt.NDArray[np.int32], relevant: Fits) -> list[int]:
    """At most _LOOKED_AT of the edges, those that fit first."""
    if len(edges) > _LOOKED_AT:
        fits = relevant[graph.columns.relations[edges]]
        edges = np.concatenate([edges[fits], edges[~fits]])[:_LOOKED_AT]
    return [int(edge) for edge in edges]


def _further(graph: Graph, edges: Sequence[int], relevant: Fits, named: set[int]) -> set[int]:
    """Edges one step further along edges that fit, which fit themselves."""
    columns = graph.columns
    reached = {
        int(end)
        for edge in edges
        if relevant[columns.relations[edge]]
        for end in (columns.sources[edge], columns.targets[edge])
    }
    found: set[int] = set()
    for node in sorted(reached - named)[:MOST_EDGES]:
        near = graph.edge_indices(node, "both")[:_LOOKED_AT]
        found |= {int(edge) for edge in near if relevant[columns.relations[edge]]}
    return found


def _words(graph: Graph, records: Records, edge: int) -> str:
    columns = graph.columns
    source, target = (records.short_name(int(ends[edge])) for ends in (columns.sources, columns.targets))
    return f"{source} {one_line(columns.relation_names[columns.relations[edge]])} {target}"


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
