"""Evidence for a triple that can be read off the training graph and the texts: nothing here is trained.

Channels, each a number per candidate c of the question (given, relation, ?):

    similar    cosine of the texts of the given entity and c
    voted      soft maximum of the cosine of the given entity's text to those of entities that have c as this answer
    answered   greatest cosine of c's text to those of answers that are known already (16 of them)
    frequent   log(1 + how often c is an answer of this relation)
    inverse    whether (c, relation, given) is known
    adjacent   whether any edge joins the two
    bridged    log(1 + number of paths of two edges between the two)
    named      whether the name of c stands in the text of the given entity, more for earlier places
    naming     the same with c's text and the given entity's name
    ending     whether the name of the given entity ends with the name of c ("oak tree", "tree"), or the other way round
    stem       length of the common beginning of both names, as a share of the longer one
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Longs = npt.NDArray[np.int64]
CHANNELS = (
    "similar",
    "voted",
    "answered",
    "frequent",
    "inverse",
    "adjacent",
    "bridged",
    "named",
    "naming",
    "ending",
    "stem",
)
_SHARPNESS = np.float32(20)  # of the soft maximum
_ANSWERS = 16  # known answers that others are compared with
_WORD = re.compile(r"[a-z0-9]+")
_PLACES = 12  # words of a text that are compared with names
_LONGEST_NAME = 4  # words


class Rows:
    """Lists of numbers for keys 0..n-1, in one array: `of(keys)` gives them with the position of their key."""

    def __init__(self, keys: Longs, values: Longs, size: int) -> None:
        order = np.lexsort((values, keys))
        self.values = values[order]
        self.starts = np.zeros(size + 1, np.int64)
        np.cumsum(np.bincount(keys, minlength=size), out=self.starts[1:])

    def of(self, keys: Longs) -> tuple[Longs, Longs]:
        """(position in `keys`, value) of all values of these keys, both int64 [m]."""
        counts = self.starts[keys + 1] - self.starts[keys]
        rows = np.repeat(np.arange(len(keys)), counts)
        places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self.values[np.repeat(self.starts[keys], counts) + places]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Channels over N entities with unit text vectors float32 [N, t], texts "name: definition", and training triples.

    `questions` int64 [n, 3] are the training triples in both directions (given, directed relation, answer).
    """

    vectors: Float32
    texts: Sequence[str]
    questions: Longs
    num_relations: int
    kind = "evidence"
    num_channels = len(CHANNELS)

    @property
    def num_entities(self) -> int:
        return len(self.vectors)

    def tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        """What is stored: half the questions, as the other half is the same the other way round."""
        triples = self.questions[self.questions[:, 1] < self.num_relations]
        encoded = json.dumps(list(self.texts), ensure_ascii=False).encode()
        return {
            "vectors": self.vectors.astype(np.float16),
            "texts": np.frombuffer(encoded, np.uint8),
            "triples": triples.astype(np.int32),
            "num_relations": np.array([self.num_relations], np.int32),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[np.generic]]) -> Evidence:
        """What `tensors` stored."""
        num_relations = int(tensors["num_relations"][0])
        heads, relations, tails = tensors["triples"].astype(np.int64).T
        questions = [(heads, relations, tails), (tails, relations + num_relations, heads)]
        stacked = np.concatenate([np.stack(columns, axis=1) for columns in questions])
        texts = json.loads(tensors["texts"].tobytes())
        return cls(tensors["vectors"].astype(np.float32), texts, stacked, num_relations)

    def scores(self, given: Longs, relations: Longs) -> Float32:
        """float32 [len(CHANNELS), B, N] for given entities and directed relations, int64 [B] each."""
        found = np.zeros((len(CHANNELS), len(given), len(self.vectors)), np.float32)
        similar, voted, answered, frequent, inverse, adjacent, bridged, *lexical = found
        similar[:] = self.vectors[given] @ self.vectors.T
        for relation in np.unique(relations).tolist():
            rows = np.flatnonzero(relations == relation)
            voted[rows], frequent[rows] = self._votes(similar[rows], relation)
        width = 2 * self.num_relations
        rows, answers = self._answers.of(given * width + relations)
        self._nearest(rows, answers, answered)
        inverse[self._answers.of(given * width + (relations + self.num_relations) % width)] = 1
        near_rows, near = self._neighbours.of(given)
        adjacent[near_rows, near] = 1
        far_rows, far = self._neighbours.of(near)
        np.add.at(bridged, (near_rows[far_rows], far), 1)
        np.log1p(bridged, out=bridged)
        for row, entity in enumerate(given.tolist()):
            self._names.compare(entity, [channel[row] for channel in lexical])
        return found

    def _votes(self, similar: Float32, relation: int) -> tuple[Float32, Float32]:
        voted, frequent = np.zeros_like(similar), np.zeros(similar.shape[1], np.float32)
        givers, answers, starts = self._by_answer[relation]
        if len(answers):
            strength = np.exp(_SHARPNESS * similar[:, givers])
            voted[:, answers] = np.log(np.add.reduceat(strength, starts, axis=1)) / _SHARPNESS
            frequent[answers] = np.log1p(np.diff([*starts, len(givers)]))
        return voted, np.broadcast_to(frequent, similar.shape)

    def _nearest(self, rows: Longs, answers: Longs, answered: Float32) -> None:
        """Fill in the greatest cosine to any of a row's answers (the first `_ANSWERS` of them)."""
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        counts = np.diff(np.append(starts, len(rows)))
        kept = np.arange(len(rows)) - np.repeat(starts, counts) < _ANSWERS
        chosen, places = np.unique(answers[kept], return_inverse=True)
        cosines = self.vectors[chosen] @ self.vectors.T
        for row, place in zip(rows[kept].tolist(), places.tolist(), strict=True):
            channel = answered[row]  # 0 where there is no answer; a cosine below that says as little
            np.maximum(channel, cosines[place], out=channel)

    @cached_property
    def _by_answer(self) -> list[tuple[Longs, Longs, Longs]]:
        """Per directed relation: given entities sorted by their answer, the answers, where each one's begin."""
        found = []
        for relation in range(2 * self.num_relations):
            own = self.questions[self.questions[:, 1] == relation]
            own = own[np.argsort(own[:, 2], kind="stable")]
            answers, starts = np.unique(own[:, 2], return_index=True)
            found.append((own[:, 0], answers, starts))
        return found

    @cached_property
    def _answers(self) -> Rows:
        width = 2 * self.num_relations
        codes = self.questions[:, 0] * width + self.questions[:, 1]
        return Rows(codes, self.questions[:, 2], len(self.vectors) * width)

    @cached_property
    def _neighbours(self) -> Rows:
        size = len(self.vectors)
        pairs = np.unique(self.questions[:, 0] * size + self.questions[:, 2])
        return Rows(pairs // size, pairs % size, size)

    @cached_property
    def _names(self) -> _Names:
        return _Names(self.texts)


class _Names:
    """The words of names and texts, for finding one in the other."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.names = [tuple(_WORD.findall(text.partition(":")[0].lower())) for text in texts]
        self.words = [_WORD.findall(text.partition(":")[2].lower())[:_PLACES] for text in texts]
        self.by_name: dict[tuple[str, ...], list[int]] = {}
        self.by_phrase: dict[tuple[str, ...], list[tuple[int, float]]] = {}
        self.by_ending: dict[tuple[str, ...], list[int]] = {}
        self.by_stem: dict[str, list[int]] = {}
        for number, name in enumerate(self.names):
            self.by_name.setdefault(name, []).append(number)
            self.by_stem.setdefault("".join(name)[:4], []).append(number)
            for start in range(1, len(name)):
                self.by_ending.setdefault(name[start:], []).append(number)
        for number in range(len(texts)):
            for phrase, weight in self._phrases(number).items():
                if phrase in self.by_name:
                    self.by_phrase.setdefault(phrase, []).append((number, weight))

    def compare(self, entity: int, channels: Sequence[Float32]) -> None:
        """Fill `named`, `naming`, `ending`, `stem`, each float32 [N], for one given entity."""
        named, naming, ending, stem = channels
        name = self.names[entity]
        for phrase, weight in self._phrases(entity).items():
            named[self.by_name.get(phrase, [])] = weight
        for number, weight in self.by_phrase.get(name, ()):
            naming[number] = weight
        ending[self.by_ending.get(name, [])] = 1
        for start in range(1, len(name)):
            ending[self.by_name.get(name[start:], [])] = 1
        own = "".join(name)
        for number in self.by_stem.get(own[:4], ()):
            other = "".join(self.names[number])
            common = next(
                (i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b),
                min(len(own), len(other)),
            )
            stem[number] = common / max(len(own), len(other), 1)
        for channel in channels:
            channel[entity] = 0

    def _phrases(self, number: int) -> dict[tuple[str, ...], float]:
        """Runs of words of a text, with a weight that falls with their place; plurals stand for singulars too."""
        words = self.words[number]
        found: dict[tuple[str, ...], float] = {}
        for start in range(len(words)):
            for stop in range(start + 1, min(start + _LONGEST_NAME, len(words)) + 1):
                phrase = tuple(words[start:stop])
                weight = 1 / (1 + 0.2 * start)
                found.setdefault(phrase, weight)
                if len(phrase[-1]) > 3 and phrase[-1].endswith("s"):
                    found.setdefault((*phrase[:-1], phrase[-1][:-1]), weight)
        return found
