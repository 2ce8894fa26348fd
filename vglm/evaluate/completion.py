"""Link prediction on UMLS, Kinships and WN18RR: filtered ranks among all entities, both directions, ties shared.

Trained on the training part, chosen on the validation part, reported on the test part. As in the literature, all three parts
are left out of the ranks as known answers. Baselines are scored by the same evaluator: how often an entity is an answer of the
relation, DistMult (Yang et al., 2015), ComplEx without relation prediction, and each part of our model on its own. For WN18RR
our model stands there a second time, without knowing how many answers of its kind an entity is already: that is what the
training graph says, but much of it comes from how the data set was split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vglm.encoder.link_evidence import CHANNELS
from vglm.encoder.link_model import LinkModel
from vglm.encoder.link_parts import Float32
from vglm.errors import GraphError
from vglm.evaluate.report import OURS, Figure, summary
from vglm.train.links import LinkOptions, Progress, TextVectors, train_links
from vglm.train.links_complex import ComplexOptions
from vglm.train.links_data import (
    Floats,
    KnownAnswers,
    Longs,
    Scorer,
    Triples,
    both_directions,
    filtered_ranks,
)
from vglm.train.links_mix import fit_mix

TASK = "completion"
WITHOUT_COUNTS = f"{OURS}, without counts"
_HITS = (1, 3, 10)
# Both tell how many answers an entity is already. In WN18RR a noun has one hypernym, so that an entity without any is likelier.
_COUNTS = ("frequent", "voted")


@dataclass(frozen=True)
class Setting:
    """A data set and how the model is trained on it, as chosen on its validation part."""

    folder: str
    options: LinkOptions
    seeds: int
    parts: tuple[str, str, str] = ("train.txt", "valid.txt", "test.txt")
    texts: str = ""


_LARGE = LinkOptions.suited_to(40_000)
SETTINGS = {
    "umls": Setting("umls", LinkOptions(complex=ComplexOptions(epochs=60, regularisation=0.01)), seeds=5),
    "kinships": Setting(
        "kinships",
        LinkOptions(complex=ComplexOptions(epochs=30, regularisation=0.01, relation_weight=0.5)),
        seeds=5,
    ),
    "wn18rr": Setting(
        "wn18rr-text", _LARGE, 1, ("train.tsv", "dev.tsv", "test.tsv"), texts="entity2text.txt"
    ),
}


@dataclass(frozen=True)
class Benchmark:
    """A data set in numbers: what is trained and chosen on, the test questions int64 [n, 3], all known answers."""

    data: Triples
    questions: Longs
    known: KnownAnswers

    def ranks(self, score: Scorer) -> Floats:
        """Filtered ranks of the test answers, float64 [n]: tails first, then heads."""
        return filtered_ranks(score, self.questions, self.known, batch=64)


def run(
    data: Path,
    *,
    sets: Sequence[str] = ("umls", "kinships", "wn18rr"),
    seeds: int | None = None,
    baselines: bool = True,
    encoder: TextVectors | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    settings: Mapping[str, Setting] = SETTINGS,
) -> list[Figure]:
    """Figures of all `sets` below the folder `data` (as `kg/umls`); `seeds` replaces each setting's own number.

    `encoder` gives the text vectors for sets with texts; by default it is all-MiniLM-L6-v2, which is fetched on first
    use. Raises GraphError for a set that is unknown, missing or damaged.
    """
    for name in sets:
        if name not in settings:
            raise GraphError(f"no completion benchmark is called {name!r}; there are {', '.join(settings)}")
    # All before the first training: a set that is missing must not cost the figures of the others.
    loaded = {name: load(data / "kg" / settings[name].folder, settings[name]) for name in sets}
    figures: list[Figure] = []
    for name, benchmark in loaded.items():
        setting = settings[name]
        vectors = _sentence_encoder(encoder) if setting.texts else None
        rows: dict[str, list[Floats]] = {}
        for seed in range(seeds or setting.seeds):
            options = replace(setting.options, seed=seed)
            model = train_links(benchmark.data, options, on_progress, encoder=vectors)
            rows.setdefault(OURS, []).append(benchmark.ranks(model.score))
            if baselines and len(model.parts) > 1:
                for number, label in enumerate(("ComplEx, relation prediction", "texts alone")):
                    rows.setdefault(label, []).append(benchmark.ranks(_part_alone(model, number)))
                rows.setdefault(WITHOUT_COUNTS, []).append(
                    benchmark.ranks(_without_counts(model, benchmark).score)
                )
        if baselines:
            rows |= _baselines(benchmark, setting, on_progress)
        figures += [figure for system, ranks in rows.items() for figure in _figures(name, system, ranks)]
    return figures


def load(folder: Path, setting: Setting) -> Benchmark:
    """Read a data set; raises GraphError when a file is missing or a line is no triple."""
    train, valid, test = (_triples(folder / part) for part in setting.parts)
    texts = _texts(folder / setting.texts) if setting.texts else None
    data = Triples.from_names(train, valid, texts, true=test)
    parts = [both_directions(part, data.num_relations) for part in (data.train, data.valid, data.true)]
    return Benchmark(data, parts[2], KnownAnswers(np.concatenate(parts), data.num_relations))


def _baselines(
    benchmark: Benchmark, setting: Setting, on_progress: Callable[[Progress], None] | None
) -> dict[str, list[Floats]]:
    found = {"frequency": [benchmark.ranks(_frequency(benchmark.data))]}
    if setting.texts:  # there, parts of the model are what it is compared with
        return found
    for label, changes in (("DistMult", {"kind": "distmult"}), ("ComplEx", {"relation_weight": 0.0})):
        options = replace(setting.options, complex=replace(setting.options.complex, **changes))
        found[label] = [benchmark.ranks(train_links(benchmark.data, options, on_progress).score)]
    return found


def _frequency(data: Triples) -> Scorer:
    """How often an entity answers a directed relation in the training part."""
    counts = np.zeros((2 * data.num_relations, data.num_entities), np.float32)
    _, relations, answers = both_directions(data.train, data.num_relations).T
    np.add.at(counts, (relations, answers), 1)

    def score(given: Longs, relations: Longs) -> Float32:
        chosen: Float32 = counts[relations]
        return chosen

    return score


def _part_alone(model: LinkModel, number: int) -> Scorer:
    def score(given: Longs, relations: Longs) -> Float32:
        scores: Float32 = model.parts[number].scores(given, relations)[0]
        return scores

    return score


def _without_counts(model: LinkModel, benchmark: Benchmark) -> LinkModel:
    """The same parts, mixed anew without the evidence that counts an entity's known answers."""
    channels: list[str] = []
    for part in model.parts:
        channels += CHANNELS if part.kind == "evidence" else [part.kind]
    kept = [number for number, channel in enumerate(channels) if channel not in _COUNTS]

    def score(given: Longs, relations: Longs) -> Float32:
        return np.concatenate([part.scores(given, relations) for part in model.parts])[kept]

    data = benchmark.data
    train, valid = (both_directions(part, data.num_relations) for part in (data.train, data.valid))
    known = KnownAnswers(np.concatenate([train, valid]), data.num_relations)
    weights = np.zeros_like(model.weights)
    weights[:, kept] = fit_mix(score, valid, known, data.num_relations)
    return LinkModel(model.entities, model.relations, model.parts, weights)


def _figures(data: str, system: str, ranks: list[Floats]) -> list[Figure]:
    table = np.stack(ranks)
    scores = {"MRR": 1 / table} | {f"Hits@{k}": (table <= k).astype(np.float64) for k in _HITS}
    return [summary(TASK, data, system, metric, values) for metric, values in scores.items()]


def _sentence_encoder(encoder: TextVectors | None) -> TextVectors:
    if encoder is not None:
        return encoder
    from vglm.encoder.sentence import SentenceEncoder
    from vglm.model.pull import pull

    return SentenceEncoder.load(pull("all-minilm-l6-v2")).encode


def _triples(path: Path) -> list[tuple[str, str, str]]:
    triples = []
    for number, fields in _lines(path):
        if len(fields) != 3:
            raise GraphError(f"{path}, line {number}: expected head, relation and tail between tabs")
        triples.append((fields[0], fields[1], fields[2]))
    return triples


def _texts(path: Path) -> dict[str, str]:
    """Entity to "name: text"; the files write "name, text"."""
    texts = {}
    for number, fields in _lines(path):
        if len(fields) != 2:
            raise GraphError(f"{path}, line {number}: expected an entity and its text between a tab")
        texts[fields[0]] = fields[1].replace(", ", ": ", 1)
    return texts


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GraphError(f"{path}: cannot be read: {error}") from error
    return [(number, line.split("\t")) for number, line in enumerate(lines, 1) if line.strip()]
