"""What an explanation of a suggestion may say: every sentence that the evidence supports, and none that it does not.

The model chooses the words, and which of the evidence it names. Names, frequencies, which finding matches which phenotype,
what is not explained and what is absent are the evidence's, and the last sentence ends within the tokens that there are:

    [Marfan syndrome] fits: high myopia matches [Myopia] (9/10) and [Ectopia lentis] is seen in 6/10 patients. It does not
    explain deafness. Against it: [Tall stature] is absent.

The training of the adapter writes its texts with the clauses of this file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.evidence import Candidate, Evidence
from vglm.graph.graph import Graph
from vglm.graph.records import Records
from vglm.graph.text import one_line
from vglm.graph.token_counts import CountTokens
from vglm.tasks.suggestion_prompt import MOST_FINDINGS

MOST_SAID = 3  # phenotypes that one explanation mentions for the candidate
OFFERED = 5  # among which it chooses them, the weightiest
MOST_LEFT = 2  # findings that it says are not explained, and those that speak against it
LEFT_OFFERED = 4
AMONG = ", among others"
SPARE = 1.1  # tokens are spelled in other ways than the tokenizer's own at times
_SIZES = ((3, 2, 2), (3, 1, 1), (2, 1, 1), (1, 1, 1))  # phenotypes, not explained, absent
_COUNTED = re.compile(r"(\d+)/(\d+)")
Pattern = Any  # of vglm/decode/grounded/pattern.py


def explanation_form(
    part: Graph, candidate: Candidate, count_tokens: CountTokens, max_tokens: int
) -> Pattern | None:
    """The texts that explain `candidate` from `part`, its `explained_graph`; None if no phenotype can be named in brackets.

    As much may be said as fits into `max_tokens` whichever choices are made; of the least that is to be said, one phenotype
    and one finding of each kind, more than fits may be left.
    """
    form = _Form(part, candidate)
    if not form.said:
        return None
    for sizes in _SIZES:
        pattern = form.pattern(*sizes)
        if SPARE * longest(pattern, part, count_tokens) <= max_tokens:
            break
    return pattern


def longest(pattern: Pattern, graph: Graph, count_tokens: CountTokens) -> int:
    """At most so many tokens has a text of a pattern, as the tokenizer spells its pieces."""
    if isinstance(pattern, str):
        return count_tokens(pattern)
    if isinstance(pattern, list):
        return sum(longest(inner, graph, count_tokens) for inner in pattern)
    if "entity" in pattern:
        return count_tokens(f"[{graph.name_of(pattern['entity'])}]")
    if "one_of" in pattern:
        return max(longest(inner, graph, count_tokens) for inner in pattern["one_of"])
    most: int = pattern["max"]
    sizes = sorted((longest(inner, graph, count_tokens) for inner in pattern["list"]), reverse=True)
    return sum(sizes[:most]) + most - 1


class _Form:
    """The pieces of one candidate's explanation."""

    def __init__(self, part: Graph, candidate: Candidate) -> None:
        self._part, self._records = part, Records(part)
        self._candidate = candidate
        asked = candidate.evidence[:MOST_FINDINGS]
        sayable = [item for item in asked if item.explained and self._is_sayable(item.matched)]
        said: dict[str, list[Evidence]] = {}
        # what is only akin to a phenotype, and may be its very opposite, is said where there is nothing better
        for item in [item for item in sayable if is_kind_of(item)] or sayable:
            said.setdefault(item.matched, []).append(item)
        self.said = dict(list(said.items())[:OFFERED])
        left = [lowered(item.finding_name) for item in candidate.evidence if not item.explained]
        self._left = list(dict.fromkeys(left))
        explained = {item.matched for item in candidate.evidence if item.explained}
        against = (item.matched for item in candidate.against)
        self._against = [
            node for node in dict.fromkeys(against) if self._is_sayable(node) and node not in explained
        ]

    def _is_sayable(self, node: str) -> bool:
        """Whether a node is read and has a name that can stand in brackets."""
        return node in self._part and bracketed(self._records, node).startswith("[")

    def pattern(self, most_said: int, most_left: int, most_against: int) -> Pattern:
        """With at most so many phenotypes, findings that are not explained, and absent ones."""
        sentences = [self._main(most_said)]
        if self._left:
            sentences += [" ", self._left_over(most_left)]
        if self._against:
            sentences += [" ", self._absent(most_against)]
        return sentences

    def _main(self, most: int) -> Pattern:
        name = bracketed(self._records, self._candidate.id)
        disease = {"entity": self._candidate.id} if name.startswith("[") else name
        part, records = self._part, self._records
        clauses = [self._bound(node, clause(part, records, node, items)) for node, items in self.said.items()]
        things = [self._bound(node, thing(part, records, node, items)) for node, items in self.said.items()]
        least, most = min(2, most, len(self.said)), min(most, len(self.said))
        opening = {"one_of": [" fits: ", " may explain this: ", " is a candidate because "]}
        reasons = [opening, {"list": clauses, "min": least, "max": most}]
        account = [" would account for ", {"list": things, "min": least, "max": most}]
        return [disease, {"one_of": [reasons, account]}, "."]

    def _bound(self, node: str, text: str) -> Pattern:
        """A text in which the name in brackets is that of the node."""
        before, _, after = text.partition(bracketed(self._records, node))
        return [piece for piece in (before, {"entity": node}, after) if piece]

    def _left_over(self, most: int) -> Pattern:
        """What the candidate does not explain."""
        names = self._left[:LEFT_OFFERED]
        count = min(most, len(names))
        more = len(self._left) > count
        some = {"list": names, "min": count, "max": count}
        active = [
            {"one_of": ["It does not explain ", "The graph does not link it to "]},
            some,
            AMONG * more,
            ".",
        ]
        first = [name[0].upper() + name[1:] for name in names]
        pairs = [[first[i], " and ", other] for i in range(len(names)) for other in names[i + 1 :]]
        passive = [{"one_of": first if count == 1 else pairs}, f"{AMONG}," * more]
        passive.append(" is not explained by it." if count == 1 else " are not explained by it.")
        return {"one_of": [_without_empty(active), _without_empty(passive)]}

    def _absent(self, most: int) -> Pattern:
        nodes = self._against[:LEFT_OFFERED]
        count = min(most, len(nodes))
        some = {"list": [{"entity": node} for node in nodes], "min": count, "max": count}
        verb = " is absent" if count == 1 else " are absent"
        return ["Against it: ", some, f"{verb}{AMONG * (len(self._against) > count)}."]


def _without_empty(pieces: Sequence[Pattern]) -> Pattern:
    return [piece for piece in pieces if piece]


def is_kind_of(item: Evidence) -> bool:
    """Whether the finding is the phenotype, a kind of it or a broader word for it, and not just akin to it."""
    return item.exact or item.ancestor in (item.finding, item.matched)


# ---- the words, which training uses, too


def clause(part: Graph, records: Records, node: str, items: Sequence[Evidence]) -> str:
    """What speaks for the candidate in one phenotype of it: `items` are the findings that match it."""
    name = bracketed(records, node)
    often = how_often(part, node)
    other = [item.finding_name for item in items if item.finding != node]
    if len(other) == len(items):
        verb = "matches" if is_kind_of(items[0]) else "is akin to"
        return f"{lowered(other[0])} {verb} {name}{f' ({often})' if often else ''}"
    if not often:
        return f"{name} is one of its findings"
    if _COUNTED.fullmatch(often):
        return f"{name} is seen in {often} patients"
    if often.endswith("%") and "," not in often:
        return f"{name} is seen in {often} of patients"
    how, _, share = often.partition(", ")
    return f"{name} is {how} ({share})" if share else f"{name} is {how}"


def thing(part: Graph, records: Records, node: str, items: Sequence[Evidence]) -> str:
    """A finding that a disease accounts for, with what it is called there and how often it is seen."""
    name, often = bracketed(records, node), how_often(part, node)
    if all(item.finding != node for item in items):
        preposition = "as" if is_kind_of(items[0]) else "akin to"
        return f"{lowered(items[0].finding_name)} ({preposition} {name}{f', {often}' if often else ''})"
    return f"{name} ({often})" if often else name


def how_often(part: Graph, node: str) -> str:
    """How often a phenotype is seen, as the graph states it: of several statements that of the most patients; "" for none."""
    edges = part.edges_of(node, "in", HAS_PHENOTYPE)
    labels = [str(e.attributes["frequency_label"]) for e in edges if "frequency_label" in e.attributes]
    return one_line(max(labels, key=_examined)) if labels else ""


def _examined(label: str) -> int:
    """Patients of a statement in which the phenotype was seen at all; -1 where it was in none."""
    counted = _COUNTED.fullmatch(label)
    if counted is None:
        return -1 if label.startswith("excluded") else 0
    return int(counted[2]) if int(counted[1]) else -1


def bracketed(records: Records, node: str) -> str:
    """A node's name in [brackets]; without them if it has some itself, or needs its id to be told from others."""
    name = records.name(records.graph.index_of(node))
    return name if "[" in name or "]" in name else f"[{name}]"


def lowered(name: str) -> str:
    """A finding within a sentence: "high myopia", but "EEG abnormality"; brackets are for names of the graph that is read."""
    name = one_line(name).replace("[", "(").replace("]", ")")
    return name[0].lower() + name[1:] if len(name) > 1 and name[1:2].islower() else name


def joined(names: Sequence[str]) -> str:
    """A, B and C."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
