"""A medical suggestion end to end: time to the ranking with its evidence, and to the first word of the explanation."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vglm.bench.report import Report, Table
from vglm.console import progress_bar
from vglm.decode.sampling_params import SamplingParams
from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.hpo import HPO, load_hpo
from vglm.model.pull import home, pull_hpo

if TYPE_CHECKING:
    from vglm.llm import LLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestions:
    """`patients` simulated patients with `findings` findings of a random disease each; `top` candidates with evidence, of which
    the first is explained in `words` tokens at most.
    """

    patients: int = 40
    findings: int = 8
    top: int = 3
    words: int = 64
    seed: int = 0


def run(model: str, work: Suggestions, options: dict[str, Any]) -> Report:
    """Ask for every patient twice: the first time the candidate's record may have to be read, the second time it is cached."""
    from vglm.llm import LLM

    llm = LLM(model, **options)
    hpo = load_hpo(pull_hpo(progress=False), home() / "graphs")
    patients = simulated(hpo, work)
    for findings in patients[:2]:
        _ask(llm, hpo, findings, work)  # indexes, weights and pages for the first time
    times: dict[str, list[tuple[float, float, float]]] = {"first time": [], "again": []}
    with progress_bar("patients", 2 * len(patients)) as bar:
        for findings in patients:
            for name in times:
                times[name].append(_ask(llm, hpo, findings, work))
                bar.advance(1)
    columns = [("ask", "asked", "")]
    for key, heading in (("ranking", "ranking"), ("word", "first word"), ("whole", "whole explanation")):
        columns += [(f"{key}_p50", f"{heading} p50, ms", ".1f"), (f"{key}_p95", "p95, ms", ".1f")]
    table = Table(f"{len(patients)} patients, {len(hpo.ranker.index.diseases):,} diseases", columns)
    for name, measured in times.items():
        row: dict[str, Any] = {"ask": name}
        for key, values in zip(("ranking", "word", "whole"), zip(*measured, strict=True), strict=True):
            row[f"{key}_p50"], row[f"{key}_p95"] = (1000 * np.percentile(values, [50, 95])).tolist()
        table.rows.append(row)
    table.notes.append(
        "from the call on: the ranking with the evidence of each candidate; the first word after it"
    )
    settings = {"model": model, "findings": work.findings, "top": work.top, "words": work.words}
    return Report("suggestion", settings, [table])


def simulated(hpo: HPO, work: Suggestions) -> list[list[str]]:
    """The findings of each patient: ids of phenotypes of a random disease that has enough of them."""
    rng = random.Random(work.seed)
    graph, diseases = hpo.graph, hpo.ranker.index.diseases.tolist()
    found: list[list[str]] = []
    while len(found) < work.patients:
        edges = graph.edges_of(graph.id_of(rng.choice(diseases)), relation=HAS_PHENOTYPE)
        held = sorted({edge.target for edge in edges})
        if len(held) >= work.findings:
            found.append(rng.sample(held, work.findings))
    return found


def _ask(llm: LLM, hpo: HPO, findings: list[str], work: Suggestions) -> tuple[float, float, float]:
    """Seconds to the ranking, to the first word of the explanation, and to its end."""
    params = SamplingParams(max_tokens=work.words, temperature=0)
    started = time.perf_counter()
    _, chunks = llm.stream_suggest(hpo.graph, findings, top=work.top, explain=1, sampling_params=params)
    ranked = time.perf_counter() - started
    word = 0.0
    for chunk in chunks:
        if chunk.text and not word:
            word = time.perf_counter() - started
    whole = time.perf_counter() - started
    return ranked, word or whole, whole
