"""The lessons of a training: which samples, in what mixture, and in batches of what shape."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vglm.errors import ConfigError
from vglm.graph.graph import Graph
from vglm.train.data import asking, reading, shape, stance
from vglm.train.data.suggestion import suggestion_sample
from vglm.train.samples import IGNORED, Row, RowWriter, Sample

Draw = Callable[[random.Random], Sample | None]
BATCH_TOKENS = 2_048
MOST_TRIES = 200  # samples that are drawn for one row, before the lesson is said to have none


@dataclass(frozen=True, slots=True)
class Lesson:
    """A kind of sample: `share` of the batches, rows of up to `length` tokens, batches of `size` times BATCH_TOKENS."""

    name: str
    share: float
    length: int
    draw: Draw
    size: int = 1

    @property
    def kind(self) -> str:
        """The name without the number of a graph."""
        return self.name.split()[0]

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return max(1, self.size * BATCH_TOKENS // self.length)


@dataclass(slots=True)
class Batch:
    """Rows padded to one length: tokens, positions, targets int64 [rows, length], visible bool [rows, length, length]."""

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    visible: Tensor


@dataclass(slots=True)
class Mixture:
    """Draws batches. A batch depends on the seed and the step alone, so a resumed training sees what it would have seen."""

    lessons: Sequence[Lesson]
    writer: RowWriter
    seed: int = 0
    _shares: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.lessons:
            raise ConfigError("nothing to train on: give graphs or data sets")
        self._shares = [lesson.share for lesson in self.lessons]

    def check(self) -> None:
        """Draw a row of every lesson that has a share. Raises ConfigError for one whose samples do not fit: better now than at
        the first step that draws it."""
        rng = random.Random(self.seed)
        for lesson in self.lessons:
            if lesson.share:
                self._rows(lesson, ("spans", "sequential"), rng)

    def batch(self, step: int, modes: Sequence[str]) -> tuple[Lesson, dict[str, Batch]]:
        """The batch of a step, the same samples written in each of `modes`."""
        rng = random.Random(f"{self.seed}:{step}")
        lesson = rng.choices(self.lessons, self._shares)[0]
        rows: dict[str, list[Row]] = {mode: [] for mode in modes}
        for _ in range(lesson.rows):
            for mode, row in self._rows(lesson, modes, rng).items():
                rows[mode].append(row)
        return lesson, {mode: _padded(found, lesson.length) for mode, found in rows.items()}

    def _rows(self, lesson: Lesson, modes: Sequence[str], rng: random.Random) -> dict[str, Row]:
        for _ in range(MOST_TRIES):
            sample = lesson.draw(rng)
            if sample is None:
                continue
            rows = {mode: self.writer.row(sample, mode, lesson.length) for mode in modes}
            # as many turns are not yet the same ones: each mode leaves out those that do not fit
            answers = {row.answer_tokens for row in rows.values() if row is not None}
            if None not in rows.values() and len(answers) == 1:
                return rows  # type: ignore[return-value]
        raise ConfigError(f"lesson {lesson.name!r}: no sample fits into {lesson.length} tokens")


def _padded(rows: Sequence[Row], length: int) -> Batch:
    count = len(rows)
    tokens = np.zeros((count, length), np.int64)
    positions = np.zeros((count, length), np.int64)
    targets = np.full((count, length), IGNORED, np.int64)
    visible = np.zeros((count, length, length), np.bool_)
    visible[:, np.arange(length), np.arange(length)] = (
        True  # padding sees itself, so that no softmax is empty
    )
    for place, row in enumerate(rows):
        own = len(row)
        tokens[place, :own] = row.tokens
        positions[place, :own] = row.positions
        targets[place, :own] = row.targets
        visible[place, :own, :own] = row.visible
    made = torch.from_numpy
    return Batch(made(tokens), made(positions), made(targets), made(visible))


def graph_lessons(graphs: Sequence[Graph]) -> list[Lesson]:
    """Reading lessons over each graph, and explanations of suggestions where diseases have phenotypes."""
    from vglm.graph.annotations import HAS_PHENOTYPE
    from vglm.graph.ranking import DiseaseRanker

    reading_share = 0.13 / max(1, len(graphs))
    lessons = [Lesson(f"reading {i}", reading_share, 512, _reading(graph)) for i, graph in enumerate(graphs)]
    for graph in graphs:
        if graph.relation_code(HAS_PHENOTYPE) >= 0:
            ranker = DiseaseRanker(graph)
            lessons.append(Lesson("suggestion", 0.12, 384, lambda rng, r=ranker: suggestion_sample(r, rng)))  # type: ignore[misc]
            break
    return lessons


def _reading(graph: Graph) -> Draw:
    return lambda rng: reading.reading_sample(graph, rng)


def data_lessons(data: Path) -> list[Lesson]:
    """Lessons from ExplaGraphs and NLGraph, as far as `data` (laid out as docs/training.md says) has them."""
    lessons: list[Lesson] = []
    stances = data / "graphqa/explagraphs/train.tsv"
    if stances.exists():
        cases = [case for case in stance.read_stances(stances) if not stance.is_held_out(case)]
        # the hardest lesson: one bit for each case, so its batches are larger than those of others
        lessons.append(
            Lesson("stance", 0.6, 144, lambda rng: stance.stance_sample(rng.choice(cases), rng), 2)
        )
    for name in ("connectivity", "cycle"):
        path = data / "graphqa/nlgraph" / name / "train.json"
        if path.exists():
            shapes = [case for case in shape.read_nlgraph(path) if not shape.is_held_out(case)]
            lessons.append(Lesson(name, 0.015, 512, _shape(shapes)))
    lessons.append(Lesson("shape", 0.02, 512, shape.random_sample))
    return lessons


def world_lesson() -> Lesson:
    """Questions as people ask them, about invented graphs: they need no data."""
    return Lesson("world", 0.2, 512, asking.world_sample)


def _shape(cases: Sequence[shape.ShapeCase]) -> Draw:
    return lambda rng: shape.case_sample(rng.choice(cases))


def with_shares(lessons: Sequence[Lesson], shares: Mapping[str, float]) -> list[Lesson]:
    """The lessons with other shares; `reading` is shared among the graphs. Raises ConfigError for a name that none has."""
    kinds = Counter(lesson.kind for lesson in lessons)
    if unknown := [name for name in shares if name not in kinds]:
        raise ConfigError(f"no lesson is called {unknown[0]!r}; there are {', '.join(sorted(kinds))}")
    found = [
        replace(lesson, share=shares[lesson.kind] / kinds[lesson.kind]) if lesson.kind in shares else lesson
        for lesson in lessons
    ]
    if not any(lesson.share for lesson in found):
        raise ConfigError("no lesson has a share: at least one must be above 0")
    return found


def general_lesson(samples: Sequence[Sample]) -> Lesson:
    """The lesson in which the model is held to its base."""
    return Lesson("general", 0.10, 256, lambda rng: rng.choice(samples))
