"""The main job on real input: a published patient's findings in, ranked and explained diseases out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vglm.demo_ask import Answer, Asker
from vglm.errors import ConfigError
from vglm.graph.evidence import Candidate
from vglm.graph.graph import Graph
from vglm.graph.hpo import HPO, load_hpo
from vglm.graph.patient import Patient, read_patient
from vglm.graph.store import GraphStore, Stored
from vglm.model.bundle import bundled_directory
from vglm.model.pull import home, pull_hpo, resolve_model
from vglm.tasks.disease_ranking import DiseaseRanking, disease_ranking_of, likelihood_ranking
from vglm.tasks.findings import link_patient

if TYPE_CHECKING:
    from vglm import LLM

DEFAULT_CASE = "marfan"
EXPLAINED = 3  # candidates that the model explains
MAX_COMMAS = 8  # in the name of a phenotype
NAME = "hpo"  # in the graph store


@dataclass(frozen=True, slots=True)
class Ranking:
    """The candidates, and milliseconds for the first ranking and for the same one again."""

    candidates: list[Candidate]
    first_ms: float
    again_ms: float


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for; None stands for the default of the option."""

    patient: str | None
    findings: list[str] | None
    excluded: list[str] | None
    model: str
    top: int
    hpo: Path | None
    explain: bool
    as_json: bool


def run(options: Options) -> None:
    """The demo from beginning to end; raises VGLMError for options, files and models that do not work."""
    from vglm.demo_view import Quiet, View

    view = Quiet() if options.as_json else View()
    ranking_by = ranking_of(options.model)
    hpo = load_hpo(options.hpo or pull_hpo(progress=not options.as_json), home() / "graphs")
    patient = choose_patient(hpo, options)
    view.patient(hpo, patient)
    with view.working("ranking all diseases (the first time, what is known of each is worked out)"):
        ranking = rank(hpo, patient, options.top, ranking_by)
    if ranking_by is likelihood_ranking:
        view.untrained(options.model)
    view.ranking(ranking.candidates, patient)
    best = ranking.candidates[:EXPLAINED]
    view.evidence(best)
    answers: list[Answer] = []
    load_seconds = 0.0
    if options.explain:
        with view.working(f"loading {options.model}"):
            llm, load_seconds = load_model(options.model)
            stored = stored_graph(hpo, options.hpo)
        view.stored(stored)
        answers = ask(llm, stored.graph, patient, best, hpo, view)
    if options.as_json:
        found = report(hpo, patient, ranking, answers, load_seconds)
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        view.measured(hpo, ranking, answers, options.model, load_seconds)


def choose_patient(hpo: HPO, options: Options) -> Patient:
    """The patient that the options describe; raises ConfigError and GraphError when they contradict each other.

    Findings are linked as `LLM.suggest` links them; ids that the release has retired are followed first.
    """
    if options.findings is None:
        if options.excluded is not None:
            raise ConfigError("--excluded goes with --findings; a case lists its own")
        return read_patient(options.patient or DEFAULT_CASE, hpo)
    if options.patient is not None:
        raise ConfigError("--patient and --findings exclude each other; give one of them")
    lists = [_split(values, hpo) for values in (options.findings, options.excluded or [])]
    retired = {*hpo.replacements, *hpo.obsolete}
    current = [[hpo.resolve(text) if text in retired else text for text in texts] for texts in lists]
    present, absent = link_patient(hpo.graph, *current)
    return Patient(tuple(one.id for one in present), tuple(one.id for one in absent))


def _split(values: list[str], hpo: HPO) -> list[str]:
    """The terms in comma-separated lists; names that have commas of their own stay whole."""
    terms: list[str] = []
    for value in values:
        parts = [part.strip() for part in value.split(",") if part.strip()]
        while parts:
            lengths = range(min(len(parts), MAX_COMMAS + 1), 1, -1)
            length = next((n for n in lengths if hpo.knows(", ".join(parts[:n]))), 1)
            terms.append(", ".join(parts[:length]))
            del parts[:length]
    return terms


def ranking_of(model: str) -> DiseaseRanking:
    """What ranks diseases: the trained ranking of a model that comes with one, else likelihood ratios.

    Raises ModelError, also for a model that there is not.
    """
    return disease_ranking_of(bundled_directory(model) or resolve_model(model), home() / "graphs")


def rank(hpo: HPO, patient: Patient, top: int, ranking: DiseaseRanking) -> Ranking:
    """Ranks all diseases, twice: the first ranking also builds or reads the index."""
    times: list[float] = []
    candidates: list[Candidate] = []
    for _ in range(2):
        started = time.perf_counter()
        candidates = list(ranking(hpo.graph, patient.findings, patient.excluded, top).candidates)
        times.append(1000 * (time.perf_counter() - started))
    return Ranking(candidates, *times)


def load_model(model: str) -> tuple[LLM, float]:
    """The model, and the seconds from nothing to ready, the import of the engine included."""
    started = time.perf_counter()
    from vglm import LLM

    llm = LLM(model=model)
    return llm, time.perf_counter() - started


def stored_graph(hpo: HPO, directory: Path | None) -> Stored:
    """The ontology in the graph store, put there the first time; with a directory of one's own in memory only.

    What was changed in the store since is what the model reads: try `vglm graph patch hpo`.
    """
    if directory is not None:
        return Stored(NAME, 0, hpo.graph)
    with GraphStore() as store:
        if NAME not in store:
            store.create(NAME, hpo.graph)
        return store.read(NAME)


def ask(llm: LLM, graph: Graph, patient: Patient, best: list[Candidate], hpo: HPO, view: Any) -> list[Answer]:
    """Why each of the best candidates is one; then a question over the same parts of the graph."""
    asker = Asker(llm, graph, [hpo.graph.name_of(finding) for finding in patient.findings], view)
    answers = [asker.explain(candidate) for candidate in best]
    answers.append(asker.last(best))
    return [answer for answer in answers if answer is not None]


def report(
    hpo: HPO, patient: Patient, ranking: Ranking, answers: list[Answer], model_seconds: float
) -> dict[str, Any]:
    """Everything that the demo found and measured, as JSON values."""
    name: Callable[[str], str] = hpo.graph.name_of
    return {
        "release": hpo.version,
        "patient": {
            **asdict(patient),
            "findings": [{"id": i, "name": name(i)} for i in patient.findings],
            "excluded": [{"id": i, "name": name(i)} for i in patient.excluded],
        },
        "candidates": [asdict(candidate) for candidate in ranking.candidates],
        "answers": [_answer(answer) for answer in answers],
        "measured": {
            "graph_load_seconds": hpo.load_seconds,
            "graph_from_cache": hpo.from_cache,
            "model_load_seconds": model_seconds,
            "ranking_first_ms": ranking.first_ms,
            "ranking_again_ms": ranking.again_ms,
        },
    }


def _answer(answer: Answer) -> dict[str, Any]:
    counts = ("tokens", "graph_tokens", "cached_tokens", "computed_tokens")
    return {
        "question": answer.title,
        "text": answer.lead + answer.text,
        "named": [{"id": entity.id, "name": entity.name} for entity in answer.named],
        "evidence": [asdict(edge) for edge in answer.edges],
        "graph": answer.graph.to_dict(),
        "ttft_ms": 1000 * answer.ttft,
        "seconds": answer.seconds,
        **{key: getattr(answer, key) for key in counts},
    }
