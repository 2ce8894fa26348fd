"""Explanations of medical suggestions: whether what they name, cite and say is so, on published patients.

Checked by vglm/evaluate/statements.py, against the graph and the evidence. `write_samples` prints some for people to judge.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vglm.errors import ConfigError, GraphError
from vglm.evaluate import statements
from vglm.evaluate.dtypes import OWN, costs, labelled, opened
from vglm.evaluate.report import OURS, Figure, summary
from vglm.graph.evidence import Candidate, Evidence
from vglm.graph.hpo import HPO, load_hpo
from vglm.model.pull import home, pull_hpo

if TYPE_CHECKING:
    from vglm import LLM
    from vglm.tasks.suggestion import Suggested, SuggestionExplained

TASK = "explanation"
DATA = "published patients"
PATIENTS = Path("phenopackets/patients.jsonl.gz")
SAMPLES = 50
MOST_SHOWN = 12  # findings of a sample


@dataclass(frozen=True, slots=True)
class Patient:
    """A published patient: ids of findings and of those that were absent; `diagnosis` is the disease's name."""

    id: str
    findings: list[str]
    excluded: list[str]
    diagnosis: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """One explanation, and what holds of it: whether all names, all cited edges and all frequencies are the candidate's,
    whether what it says of the patient's findings is so, whether it was finished, and whether it names a phenotype.
    """

    text: str
    names_belong: bool
    edges_belong: bool
    frequencies_right: bool
    findings_right: bool
    finished: bool
    names_a_finding: bool


METRICS = {
    "names belong": "names_belong",
    "edges belong": "edges_belong",
    "frequencies right": "frequencies_right",
    "findings right": "findings_right",
    "finished": "finished",
    "names a finding": "names_a_finding",
}


def run(
    data: Path,
    *,
    model: str = OURS,
    base: str = "smollm2-135m-instruct",
    patients: int = 200,
    seed: int = 0,
    dtypes: Sequence[str] = (OWN,),
    samples: Path | None = None,
) -> list[Figure]:
    """Shares of explanations that hold, for `model` in each of `dtypes` and its `base`, of the best candidate of `patients`
    random patients. With `samples`, explanations for SAMPLES patients are written there as Markdown.

    Raises ConfigError when the patients cannot be read.
    """
    hpo = load_hpo(pull_hpo(progress=False), home() / "graphs")
    cases = read_patients(data / PATIENTS, hpo, patients, seed)
    figures = []
    for metric, values in _scores(base, OWN, hpo, cases).items():
        figures.append(summary(TASK, DATA, base, metric, values))
    scores: dict[str, dict[str, list[float]]] = {metric: {} for metric in METRICS}
    for dtype in dtypes:
        for metric, values in _scores(model, dtype, hpo, cases).items():
            scores[metric][dtype] = values
    for metric, found in scores.items():
        figures += [summary(TASK, DATA, labelled(model, dtype), metric, found[dtype]) for dtype in found]
        figures += costs(TASK, DATA, model, metric, found)
    if samples is not None:
        write_samples(data, samples, model=model, dtype=dtypes[0])
    return figures


def _scores(model: str, dtype: str, hpo: HPO, cases: Sequence[Patient]) -> dict[str, list[float]]:
    with opened(model, dtype) as llm:
        found = [check(llm, hpo, case)[1] for case in cases]
    return {metric: [float(getattr(one, name)) for one in found] for metric, name in METRICS.items()}


def read_patients(path: Path, hpo: HPO, count: int, seed: int, *, uncited: bool = False) -> list[Patient]:
    """`count` random patients; terms that the release does not know are left out.

    `uncited`: only those whose papers the annotations of their disease do not cite. Raises ConfigError for a file that is not
    one of published patients.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as published patients: {error}") from error
    order = np.random.default_rng(seed).permutation(len(records))
    found: list[Patient] = []
    for place in order.tolist():
        record = records[place]
        present = _known(hpo, record["hpo"])
        absent = [term for term in _known(hpo, record["hpo_excluded"]) if term not in present]
        if present and (not uncited or _is_uncited(hpo, record)):
            found.append(Patient(record["id"], present, absent, record["disease"][1]))
        if len(found) == count:
            break
    return found


def _is_uncited(hpo: HPO, record: dict[str, Any]) -> bool:
    disease, papers = record["disease"][0], set(record["pmid"])
    if disease not in hpo.graph or not papers:
        return False
    return not any(papers & set(e.attributes.get("references", ())) for e in hpo.graph.edges_of(disease))


def _known(hpo: HPO, terms: Sequence[Sequence[str]]) -> list[str]:
    found: dict[str, None] = {}
    for term in terms:
        try:
            found[hpo.resolve(term[0])] = None
        except GraphError:
            continue  # newer than the release
    return list(found)


def check(llm: LLM, hpo: HPO, patient: Patient) -> tuple[Suggested, Checked]:
    """Explains the best candidate of one patient, and looks up what the explanation says."""
    suggested = llm.suggest(hpo.graph, patient.findings, patient.excluded, top=1, explain=1)
    return suggested, checked(hpo, suggested.candidates[0].candidate, suggested.explanations[0])


def checked(hpo: HPO, candidate: Candidate, explained: SuggestionExplained) -> Checked:
    """What holds of an explanation."""
    graph, text = hpo.graph, explained.text
    return Checked(
        text,
        statements.names_belong(graph, candidate.id, text),
        statements.edges_belong(graph, candidate, text, explained.edges),
        statements.frequencies_right(graph, candidate.id, text),
        statements.findings_right(candidate, text),
        explained.finish_reason == "stop",
        any(name != candidate.name for name in statements.mentions(text)),
    )


# ---- samples


def write_samples(
    data: Path, path: Path, *, model: str = OURS, dtype: str = OWN, patients: int = SAMPLES, seed: int = 1
) -> None:
    """Explanations as Markdown, to be judged by reading: patient, suggestion, evidence, explanation.

    The patients are random ones whose papers the ontology does not cite for their disease.
    """
    hpo = load_hpo(pull_hpo(progress=False), home() / "graphs")
    cases = read_patients(data / PATIENTS, hpo, patients, seed, uncited=True)
    with opened(model, dtype) as llm:
        parts = [
            "\n".join(_sample(number, case, *check(llm, hpo, case))) for number, case in enumerate(cases, 1)
        ]
    path.write_text("\n".join(parts), encoding="utf-8")


def _sample(number: int, patient: Patient, suggested: Suggested, said: Checked) -> Iterator[str]:
    (best,) = suggested.candidates
    yield f"### {number}. {patient.id}\n"
    yield f"- Findings: {_listed([one.name for one in suggested.findings])}"
    if suggested.excluded:
        yield f"- Absent: {_listed([one.name for one in suggested.excluded])}"
    yield f"- Suggestion: **{best.name}** ({best.id}, probability {best.probability:.2f}); published as {patient.diagnosis}"
    yield f"- Evidence: {'; '.join(map(_matched, best.candidate.evidence[:MOST_SHOWN]))}"
    if best.candidate.against:
        yield f"- Against: {_listed([item.finding_name for item in best.candidate.against])}"
    yield f"\n> {said.text or '(nothing is explained)'}\n"


def _matched(item: Evidence) -> str:
    if not item.explained:
        return f"{item.finding_name}: not explained"
    match = "the same" if item.exact else item.matched_name
    return f"{item.finding_name}: {match}{f' ({item.frequency})' if item.frequency else ''}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_SHOWN
    return ", ".join(names[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
