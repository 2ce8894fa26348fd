"""Published patients to train and evaluate the disease ranking on, and their folds.

The trap: about half of the cases come from papers that the ontology's annotations of the same disease cite. For those,
every statement about the true disease whose only references are the case's papers is left out before the disease is
scored. The fair figure is that of the "uncited" cases, whose papers the true disease does not cite at all."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.errors import ConfigError, GraphError
from vglm.graph.graph import Graph
from vglm.graph.hpo import HPO
from vglm.graph.limits import shown
from vglm.train.disease_genes import gene_pairs

PATIENTS = Path("phenopackets/patients.jsonl.gz")
_LEVEL = r"[\s,]*(type\s+)?(\d+[A-Z]{0,2}|[IVX]+[A-Z]?)$"
_INHERITED = r",?\s*(autosomal (dominant|recessive)|x-linked|susceptibility to)$"


@dataclass(frozen=True)
class Case:
    """A patient of a published paper; ids of findings, and genes with a variant (used to form folds only)."""

    disease: str
    cited: bool
    papers: frozenset[str]
    findings: list[str]
    excluded: list[str]
    genes: frozenset[str] = frozenset()


def read_cases(path: Path, hpo: HPO) -> tuple[list[Case], dict[str, int]]:
    """The cases that can be ranked, and how many were left out and why.

    A case is a line of JSON with `hpo` and `hpo_excluded` ([id, label, ...] each), `pmid` (a list), `disease` ([id, name]) and
    maybe `variants` ([gene or null, ...] each). Without a PMID nothing tells whether the disease cites the case. Raises
    ConfigError for a file that is missing or not of this form.
    """
    cases: list[Case] = []
    left_out = {"disease not in the release": 0, "no finding in the release": 0, "no PMID": 0}
    cited_papers: dict[str, frozenset[str]] = {}
    for record in _records(path):
        disease = record["disease"][0]
        if disease not in hpo.graph:
            left_out["disease not in the release"] += 1
            continue
        if not record["pmid"]:
            left_out["no PMID"] += 1
            continue
        if disease not in cited_papers:
            edges = hpo.graph.edges_of(disease)
            cited_papers[disease] = frozenset(r for e in edges for r in e.attributes.get("references", ()))
        findings = _known(hpo, record["hpo"])
        excluded = [term for term in _known(hpo, record["hpo_excluded"]) if term not in findings]
        if not findings:
            left_out["no finding in the release"] += 1
            continue
        papers = frozenset(record["pmid"])
        genes = frozenset(variant[0] for variant in record.get("variants", ()) if variant[0])
        cases.append(Case(disease, bool(papers & cited_papers[disease]), papers, findings, excluded, genes))
    return cases, left_out


def _records(path: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                record = json.loads(line)
                if wrong := _wrong(record):
                    raise ConfigError(f"line {number}: {wrong}")
                yield record
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read as published cases: {error}") from error


def _wrong(record: Any) -> str:
    """What is not of the form that `read_cases` describes; "" if all is."""
    if not isinstance(record, dict) or not {"hpo", "hpo_excluded", "pmid", "disease"} <= set(record):
        return "expected hpo, hpo_excluded, pmid and disease"
    papers = record["pmid"]
    if not isinstance(papers, list) or not all(isinstance(paper, str) and paper for paper in papers):
        return f"pmid: expected a list of strings, found {shown(papers)}"
    if not _starts_with_text(record["disease"]):
        return f"disease: expected [id, name], found {shown(record['disease'])}"
    for name in ("hpo", "hpo_excluded"):
        if not isinstance(record[name], list) or not all(map(_starts_with_text, record[name])):
            return f"{name}: expected a list of [id, label], found {shown(record[name])}"
    variants = record.get("variants", [])
    if not isinstance(variants, list) or not all(
        isinstance(v, list) and v and (v[0] is None or isinstance(v[0], str)) for v in variants
    ):
        return f"variants: expected a list of [gene or null, ...], found {shown(variants)}"
    return ""


def _starts_with_text(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def _known(hpo: HPO, terms: Iterable[Sequence[str]]) -> list[str]:
    """Current ids of the terms that this release knows as phenotypes; newer ones are dropped."""
    found: list[str] = []
    for term in terms:
        try:
            found.append(hpo.resolve(term[0]))
        except GraphError:
            continue
    return found


def fair_edges(graph: Graph, disease: str, papers: frozenset[str]) -> npt.NDArray[np.int32]:
    """Indices of a disease's edges but for those whose only references are `papers`."""
    edges = graph.edge_indices(graph.index_of(disease), "out")
    references = (frozenset(graph.edge_at(int(e)).attributes.get("references", ())) for e in edges)
    kept = [not (r and r <= papers) for r in references]
    fair: npt.NDArray[np.int32] = edges[np.array(kept, bool)]
    return fair


def folds(
    diseases: Iterable[str], keys: Mapping[str, frozenset[str]], number: int, seed: int
) -> dict[str, int]:
    """The fold 0..number-1 of each disease, at random; diseases with a key in common are in one fold.

    Groups are dealt out largest first, each to the fold that has the fewest diseases.
    """
    groups = _groups(sorted(set(diseases)), keys)
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    order.sort(key=lambda i: -len(groups[i]))
    sizes, found = [0] * number, {}
    for place in order:
        smallest = sizes.index(min(sizes))
        sizes[smallest] += len(groups[place])
        found.update(dict.fromkeys(groups[place], smallest))
    return found


def _groups(diseases: list[str], keys: Mapping[str, frozenset[str]]) -> list[list[str]]:
    group_of: dict[str, list[str]] = {}
    by_key: dict[str, list[str]] = {}
    for disease in diseases:
        group = group_of[disease] = [disease]
        for key in keys.get(disease, ()):
            other = by_key.get(key, group)
            if other is not group:
                other += group
                group_of.update(dict.fromkeys(group, other))
                by_key.update({k: other for k, g in by_key.items() if g is group})
                group = other
            by_key[key] = group
    return list({id(group): group for group in group_of.values()}.values())


def family_keys(hpo: HPO, cases: Iterable[Case], genes_file: Path | None) -> dict[str, frozenset[str]]:
    """What makes two diseases one family: a gene (of the file `genes_to_phenotype.txt`, or of the patients' variants), or
    a name that differs in the number of the series alone ("Noonan syndrome 3")."""
    keys: dict[str, set[str]] = {}
    for case in cases:
        keys.setdefault(case.disease, {f"series {series(hpo.graph.name_of(case.disease))}"})
        keys[case.disease] |= {f"gene {gene}" for gene in case.genes}
    if genes_file is not None and genes_file.is_file():
        for _, symbol, disease in gene_pairs(genes_file):
            if disease in keys:
                keys[disease].add(f"gene {symbol}")
    return {disease: frozenset(own) for disease, own in keys.items()}


def series(name: str) -> str:
    """A disease's name without its number in a series."""
    for pattern in (_LEVEL, _INHERITED, _LEVEL):
        name = re.sub(pattern, "", name.strip(), flags=re.IGNORECASE)
    return name.lower()
