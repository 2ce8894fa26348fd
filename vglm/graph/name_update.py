"""The name index of a version of a graph from that of another: every array is spliced, and equals a new one.

What is kept stays in order, because nodes, entries and words are renumbered monotonically; what comes is sorted in.
That takes a tenth of the time of a new index, and the result does not depend on how it came about.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vglm.graph import name_index as fresh
from vglm.graph.graph import Ints
from vglm.graph.name_changes import NameChanges, NameColumns
from vglm.graph.name_index import Hashes, Longs, NameIndex, hash_words
from vglm.graph.strings import StringTable

_Number = TypeVar("_Number", bound=np.generic)
_Mask = npt.NDArray[np.bool_]


def updated_index(index: NameIndex, new: NameColumns, changes: NameChanges) -> NameIndex:
    """The index of `new`, given that of the version before and how their names differ."""
    return _Update(index, new, changes).index()


@dataclass(frozen=True, slots=True)
class _Merge:
    """A sorted list that loses some of its items and gets others: `numbers` int32 of the old ones (-1: lost) and
    `come` int32 of the others in the new list; `at` int64 is where `np.insert` puts the others."""

    numbers: Ints
    come: Ints
    at: Longs

    @classmethod
    def of(cls, kept: _Mask, places: Longs) -> _Merge:
        """Of old items that are `kept`, and others that come before the old items at `places`, ascending."""
        old = np.flatnonzero(kept)
        at = np.searchsorted(old, places).astype(np.int64)
        numbers = np.full(len(kept), -1, np.int32)
        numbers[old] = np.arange(len(old)) + np.searchsorted(places, old, side="right")
        return cls(numbers, (at + np.arange(len(at))).astype(np.int32), at)

    def column(self, old: npt.NDArray[_Number], come: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        """A column of the new list."""
        return np.insert(old[self.numbers >= 0], self.at, come)


class _Update:
    def __init__(self, index: NameIndex, new: NameColumns, changes: NameChanges) -> None:
        self._old = index
        self._changes = changes
        self._names, self._nodes, self._is_alias = fresh.names_of(new, changes.come.tolist())
        self._starts, self._codes, self._vocabulary = fresh.split_words(self._names)
        self._kept = changes.numbers[index.entry_nodes] >= 0
        self._entries = self._merged_entries()
        self._hashes, self._powers = hash_words(self._vocabulary)
        self._words, self._come_words, self._is_new = self._merged_words()

    def index(self) -> NameIndex:
        old = self._old
        lengths = self._entries.column(np.diff(old.entry_starts), np.diff(self._starts))
        word_starts, word_entries = self._postings()
        uses = np.diff(word_starts)
        weights = fresh.rarity(len(lengths), uses)
        keys, key_entries = self._keys()
        feature_starts, feature_words = self._features()
        new_hashes = self._hashes[self._is_new]
        order = np.argsort(new_hashes, kind="stable")
        alive = self._words.numbers[old.hashed_words] >= 0
        at = np.searchsorted(old.word_hashes[alive], new_hashes[order])
        hashed = self._words.numbers[old.hashed_words[alive]]
        return NameIndex(
            vocabulary=self._table(),
            entry_nodes=self._entries.column(self._changes.numbers[old.entry_nodes], self._nodes),
            entry_is_alias=self._entries.column(old.entry_is_alias, self._is_alias),
            entry_starts=np.append(0, np.cumsum(lengths)),
            entry_words=self._entry_words(),
            keys=keys,
            key_entries=key_entries,
            word_starts=word_starts,
            word_entries=word_entries,
            weights=weights,
            entry_weights=fresh.sum_weights(weights, uses, word_entries, len(lengths)),
            word_hashes=np.insert(old.word_hashes[alive], at, new_hashes[order]),
            hashed_words=np.insert(hashed, at, self._come_words[self._is_new][order]),
            feature_starts=feature_starts,
            feature_words=feature_words,
            symbols=self._symbols(),
        )

    def _merged_entries(self) -> _Merge:
        """Names by node, then aliases by node."""
        old = self._old
        first_alias = int(np.searchsorted(old.entry_is_alias, True))
        nodes = self._changes.numbers[old.entry_nodes]
        places = np.zeros(len(self._nodes), np.int64)
        for part, aliases in ((slice(0, first_alias), False), (slice(first_alias, None), True)):
            kept = np.flatnonzero(self._kept[part])
            chosen = self._is_alias == aliases
            before = np.searchsorted(nodes[part][kept], self._nodes[chosen])
            places[chosen] = np.append(kept, len(nodes[part]))[before] + (part.start or 0)
        return _Merge.of(self._kept, places)

    def _merged_words(self) -> tuple[_Merge, Ints, _Mask]:
        """The vocabulary; the new numbers of the words that come, and which of them are new."""
        old = self._old
        pairs = np.repeat(np.arange(len(old.vocabulary)), np.diff(old.word_starts))
        alive = np.bincount(pairs[self._kept[old.word_entries]], minlength=len(old.vocabulary)) > 0
        known = old.find_words(self._vocabulary, self._hashes)
        is_new = known < 0
        alive[known[~is_new]] = True
        places = [bisect_left(old.vocabulary, self._vocabulary[i]) for i in np.flatnonzero(is_new).tolist()]
        merge = _Merge.of(alive, np.array(places, np.int64))
        numbers = np.zeros(len(self._vocabulary), np.int32)
        numbers[~is_new] = merge.numbers[known[~is_new]]
        numbers[is_new] = merge.come
        return merge, numbers, is_new

    def _table(self) -> StringTable:
        old = self._old.vocabulary
        come = [self._vocabulary[i] for i in np.flatnonzero(self._is_new).tolist()]
        table = StringTable.of(come)
        lengths = np.diff(old.offsets)
        alive = self._words.numbers >= 0
        ends = np.append(0, np.cumsum(lengths[alive]))
        at = np.repeat(ends[self._words.at], np.diff(table.offsets))
        data = np.insert(old.data[np.repeat(alive, lengths)], at, table.data)
        return StringTable(data, np.append(0, np.cumsum(self._words.column(lengths, np.diff(table.offsets)))))

    def _entry_words(self) -> Ints:
        old = self._old
        lengths = np.diff(old.entry_starts)
        kept = old.entry_words[np.repeat(self._kept, lengths)]
        ends = np.append(0, np.cumsum(lengths[self._kept]))
        at = np.repeat(ends[self._entries.at], np.diff(self._starts))
        return np.insert(self._words.numbers[kept], at, self._come_words[self._codes])

    def _postings(self) -> tuple[Longs, Ints]:
        """The entries of each word."""
        old = self._old
        count = max(int(self._kept.sum()) + len(self._nodes), 1)
        words = np.repeat(self._words.numbers, np.diff(old.word_starts)).astype(np.int64)
        kept = self._kept[old.word_entries]
        pairs = words[kept] * count + self._entries.numbers[old.word_entries[kept]]
        rows = np.repeat(self._entries.come, np.diff(self._starts))
        come = fresh.distinct(self._come_words[self._codes].astype(np.int64) * count + rows)
        found, entries = np.divmod(np.insert(pairs, np.searchsorted(pairs, come), come), count)
        starts = np.searchsorted(
            found, np.arange(int((self._words.numbers >= 0).sum() + self._is_new.sum()) + 1)
        )
        return starts, entries.astype(np.int32)

    def _keys(self) -> tuple[Hashes, Ints]:
        old = self._old
        stay = self._kept[old.key_entries]
        keys = old.keys[stay]
        nodes = self._changes.numbers[old.entry_nodes[old.key_entries[stay]]]
        own = fresh.entry_keys(self._starts, self._codes, self._hashes, self._powers)
        order = fresh.by_key(own, self._nodes, self._starts)
        low, high = np.searchsorted(keys, own[order]), np.searchsorted(keys, own[order], side="right")
        at = [
            first + int(np.searchsorted(nodes[first:last], node))
            for first, last, node in zip(
                low.tolist(), high.tolist(), self._nodes[order].tolist(), strict=True
            )
        ]
        entries = self._entries.numbers[old.key_entries[stay]]
        places = np.array(at, np.int64)
        return np.insert(keys, places, own[order]), np.insert(entries, places, self._entries.come[order])

    def _features(self) -> tuple[Longs, Ints]:
        old = self._old
        num_lists = len(old.feature_starts) - 1
        eligible = np.zeros(len(old.vocabulary), np.bool_)
        eligible[old.feature_words] = True
        come = [self._vocabulary[i] for i in np.flatnonzero(self._is_new).tolist()]
        total = int((eligible & (self._words.numbers >= 0)).sum()) + len(fresh.fuzzy_words(come))
        if fresh.num_feature_lists(total) != num_lists:
            return fresh.feature_lists(list(self._table()))
        count = len(self._words.numbers) + len(self._vocabulary) + 1
        words = self._words.numbers[old.feature_words]
        lists = np.repeat(np.arange(num_lists), np.diff(old.feature_starts))[words >= 0]
        pairs = lists * count + words[words >= 0]
        grams, rows = fresh.feature_pairs(come, num_lists)
        added = fresh.distinct(grams * count + self._words.come[rows])
        lists, words = np.divmod(np.insert(pairs, np.searchsorted(pairs, added), added), count)
        return np.searchsorted(lists, np.arange(num_lists + 1)), words.astype(np.int32)

    def _symbols(self) -> dict[str, list[int]]:
        numbers = self._changes.numbers
        empty = np.flatnonzero(self._starts[1:] == self._starts[:-1]).tolist()
        come = fresh.symbols_of(self._names, self._nodes, empty)
        found: dict[str, list[int]] = {}
        for text, nodes in self._old.symbols.items():
            now = [int(numbers[node]) for node in nodes if numbers[node] >= 0]
            if now:
                found[text] = now
        for text, nodes in come.items():
            found[text] = sorted(found.get(text, []) + nodes)
        return found
