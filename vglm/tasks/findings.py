"""A patient's findings, as ids or in words: which phenotypes of a graph they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from vglm.errors import GraphError
from vglm.graph.annotations import HAS_PHENOTYPE, phenotype_edges
from vglm.graph.closest import closest, sharing_a_word
from vglm.graph.derived import once_per_graph
from vglm.graph.graph import Graph
from vglm.graph.limits import shown
from vglm.graph.linking import Mention, linker

MAX_FINDINGS = 256
MAX_FINDING = 1_000  # characters
MOST_REFUSED = 8  # findings that one message names
_NEGATION = re.compile(r"\b(no|not|without|denies|denied|normal|excluded|absent|negative)\b", re.IGNORECASE)
# "hp:0001083", "HP_0001083" and "http://purl.obolibrary.org/obo/HP_0001083" as ontologies write HP:0001083
_OBO_ID = re.compile(r"<?(?:https?://purl\.obolibrary\.org/obo/)?([A-Za-z]+)[:_](\d+)>?")


@dataclass(frozen=True, slots=True)
class Finding:
    """A phenotype of the graph, and the words that the caller gave for it."""

    id: str
    name: str
    given: str


def link_patient(
    graph: Graph, findings: Sequence[str], excluded: Sequence[str] = ()
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """What a patient has, at least one phenotype, and what was looked for and is absent; each as in `link_findings`.

    Raises GraphError also when they contradict each other: something is both, or what is present is a kind of what is absent.
    """
    present = link_findings(graph, findings, "findings")
    absent = link_findings(graph, excluded, "excluded")
    if not present:
        raise GraphError("findings: at least one is needed")
    excluded_ids = {one.id: one for one in absent}
    for one in present:
        if one.id in excluded_ids:
            raise GraphError(f"excluded: {one.id} ({one.name}) is among the findings, too")
        for general in graph.ancestors(one.id):
            if general in excluded_ids:
                raise GraphError(
                    f"excluded: {general} ({excluded_ids[general].name}) cannot be absent: {one.id} ({one.name}), "
                    "which is among the findings, is a kind of it"
                )
    return present, absent


def link_findings(graph: Graph, given: Sequence[str], where: str) -> tuple[Finding, ...]:
    """The phenotypes that ids, names, aliases or sentences mean, each once, in their order.

    A phenotype is a node of a type that diseases of the graph have as phenotypes. Of an ambiguous name the likeliest counts; a
    sentence may name several. Raises GraphError that calls the list `where` and names all that mean none, with the closest
    phenotypes, and sentences that may deny what they name ("no scoliosis"), because negations are not read.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise GraphError(f"{where}: expected a list of ids or names, found {shown(given)}")
    if len(given) > MAX_FINDINGS:
        raise GraphError(f"{where}: {len(given):,} are given, the limit is {MAX_FINDINGS}")
    types = _phenotype_types(graph)
    found: dict[str, Finding] = {}
    refused: list[str] = []
    for place, text in enumerate(given):
        try:
            for node_id in _linked(graph, text, types):
                found.setdefault(node_id, Finding(node_id, graph.name_of(node_id), text))
        except GraphError as error:
            refused.append(f"{where}[{place}]: {error}")
    if refused:
        more = f"; and {len(refused) - MOST_REFUSED} more" if len(refused) > MOST_REFUSED else ""
        raise GraphError("; ".join(refused[:MOST_REFUSED]) + more)
    return tuple(found.values())


def _linked(graph: Graph, given: object, types: frozenset[str]) -> list[str]:
    if not isinstance(given, str) or not given.strip() or len(given) > MAX_FINDING:
        raise GraphError(
            f"expected an id, or words of at most {MAX_FINDING} characters, found {shown(given)}"
        )
    text = given.strip()
    node_id = _as_id(graph, text)
    if node_id is not None:
        return [_phenotype(graph, node_id, text, types)]
    mentions = linker(graph).link(text, types)
    negation = _NEGATION.search(text)
    if negation is not None and not _is_name(text, mentions, types):
        raise GraphError(
            f"{shown(text)} says {negation[0]!r}, and negations are not read: "
            "give what is absent in `excluded`, and what is present here, by names or ids alone"
        )
    fitting = (
        next((entity.id for entity in mention.entities if entity.type in types), None) for mention in mentions
    )
    ids = [node_id for node_id in fitting if node_id is not None]
    if not ids:
        if len(mentions) == 1 and _is_name(text, mentions, {mentions[0].best.type}):
            _phenotype(graph, mentions[0].best.id, text, types)
        raise GraphError(f"no phenotype of the graph is called {shown(text)}{_hint(graph, text, types)}")
    return ids


def _hint(graph: Graph, text: str, types: frozenset[str]) -> str:
    if near := closest(graph, text, types):
        return f"; the closest phenotypes are {', '.join(near)}"
    near = sharing_a_word(graph, text, types)
    return f"; phenotypes with a word of it are {', '.join(near)}" if near else ""


def _as_id(graph: Graph, text: str) -> str | None:
    """The node whose id this is, in a way in which ids are written; None if it is none."""
    if text in graph:
        return text
    written = _OBO_ID.fullmatch(text)
    node_id = "" if written is None else f"{written[1].upper()}:{written[2]}"
    return node_id if node_id in graph else None


def _phenotype(graph: Graph, node_id: str, given: str, types: frozenset[str]) -> str:
    node = graph.node(node_id)
    if node.type not in types:
        also = ", ".join(word for word in (node.name, node_id) if word.casefold() != given.casefold())
        raise GraphError(f"{shown(given)} ({also}) is a {node.type or 'node'}, not a phenotype")
    return node_id


def _is_name(text: str, mentions: Sequence[Mention], types: Collection[str]) -> bool:
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
