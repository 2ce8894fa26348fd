"""What an explanation of a suggestion says, looked up statement by statement in the graph and in the ranking's evidence.

Nothing is believed of what the decoder reports: the names in [brackets], the frequencies after them, which finding is said to
match which phenotype, what is said not to be explained and what to be absent are read from the text itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set

from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.evidence import Candidate
from vglm.graph.graph import Edge, Graph

Pairs = Set[tuple[str, str]]  # (finding in lower case, phenotype)
_MENTION = re.compile(r"\[([^\[\]]*)\]")
_SENTENCE_END = re.compile(r"\.(?=\s+[A-Z\[]|\s*$)")
_COUNTED = re.compile(r"\d+/\d+")
_SHARE = re.compile(r"\d+(?:\.\d+)?(?:-\d+)? ?%")
_HOW_OFTEN = re.compile(
    r"(?: is| are| \(|\)?,) ?(obligate|very frequent|frequent|occasional|very rare|rare)\b"
)
_LEFT_OVER = re.compile(r"(?:does not explain|does not link it to) (.+)|(.+) (?:is|are) not explained")
_ABSENT = re.compile(r"Against it: (.+) (?:is|are) absent")


def sentences(text: str) -> list[str]:
    """The text's sentences, without their full stops; a name may have one inside."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def mentions(text: str) -> list[str]:
    """The names in [brackets], in their order."""
    return _MENTION.findall(text)


def names_belong(graph: Graph, disease: str, text: str) -> bool:
    """Whether every name in brackets is the disease or one of its phenotypes, and one that is cut off the beginning of such."""
    own = {graph.name_of(edge.target) for edge in graph.edges_of(disease, relation=HAS_PHENOTYPE)}
    own.add(graph.name_of(disease))
    before, bracket, cut_off = _MENTION.sub("", text).partition("[")
    begun = not bracket or any(name.startswith(cut_off) for name in own)
    return begun and "]" not in before and all(name in own for name in mentions(text))


def edges_belong(graph: Graph, candidate: Candidate, text: str, cited: Iterable[Edge]) -> bool:
    """Whether every cited edge is one of the graph between the candidate and a phenotype of its evidence (for or against)
    that the text names, and whether none that the text puts in brackets lacks its edge.
    """
    edges = list(cited)
    there = {(edge.source, edge.relation, edge.target) for edge in graph.edges_of(candidate.id)}
    evidence = {item.matched for item in candidate.evidence if item.explained}
    evidence |= {item.matched for item in candidate.against}
    named = {name for name in mentions(text) if name != candidate.name}
    return all(
        edge.source == candidate.id
        and edge.relation == HAS_PHENOTYPE
        and edge.target in evidence
        and (edge.source, edge.relation, edge.target) in there
        and graph.name_of(edge.target) in text
        for edge in edges
    ) and named <= {graph.name_of(edge.target) for edge in edges}


def frequencies_right(graph: Graph, disease: str, text: str) -> bool:
    """Whether every frequency, between one name in brackets and the next, is one that the graph states of that phenotype.

    Numbers ("3/5", "30-79 %") and words ("frequent") that stand together must be of one and the same statement. A number
    before any phenotype is of nothing, and wrong.
    """
    labels: dict[str, list[str]] = {}
    for edge in graph.edges_of(disease, relation=HAS_PHENOTYPE):
        labels.setdefault(graph.name_of(edge.target), []).append(
            str(edge.attributes.get("frequency_label", ""))
        )
    for sentence in sentences(text):
        pieces = _MENTION.split(sentence)  # words, a name, words, a name, ..., words
        for name, words in zip([None, *pieces[1::2]], pieces[::2], strict=True):
            said = _frequency(words)
            if said and not any(said <= _frequency(f" ({label}") for label in labels.get(name or "", ())):
                return False
    return True


def _frequency(words: str) -> set[str]:
    """What words say of how often something is seen; finding names may follow later on, so that an adjective counts only
    where it begins them.
    """
    adjective = _HOW_OFTEN.match(words)
    found = {*_COUNTED.findall(words), *(share.replace(" ", "") for share in _SHARE.findall(words))}
    return found | ({adjective[1]} if adjective else set())


def findings_right(candidate: Candidate, text: str) -> bool:
    """Whether every finding that "matches" a phenotype, or is one "(as [phenotype])", is that phenotype, a kind of it or a
    broader word for it, and one that is "akin to" a phenotype has it as evidence; what is "not explained" is what the
    evidence does not explain; and what is "absent" is what the evidence has against the candidate.
    """
    explained = [item for item in candidate.evidence if item.explained]
    akin = {(item.finding_name.lower(), item.matched_name) for item in explained}
    kinds = [item for item in explained if item.exact or item.ancestor in (item.finding, item.matched)]
    matched = {(item.finding_name.lower(), item.matched_name) for item in kinds}
    left_over = [item.finding_name for item in candidate.evidence if not item.explained]
    absent = [f"[{item.matched_name}]" for item in candidate.against]
    return (
        all(_is_matched(text[: place.start()], place[1], matched, akin) for place in _MENTION.finditer(text))
        and all(_lists(said, left_over) for said in _all(_LEFT_OVER, text))
        and all(_lists(said, absent) for said in _all(_ABSENT, text))
    )


def _is_matched(before: str, phenotype: str, matched: Pairs, akin: Pairs) -> bool:
    """Whether the words before a phenotype, if they say that a finding matches it, name one that does."""
    for words, pairs in (
        (" matches ", matched),
        (" (as ", matched),
        (" is akin to ", akin),
        (" (akin to ", akin),
    ):
        if before.endswith(words):
            said = before.removesuffix(words).lower()
            of_it = [finding for finding, name in pairs if name == phenotype]
            return any(re.search(rf"(?<!\w){re.escape(finding)}$", said) for finding in of_it)
    return True


def _all(pattern: re.Pattern[str], text: str) -> list[str]:
    found = (pattern.search(part) for part in sentences(text))
    return [next(filter(None, match.groups())) for match in found if match]


def _lists(said: str, names: Sequence[str]) -> bool:
    """Whether the words are some of the names and nothing else but commas and "and"."""
    rest = said.lower().replace(", among others", "").removesuffix(" by it")
    for name in sorted(names, key=len, reverse=True):
        rest = re.sub(rf"(?<![\w]){re.escape(name.lower())}(?![\w])", " ", rest)
    return not re.sub(r"\band\b|[,\s]", "", rest)
