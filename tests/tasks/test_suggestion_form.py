"""What an explanation may say: each of its texts is true, whatever is chosen, and ends within its tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.decode.test_grounded_pattern import texts_of
from tests.tasks.clinic import clinic
from vglm import LLM, Graph, SamplingParams
from vglm.evaluate import statements
from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.evidence import Candidate
from vglm.graph.ranking import DiseaseRanker
from vglm.graph.records import Records
from vglm.graph.token_counts import estimate_tokens
from vglm.tasks.suggestion_form import clause, explanation_form, how_often, longest
from vglm.tasks.suggestion_prompt import explained_graph

FINDINGS = ["p2", "p4", "p6", "p8"]


def candidate(graph: Graph, disease: str, findings: list[str], excluded: list[str]) -> Candidate:
    return next(one for one in DiseaseRanker(graph).rank(findings, excluded, 7) if one.id == disease)


def form(graph: Graph, of: Candidate, max_tokens: int = 1000) -> Any:
    return explanation_form(explained_graph(graph, of), of, estimate_tokens, max_tokens)


@pytest.mark.parametrize(
    ("disease", "findings", "excluded"),
    [("d1", FINDINGS, ["p7"]), ("d1", FINDINGS, []), ("d4", ["p2", "p9", "p4"], []), ("d7", ["p8"], ["p9"])],
)
def test_every_text_is_true(graph: Graph, disease: str, findings: list[str], excluded: list[str]) -> None:
    best = candidate(graph, disease, findings, excluded)
    texts = set(texts_of(form(graph, best), graph))
    assert len(texts) >= 4
    for text in texts:
        assert statements.names_belong(graph, disease, text)
        assert statements.frequencies_right(graph, disease, text)
        assert statements.findings_right(best, text)
        named = statements.mentions(text)
        assert len(named) == len(set(named))  # nothing is said twice
        assert text.endswith(".")
        left = [item.finding_name for item in best.evidence if not item.explained]
        assert any(name.lower() in text.lower() for name in left) or not left
        assert ("Against it" in text) == bool(best.against)


def test_what_is_written_is_in_the_form(graph: Graph) -> None:
    texts = set(texts_of(form(graph, candidate(graph, "d1", FINDINGS, ["p7"])), graph))
    assert (
        "[Marfan syndrome] fits: [Scoliosis] is one of its findings, high myopia matches [Myopia] (9/10) and [Ectopia lentis] "
        "is seen in 6/10 patients. It does not explain deafness. Against it: [Tall stature] is absent."
    ) in texts
    assert (
        "[Marfan syndrome] would account for high myopia (as [Myopia], 9/10) and [Ectopia lentis] (6/10). "
        "Deafness is not explained by it. Against it: [Tall stature] is absent."
    ) in texts


def test_less_is_said_where_there_is_less_room(graph: Graph) -> None:
    best = candidate(graph, "d1", FINDINGS, ["p7"])
    sizes = []
    for room in (1000, 75, 62, 10):
        made = form(graph, best, room)
        texts = list(texts_of(made, graph))
        most = max(map(estimate_tokens, texts))
        assert most <= longest(made, graph, estimate_tokens)
        assert most <= room or room == 10  # the least that is to be said
        sizes.append(max(len(statements.mentions(text)) for text in texts))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 5  # the disease, three phenotypes, an absent one
    assert sizes[-1] == 3


def test_what_is_only_akin_is_said_where_there_is_nothing_better(graph: Graph) -> None:
    best = candidate(graph, "d1", FINDINGS, [])
    items = [replace(item, ancestor="p1") if item.finding == "p4" else item for item in best.evidence]
    better = replace(best, evidence=tuple(items))
    assert not any("myopia" in text.lower() for text in texts_of(form(graph, better), graph))
    alone = replace(best, evidence=tuple(item for item in items if item.finding in ("p4", "p8")))
    texts = set(texts_of(form(graph, alone), graph))
    assert (
        "[Marfan syndrome] fits: high myopia is akin to [Myopia] (9/10). It does not explain deafness."
        in texts
    )
    assert all(statements.findings_right(alone, text) for text in texts)


def test_more_that_is_left_over_is_said(graph: Graph) -> None:
    best = candidate(graph, "d1", ["p6", "p8", "p9", "p5"], ["p7"])
    names = {item.finding for item in best.evidence if not item.explained}
    assert len(names) >= 2
    many = replace(
        best,
        evidence=(*best.evidence, *(replace(best.evidence[-1], finding_name=f"Sign {i}") for i in range(9))),
    )
    for text in texts_of(form(graph, many), graph):
        assert text.count(", among others") == 1
        assert statements.findings_right(many, text)


def test_a_phenotype_is_not_for_and_against(graph: Graph) -> None:
    best = candidate(graph, "d1", FINDINGS, ["p7"])
    doubtful = replace(best, against=tuple(replace(item, matched="p2") for item in best.against))
    assert not any("Against" in text for text in texts_of(form(graph, doubtful), graph))


def test_without_a_name_for_brackets_there_is_none(graph: Graph) -> None:
    best = candidate(graph, "d1", ["p6"], [])
    part = explained_graph(graph, best)
    nodes = [{"id": node.id, "name": f"{node.name} [x]", "type": node.type} for node in part.nodes()]
    edges = [{"source": e.source, "relation": e.relation, "target": e.target} for e in part.edges()]
    bracketed = Graph.from_dict({"nodes": nodes, "edges": edges})
    assert explanation_form(bracketed, best, estimate_tokens, 100) is None


@pytest.mark.parametrize(
    ("labels", "expected", "words"),
    [
        (["3/5"], "3/5", "[P] is seen in 3/5 patients"),
        (["1/2", "30/40", "frequent, 30-79 %"], "30/40", "[P] is seen in 30/40 patients"),
        (["0/90", "1/2"], "1/2", "[P] is seen in 1/2 patients"),
        (["excluded, 0 %", "frequent, 30-79 %"], "frequent, 30-79 %", "[P] is frequent (30-79 %)"),
        (["45%"], "45%", "[P] is seen in 45% of patients"),
        (["obligate"], "obligate", "[P] is obligate"),
        ([], "", "[P] is one of its findings"),
    ],
)
def test_how_often(labels: list[str], expected: str, words: str) -> None:
    nodes = [{"id": "d", "name": "D", "type": "disease"}, {"id": "p", "name": "P", "type": "phenotype"}]
    edges: list[dict[str, Any]] = [
        {"source": "d", "relation": HAS_PHENOTYPE, "target": "p", "attributes": {"frequency_label": label}}
        for label in labels
    ]
    edges = edges or [{"source": "d", "relation": HAS_PHENOTYPE, "target": "p"}]
    part = Graph.from_dict({"nodes": nodes, "edges": edges})
    assert how_often(part, "p") == expected
    item = candidate(clinic(), "d1", ["p6"], []).evidence[0]
    exact = replace(item, finding="p", matched="p")
    assert clause(part, Records(part), "p", [exact]) == words
    assert statements.frequencies_right(part, "d", words + ".")


@pytest.mark.parametrize("mode", ["spans", "sequential"])
def test_a_model_that_writes_at_random_says_what_is_so(llm: LLM, graph: Graph, mode: str) -> None:
    texts = set()
    for seed in range(20):
        params = SamplingParams(max_tokens=600, temperature=2.0, seed=seed)
        suggested = llm.suggest(graph, FINDINGS, ["p7"], explain=2, sampling_params=params, graph_mode=mode)
        for suggestion, said in zip(suggested.candidates, suggested.explanations, strict=False):
            texts.add(said.text)
            assert said.finish_reason == "stop"
            assert statements.edges_belong(graph, suggestion.candidate, said.text, said.edges)
            assert statements.frequencies_right(graph, said.id, said.text)
            assert statements.findings_right(suggestion.candidate, said.text)
    assert len(texts) > 10  # it does choose
