"""Explanations of suggestions, to learn from: why a disease fits a patient, written from the evidence.

The patients are simulated from the ontology's own annotations, so nothing of a published case is learned here: findings of one
disease, some made less or more specific, some of another, some known to be absent. The candidates are those of a ranking, right
or wrong ones: an explanation says what the graph says of either.
"""

from __future__ import annotations

import random

from vglm.errors import GraphError
from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.evidence import Candidate, Evidence
from vglm.graph.graph import Graph
from vglm.graph.ranking import DiseaseRanker
from vglm.graph.records import Records
from vglm.tasks.suggestion_form import MOST_LEFT, MOST_SAID, bracketed, clause, joined, lowered, thing
from vglm.tasks.suggestion_prompt import MOST_FINDINGS, explained_graph, explained_question
from vglm.train.samples import Sample, Turn

CANDIDATES = 3  # of one patient


def simulated_findings(
    ranker: DiseaseRanker, disease: int, rng: random.Random
) -> tuple[list[str], list[str]]:
    """Findings and excluded findings (ids) of a patient with the disease, a node's index."""
    graph = ranker.graph
    held = list(dict.fromkeys(e.target for e in graph.edges_of(graph.id_of(disease), relation=HAS_PHENOTYPE)))
    if not held:
        return [], []
    count = min(len(held), rng.randint(3, 9))
    findings = [_moved(graph, node, rng) for node in rng.sample(held, count)]
    strange = int(rng.choice(ranker.index.diseases.tolist()))
    others = graph.edges_of(graph.id_of(strange), relation=HAS_PHENOTYPE)
    findings += [edge.target for edge in rng.sample(others, min(len(others), rng.randint(0, 2)))]
    findings = list(dict.fromkeys(findings))
    left = [node for node in held if node not in findings]
    excluded = rng.sample(left, min(len(left), rng.choice((0, 0, 1, 3, 6))))
    return findings, excluded


def _moved(graph: Graph, node: str, rng: random.Random) -> str:
    """The finding as it is mostly, at times a broader or a narrower one."""
    chance = rng.random()
    if chance < 0.7:
        return node
    way = "out" if chance < 0.88 else "in"
    near = graph.edges_of(node, way, "is a")  # type: ignore[arg-type]
    if not near:
        return node
    edge = rng.choice(near)
    return edge.target if way == "out" else edge.source


def suggestion_sample(ranker: DiseaseRanker, rng: random.Random) -> Sample | None:
    """An explanation of one candidate of a simulated patient; None where the ranking has nothing to say."""
    disease = int(rng.choice(ranker.index.diseases.tolist()))
    findings, excluded = simulated_findings(ranker, disease, rng)
    try:
        candidates = ranker.rank(findings, excluded, CANDIDATES)
    except GraphError:  # a term that the disease part of the graph does not know
        return None
    candidate = rng.choice(candidates)
    part = explained_graph(ranker.graph, candidate)
    if not any(item.explained and item.matched in part for item in candidate.evidence[:MOST_FINDINGS]):
        return None
    text = explanation_text(part, candidate, rng)
    return Sample("suggestion", (Turn(explained_question(part, candidate), text, named=False),), part)


def explanation_text(part: Graph, candidate: Candidate, rng: random.Random) -> str:
    """An explanation from the evidence alone, its names in [brackets]; the words vary, what is said does not."""
    records = Records(part)
    disease = bracketed(records, candidate.id)
    asked = candidate.evidence[:MOST_FINDINGS]
    explained = [item for item in asked if item.explained and item.matched in part]
    unexplained = [item.finding_name for item in asked if not item.explained]
    said: dict[str, list[Evidence]] = {}
    for item in explained:
        said.setdefault(item.matched, []).append(item)
    parts = list(said.items())[:MOST_SAID]
    if rng.random() < 0.3:
        things = [thing(part, records, node, items) for node, items in parts]
        sentences = [f"{disease} would account for {joined(things)}."]
    else:
        clauses = [clause(part, records, node, items) for node, items in parts]
        opening = rng.choice(("{} fits: {}.", "{} may explain this: {}.", "{} is a candidate because {}."))
        sentences = [opening.format(disease, joined(clauses))]
    if unexplained:
        sentences.append(_left_over(unexplained[:MOST_LEFT], rng))
    against = [item for item in candidate.against if item.matched in part]
    if against:
        absent = list(dict.fromkeys(bracketed(records, item.matched) for item in against[:MOST_LEFT]))
        sentences.append(f"Against it: {joined(absent)} {'are' if len(absent) > 1 else 'is'} absent.")
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _left_over(findings: list[str], rng: random.Random) -> str:
    """What the candidate does not explain."""
    names = joined([lowered(name) for name in findings])
    verb = "are" if len(findings) > 1 else "is"
    words = (
        "It does not explain {}.",
        f"{{}} {verb} not explained by it.",
        "The graph does not link it to {}.",
    )
    return rng.choice(words).format(names)
