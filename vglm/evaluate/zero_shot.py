"""Link prediction on a graph that was never trained on: the relational encoder against heuristics that need no training.

Filtered ranks over all entities, both directions, ties sharing the mean of their places. The encoder is trained on the
training parts of other graphs only; of the graph that it is asked about it is given the training part, as the heuristics are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vglm._native import Propagation
from vglm.encoder.relational import RelationalEncoder
from vglm.encoder.relational_structure import RelationalStructure
from vglm.evaluate.completion import SETTINGS, Benchmark, Setting, load
from vglm.evaluate.report import OURS, Figure, summary
from vglm.train.links import LinkOptions
from vglm.train.links_data import Scorer, filtered_ranks
from vglm.train.relational import RelationalSettings, train_relational
from vglm.train.relational_graphs import TrainingGraph
from vglm.train.run import temporary_folder

Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Reciprocal = npt.NDArray[np.float64]

TASK = "completion, zero-shot"
SUPERVISED = "completion, relational encoder trained on the graph itself"
_KATZ = np.float32(0.05)  # what an edge more takes away
# What is asked about, and what the encoder is trained on.
TRANSFERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("umls", ("wn18rr",)),
    ("wn18rr", ("umls",)),
    ("kinships", ("wn18rr",)),
    ("kinships", ("umls",)),
    ("nations", ("wn18rr",)),
    ("nations", ("umls",)),
    ("wn18rr", ("umls", "kinships", "nations")),
)


@dataclass(frozen=True)
class DataSet:
    """The training part as a graph, and questions (given, directed relation, wanted) of a held-out part."""

    graph: TrainingGraph
    benchmark: Benchmark

    @classmethod
    def load(cls, data: Path, name: str, part: str = "test") -> DataSet:
        """`part` is "test" or "valid". Raises GraphError when a file is missing or damaged."""
        train, valid, test = SETTINGS[name].parts if name in SETTINGS else Setting.parts
        parts = (train, valid, test) if part == "test" else (train, test, valid)
        folder = SETTINGS[name].folder if name in SETTINGS else name
        benchmark = load(data / "kg" / folder, Setting(folder, LinkOptions(), 1, parts))
        found = benchmark.data
        triples = np.unique(found.train, axis=0)
        return cls(TrainingGraph(found.num_entities, found.num_relations, triples), benchmark)

    def reciprocal_ranks(self, scorer: Scorer, limit: int | None = None, seed: int = 0) -> Reciprocal:
        """float64[n], of all questions or of `limit` random ones."""
        questions = self.benchmark.questions
        if limit is not None and limit < len(questions):
            chosen = np.random.default_rng(seed).permutation(len(questions))[:limit]
            questions = questions[np.sort(chosen)]
        return 1 / filtered_ranks(scorer, questions, self.benchmark.known, batch=64)


def encoder_scorer(encoder: RelationalEncoder, structure: RelationalStructure) -> Scorer:
    """The encoder as a scorer of batches."""
    prepared = encoder.prepare(structure)

    def score(given: Longs, relations: Longs) -> Floats:
        pairs = zip(given.tolist(), relations.tolist(), strict=True)
        return np.stack([prepared.scores(node, relation) for node, relation in pairs])

    return score


def heuristics(structure: RelationalStructure, seed: int = 0) -> dict[str, Scorer]:
    """Scorers that know no training: chance, degrees, and nearness in the graph whatever the relations."""
    count = structure.num_nodes
    degree = structure.degree.astype(np.float32)
    # How many edges of each relation lead to each entity, which is how often it has been the answer.
    codes = structure.relation.astype(np.int64) * count + structure.target
    answers = np.bincount(codes, minlength=2 * structure.num_relations * count)
    answers_by_relation: Floats = answers.reshape(-1, count).astype(np.float32)
    rarity: Floats = (1 / np.log(np.maximum(degree, 2))).astype(np.float32)[:, None]
    random = np.random.default_rng(seed)
    step = _steps(structure)

    def ends(given: Longs) -> Floats:
        """float32[N, B]: 1 where a question begins."""
        at = np.zeros((count, len(given)), np.float32)
        at[given, np.arange(len(given))] = 1
        return at

    def katz(given: Longs, relations: Longs) -> Floats:
        one = step(ends(given))
        two = step(one)
        paths: Floats = one + _KATZ * two + _KATZ**2 * step(two)
        return paths.T

    return {
        "random": lambda given, relations: random.random((len(given), count), np.float32),
        "degree": lambda given, relations: np.tile(degree, (len(given), 1)),
        "degree in the relation": lambda given, relations: answers_by_relation[relations],
        "common neighbours": lambda given, relations: step(step(ends(given))).T,
        "Adamic-Adar": lambda given, relations: step(rarity * step(ends(given))).T,
        "Katz, up to 3 edges": katz,
    }


def _steps(structure: RelationalStructure) -> Callable[[Floats], Floats]:
    """float32[N, B] to the sum over each node's neighbours, float32[N, B]; a neighbour counts once."""
    count = structure.num_nodes
    pairs = np.unique(structure.target.astype(np.int64) * count + structure.source)
    target, source = np.divmod(pairs, count)
    start = np.searchsorted(target, np.arange(count + 1)).astype(np.int64)
    passing = Propagation(start, source.astype(np.int32), np.zeros(len(source), np.int32), 1)

    def step(states: Floats) -> Floats:
        out: Floats = np.zeros_like(states)
        passing.aggregate(states[None], np.ones((1, 1, states.shape[1]), np.float32), out[None])
        return out

    return step


def figures_of(task: str, data: str, system: str, reciprocal: Sequence[Reciprocal]) -> list[Figure]:
    """MRR and Hits of reciprocal ranks float64[n] per seed."""
    scores = np.stack(reciprocal)
    hits = {f"Hits@{k}": scores >= 1 / k for k in (1, 3, 10)}
    return [summary(task, data, system, name, values) for name, values in {"MRR": scores, **hits}.items()]


def run(
    data: Path,
    *,
    seeds: int = 5,
    settings: RelationalSettings | None = None,
    limit: int | None = 1000,
    transfers: Sequence[tuple[str, tuple[str, ...]]] = TRANSFERS,
    supervised: Sequence[str] = ("umls", "kinships"),
    folder: Path | None = None,
    part: str = "test",
) -> list[Figure]:
    """Trains on each source with seeds 0, 1, ..., and asks about each target; at most `limit` questions of each.

    `folder` keeps the trainings, so that a second run need not repeat them. `supervised` names graphs that the encoder is
    trained on themselves, for comparison.
    """
    names = {name for target, sources in transfers for name in (target, *sources)} | set(supervised)
    sets = {name: DataSet.load(data, name, part) for name in sorted(names)}
    with temporary_folder() as temporary:
        place = folder or temporary
        trained = Encoders(sets, settings or RelationalSettings(), seeds, place)
        figures = []
        baselines = {
            target: {
                name: sets[target].reciprocal_ranks(scorer, limit)
                for name, scorer in heuristics(sets[target].graph.structure).items()
            }
            for target in dict.fromkeys(target for target, _ in transfers)
        }
        for target, sources in transfers:
            title = f"{target}, trained on {', '.join(sources)}"
            for name, ranks in baselines[target].items():
                figures += figures_of(TASK, title, name, [ranks])
            figures += figures_of(TASK, title, OURS, trained.reciprocal_ranks(sources, target, limit))
        for name in supervised:
            figures += figures_of(SUPERVISED, name, OURS, trained.reciprocal_ranks((name,), name, limit))
    return figures


class Encoders:
    """Encoders trained when they are asked for, each source and seed once."""

    def __init__(
        self, sets: Mapping[str, DataSet], settings: RelationalSettings, seeds: int, folder: Path
    ) -> None:
        self.sets = sets
        self.settings = settings
        self.seeds = seeds
        self.folder = folder

    def reciprocal_ranks(self, sources: Sequence[str], target: str, limit: int | None) -> list[Reciprocal]:
        """Of encoders of each seed trained on `sources`, asked about `target`: float64[n] per seed."""
        asked = self.sets[target]
        found = []
        for seed in range(self.seeds):
            scorer = encoder_scorer(self.encoder(sources, seed), asked.graph.structure)
            found.append(asked.reciprocal_ranks(scorer, limit))
        return found

    def encoder(self, sources: Sequence[str], seed: int) -> RelationalEncoder:
        """Trained now, or taken from the folder; a training that was stopped goes on."""
        graphs = [self.sets[name].graph for name in sources]
        return train_relational(
            graphs, self.settings, seed, self.folder / f"{'-'.join(sources)}-{seed}"
        ).encoder()
