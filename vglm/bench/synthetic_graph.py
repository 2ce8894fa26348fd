"""A graph for benchmarks: names and texts of made-up words, few nodes with very many edges; the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from vglm.graph.build import GraphBuilder
from vglm.graph.graph import Graph

_PARTS = """
    ba ce di fo gu ha je ki lo mu na pe ri so tu va we xi yo zu bra cle dri flo gru sta tre vli pho chy ter lin mar
    sen dol kar nis tom ver qua
"""
_SYLLABLES = tuple(_PARTS.split())
_TYPES = ("gene", "disease", "phenotype", "drug", "pathway")
_RELATIONS = tuple(f"relation {number}" for number in range(20))
_WORDS_PER_NODE = 0.15  # as many different words as in large ontologies
_SKEW = 0.6  # how much more edges the first nodes have than the last: n-th node ~ n ** -_SKEW


def synthetic_graph(nodes: int, edges: int, seed: int = 0) -> Graph:
    """A graph of at most `edges` edges (equal ones collapse) between `nodes` nodes of five types."""
    rng = np.random.default_rng(seed)
    vocabulary = _words(max(int(nodes * _WORDS_PER_NODE), 50), rng)
    names, texts = (_phrases(rng, vocabulary, nodes, *lengths) for lengths in ((2, 5), (0, 25)))
    types = rng.integers(0, len(_TYPES), nodes).tolist()
    builder = GraphBuilder()
    ids = [f"N{number:07}" for number in range(nodes)]
    for node_id, name, text, kind in zip(ids, names, texts, types, strict=True):
        builder.add_node(node_id, name, _TYPES[kind], text)
    order = rng.permutation(nodes)  # hubs are anywhere among the ids
    sources, targets = (order[_skewed(rng, nodes, edges)].tolist() for _ in range(2))
    relations = rng.integers(0, len(_RELATIONS), edges).tolist()
    builder.add_triples(
        [ids[node] for node in sources],
        [_RELATIONS[relation] for relation in relations],
        [ids[node] for node in targets],
        lambda edge: f"edges[{edge}]",
    )
    return builder.build()


def _phrases(
    rng: np.random.Generator, vocabulary: list[str], count: int, least: int, most: int
) -> Iterator[str]:
    """So many phrases of `least` to `most` - 1 words."""
    ends = np.cumsum(rng.integers(least, most, count)).tolist()
    drawn = [vocabulary[word] for word in _skewed(rng, len(vocabulary), ends[-1]).tolist()]
    return (" ".join(drawn[start:end]) for start, end in pairwise([0, *ends]))


def _words(count: int, rng: np.random.Generator) -> list[str]:
    """So many different words, of two to four syllables."""
    found: dict[str, None] = {}
    while len(found) < count:
        parts = rng.integers(0, len(_SYLLABLES), (count, 4))
        for row, length in zip(parts.tolist(), rng.integers(2, 5, count).tolist(), strict=True):
            found["".join(_SYLLABLES[part] for part in row[:length])] = None
    return list(found)[:count]


def _skewed(rng: np.random.Generator, count: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """`size` numbers below `count`, small ones more often."""
    return np.minimum((count * rng.random(size) ** (1 / (1 - _SKEW))).astype(np.int64), count - 1)
