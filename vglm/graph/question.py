"""Asking a language model why a disease is a candidate, and checking what it names against the graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vglm.graph.evidence import Candidate
from vglm.graph.graph import Graph
from vglm.graph.hpo import HPO
from vglm.graph.text import GraphText, TextOptions, graph_text

SYSTEM = (
    "You are a medical assistant. "
    "You explain why a disease fits a patient. You use only the facts in the graph."
)
# One worked example: without it a small model writes what it remembers, not what the graph says.
EXAMPLE_QUESTION = """Graph:
Cystic fibrosis (disease)
- has phenotype: Bronchiectasis (frequency 45/60)
- has phenotype: Exocrine pancreatic insufficiency (very frequent, 80-99 %)
- has phenotype: Recurrent pneumonia

Patient: Bronchiectasis, Exocrine pancreatic insufficiency, Recurrent pneumonia.

Question: Why is Cystic fibrosis a candidate for this patient?"""
EXAMPLE_ANSWER = (
    "Cystic fibrosis is a candidate because the graph links it to three findings of the patient: "
    "bronchiectasis, which was seen in 45 of 60 patients, exocrine pancreatic insufficiency, which is very "
    "frequent, and recurrent pneumonia."
)
PROMPT_TEXT = TextOptions(definitions=False, references=0, bare_nodes=False)
LONGEST_NAME = 10  # words; longer phenotype names are not looked for in an answer
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Mentions:
    """Phenotypes that an answer names: (id, name), those that the evidence links to the disease and all
    others."""

    linked: tuple[tuple[str, str], ...]
    unlinked: tuple[tuple[str, str], ...]


def evidence_graph(graph: Graph, candidates: Iterable[Candidate]) -> Graph:
    """The sub-graph of the candidates and the edges that explain the patient's findings."""
    chosen = list(candidates)
    edges = (edge for c in chosen for item in c.evidence if item.explained for edge in item.edges)
    return graph.edge_subgraph(edges, nodes=[c.id for c in chosen])


def question(
    graph: Graph,
    candidate: Candidate,
    findings: Iterable[str],
    count_tokens: Callable[[str], int],
    budget: int,
) -> tuple[list[dict[str, str]], GraphText]:
    """Chat messages that ask why `candidate` fits, and the graph text of at most `budget` tokens inside
    them."""
    text = graph_text(evidence_graph(graph, [candidate]), count_tokens, budget, [candidate.id], PROMPT_TEXT)
    names = ", ".join(graph.name_of(finding) for finding in findings)
    why = f"Why is {candidate.name} a candidate for this patient?"
    asked = f"Graph:\n{text.text}\n\nPatient: {names}.\n\nQuestion: {why}"
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": EXAMPLE_QUESTION},
        {"role": "assistant", "content": EXAMPLE_ANSWER},
        {"role": "user", "content": asked},
    ]
    return messages, text


def mentions(hpo: HPO, candidate: Candidate, answer: str) -> Mentions:
    """The phenotypes whose names or synonyms occur in an answer, longest match first, each once."""
    supported = {i for item in candidate.evidence if item.explained for i in (item.finding, item.matched)}
    # The disease's own name is no finding: "Marfan lipodystrophy syndrome" does not claim lipodystrophy.
    answer = re.sub(re.escape(candidate.name), candidate.id, answer, flags=re.IGNORECASE)
    words = [word.casefold() for word in _WORD.findall(answer)]
    found: dict[str, None] = {}
    position = 0
    while position < len(words):
        for length in range(min(LONGEST_NAME, len(words) - position), 0, -1):
            ids = hpo.names_by_words.get(" ".join(words[position : position + length]))
            if ids:
                best = next((i for i in ids if i in supported), ids[0])
                found.setdefault(best)
                position += length - 1
                break
        position += 1
    named = [(node_id, hpo.graph.name_of(node_id)) for node_id in found]
    return Mentions(
        tuple(item for item in named if item[0] in supported),
        tuple(item for item in named if item[0] not in supported),
    )
