"""Reader for OBO 1.2 / 1.4 ontologies: terms with names, definitions, synonyms, parents, and retired ids."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vglm.errors import GraphError
from vglm.graph.build import GraphBuilder
from vglm.graph.graph import Graph
from vglm.graph.limits import shown

IS_A = "is a"
MAX_LINE = 1_000_000  # characters; the longest line of the Human Phenotype Ontology has 2,058

# A quoted string with backslash escapes, as in `def: "..." [...]` and `synonym: "..." EXACT []`.
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "t": "\t", "W": " "}


@dataclass(slots=True)
class Term:
    """One `[Term]` stanza; `line` is where it starts."""

    id: str = ""
    name: str = ""
    definition: str = ""
    synonyms: list[str] = field(default_factory=list)
    namespace: str = ""
    comment: str = ""
    parents: list[str] = field(default_factory=list)
    relationships: list[tuple[str, str]] = field(default_factory=list)  # id of a [Typedef], id of a term
    alternative_ids: list[str] = field(default_factory=list)
    obsolete: bool = False
    replaced_by: list[str] = field(default_factory=list)
    consider: list[str] = field(default_factory=list)
    line: int = 0


@dataclass(frozen=True, slots=True)
class Ontology:
    """The terms of an OBO file by id; obsolete terms are among them."""

    terms: dict[str, Term]
    version: str
    source: str
    relations: dict[str, str] = field(default_factory=dict)  # names of the `[Typedef]` stanzas by id

    def replacements(self) -> dict[str, str]:
        """Every retired id (alternative, or obsolete with one replacement) and the current id that
        stands for it."""
        found: dict[str, str] = {}
        for term in self.terms.values():
            if term.obsolete:
                if len(term.replaced_by) == 1:
                    found[term.id] = term.replaced_by[0]
            else:
                found.update((other, term.id) for other in term.alternative_ids)
        return {old: new for old in found if (new := self._current(old, found)) is not None}

    def _current(self, old: str, found: dict[str, str]) -> str | None:
        """Follows replacements of replacements; None when they lead nowhere or in a circle."""
        seen = {old}
        new = found[old]
        while new not in self.terms or self.terms[new].obsolete:
            if new in seen or new not in found:
                return None
            seen.add(new)
            new = found[new]
        return new

    def add_edges_to(self, builder: GraphBuilder) -> None:
        """Adds the parents of the terms that are not obsolete as `is a` edges; the nodes are the caller's."""
        for term in self.terms.values():
            for parent in () if term.obsolete else term.parents:
                where = f"{self.source}, line {term.line}"
                if parent not in self.terms or self.terms[parent].obsolete:
                    raise GraphError(f"{where}: {term.id} is_a {shown(parent)}, which is no current term")
                builder.add_edge(term.id, IS_A, parent, where=where, code=0)

    def to_graph(self, node_type: str = "term") -> Graph:
        """The ontology as a graph of its current terms."""
        builder = GraphBuilder()
        for term in self.terms.values():
            if not term.obsolete:
                where = f"{self.source}, line {term.line}"
                builder.add_node(
                    term.id, term.name or term.id, node_type, term.definition, term.synonyms, where=where
                )
        self.add_edges_to(builder)
        return builder.build()


def read_obo(path: str | Path) -> Ontology:
    """Reads an OBO file; raises GraphError naming the line when it is not one."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as lines:
            return parse_obo(lines, path.name)
    except OSError as error:
        raise GraphError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise GraphError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def parse_obo(lines: Iterable[str], source: str = "obo") -> Ontology:
    """Parses the lines of an OBO file; of stanzas other than `[Term]` only the names of `[Typedef]` are kept."""
    terms: dict[str, Term] = {}
    relations: dict[str, str] = {}
    relation = ""
    version = ""
    term: Term | None = None
    stanza = ""
    for number, raw in enumerate(lines, 1):
        if len(raw) > MAX_LINE:
            raise GraphError(f"{source}, line {number}: {len(raw):,} characters, the limit is {MAX_LINE:,}")
        line = raw.strip()
        if not line or line[0] == "!":
            continue
        if line[0] == "[":
            _keep(term, terms, source)
            stanza, relation = line, ""
            term = Term(line=number) if line == "[Term]" else None
            continue
        tag, colon, value = line.partition(":")
        if not colon:
            raise GraphError(f"{source}, line {number}: expected 'tag: value', found {shown(line)}")
        value = value.strip()
        if term is not None:
            _set(term, tag, value, f"{source}, line {number}")
        elif not stanza and tag == "data-version":
            version = value
        elif stanza == "[Typedef]" and tag == "id":
            relation = _plain(value)
        elif stanza == "[Typedef]" and tag == "name" and relation:
            relations.setdefault(relation, _unescape(_plain(value)))
    _keep(term, terms, source)
    if not terms:
        raise GraphError(f"{source}: has no [Term]; is it an OBO file?")
    return Ontology(terms, version, source, relations)


def _keep(term: Term | None, terms: dict[str, Term], source: str) -> None:
    if term is None:
        return
    if not term.id:
        raise GraphError(f"{source}, line {term.line}: the term has no id")
    if term.id in terms:
        raise GraphError(
            f"{source}, line {term.line}: the id {shown(term.id)} was used in line {terms[term.id].line}"
        )
    terms[term.id] = term


def _set(term: Term, tag: str, value: str, where: str) -> None:
    if tag == "id":
        term.id = _plain(value)
    elif tag == "name":
        term.name = _unescape(_plain(value))
    elif tag == "def":
        term.definition = _quoted(value, f"{where}, def")
    elif tag == "synonym":
        term.synonyms.append(_quoted(value, f"{where}, synonym"))
    elif tag == "is_a":
        term.parents.append(_plain(value))
    elif tag == "relationship":
        relation, _, target = _plain(value).partition(" ")
        term.relationships.append((relation, target.strip()))
    elif tag == "namespace":
        term.namespace = _plain(value)
    elif tag == "comment":
        term.comment = _unescape(_plain(value))
    elif tag == "alt_id":
        term.alternative_ids.append(_plain(value))
    elif tag == "is_obsolete":
        term.obsolete = _plain(value) == "true"
    elif tag == "replaced_by":
        term.replaced_by.append(_plain(value))
    elif tag == "consider":
        term.consider.append(_plain(value))


def _plain(value: str) -> str:
    """A value without its `! comment` and `{modifiers}`."""
    value = value.split(" !", 1)[0]
    return value.split(" {", 1)[0].strip() if value.endswith("}") else value.strip()


def _quoted(value: str, where: str) -> str:
    match = _QUOTED.match(value)
    if match is None:
        raise GraphError(f"{where}: expected quoted text, found {shown(value)}")
    return _unescape(match[1])


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda m: _ESCAPED.get(m[1], m[1]), text) if "\\" in text else text
