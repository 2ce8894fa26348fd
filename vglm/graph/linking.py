"""Which entities of a graph a question names: exactly, by an alias, by id, or spelt otherwise.

Of names inside each other the longest counts ("Marfan syndrome" and not "syndrome"). An ambiguous name gives all
its entities, those first that are written just so, that have a type that is wanted or said beside the name, and
that have more edges. The result depends on the graph's content and the question alone.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vglm.errors import GraphError
from vglm.graph import cache
from vglm.graph.derived import once_per_graph
from vglm.graph.exact_names import ALIAS_SCORE, Asked, ExactNames, Found, Method, Prominence
from vglm.graph.fuzzy import FuzzyNames
from vglm.graph.graph import Graph
from vglm.graph.limits import shown
from vglm.graph.name_changes import MAX_CHANGES, NameColumns, name_changes
from vglm.graph.name_index import NameIndex, hash_words
from vglm.graph.name_update import updated_index
from vglm.graph.words import question_words

MAX_QUESTION_WORDS = 1_024  # later words of a question are not looked at
MAX_QUESTION_CHARACTERS = 32_768  # nor later characters
MAX_CANDIDATES = 8
FUZZY_SCORE = 0.9
AS_GOOD = 0.03  # fuzzy candidates that are at most so much worse than the best one are kept beside it
_VERSIONS = 3  # other indexes that are tried as the one before an edit
SLOW_BUILD = 1.0  # seconds; what takes longer to index is cached on disk


@dataclass(frozen=True, slots=True)
class LinkedEntity:
    """An entity that a question may mean: `score` 0..1, 1 for its name as it is; `method` says how it was found."""

    id: str
    name: str
    type: str
    score: float
    method: Method


@dataclass(frozen=True, slots=True)
class Mention:
    """A place in a question, `text = question[start:end]`, and the entities that it may mean, the likeliest first;
    `total` counts them all, also those beyond the limit."""

    text: str
    start: int
    end: int
    entities: tuple[LinkedEntity, ...]
    total: int

    @property
    def best(self) -> LinkedEntity:
        """The likeliest entity."""
        return self.entities[0]


def link(
    graph: Graph,
    question: str,
    types: Collection[str] = (),
    limit: int = MAX_CANDIDATES,
    fuzzy: bool = True,
) -> list[Mention]:
    """The entities that a question names, in the order of the question.

    Of an ambiguous name, entities of the given `types` come first; at most `limit` are given. Takes about a
    millisecond; the first call for a graph builds its index. Raises GraphError for a question that is no text.
    """
    return linker(graph).link(question, types, limit, fuzzy)


class EntityLinker:
    """Links questions to one graph; `linker(graph)` keeps one for each graph.

    It keeps the graph's columns and not the graph, which would never be freed otherwise.
    """

    def __init__(self, graph: Graph, index: NameIndex | None = None) -> None:
        self._columns = graph.columns
        self.index = shared_index(graph) if index is None else index
        self._prominence = Prominence(graph)
        self._exact = ExactNames(graph.columns, self.index, self._prominence)
        self._fuzzy = FuzzyNames(self.index)

    def link(
        self,
        question: str,
        types: Collection[str] = (),
        limit: int = MAX_CANDIDATES,
        fuzzy: bool = True,
    ) -> list[Mention]:
        """See `link`."""
        if not isinstance(question, str):
            raise GraphError(f"question: expected a string, found {shown(question)}")
        if isinstance(types, str):
            raise GraphError(f"types: expected a list of node types, found {shown(types)}")
        question = question[:MAX_QUESTION_CHARACTERS]
        asked = Asked(question, question_words(question, MAX_QUESTION_WORDS), frozenset(types), max(limit, 1))
        names = list(self._exact.names(asked))
        chosen = _longest(names)
        covered = np.zeros(len(asked.words), bool)
        for name in chosen:
            covered[name.start : name.end] = True
        if fuzzy and not covered.all():
            chosen = _longest([*names, *self._spelt_otherwise(asked, covered.tolist())])
        mentions = [
            self._mention(
                question, asked.words[name.start].start, asked.words[name.end - 1].end, name.nodes, name.total
            )
            for name in chosen
        ]
        for start, end, nodes, total in self._exact.ids_and_symbols(asked):
            clashing = [m for m in mentions if m.start < end and start < m.end]
            if all(len(m.text) < end - start for m in clashing):
                mentions = [m for m in mentions if m not in clashing]
                mentions.append(self._mention(question, start, end, nodes, total))
        return sorted(mentions, key=lambda mention: mention.start)

    @cached_property
    def shared_names(self) -> frozenset[str]:
        """The names that more than one node has, as `records.shared_names_of` finds them, but in a moment."""
        index = self.index
        alike = np.zeros(len(index.keys), bool)
        alike[1:] = index.keys[1:] == index.keys[:-1]
        alike[:-1] |= alike[1:]
        entries = index.key_entries[alike]
        nodes = index.entry_nodes[entries[~index.entry_is_alias[entries]]]
        uses = Counter(self._columns.names[node] for node in nodes.tolist())
        return frozenset(name for name, count in uses.items() if count > 1)

    def _spelt_otherwise(self, asked: Asked, covered: Sequence[bool]) -> list[Found]:
        """Fuzzy matches: for each place the best one, and those that are about as good."""
        index = self.index
        texts = [word.text for word in asked.words]
        ids = index.find_words(texts, hash_words(texts)[0]).tolist()
        places: dict[tuple[int, int], dict[int, float]] = {}
        weights: dict[tuple[int, int], float] = {}
        for match in self._fuzzy.matches(asked.words, ids, covered):
            place = (match.positions[0], match.positions[-1] + 1)
            node = int(index.entry_nodes[match.entry])
            score = FUZZY_SCORE * match.score * (ALIAS_SCORE if index.entry_is_alias[match.entry] else 1.0)
            letters = sum(len(texts[position]) for position in match.positions)
            weights[place] = max(weights.get(place, 0.0), score * letters)
            nodes = places.setdefault(place, {})
            nodes[node] = max(nodes.get(node, 0.0), score)
        return [self._as_good(asked, place, nodes, weights[place]) for place, nodes in places.items()]

    def _as_good(self, asked: Asked, place: tuple[int, int], nodes: dict[int, float], weight: float) -> Found:
        best = max(nodes.values())
        kept = np.array(sorted(node for node, score in nodes.items() if score >= best - AS_GOOD), np.int32)
        scores = np.array([round(nodes[node], 3) for node in kept.tolist()])
        hinted = self._prominence.hinted(asked, *place, kept)
        order = np.lexsort((kept, -self._prominence.degrees[kept], ~hinted, -scores))[: asked.limit]
        ranked: list[tuple[int, float, Method]] = [(int(kept[i]), float(scores[i]), "fuzzy") for i in order]
        return Found(*place, weight, ranked, len(kept))

    def _mention(
        self, question: str, start: int, end: int, nodes: Sequence[tuple[int, float, Method]], total: int
    ) -> Mention:
        columns = self._columns
        entities = tuple(
            LinkedEntity(
                columns.ids[node],
                columns.names[node],
                columns.type_names[columns.node_types[node]],
                score,
                method,
            )
            for node, score, method in nodes
        )
        return Mention(question[start:end], start, end, entities, total)


def _longest(found: Iterable[Found]) -> list[Found]:
    """Names that do not overlap, those that explain most first."""
    chosen: list[Found] = []
    taken: set[int] = set()
    for name in sorted(found, key=lambda name: (-name.weight, name.start, name.end)):
        places = range(name.start, name.end)
        if taken.isdisjoint(places):
            taken.update(places)
            chosen.append(name)
    return chosen


linker = once_per_graph(EntityLinker)

_shared: weakref.WeakValueDictionary[bytes, NameIndex] = weakref.WeakValueDictionary()
_indexed: weakref.WeakKeyDictionary[NameIndex, NameColumns] = weakref.WeakKeyDictionary()  # the newest last
_shared_lock = threading.Lock()


def shared_index(graph: Graph, directory: str | Path | None = None) -> NameIndex:
    """The name index of a graph; the same one for all versions of it that have the same ids, names and aliases.

    So an edit of edges, texts or attributes costs a look at the names and no new index, and after an edit of names
    the index is spliced from that of a version before, if one is in memory. With a `directory`, an index that took
    long to build is written there and read from there next time; the file is named after what it indexes, and a
    damaged one is written anew.
    """
    columns = NameColumns.of(graph.columns)
    key = columns.digest()
    with _shared_lock:
        index = _shared.get(key)
        versions = list(_indexed.items())
    if index is None:
        name = key.hex()
        index = _read(name, directory) or _updated(columns, versions) or _built(graph, name, directory)
        with _shared_lock:
            index = _shared.setdefault(key, index)
            _indexed[index] = columns
    return index


def _updated(columns: NameColumns, versions: list[tuple[NameIndex, NameColumns]]) -> NameIndex | None:
    """An index from one of the newest others that has nearly the same names, if there is one."""
    alike = [item for item in reversed(versions) if abs(len(item[1].ids) - len(columns.ids)) <= MAX_CHANGES]
    for index, before in alike[:_VERSIONS]:
        changes = name_changes(before, columns)
        if changes is not None:
            return updated_index(index, columns, changes)
    return None


def _file(key: str, directory: str | Path) -> Path:
    return Path(directory) / f"names-{key[:16]}.npz"


def _read(key: str, directory: str | Path | None) -> NameIndex | None:
    kept = None if directory is None else cache.read(_file(key, directory), key)
    return None if kept is None else NameIndex.from_arrays(*kept)


def _built(graph: Graph, key: str, directory: str | Path | None) -> NameIndex:
    started = time.perf_counter()
    index = NameIndex.build(graph)
    if directory is not None and time.perf_counter() - started > SLOW_BUILD:
        cache.write(_file(key, directory), key, *index.to_arrays())
    return index
