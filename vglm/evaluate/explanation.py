"""Explanations of medical suggestions: whether what they name and cite is so, on published patients.

Checked against the graph itself, not against what the decoder reports: every name in [brackets] is the candidate or one of its
phenotypes, every cited edge is the candidate's, and every frequency stands in the graph for a phenotype of the candidate.
`write_samples` prints some for people to judge.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vglm.errors import GraphError
from vglm.evaluate.reasoning import opened
from vglm.evaluate.report import OURS, Figure, summary
from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.evidence import Candidate
from vglm.graph.hpo import HPO, load_hpo
from vglm.model.pull import home, pull_hpo

if TYPE_CHECKING:
    from vglm import LLM
    from vglm.tasks.suggestion import SuggestionExplained

TASK = "explanation"
PATIENTS = Path("phenopackets/patients.jsonl.gz")
_NAMES = re.compile(r"\[([^\[\]]*)\]")
_MATCHES = re.compile(r"([^:,.\[\]]+?) matches \[([^\[\]]*)\]")
_LEFT_OVER = re.compile(
    r"(?:does not explain|does not link it to) ([^.\[]*)|([^.\[]*) (?:is|are) not explained"
)
_FRACTION = re.compile(r"\b\d+/\d+\b")


@dataclass(frozen=True, slots=True)
class Checked:
    """One explanation: whether all names and all edges belong to the candidate, whether every frequency does, whether what it
    says of the patient's findings is so (which phenotype matches which finding, and which are not explained), whether it was
    finished, and how many phenotypes it names.
    """

    patient: str
    candidate: str
    text: str
    names_belong: bool
    edges_belong: bool
    frequencies_right: bool
    findings_right: bool
    finished: bool
    num_named: int


def run(
    data: Path, *, model: str = OURS, base: str = "smollm2-135m-instruct", patients: int = 200, seed: int = 0
) -> list[Figure]:
    """Shares of explanations that hold, for `model` and its `base`, of the best candidate of `patients` random patients."""
    hpo = load_hpo(pull_hpo(progress=False), home() / "graphs")
    cases = read_patients(data / PATIENTS, hpo, patients, seed)
    figures: list[Figure] = []
    for name in (base, model):
        with opened(name) as llm:
            found = [check(llm, hpo, *case) for case in cases]
        for metric, values in (
            ("names belong", [one.names_belong for one in found]),
            ("edges belong", [one.edges_belong for one in found]),
            ("frequencies right", [one.frequencies_right for one in found]),
            ("findings right", [one.findings_right for one in found]),
            ("finished", [one.finished for one in found]),
            ("names a finding", [one.num_named > 0 for one in found]),
        ):
            figures.append(summary(TASK, "published patients", name, metric, np.array(values, float)))
    return figures


def read_patients(path: Path, hpo: HPO, count: int, seed: int) -> list[tuple[str, list[str], list[str]]]:
    """(id, findings, excluded findings) of `count` random patients; terms that the release does not know are left out."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    order = np.random.default_rng(seed).permutation(len(records))
    cases: list[tuple[str, list[str], list[str]]] = []
    for place in order.tolist():
        record = records[place]
        present = _known(hpo, record["hpo"])
        absent = [term for term in _known(hpo, record["hpo_excluded"]) if term not in present]
        if present:
            cases.append((record["id"], present, absent))
        if len(cases) == count:
            break
    return cases


def _known(hpo: HPO, terms: Sequence[Sequence[str]]) -> list[str]:
    found: dict[str, None] = {}
    for term in terms:
        try:
            found[hpo.resolve(term[0])] = None
        except GraphError:
            continue  # newer than the release
    return list(found)


def check(llm: LLM, hpo: HPO, patient: str, findings: Sequence[str], excluded: Sequence[str]) -> Checked:
    """Explains the best candidate of one patient, and looks every name, edge and frequency up in the graph."""
    suggested = llm.suggest(hpo.graph, findings, excluded, top=1, explain=1)
    (explained,) = suggested.explanations
    return checked(hpo, patient, suggested.candidates[0].candidate, explained)


def checked(hpo: HPO, patient: str, candidate: Candidate, explained: SuggestionExplained) -> Checked:
    """What holds of an explanation."""
    graph = hpo.graph
    edges = graph.edges_of(explained.id, relation=HAS_PHENOTYPE)
    own = {graph.name_of(edge.target) for edge in edges} | {graph.name_of(explained.id)}
    named = [name.partition(" [")[0] for name in _NAMES.findall(explained.text)]
    stated = {str(edge.attributes.get("frequency", "")) for edge in edges}
    stated |= {str(edge.attributes.get("frequency_label", "")) for edge in edges}
    known = set(edges_of_ids(explained))
    there = {(edge.source, edge.relation, edge.target) for edge in edges}
    return Checked(
        patient,
        graph.name_of(explained.id),
        explained.text,
        all(name in own for name in named),
        known <= there,
        all(any(part in label for label in stated) for part in _FRACTION.findall(explained.text)),
        _findings_right(candidate, explained.text),
        explained.finish_reason == "stop",
        len({name for name in named if name != graph.name_of(explained.id)}),
    )


def _findings_right(candidate: Candidate, text: str) -> bool:
    """Whether a finding that "matches" a phenotype does, and none that is explained is said not to be."""
    pairs = {(item.finding_name.lower(), item.matched_name) for item in candidate.evidence if item.explained}
    explained = {finding for finding, _ in pairs}
    for finding, phenotype in _MATCHES.findall(text):
        said = finding.strip().lower()
        if not any(said.endswith(name) and matched == phenotype for name, matched in pairs):
            return False
    left_over = " ".join(part.lower() for found in _LEFT_OVER.findall(text) for part in found)
    return not any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", left_over) for name in explained)


def edges_of_ids(explained: SuggestionExplained) -> list[tuple[str, str, str]]:
    """The cited edges as (source, relation, target)."""
    return [(edge.source, edge.relation, edge.target) for edge in explained.edges]


def write_samples(data: Path, path: Path, *, model: str = OURS, patients: int = 50, seed: int = 1) -> None:
    """Explanations as text, to be judged by reading: patient, candidate, what was written."""
    hpo = load_hpo(pull_hpo(progress=False), home() / "graphs")
    with opened(model) as llm:
        found = [check(llm, hpo, *case) for case in read_patients(data / PATIENTS, hpo, patients, seed)]
    parts = [f"{one.patient}: {one.candidate}\n{one.text}\n" for one in found]
    path.write_text("\n".join(parts), encoding="utf-8")
