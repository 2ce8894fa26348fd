"""Evaluates the disease ranking on published cases: Top-1, Top-3, Top-10 and MRR over all diseases as
candidates.

    python examples/evaluate_ranking.py patients.jsonl.gz HPO_DIRECTORY

A case is a line of JSON with `hpo` and `hpo_excluded` ([id, label, ...] each), `pmid` and `disease` ([id,
name]), as transcribed from https://github.com/monarch-initiative/phenopacket-store (BSD-3).

The trap: about half of the cases come from papers that the ontology's annotations of the same disease cite.
For those, every annotation of the true disease whose only references are the case's papers is left out
before scoring it. The fair figure is that of the "uncited" cases, whose papers the true disease does not
cite at all. Cohorts are very unequal (one disease has 462 of 2,361 uncited cases), so means over diseases
are given beside means over cases. Diseases that the ontology's release does not know cannot be found; they
are counted apart.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError
from vglm.graph.hpo import HPO, load_hpo
from vglm.graph.ranking import Method

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    disease: str
    cited: bool
    papers: frozenset[str]
    findings: list[str]
    excluded: list[str]


def read_cases(path: Path, hpo: HPO) -> tuple[list[Case], dict[str, int]]:
    """The cases that can be ranked, and how many were left out and why."""
    cases: list[Case] = []
    left_out = {"disease not in the release": 0, "no finding in the release": 0}
    cited_papers: dict[str, frozenset[str]] = {}
    for record in read_records(path):
        disease = record["disease"][0]
        if disease not in hpo.graph:
            left_out["disease not in the release"] += 1
            continue
        if disease not in cited_papers:
            edges = hpo.graph.edges_of(disease)
            cited_papers[disease] = frozenset(r for e in edges for r in e.attributes.get("references", ()))
        findings = known(hpo, record["hpo"])
        excluded = [term for term in known(hpo, record["hpo_excluded"]) if term not in findings]
        if not findings:
            left_out["no finding in the release"] += 1
            continue
        papers = frozenset(record["pmid"])
        cases.append(Case(disease, bool(papers & cited_papers[disease]), papers, findings, excluded))
    return cases, left_out


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def known(hpo: HPO, terms: list[list[str]]) -> list[str]:
    """Current ids of the terms that this release knows as phenotypes; newer ones are dropped."""
    found: list[str] = []
    for term in terms:
        try:
            found.append(hpo.resolve(term[0]))
        except GraphError:
            continue
    return found


def place_of(hpo: HPO, case: Case, method: Method) -> float:
    """Place of the true disease among all; ties share the mean of their places."""
    ranker = hpo.ranker
    scores = ranker.scores(case.findings, case.excluded, method)
    row = int(np.searchsorted(ranker.index.diseases, hpo.graph.index_of(case.disease)))
    if case.cited:
        fair = ranker.annotations_of(case.disease, without_references=case.papers)
        scores[row] = ranker.score_annotations(fair, case.findings, case.excluded, method)
    return 1 + float((scores > scores[row]).sum()) + (float((scores == scores[row]).sum()) - 1) / 2


def summary(places: Floats, weights: Floats) -> dict[str, float]:
    """Weighted shares of places up to 1, 3 and 10, and the mean reciprocal place."""
    weights = weights / weights.sum()
    shares = {f"top{k}": float(weights[places <= k].sum()) for k in (1, 3, 10)}
    return {name: round(value, 4) for name, value in {**shares, "mrr": float(weights @ (1 / places))}.items()}


def evaluate(hpo: HPO, cases: list[Case], method: Method) -> dict[str, Any]:
    started = time.perf_counter()
    places = np.array([place_of(hpo, case, method) for case in cases])
    milliseconds = 1000 * (time.perf_counter() - started) / max(1, len(cases))
    result: dict[str, Any] = {"method": method, "ms_per_case": round(milliseconds, 2)}
    for group, cited in (("uncited", False), ("cited, own paper left out", True)):
        chosen = np.array([case.cited is cited for case in cases])
        if not chosen.any():
            continue
        diseases = np.array([case.disease for case in cases])[chosen]
        _, inverse, counts = np.unique(diseases, return_inverse=True, return_counts=True)
        result[group] = {
            "cases": int(chosen.sum()),
            "diseases": len(counts),
            "by case": summary(places[chosen], np.ones(len(diseases))),
            "by disease": summary(places[chosen], 1 / counts[inverse]),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path, help="the cases, .jsonl or .jsonl.gz")
    parser.add_argument("hpo", type=Path, help="directory with hp.obo and phenotype.hpoa")
    parser.add_argument("--limit", type=int, help="use this many cases, drawn with a fixed seed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    hpo = load_hpo(options.hpo)
    cases, left_out = read_cases(options.cases, hpo)
    if options.limit is not None and options.limit < len(cases):
        chosen = np.random.default_rng(0).permutation(len(cases))[: options.limit]
        cases = [cases[i] for i in sorted(chosen)]
    results = [evaluate(hpo, cases, method) for method in get_args(Method)]
    if options.json:
        print(json.dumps({"left_out": left_out, "results": results}, indent=2))
        return
    print(f"{len(hpo.ranker.index.diseases):,} diseases; left out: {left_out}")
    for result in results:
        print(f"{result['method']} ({result['ms_per_case']} ms per case)")
        for group, figures in result.items():
            if isinstance(figures, dict):
                print(f"  {group}: {figures['cases']} cases, {figures['diseases']} diseases")
                for mean in ("by case", "by disease"):
                    f = figures[mean]
                    shares = "  ".join(f"{n} {100 * f[n]:.1f} %" for n in ("top1", "top3", "top10"))
                    print(f"    {mean:10}  {shares}  MRR {f['mrr']:.3f}")


if __name__ == "__main__":
    main()
