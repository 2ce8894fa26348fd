"""An index of the names in a graph: by exact words, by single words, and by what similar words share.

It is a set of arrays, so that a million names are indexed in seconds and load from disk at once. An **entry** is
one name or alias of one node; words are folded (see `words`) and numbered in sorted order.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.graph.graph import Columns, Graph, Ints
from vglm.graph.name_changes import NameColumns
from vglm.graph.strings import StringTable
from vglm.graph.words import words

KEY_WORDS = 32  # of a longer name only the first ones are looked up; the rest is compared
SHORTEST_FUZZY = 4  # letters of a word that may be misspelt
LONGEST_FUZZY = 32
_DIGIT = re.compile(r"\d")
_BASE = 0x9E3779B97F4A7C15
_BASE_INVERSE = np.uint64(pow(_BASE, -1, 1 << 64))
_DELETE_SAYS = 3  # how many trigrams a word with one letter less is worth
_SEPARATOR = "\x00"
Longs = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class NameIndex:
    """The arrays, for E entries with W words in all and a vocabulary of V words.

    `entry_nodes` int32[E] and `entry_is_alias` bool[E]; the words of entry e are
    `entry_words[entry_starts[e]:entry_starts[e + 1]]`. `keys` uint64 ascending, of the entries `key_entries`, which
    are ordered by node where keys are equal, and of which a node has one for each key.
    The entries that have word w, ascending: `word_entries[word_starts[w]:word_starts[w + 1]]`. `weights`
    float32[V] is each word's rarity, ln(1 + E / entries with it), `entry_weights` float32[E] the sum over an entry's
    distinct words. `word_hashes` uint64[V] ascending, of the words `hashed_words`. The words with a feature (see
    `word_features`): `feature_words[feature_starts[f]:feature_starts[f + 1]]`. `symbols` has names without letters:
    text -> nodes.
    """

    vocabulary: StringTable
    entry_nodes: Ints
    entry_is_alias: npt.NDArray[np.bool_]
    entry_starts: Longs
    entry_words: Ints
    keys: Hashes
    key_entries: Ints
    word_starts: Longs
    word_entries: Ints
    weights: npt.NDArray[np.float32]
    entry_weights: npt.NDArray[np.float32]
    word_hashes: Hashes
    hashed_words: Ints
    feature_starts: Longs
    feature_words: Ints
    symbols: dict[str, list[int]]

    @classmethod
    def build(cls, graph: Graph) -> NameIndex:
        """Indexes names and aliases; some 4 s for a million nodes."""
        names, nodes, is_alias = names_of(graph.columns)
        starts, codes, vocabulary = split_words(names)
        table = StringTable.of(vocabulary)
        hashes, powers = hash_words(vocabulary)
        keys = entry_keys(starts, codes, hashes, powers)
        order = by_key(keys, nodes, starts)
        word_starts, word_entries = _inverted(starts, codes, len(vocabulary))
        uses = np.diff(word_starts)
        weights = rarity(len(names), uses)
        by_hash = np.argsort(hashes, kind="stable").astype(np.int32)
        feature_starts, feature_words = feature_lists(vocabulary)
        return cls(
            vocabulary=table,
            entry_nodes=nodes,
            entry_is_alias=is_alias,
            entry_starts=starts,
            entry_words=codes,
            keys=keys[order],
            key_entries=order,
            word_starts=word_starts,
            word_entries=word_entries,
            weights=weights,
            entry_weights=sum_weights(weights, uses, word_entries, len(names)),
            word_hashes=hashes[by_hash],
            hashed_words=by_hash,
            feature_starts=feature_starts,
            feature_words=feature_words,
            symbols=symbols_of(names, nodes, np.flatnonzero(starts[1:] == starts[:-1]).tolist()),
        )

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays occupy."""
        values = [getattr(self, column.name) for column in fields(self)]
        return sum(int(value.nbytes) for value in values if not isinstance(value, dict))

    def words_of(self, entry: int) -> Ints:
        """The words of an entry, in order."""
        return self.entry_words[self.entry_starts[entry] : self.entry_starts[entry + 1]]

    def entries_of(self, word: int) -> Ints:
        """The entries that have a word, ascending."""
        return self.word_entries[self.word_starts[word] : self.word_starts[word + 1]]

    def find_words(self, texts: Sequence[str], hashes: Hashes) -> Ints:
        """Numbers of words with their hashes, int32[len(texts)]; -1 for a word that no name has."""
        found = np.full(len(texts), -1, np.int32)
        if len(self.word_hashes) == 0 or not texts:
            return found
        places = np.minimum(np.searchsorted(self.word_hashes, hashes), len(self.word_hashes) - 1)
        for position in np.flatnonzero(self.word_hashes[places] == hashes).tolist():
            word = int(self.hashed_words[places[position]])
            if self.vocabulary[word] == texts[position]:
                found[position] = word
        return found

    def find_keys(self, keys: Hashes) -> tuple[Longs, Longs]:
        """For each key the range in `key_entries` of the entries that have it."""
        return np.searchsorted(self.keys, keys, "left"), np.searchsorted(self.keys, keys, "right")

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """A small JSON part and named arrays, for the cache."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for column in fields(self):
            value = getattr(self, column.name)
            if isinstance(value, StringTable):
                arrays["vocabulary.data"], arrays["vocabulary.offsets"] = value.data, value.offsets
            elif isinstance(value, np.ndarray):
                arrays[column.name] = value
        return {"symbols": self.symbols}, arrays

    @classmethod
    def from_arrays(cls, meta: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> NameIndex:
        """What `to_arrays` gave."""
        columns = {key: value for key, value in arrays.items() if not key.startswith("vocabulary.")}
        table = StringTable(arrays["vocabulary.data"], arrays["vocabulary.offsets"])
        return cls(vocabulary=table, symbols=meta["symbols"], **columns)


def hash_words(texts: Sequence[str]) -> tuple[Hashes, Hashes]:
    """For each word a polynomial hash over its characters, and the power by which one before it is multiplied."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    terms, starts = _hash_terms(texts, lengths)
    sums = np.concatenate((np.zeros(1, np.uint64), np.add.accumulate(terms)))
    return sums[starts + lengths] - sums[starts], _powers(lengths)[lengths]


def _hash_terms(texts: Sequence[str], lengths: Longs) -> tuple[Hashes, Longs]:
    """What each character adds to the hash of its word, and where words begin."""
    codes, starts = _code_points(texts, lengths)
    from_end = np.repeat(lengths, lengths) - 1 - (np.arange(len(codes)) - np.repeat(starts, lengths))
    return (codes.astype(np.uint64) + np.uint64(1)) * _powers(lengths)[from_end], starts


def _powers(lengths: Longs) -> Hashes:
    powers = np.full(int(lengths.max(initial=0)) + 1, _BASE, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def mixed(hashes: Hashes) -> Hashes:
    """The same hashes with their bits spread (splitmix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def word_features(text: str, num_lists: int) -> dict[int, int]:
    """What a word shares with similar ones: the lists of its features, with how much each says.

    A feature is one of the word's trigrams, with marks at begin and end, or the word without one letter or as it is
    (Garbe's symmetric deletes): words that differ in one letter, or in two that are swapped, share one of those.
    """
    lengths = np.array([len(text)])
    deletes, _ = _deletes([text], lengths, np.zeros(1, np.int64))
    found = dict.fromkeys(_list_numbers(deletes, num_lists).tolist(), _DELETE_SAYS)
    grams = _trigrams(np.frombuffer(f"\x02{text}\x03".encode("utf-32-le"), np.uint32))
    return found | dict.fromkeys(_list_numbers(grams, num_lists).tolist(), 1)


# ---- the parts of an index


def names_of(
    columns: Columns | NameColumns, chosen: list[int] | None = None
) -> tuple[list[str], Ints, npt.NDArray[np.bool_]]:
    """All names, then all aliases, with their nodes; of the chosen nodes (ascending) only, if some are."""
    nodes = list(range(len(columns.ids))) if chosen is None else list(chosen)
    names = list(columns.names) if chosen is None else [columns.names[node] for node in chosen]
    count = len(names)
    with_aliases = np.array(nodes, np.int64)[np.diff(columns.aliases.offsets)[nodes] > 0]
    for node in with_aliases.tolist():
        for alias in json.loads(columns.aliases[node]):
            names.append(alias)
            nodes.append(node)
    is_alias = np.zeros(len(names), bool)
    is_alias[count:] = True
    return names, np.array(nodes, np.int32), is_alias


def rarity(num_entries: int, uses: Longs) -> npt.NDArray[np.float32]:
    """The weight of each word, by the number of entries that have it."""
    weights: npt.NDArray[np.float32] = np.log1p(num_entries / np.maximum(uses, 1)).astype(np.float32)
    return weights


def sum_weights(
    weights: npt.NDArray[np.float32], uses: Longs, word_entries: Ints, num_entries: int
) -> npt.NDArray[np.float32]:
    """The sum of the weights of each entry's distinct words."""
    sums = np.bincount(word_entries, np.repeat(weights, uses), minlength=num_entries)
    return sums.astype(np.float32)


def split_words(names: list[str]) -> tuple[Longs, Ints, list[str]]:
    """Where each name's words begin, int64[len(names) + 1], their numbers, and the distinct words, sorted."""
    joined = f" {_SEPARATOR} ".join(names)
    if joined.count(_SEPARATOR) != max(len(names) - 1, 0):
        joined = f" {_SEPARATOR} ".join(name.replace(_SEPARATOR, " ") for name in names)
    seen = {_SEPARATOR: 0}
    flat = [seen.setdefault(word, len(seen)) for word in words(joined, _SEPARATOR)]
    codes = np.array(flat, np.int32)
    vocabulary = sorted(seen)[1:]  # the separator comes first: words have no control characters
    rank = np.zeros(len(seen), np.int32)
    rank[np.fromiter(map(seen.__getitem__, vocabulary), np.int64, len(vocabulary))] = np.arange(
        len(vocabulary)
    )
    ends = np.flatnonzero(codes == 0)
    starts = np.zeros(len(names) + 1, np.int64)
    starts[1 : len(ends) + 1] = ends - np.arange(len(ends))
    starts[len(names)] = len(codes) - len(ends)
    return starts, rank[codes[codes != 0]], vocabulary


def symbols_of(names: list[str], nodes: Ints, entries: list[int]) -> dict[str, list[int]]:
    """The nodes of each name without words, ascending."""
    found: dict[str, set[int]] = {}
    for entry in entries:
        text = "".join(unicodedata.normalize("NFKC", names[entry]).split())
        if text:
            found.setdefault(text, set()).add(int(nodes[entry]))
    return {text: sorted(nodes_) for text, nodes_ in found.items()}


def entry_keys(starts: Longs, codes: Ints, hashes: Hashes, powers: Hashes) -> Hashes:
    """The hash of each entry's first words, written together; entries without words share that of nothing."""
    keys = np.zeros(len(starts) - 1, np.uint64)
    lengths = np.diff(starts)
    for place in range(min(int(lengths.max(initial=0)), KEY_WORDS)):
        rows = np.flatnonzero(lengths > place)
        word = codes[starts[rows] + place]
        keys[rows] = keys[rows] * powers[word] + hashes[word]
    return mixed(keys)


def by_key(keys: Hashes, nodes: Ints, starts: Longs) -> Ints:
    """Entries by (key, node, entry), without those that spell what another entry of the node spells."""
    order = np.lexsort((nodes, keys)).astype(np.int32)  # stable, so a node's name comes before its aliases
    keys, nodes = keys[order], nodes[order]
    kept = np.ones(len(order), bool)
    kept[1:] = (keys[1:] != keys[:-1]) | (nodes[1:] != nodes[:-1])
    kept |= (starts[order + 1] - starts[order]) > KEY_WORDS  # these may go on in another way
    return order[kept]


def _inverted(starts: Longs, codes: Ints, num_words: int) -> tuple[Longs, Ints]:
    entries = max(len(starts) - 1, 1)
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    pairs = distinct(codes.astype(np.int64) * entries + rows)
    found, rows = np.divmod(pairs, entries)
    return np.searchsorted(found, np.arange(num_words + 1)), rows.astype(np.int32)


def distinct(values: Longs) -> Longs:
    """The distinct values, ascending; many times quicker than `np.unique`, which may hash them."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


def feature_lists(vocabulary: list[str]) -> tuple[Longs, Ints]:
    """The words with each feature, by hash: about as many lists as there are words."""
    num_lists = num_feature_lists(len(fuzzy_words(vocabulary)))
    features, rows = feature_pairs(vocabulary, num_lists)
    features, found = np.divmod(distinct(features * (len(vocabulary) + 1) + rows), len(vocabulary) + 1)
    return np.searchsorted(features, np.arange(num_lists + 1)), found.astype(np.int32)


def num_feature_lists(num_words: int) -> int:
    """A power of two."""
    return 1 << max(12, min(num_words, 1 << 21).bit_length())


def fuzzy_words(vocabulary: list[str]) -> list[int]:
    """Positions of the words that may be misspelt."""
    return [i for i, word in enumerate(vocabulary) if may_be_misspelt(word)]


def may_be_misspelt(word: str) -> bool:
    """Whether a word has a fit length and no digits: of codes, one that differs in a digit names something else."""
    return SHORTEST_FUZZY <= len(word) <= LONGEST_FUZZY and _DIGIT.search(word) is None


def feature_pairs(vocabulary: list[str], num_lists: int) -> tuple[Longs, Longs]:
    """The lists of features and the positions of their words."""
    chosen = fuzzy_words(vocabulary)
    places = np.array(chosen, np.int64)
    lengths = np.fromiter((len(vocabulary[i]) for i in chosen), np.int64, len(chosen))
    deletes, rows = _deletes([vocabulary[i] for i in chosen], lengths, places)
    codes, starts = _code_points([f"\x02{vocabulary[i]}\x03" for i in chosen], lengths + 2)
    inside = np.ones(max(len(codes) - 2, 0), bool)  # not across two words
    inside[(starts + lengths)[:-1]] = inside[(starts + lengths + 1)[:-1]] = False
    gram_rows = np.repeat(places, lengths + 2)[: len(inside)][inside]
    features = np.concatenate((_trigrams(codes)[inside], deletes))
    return _list_numbers(features, num_lists), np.concatenate((gram_rows, rows))


def _deletes(texts: Sequence[str], lengths: Longs, places: Longs) -> tuple[Hashes, Longs]:
    """Hashes of words without each of their letters, and of the words themselves, with the words' places."""
    terms, starts = _hash_terms(texts, lengths)
    sums = np.concatenate((np.zeros(1, np.uint64), np.add.accumulate(terms)))
    own = np.repeat(np.arange(len(lengths)), lengths)
    begins, ends = starts[own], (starts + lengths)[own]
    here = np.arange(len(terms))
    before, after = sums[here] - sums[begins], sums[ends] - sums[here + 1]
    whole = sums[starts + lengths] - sums[starts]
    return np.concatenate((before * _BASE_INVERSE + after, whole)), np.concatenate((places[own], places))


def _trigrams(codes: npt.NDArray[np.uint32]) -> Hashes:
    wide = codes.astype(np.uint64)
    if len(wide) < 3:
        return np.zeros(0, np.uint64)
    grams: Hashes = (wide[:-2] << np.uint64(42)) ^ (wide[1:-1] << np.uint64(21)) ^ wide[2:]
    return grams


def _list_numbers(features: Hashes, num_lists: int) -> Longs:
    return (mixed(features) & np.uint64(num_lists - 1)).astype(np.int64)


def _code_points(texts: Sequence[str], lengths: Longs) -> tuple[npt.NDArray[np.uint32], Longs]:
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    return codes, np.cumsum(lengths) - lengths
