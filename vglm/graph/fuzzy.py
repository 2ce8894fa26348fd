"""Names that a question spells otherwise: misspelt, inflected, in another order, or not whole.

Every step is bounded, whatever the graph: a word has few similar words, which share its rarest features, and
few names are compared, those that share most of their rare words with the question.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vglm.graph.name_index import KEY_WORDS, NameIndex, may_be_misspelt, word_features
from vglm.graph.words import FUNCTION_WORDS, INFLECTED, Word, similarity

SIMILAR = 0.74  # least similarity of two words that may be one misspelt
COVERED = 0.7  # least share of a name, by rarity of its words, that a question must have
_LONG_ENOUGH = 6  # letters of a word that may be misspelt where no other word of the name stands beside it
_LONG = 12  # letters of a word that may be misspelt twice there: "haemophilia" is not haemobilia
MAX_WORDS = 256  # of a question; the others are found only as they stand
_POSTINGS_OF_WORD = 800  # words looked at for one word
_COMPARED_WORDS = 8
_POSTINGS_OF_QUESTION = 20_000
_COMPARED_NAMES = 64
_ROMAN = re.compile("[ivx]+")
_ANCHORS = 4  # places of a name's rarest word that are tried
_REMEMBERED_WORDS = 50_000
Alternatives = tuple[tuple[int, float], ...]  # (word, similarity)
Places = dict[int, list[int]]  # word of the index -> places in the question, ascending
Alike = dict[tuple[int, int], float]  # (word, place) -> similarity


@dataclass(frozen=True, slots=True)
class FuzzyMatch:
    """A name (an entry of the index) and the positions of the question's words that stand for its words."""

    entry: int
    positions: tuple[int, ...]
    score: float


class FuzzyNames:
    """Fuzzy look-up in one index; it remembers the similar words of words that it was asked for."""

    def __init__(self, index: NameIndex) -> None:
        self._index = index
        self._similar: dict[str, Alternatives] = {}

    def matches(self, words: Sequence[Word], ids: Sequence[int], exact: Sequence[bool]) -> list[FuzzyMatch]:
        """Names that the words spell otherwise, each at its best place, by entry.

        `ids` are the words' numbers in the index (-1: unknown); words marked `exact` are part of a name as they
        stand and are not taken for misspelt ones.
        """
        places: Places = {}
        alike: Alike = {}
        for position, word in enumerate(words[:MAX_WORDS]):
            if word.text in FUNCTION_WORDS:
                continue
            found = [(ids[position], 1.0)] if ids[position] >= 0 else []
            found += () if exact[position] else self.similar_words(word.text)
            for number, value in found:
                places.setdefault(number, []).append(position)
                alike[number, position] = value
        scored = (self._score(entry, places, alike, words) for entry in self._candidates(places, alike))
        return [match for match in scored if match is not None]

    def similar_words(self, text: str) -> Alternatives:
        """Words of the index that `text` may be a misspelling or a form of, the most similar first."""
        known = self._similar.get(text)
        if known is None:
            if len(self._similar) >= _REMEMBERED_WORDS:
                self._similar = {}  # a new one: another thread may be reading the old one
            known = self._similar[text] = self._look_up_similar(text)
        return known

    def _look_up_similar(self, text: str) -> Alternatives:
        if not may_be_misspelt(text):
            return ()
        index = self._index
        says = word_features(text, len(index.feature_starts) - 1)
        lists: list[npt.NDArray[np.int32]] = []
        weights: list[int] = []
        left = _POSTINGS_OF_WORD
        sizes = {f: int(index.feature_starts[f + 1] - index.feature_starts[f]) for f in says}
        for feature in sorted(
            says, key=lambda feature: (sizes[feature], feature)
        ):  # the rarest first: they say most
            if 0 < sizes[feature] <= left:
                left -= sizes[feature]
                start = index.feature_starts[feature]
                lists.append(index.feature_words[start : start + sizes[feature]])
                weights.append(says[feature])
        if not lists:
            return ()
        numbers, where = np.unique(np.concatenate(lists), return_inverse=True)
        shared = np.bincount(where, np.repeat(weights, list(map(len, lists))))
        best = np.lexsort((numbers, -shared))[:_COMPARED_WORDS]
        compared = ((number, similarity(text, index.vocabulary[number])) for number in numbers[best].tolist())
        # the first letter of a short word is rarely wrong: "tall and thin" is no tall chin
        alike = [
            (number, value)
            for number, value in compared
            if SIMILAR <= value < 1 and (len(text) >= _LONG_ENOUGH or index.vocabulary[number][0] == text[0])
        ]
        return tuple(sorted(alike, key=lambda item: (-item[1], item[0]))[:3])

    def _candidates(self, places: Places, alike: Alike) -> list[int]:
        """The entries that share most with the question, by the rare words among those that are meant."""
        index = self._index
        uses = {number: int(index.word_starts[number + 1] - index.word_starts[number]) for number in places}
        entries: list[npt.NDArray[np.int32]] = []
        gains: list[npt.NDArray[np.float64]] = []
        left = _POSTINGS_OF_QUESTION
        for number in sorted(places, key=lambda number: (uses[number], number)):
            if uses[number] > left:
                break
            left -= uses[number]
            entries.append(index.entries_of(number))
            best = max(alike[number, place] for place in places[number])
            gains.append(np.full(uses[number], float(index.weights[number]) * best))
        if not entries:
            return []
        found, where = np.unique(np.concatenate(entries), return_inverse=True)
        share = np.bincount(where, np.concatenate(gains)) / index.entry_weights[found]
        lengths = index.entry_starts[found + 1] - index.entry_starts[found]
        promising = np.flatnonzero((share >= COVERED / 2) & (lengths <= KEY_WORDS))
        order = np.lexsort((found[promising], -share[promising]))
        return sorted(found[promising[order[:_COMPARED_NAMES]]].tolist())

    def _score(self, entry: int, places: Places, alike: Alike, words: Sequence[Word]) -> FuzzyMatch | None:
        """How much of a name the question has in one place; None if that is too little."""
        own = self._index.words_of(entry).tolist()
        weights = self._index.weights
        anchors = [number for number in own if number in places]
        rarest = max(anchors, key=lambda number: (weights[number], -number))
        best: FuzzyMatch | None = None
        for anchor in places[rarest][:_ANCHORS]:
            match = self._score_around(entry, own, anchor, places, alike, words)
            if match is not None and (best is None or match.score > best.score):
                best = match
        return best

    def _is_another(self, own: list[int], used: dict[int, int], words: Sequence[Word]) -> bool:
        """Whether a number or the like tells the name from what is said: "type 1 diabetes" is not type 2."""
        covered = set(used.values())
        if not any(_is_mark(self._index.vocabulary[number]) for number in own if number not in covered):
            return False
        around = range(max(min(used) - 1, 0), min(max(used) + 2, len(words)))
        return any(_is_mark(words[place].text) for place in around if place not in used)

    def _stands_alone(self, spoken: str, number: int, alike: float) -> bool:
        """Whether one word, with no other beside it, is a misspelling: most short words are a letter from another."""
        meant = self._index.vocabulary[number]
        if alike >= INFLECTED:
            return True
        swapped = len(spoken) >= 5 and sorted(spoken) == sorted(meant)
        length = max(len(spoken), len(meant))
        edits = round((1 - alike) * length)
        few = edits <= (2 if length >= _LONG else 1)
        return swapped or (length >= _LONG_ENOUGH and few and spoken[0] == meant[0])

    def _score_around(
        self, entry: int, own: list[int], anchor: int, places: Places, alike: Alike, words: Sequence[Word]
    ) -> FuzzyMatch | None:
        weights, reach, sentence = self._index.weights, len(own) + 1, words[anchor].sentence
        used: dict[int, int] = {}  # place -> word of the name
        total = covered = 0.0
        for number in own:
            weight = float(weights[number])
            total += weight
            every = places.get(number, [])
            near = every[bisect_left(every, anchor - reach) : bisect_right(every, anchor + reach)]
            free = [place for place in near if place not in used and words[place].sentence == sentence]
            if free:
                best = max(free, key=lambda p: (alike[number, p], -abs(p - anchor), -p))
                used[best] = number
                covered += weight * alike[number, best]
        positions = sorted(used)
        if covered < COVERED * total or 2 * len(used) < len(own):
            return None
        if len(used) == 1:
            ((place, number),) = used.items()
            if not self._stands_alone(words[place].text, number, alike[number, place]):
                return None
        if self._is_another(own, used, words):
            return None
        between = range(positions[0], positions[-1] + 1)
        strange = sum(1 for p in between if p not in used and words[p].text not in FUNCTION_WORDS)
        ordered = list(used) == positions
        score = covered / total * 0.85**strange * (1.0 if ordered else 0.97)
        return FuzzyMatch(entry, tuple(positions), score) if score >= COVERED else None


def _is_mark(text: str) -> bool:
    """Whether a word tells one of several things of one name from the others: a number, a letter."""
    if text in FUNCTION_WORDS:
        return False
    return len(text) == 1 or any(map(str.isdigit, text)) or _ROMAN.fullmatch(text) is not None
