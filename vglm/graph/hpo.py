"""The Human Phenotype Ontology as one graph: phenotypes, diseases, and what is published about both.

`hp.obo` gives phenotype nodes and `is a` edges; `phenotype.hpoa` gives disease nodes and edges such as
`has phenotype`, which carry the frequency, the references and the evidence code of the annotation.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vglm.errors import GraphError
from vglm.graph import cache
from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.build import GraphBuilder
from vglm.graph.graph import Graph
from vglm.graph.limits import shown
from vglm.graph.obo import MAX_LINE, Ontology, read_obo
from vglm.graph.ranking import DiseaseRanker
from vglm.graph.ranking_index import RankingIndex

PHENOTYPIC_ABNORMALITY = "HP:0000118"
COLUMNS = [
    *("database_id", "disease_name", "qualifier", "hpo_id", "reference", "evidence"),
    *("onset", "frequency", "sex", "modifier", "aspect", "biocuration"),
]
RELATIONS = {
    "P": HAS_PHENOTYPE,
    "I": "has inheritance",
    "C": "has clinical course",
    "M": "has clinical modifier",
    "H": "has medical history",
}
_WORD = re.compile(r"\w+")
# Midpoints of the ranges that define the ontology's frequency terms.
FREQUENCY_TERMS = {
    "HP:0040280": (1.0, "obligate"),
    "HP:0040281": (0.895, "very frequent, 80-99 %"),
    "HP:0040282": (0.545, "frequent, 30-79 %"),
    "HP:0040283": (0.17, "occasional, 5-29 %"),
    "HP:0040284": (0.025, "very rare, 1-4 %"),
    "HP:0040285": (0.0, "excluded, 0 %"),
}


@dataclass(frozen=True)
class HPO:
    """The graph, its release, the ranking over it, and the ids that the release has retired."""

    graph: Graph
    ranker: DiseaseRanker
    version: str
    replacements: dict[str, str] = field(repr=False)  # retired id -> current id
    obsolete: dict[str, list[str]] = field(repr=False)  # retired without one replacement -> ids to consider
    load_seconds: float = 0.0
    from_cache: bool = False

    def resolve(self, finding: str) -> str:
        """The current id for a phenotype given by id, retired id, name or synonym (any case).

        Raises GraphError for what is unknown, ambiguous or no phenotype, with the nearest names.
        """
        text = finding.strip()
        node_id = self.replacements.get(text, text)
        if node_id not in self.graph:
            node_id = self._by_name(text)
        if self.graph.node(node_id).type != "phenotype":
            raise GraphError(f"{shown(finding)} ({self.graph.name_of(node_id)}) is not a phenotype")
        return node_id

    def _by_name(self, text: str) -> str:
        if text in self.obsolete:
            instead = ", ".join(self.obsolete[text]) or "nothing"
            raise GraphError(f"{text} is obsolete and has no single replacement; consider {instead}")
        found = self._names.get(text.casefold(), [])
        if len(found) == 1:
            return found[0]
        if found:
            raise GraphError(f"{shown(text)} is a name of several terms; give one of {', '.join(found)}")
        near = difflib.get_close_matches(text.casefold()[:200], self._names, n=3, cutoff=0.75)
        hint = "; did you mean " + " or ".join(repr(name) for name in near) + "?" if near else ""
        raise GraphError(f"no phenotype has the id or name {shown(text)} in release {self.version}{hint}")

    @cached_property
    def names_by_words(self) -> dict[str, list[str]]:
        """Phenotype ids by name or synonym, reduced to case-folded words with single spaces between them."""
        found: dict[str, list[str]] = {}
        for name, ids in self._names.items():
            own = found.setdefault(" ".join(_WORD.findall(name)), [])
            own.extend(node_id for node_id in ids if node_id not in own)
        return found

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Names and synonyms of phenotypes, case-folded; a primary name hides synonyms that are equal
        to it."""
        primary: dict[str, list[str]] = {}
        synonyms: dict[str, list[str]] = {}
        for index in self.graph.nodes_of_type("phenotype"):
            node = self.graph.node_at(int(index))
            primary.setdefault(node.name.casefold(), []).append(node.id)
            for alias in {alias.casefold() for alias in node.aliases}:
                synonyms.setdefault(alias, []).append(node.id)
        return {**synonyms, **primary}


def load_hpo(directory: str | Path, cache_dir: str | Path | None = None) -> HPO:
    """Loads `hp.obo` and `phenotype.hpoa` from a directory: about 3 s the first time, then from the cache.

    The cache file is keyed by the two files' paths, sizes and times; a damaged or older one is written
    anew. With `cache_dir=None` nothing is cached. Raises GraphError for files that are missing or
    malformed.
    """
    started = time.perf_counter()
    paths = [Path(directory) / name for name in ("hp.obo", "phenotype.hpoa")]
    for path in paths:
        if not path.is_file():
            raise GraphError(f"{path}: no such file; `vglm pull hpo` fetches the Human Phenotype Ontology")
    key = cache.source_key(paths)
    cached = None if cache_dir is None else Path(cache_dir) / f"hpo-{key[:16]}.npz"
    hpo = None if cached is None else _from_cache(cached, key)
    if hpo is None:
        ontology = read_obo(paths[0])
        graph = read_annotations(paths[1], ontology)
        obsolete = {t.id: t.replaced_by + t.consider for t in ontology.terms.values() if t.obsolete}
        hpo = HPO(graph, DiseaseRanker(graph), ontology.version, ontology.replacements(), obsolete)
        if cached is not None:
            _to_cache(cached, key, hpo)
    return replace(hpo, load_seconds=time.perf_counter() - started)


def _from_cache(path: Path, key: str) -> HPO | None:
    kept = cache.read(path, key)
    if kept is None:
        return None
    meta, arrays = kept
    graph = cache.graph_from_arrays(meta["graph"], arrays)
    ranker = DiseaseRanker(graph, RankingIndex.from_arrays(arrays))
    return HPO(graph, ranker, meta["version"], meta["replacements"], meta["obsolete"], from_cache=True)


def _to_cache(path: Path, key: str, hpo: HPO) -> None:
    graph_meta, arrays = cache.graph_to_arrays(hpo.graph)
    meta = {
        "graph": graph_meta,
        "version": hpo.version,
        "replacements": hpo.replacements,
        "obsolete": hpo.obsolete,
    }
    cache.write(path, key, meta, {**arrays, **hpo.ranker.index.to_arrays()})


def read_annotations(path: str | Path, ontology: Ontology) -> Graph:
    """Reads a `phenotype.hpoa` file and joins it with its ontology; raises GraphError naming line and
    column."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as lines:
            return parse_annotations(lines, ontology, path.name)
    except OSError as error:
        raise GraphError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise GraphError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def parse_annotations(lines: Iterable[str], ontology: Ontology, source: str = "hpoa") -> Graph:
    """Parses the lines of an annotation file into one graph with the ontology's current terms."""
    builder = GraphBuilder()
    _add_terms(builder, ontology)
    current = _resolver(ontology)
    names: dict[str, list[str]] = {}
    first_line: dict[str, int] = {}
    codes: dict[tuple[str, ...], int] = {}
    header_seen = False
    for number, line in enumerate(lines, 1):
        if line[:1] == "#" or line.isspace():
            continue
        where = f"{source}, line {number}"
        if len(line) > MAX_LINE:
            raise GraphError(f"{where}: {len(line):,} characters, the limit is {MAX_LINE:,}")
        fields = line.rstrip("\r\n").split("\t")
        if not header_seen:
            if fields != COLUMNS:
                raise GraphError(
                    f"{where}: expected the columns {', '.join(COLUMNS)}, found {shown(line.strip())}"
                )
            header_seen = True
            continue
        if len(fields) != len(COLUMNS):
            raise GraphError(f"{where}: expected {len(COLUMNS)} columns, found {len(fields)}")
        disease, name, qualifier, term, *details, aspect, _ = fields
        known = names.setdefault(disease, [])
        first_line.setdefault(disease, number)
        if name not in known:
            known.append(name)
        code = codes.get(tuple(details))
        if code is None:
            code = codes[tuple(details)] = builder.attributes_code(_attributes(details, where), where)
        builder.add_edge(
            disease, _relation(aspect, qualifier, where), current(term, where), where=where, code=code
        )
    if not header_seen:
        raise GraphError(f"{source}: has no header line; is it an HPO annotation file?")
    for disease, known in names.items():
        where = f"{source}, line {first_line[disease]}"
        builder.add_node(disease, known[0], "disease", "", known[1:], where=where)
    return builder.build()


def _add_terms(builder: GraphBuilder, ontology: Ontology) -> None:
    """Adds the terms: type "phenotype" below Phenotypic abnormality, "term" for modes of inheritance and
    the like."""
    abnormal = _descendants(ontology, PHENOTYPIC_ABNORMALITY)
    retired: dict[str, list[str]] = {}
    for old, new in ontology.replacements().items():
        retired.setdefault(new, []).append(old)
    for term in ontology.terms.values():
        if term.obsolete:
            continue
        builder.add_node(
            term.id,
            term.name or term.id,
            "phenotype" if term.id in abnormal else "term",
            term.definition,
            term.synonyms,
            {"alternative_ids": sorted(retired[term.id])} if term.id in retired else None,
            f"{ontology.source}, line {term.line}",
        )
    ontology.add_edges_to(builder)


def _descendants(ontology: Ontology, root: str) -> set[str]:
    children: dict[str, list[str]] = {}
    for term in ontology.terms.values():
        for parent in () if term.obsolete else term.parents:
            children.setdefault(parent, []).append(term.id)
    found, waiting = {root}, [root]
    while waiting:
        fresh = [child for child in children.get(waiting.pop(), ()) if child not in found]
        found.update(fresh)
        waiting.extend(fresh)
    return found


def _resolver(ontology: Ontology) -> Callable[[str, str], str]:
    replacements = ontology.replacements()

    def current(term: str, where: str) -> str:
        found = ontology.terms.get(term)
        if found is not None and not found.obsolete:
            return term
        if term in replacements:
            return replacements[term]
        raise GraphError(
            f"{where}, hpo_id: {shown(term)} is no current term of {ontology.source}; "
            "are both files of the same release?"
        )

    return current


def _relation(aspect: str, qualifier: str, where: str) -> str:
    relation = RELATIONS.get(aspect)
    if relation is None:
        raise GraphError(f"{where}, aspect: expected one of {' '.join(RELATIONS)}, found {shown(aspect)}")
    if qualifier not in ("", "NOT"):
        raise GraphError(f"{where}, qualifier: expected nothing or NOT, found {shown(qualifier)}")
    return relation.replace("has ", "does not have ", 1) if qualifier else relation


def _attributes(details: list[str], where: str) -> dict[str, Any]:
    reference, evidence, onset, frequency, sex, modifier = details
    attributes: dict[str, Any] = {"references": [r for r in reference.split(";") if r], "evidence": evidence}
    if frequency:
        attributes["frequency"], attributes["frequency_label"] = parse_frequency(frequency, where)
    if onset:
        attributes["onset"] = onset
    if sex:
        attributes["sex"] = sex.lower()
    if modifier:
        attributes["modifiers"] = [m for m in modifier.split(";") if m]
    return attributes


def parse_frequency(text: str, where: str = "frequency") -> tuple[float, str]:
    """Value in 0..1 and label of "n/m", "p%" or a frequency term; raises GraphError for anything else."""
    if text in FREQUENCY_TERMS:
        return FREQUENCY_TERMS[text]
    try:
        if text.endswith("%"):
            value = float(text[:-1]) / 100
        else:
            affected, examined = (int(part) for part in text.split("/"))
            value = affected / examined
    except (ValueError, ZeroDivisionError):
        value = -1.0
    if not 0 <= value <= 1:
        raise GraphError(
            f"{where}, frequency: expected n/m, a percentage or a frequency term, found {shown(text)}"
        )
    return value, text
