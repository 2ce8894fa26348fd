"""Names, ids and symbols that stand in a question as they are, and which of several namesakes is meant."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from vglm.graph.graph import Columns, Graph, Ints
from vglm.graph.name_index import KEY_WORDS, Hashes, NameIndex, hash_words, mixed
from vglm.graph.words import FUNCTION_WORDS, Word, words

Method = Literal["given", "id", "exact", "alias", "fuzzy"]
ALIAS_SCORE = 0.95
OTHER_SPACING = 0.97  # "T cell" for "T-cell"
_RANKED = 256  # of more namesakes only those of most edges are looked at
_LONG_NAMES = 32  # names that begin with the same KEY_WORDS words and are compared word by word
_HITS = 2_000  # runs of words of a question that are names; the longest count
_REMEMBERED = 1_000
_CHUNK_LENGTH = 1_000  # characters that an id or a symbol may have
_CHUNK = re.compile(r"\S+")
_AROUND = ".,;:!?()[]{}<>\"'\u201c\u201d\u2018\u2019"
_ASKING = frozenset({"which", "what", "any", "list", "name"})
_NEAR = 2  # words between a name and a type that is said with it: "the gene called X"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, its words, the types of entities that are wanted, and how many there may be of one name."""

    question: str
    words: list[Word]
    types: frozenset[str]
    limit: int

    def text(self, start: int, end: int) -> str:
        """The question from one word to the one before another, as it was written."""
        return self.question[self.words[start].start : self.words[end - 1].end]


Ranked = tuple[int, float, Method]  # node, score, how it was found


class Found(NamedTuple):
    """A name from one word of a question to another: how much it explains, the nodes that it may mean, the
    likeliest first, and how many there are."""

    start: int
    end: int
    weight: float
    nodes: list[Ranked]
    total: int


class _Namesakes(NamedTuple):
    """Entries of one key: those that are looked at, how many there are, and those that go on after the key."""

    here: Ints
    total: int
    longer: Ints


class Prominence:
    """What speaks for one of several entities: their types, and their number of edges (`degrees` int[N])."""

    def __init__(self, graph: Graph) -> None:
        columns = graph.columns
        self.degrees = np.bincount(columns.sources, minlength=graph.num_nodes) + np.bincount(
            columns.targets, minlength=graph.num_nodes
        )
        self._node_types = columns.node_types
        self._type_names = columns.type_names
        self._type_words: dict[int, list[str]] = {}

    def hinted(self, asked: Asked, start: int, end: int, nodes: Ints) -> npt.NDArray[np.bool_]:
        """For each node whether its type is wanted, or said beside the name that stands from `start` to `end`."""
        spoken = asked.words
        around = [*range(max(start - _NEAR, 0), start), *range(end, min(end + _NEAR, len(spoken)))]
        said = {
            spoken[place].text
            for place in around
            if spoken[place].sentence == spoken[start].sentence
            and not (place and spoken[place - 1].text in _ASKING)  # "which disease": the type of the answer
        }
        kinds, where = np.unique(self._node_types[nodes], return_inverse=True)
        wanted = [
            self._type_names[kind] in asked.types or self._is_said(kind, said) for kind in kinds.tolist()
        ]
        return np.array(wanted, bool)[where]

    def foremost(self, nodes: Ints, count: int) -> Ints:
        """Positions in `nodes` of the `count` that have most edges, ascending; the first ones of equals."""
        degrees = self.degrees[nodes]
        least = np.partition(degrees, len(nodes) - count)[len(nodes) - count]
        above = np.flatnonzero(degrees > least)
        equal = np.flatnonzero(degrees == least)[: count - len(above)]
        return np.sort(np.concatenate((above, equal))).astype(np.int32)

    def _is_said(self, kind: int, said: Collection[str]) -> bool:
        own = self._type_words.get(kind)
        if own is None:
            own = self._type_words[kind] = words(self._type_names[kind])
        return bool(own) and all(word in said for word in own)


class ExactNames:
    """Finds names of one graph's index in questions; keeps the graph's columns, and so does not keep it alive."""

    def __init__(self, columns: Columns, index: NameIndex, prominence: Prominence) -> None:
        self._columns = columns
        self._index = index
        self._prominence = prominence
        self._crowds: dict[int, _Namesakes] = {}  # of very ambiguous names, by their place among the keys

    def names(self, asked: Asked) -> Iterator[Found]:
        """Every run of words that is a name or an alias, runs inside each other too."""
        keys, starts, lengths = _run_keys(asked.words)
        low, high = self._index.find_keys(keys)
        hits = np.flatnonzero(high > low)
        hits = np.sort(hits[np.argsort(-lengths[hits], kind="stable")[:_HITS]])
        for hit in hits.tolist():
            namesakes = self._namesakes(int(low[hit]), int(high[hit]))
            yield from self._names_at(asked, int(starts[hit]), int(starts[hit] + lengths[hit]), namesakes)

    def ids_and_symbols(self, asked: Asked) -> Iterator[tuple[int, int, list[Ranked], int]]:
        """Ids, and names that have no letters, standing apart: (start, end) in the question, nodes, how many."""
        for match in _CHUNK.finditer(asked.question):
            if len(match[0]) > _CHUNK_LENGTH:
                continue
            bare = match[0].strip(_AROUND)
            start = match.start() + match[0].find(bare)
            looks_like_id = len(bare) >= 3 and any(map(str.isdigit, bare)) and not bare.isdigit()
            node = self._columns.ids.find(bare) if looks_like_id else -1
            if node >= 0:
                yield start, start + len(bare), [(node, 1.0, "id")], 1
                continue
            for text, place in ((match[0], match.start()), (bare, start)):
                nodes = self._index.symbols.get(unicodedata.normalize("NFKC", text), [])
                if nodes:
                    ranked: list[Ranked] = [(node, 1.0, "exact") for node in nodes[: asked.limit]]
                    yield place, place + len(text), ranked, len(nodes)
                    break

    def _namesakes(self, low: int, high: int) -> _Namesakes:
        """The entries of one key, which are the places `low` to `high` among the keys."""
        known = self._crowds.get(low)
        if known is not None:
            return known
        index = self._index
        entries = index.key_entries[low:high]
        sizes = index.entry_starts[entries + 1] - index.entry_starts[entries]
        here, longer = entries[sizes <= KEY_WORDS], entries[sizes > KEY_WORDS][:_LONG_NAMES]
        total = len(here)
        if total > _RANKED:
            here = here[self._prominence.foremost(index.entry_nodes[here], _RANKED)]
        found = _Namesakes(here, total, longer)
        if len(entries) > _RANKED:
            if len(self._crowds) >= _REMEMBERED:
                self._crowds = {}  # a new one: another thread may be reading the old one
            self._crowds[low] = found
        return found

    def _names_at(self, asked: Asked, start: int, end: int, namesakes: _Namesakes) -> Iterator[Found]:
        """The names whose key is that of a run of words: those of the run itself, and longer ones that go on."""
        index, spoken = self._index, asked.words
        here = namesakes.here
        if len(here) and self._spelling(int(here[0])) == _joined(spoken[start:end]):
            if _is_telling(spoken[start:end]):
                yield self._found(asked, start, end, here, namesakes.total)
            elif len(symbols := self._written_like(here, asked.text(start, end))):
                yield self._found(asked, start, end, symbols, len(symbols))
        for entry in namesakes.longer.tolist():
            further = end + len(index.words_of(entry)) - KEY_WORDS
            if self._spelling(entry) == _joined(spoken[start:further]):
                yield self._found(asked, start, further, np.array([entry], np.int32), 1)

    def _spelling(self, entry: int) -> str:
        return "".join(self._index.vocabulary[word] for word in self._index.words_of(entry).tolist())

    def _written_like(self, entries: Ints, raw: str) -> Ints:
        """Entries whose name is written like `raw`, a symbol: in capitals, or characters without case."""
        capitals = raw.isupper() and raw not in ("A", "I")
        if not (capitals or (not raw.isascii() and raw.lower() == raw.upper())):
            return entries[:0]
        return entries[[self._name(entry) == raw for entry in entries.tolist()]]

    def _found(self, asked: Asked, start: int, end: int, entries: Ints, total: int) -> Found:
        """The nodes of some entries that spell one name, ranked."""
        index, raw = self._index, asked.text(start, end)
        nodes, is_alias = index.entry_nodes[entries], index.entry_is_alias[entries]
        apart = index.entry_starts[entries + 1] - index.entry_starts[entries] != end - start
        scores = np.where(is_alias, ALIAS_SCORE, 1.0) * np.where(apart, OTHER_SPACING, 1.0)
        hinted = self._prominence.hinted(asked, start, end, nodes)
        same = np.array([self._name(entry) == raw for entry in entries.tolist()])
        order = np.lexsort((nodes, -self._prominence.degrees[nodes], ~hinted, ~same, -scores))
        ranked: list[Ranked] = [
            (int(nodes[i]), float(scores[i]), "alias" if is_alias[i] else "exact")
            for i in order[: asked.limit].tolist()
        ]
        return Found(start, end, len(raw) * float(scores.max()), ranked, total)

    def _name(self, entry: int) -> str:
        """An entry's text where that is a node's name; aliases are not compared letter by letter."""
        index = self._index
        return "" if index.entry_is_alias[entry] else self._columns.names[int(index.entry_nodes[entry])]


def _joined(spoken: Sequence[Word]) -> str:
    return "".join(word.text for word in spoken)


def _is_telling(spoken: Sequence[Word]) -> bool:
    """Whether words say something alone: one of several letters, or several of a script without spaces."""
    content = [word.text for word in spoken if word.text not in FUNCTION_WORDS]
    return any(len(text) > 1 for text in content) or sum(not text.isascii() for text in content) > 1


def _run_keys(spoken: Sequence[Word]) -> tuple[Hashes, Ints, Ints]:
    """The keys of all runs of at most KEY_WORDS words, with their first words and their lengths."""
    hashes, powers = hash_words([word.text for word in spoken])
    count = len(spoken)
    run = np.zeros(count + 1, np.uint64)
    keys, starts, lengths = [hashes[:0]], [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for length in range(1, min(KEY_WORDS, count) + 1):
        run = run[:-1] * powers[length - 1 :] + hashes[length - 1 :]
        keys.append(mixed(run))
        starts.append(np.arange(len(run), dtype=np.int32))
        lengths.append(np.full(len(run), length, np.int32))
    return np.concatenate(keys), np.concatenate(starts), np.concatenate(lengths)
