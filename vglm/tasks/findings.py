"""A patient's findings, as ids or in words: which phenotypes of a graph they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vglm.errors import GraphError
from vglm.graph.annotations import HAS_PHENOTYPE, phenotype_edges
from vglm.graph.closest import closest
from vglm.graph.derived import once_per_graph
from vglm.graph.graph import Graph
from vglm.graph.limits import shown
from vglm.graph.linking import Mention, linker

MAX_FINDINGS = 256
MAX_FINDING = 1_000  # characters
_NEGATION = re.compile(r"\b(no|not|without|denies|denied|normal|excluded|absent|negative)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Finding:
    """A phenotype of the graph, and the words that the caller gave for it."""

    id: str
    name: str
    given: str


def link_findings(graph: Graph, given: Sequence[str], where: str) -> tuple[Finding, ...]:
    """The phenotypes that ids, names, aliases or sentences mean, each once, in their order.

    A phenotype is a node of a type that diseases of the graph have as phenotypes. Of an ambiguous name the likeliest counts; a
    sentence may name several. Raises GraphError that calls the list `where`, for what names none, with the closest nodes, and
    for a sentence that may deny what it names ("no scoliosis"), because negations are not read.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise GraphError(f"{where}: expected a list of ids or names, found {shown(given)}")
    if len(given) > MAX_FINDINGS:
        raise GraphError(f"{where}: {len(given):,} are given, the limit is {MAX_FINDINGS}")
    types = _phenotype_types(graph)
    found: dict[str, Finding] = {}
    for place, text in enumerate(given):
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_FINDING:
            raise GraphError(
                f"{where}[{place}]: expected an id, or words of at most {MAX_FINDING} characters, found {shown(text)}"
            )
        for node_id in _linked(graph, text.strip(), types, f"{where}[{place}]"):
            found.setdefault(node_id, Finding(node_id, graph.name_of(node_id), text))
    return tuple(found.values())


def _linked(graph: Graph, text: str, types: frozenset[str], where: str) -> list[str]:
    if text in graph:
        node = graph.node(text)
        if node.type not in types:
            raise GraphError(
                f"{where}: {shown(text)} ({node.name}) is a {node.type or 'node'}, not a phenotype"
            )
        return [text]
    mentions = linker(graph).link(text, types)
    negation = _NEGATION.search(text)
    if negation is not None and not _is_name(text, mentions, types):
        raise GraphError(
            f"{where}: {shown(text)} says {negation[0]!r}, and negations are not read: "
            "give what is absent in `excluded`, and what is present here, by names or ids alone"
        )
    fitting = (
        next((entity.id for entity in mention.entities if entity.type in types), None) for mention in mentions
    )
    ids = [node_id for node_id in fitting if node_id is not None]
    if not ids:
        near = closest(graph, text)
        hint = f"; the closest nodes are {', '.join(near)}" if near else ""
        raise GraphError(f"{where}: no phenotype of the graph is called {shown(text)}{hint}")
    return ids


def _is_name(text: str, mentions: Sequence[Mention], types: frozenset[str]) -> bool:
    """True if the whole text is a name or an alias ("Absent eyebrow"), but for signs at its ends."""
    rest = [text[: mention.start] + text[mention.end :] for mention in mentions]
    return any(
        not re.search(r"\w", left)
        and any(entity.type in types and entity.method != "fuzzy" for entity in mention.entities)
        for mention, left in zip(mentions, rest, strict=True)
    )


@once_per_graph
def _phenotype_types(graph: Graph) -> frozenset[str]:
    """The types of the nodes at the end of `has phenotype` edges. Raises GraphError if there is no such edge."""
    columns = graph.columns
    codes = np.unique(columns.node_types[columns.targets[phenotype_edges(graph)]])
    if not len(codes):
        raise GraphError(
            f"graph: has no {HAS_PHENOTYPE!r} edges from diseases to phenotypes, so nothing can be suggested"
        )
    return frozenset(columns.type_names[code] for code in codes.tolist())
