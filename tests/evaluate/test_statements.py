"""What an explanation says is looked up: each check passes for what is so, and fails for what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.tasks.clinic import clinic
from vglm import Graph
from vglm.evaluate import statements
from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.evidence import Candidate
from vglm.graph.graph import Edge
from vglm.graph.ranking import DiseaseRanker

FINDINGS = ["p2", "p4", "p6", "p8"]  # ectopia lentis, high myopia, scoliosis, deafness
GOOD = (
    "[Marfan syndrome] fits: [Scoliosis] is one of its findings, high myopia matches [Myopia] (9/10) and [Ectopia lentis] is "
    "seen in 6/10 patients. It does not explain deafness. Against it: [Tall stature] is absent."
)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return clinic()


@pytest.fixture(scope="module")
def marfan(graph: Graph) -> Candidate:
    return next(one for one in DiseaseRanker(graph).rank(FINDINGS, ["p7"], 7) if one.id == "d1")


def cited(graph: Graph, *targets: str, source: str = "d1") -> list[Edge]:
    edges = graph.edges_of(source, relation=HAS_PHENOTYPE)
    return [edge for edge in edges if edge.target in targets]


def test_what_is_so_passes(graph: Graph, marfan: Candidate) -> None:
    assert statements.names_belong(graph, "d1", GOOD)
    assert statements.edges_belong(graph, marfan, GOOD, cited(graph, "p2", "p3", "p6", "p7"))
    assert statements.frequencies_right(graph, "d1", GOOD)
    assert statements.findings_right(marfan, GOOD)
    for text in (
        "[Marfan syndrome] would account for high myopia (as [Myopia], 9/10).",
        "Deafness is not explained by it.",
        "Deafness, among others, is not explained by it.",
        "It does not explain deafness, among others.",
        "Against it: [Tall stature] is absent, among others.",
        "[Marfan syndrome] fits: high myopia is akin to [Myopia].",
        "The graph does not link it to deafness.",
    ):
        assert statements.findings_right(marfan, text)


@pytest.mark.parametrize("text", ["It has [Green hair].", "It has [Deafness].", "It has [Deaf", "A] b"])
def test_names_of_others_and_open_brackets(graph: Graph, text: str) -> None:
    assert not statements.names_belong(graph, "d1", text)


def test_a_name_that_is_cut_off_belongs(graph: Graph) -> None:
    assert statements.names_belong(graph, "d1", "[Marfan syndrome] fits: [Ectopia len")


def test_edges_of_others(graph: Graph, marfan: Candidate) -> None:
    text = "[Marfan syndrome] fits: [Scoliosis] and [Ectopia lentis]."
    right = cited(graph, "p2", "p6")
    assert statements.edges_belong(graph, marfan, text, right)
    assert not statements.edges_belong(graph, marfan, text, right[:1])  # a name without its edge
    assert not statements.edges_belong(graph, marfan, text, [*right, *cited(graph, "p3")])  # not named
    assert not statements.edges_belong(graph, marfan, text, [*right, *cited(graph, "p2", source="d4")])
    moved = replace(right[0], relation="is a")
    assert not statements.edges_belong(graph, marfan, text, [*right, moved])
    made_up = replace(right[0], target="p9")
    assert not statements.edges_belong(graph, marfan, f"{text} [Seizure]", [*right, made_up])


def test_an_edge_that_is_no_evidence(graph: Graph) -> None:
    (best,) = (one for one in DiseaseRanker(graph).rank(["p2"], [], 7) if one.id == "d1")
    text, edges = "[Ectopia lentis] and [Tall stature] speak for it.", cited(graph, "p2", "p7")
    assert not statements.edges_belong(graph, best, text, edges)
    assert statements.edges_belong(graph, best, "[Ectopia lentis] speaks for it.", edges[:1])


@pytest.mark.parametrize(
    "text",
    [
        "[Ectopia lentis] is seen in 9/10 patients.",  # the frequency of myopia
        "[Ectopia lentis] is seen in 6/1 patients.",  # a part of the right one
        "[Ectopia lentis] is frequent.",
        "[Ectopia lentis] (60 %).",
        "[Scoliosis] is seen in 6/10 patients.",  # has none
        "[Marfan syndrome] is seen in 6/10 patients.",
        "In 6/10 patients there is [Ectopia lentis].",
        "[Ectopia lentis] fits. It is seen in 6/10 patients.",  # of what, is not said
    ],
)
def test_frequencies_of_others(graph: Graph, text: str) -> None:
    assert not statements.frequencies_right(graph, "d1", text)


def test_words_and_shares_are_of_one_statement() -> None:
    nodes = [{"id": "d", "name": "D", "type": "disease"}, {"id": "p", "name": "P", "type": "phenotype"}]
    labels = ["frequent, 30-79 %", "very rare, 1-4 %", "45%", "3/5"]
    edges = [
        {"source": "d", "relation": HAS_PHENOTYPE, "target": "p", "attributes": {"frequency_label": label}}
        for label in labels
    ]
    graph = Graph.from_dict({"nodes": nodes, "edges": edges})
    for text in (
        "[P] is frequent (30-79 %).",
        "[P] is very rare.",
        "[P] (45%).",
        "[P] (3/5) fits.",
        "x matches [P] (45 %).",
    ):
        assert statements.frequencies_right(graph, "d", text)
    for text in (
        "[P] is frequent (1-4 %).",
        "[P] is rare.",
        "[P] (4 %).",
        "[P] is obligate.",
        "[P] (30-79 %, 3/5).",
    ):
        assert not statements.frequencies_right(graph, "d", text)


@pytest.mark.parametrize(
    "text",
    [
        "Green hair matches [Myopia].",
        "Scoliosis matches [Myopia].",
        "Scoliosis is akin to [Myopia].",
        "[Marfan syndrome] would account for deafness (as [Myopia]).",
        "It does not explain scoliosis.",
        "It does not explain deafness and scoliosis.",
        "It does not explain deafness and seizure.",  # the patient has none
        "Scoliosis is not explained by it.",
        "The graph does not link it to ectopia lentis.",
        "Against it: [Scoliosis] is absent.",
        "Against it: [Tall stature] and [Myopia] are absent.",
    ],
)
def test_findings_that_are_otherwise(marfan: Candidate, text: str) -> None:
    assert not statements.findings_right(marfan, text)


def test_what_is_only_akin_to_a_phenotype_does_not_match_it(marfan: Candidate) -> None:
    items = [replace(item, ancestor="p1") if item.finding == "p4" else item for item in marfan.evidence]
    siblings = replace(marfan, evidence=tuple(items))
    assert statements.findings_right(siblings, "High myopia is akin to [Myopia].")
    assert not statements.findings_right(siblings, "High myopia matches [Myopia].")


def test_names_with_full_stops_and_brackets_do_not_end_a_sentence() -> None:
    assert statements.sentences("A vs. b is c. [D] e. It f.") == ["A vs. b is c", "[D] e", "It f"]
    assert statements.mentions("[A (b)] and [C].") == ["A (b)", "C"]
