"""Reader for `phenotype.hpoa`: which disease has which phenotype, how often, who says so."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vglm.errors import GraphError
from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.build import GraphBuilder
from vglm.graph.graph import Graph
from vglm.graph.limits import DEFAULT_LIMITS, checked_id, shown
from vglm.graph.obo import MAX_LINE, Ontology

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
# Midpoints of the ranges that define the ontology's frequency terms.
FREQUENCY_TERMS = {
    "HP:0040280": (1.0, "obligate"),
    "HP:0040281": (0.895, "very frequent, 80-99 %"),
    "HP:0040282": (0.545, "frequent, 30-79 %"),
    "HP:0040283": (0.17, "occasional, 5-29 %"),
    "HP:0040284": (0.025, "very rare, 1-4 %"),
    "HP:0040285": (0.0, "excluded, 0 %"),
}


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
    reader = _Reader(ontology, source)
    numbered = enumerate(lines, 1)
    rows = ((number, line) for number, line in numbered if line[:1] != "#" and not line.isspace())
    number, header = next(rows, (0, ""))
    if header.rstrip("\r\n").split("\t") != COLUMNS:
        found = shown(header.strip()) if header else "nothing"
        raise GraphError(f"{source}, line {number}: expected the columns {', '.join(COLUMNS)}, found {found}")
    for number, line in rows:
        reader.add(line, number)
    return reader.graph()


class _Reader:
    """Turns rows into edges. Most values occur many times, so each distinct one is checked once and kept."""

    def __init__(self, ontology: Ontology, source: str) -> None:
        self._ontology = ontology
        self._source = source
        self._builder = GraphBuilder()
        self._replacements = ontology.replacements()
        _add_terms(self._builder, ontology, self._replacements)
        self._names: dict[str, list[str]] = {}  # of each disease
        self._first_line: dict[str, int] = {}
        self._relations: dict[tuple[str, str], str] = {}
        self._terms: dict[str, str] = {}
        self._codes: dict[tuple[str, ...], int] = {}

    def add(self, line: str, number: int) -> None:
        """Adds one row; raises GraphError naming its line and column."""
        if len(line) > MAX_LINE:
            raise self._error(number, f"{len(line):,} characters, the limit is {MAX_LINE:,}")
        fields = line.rstrip("\r\n").split("\t")
        if len(fields) != len(COLUMNS):
            raise self._error(number, f"expected {len(COLUMNS)} columns, found {len(fields)}")
        disease, name, qualifier, term, *details, aspect, _ = fields
        names = self._names.get(disease)
        if names is None:
            checked_id(disease, f"{self._source}, line {number}, database_id", DEFAULT_LIMITS.id)
            names = self._names[disease] = []
            self._first_line[disease] = number
        if name not in names:
            names.append(name)
        relation = self._relations.get((aspect, qualifier)) or self._relation(aspect, qualifier, number)
        current = self._terms.get(term) or self._current(term, number)
        code = self._codes.get(tuple(details))
        if code is None:
            attributes = _attributes(details, f"{self._source}, line {number}")
            code = self._codes[tuple(details)] = self._builder.attributes_code(attributes)
        self._builder.append_checked(disease, relation, current, code)

    def graph(self) -> Graph:
        """The graph of the ontology and all rows."""
        for disease, names in self._names.items():
            where = f"{self._source}, line {self._first_line[disease]}"
            self._builder.add_node(disease, names[0], "disease", "", names[1:], where=where)
        return self._builder.build()

    def _error(self, number: int, message: str) -> GraphError:
        return GraphError(f"{self._source}, line {number}: {message}")

    def _relation(self, aspect: str, qualifier: str, number: int) -> str:
        relation = RELATIONS.get(aspect)
        if relation is None:
            raise self._error(number, f"aspect: expected one of {' '.join(RELATIONS)}, found {shown(aspect)}")
        if qualifier not in ("", "NOT"):
            raise self._error(number, f"qualifier: expected nothing or NOT, found {shown(qualifier)}")
        if qualifier:
            relation = relation.replace("has ", "does not have ", 1)
        self._relations[aspect, qualifier] = relation
        return relation

    def _current(self, term: str, number: int) -> str:
        found = self._ontology.terms.get(term)
        current = term if found is not None and not found.obsolete else self._replacements.get(term)
        if current is None:
            raise self._error(
                number,
                f"hpo_id: {shown(term)} is no current term of {self._ontology.source}; "
                "are both files of the same release?",
            )
        self._terms[term] = current
        return current


def _add_terms(builder: GraphBuilder, ontology: Ontology, replacements: dict[str, str]) -> None:
    """Adds the terms: type "phenotype" below Phenotypic abnormality, "term" for modes of inheritance and
    the like."""
    abnormal = _descendants(ontology, PHENOTYPIC_ABNORMALITY)
    retired: dict[str, list[str]] = {}
    for old, new in replacements.items():
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
