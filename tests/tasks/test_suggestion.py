"""LLM.suggest: findings in any form, ranked diseases with evidence, explanations that name nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.helpers import tiny_model
from tests.tasks.clinic import DISEASES
from vglm import LLM, Graph, GraphError, ModelError, RequestError, SamplingParams
from vglm.encoder.disease_pooling import POOLED
from vglm.encoder.disease_ranker import DiseaseModel, Weights
from vglm.graph.ranking import DiseaseRanker
from vglm.graph.spans import sequential_text
from vglm.model.bundle import write_card
from vglm.model.export import export_model
from vglm.tasks.disease_ranking import TEMPERATURE, WEIGHTS, likelihood_ranking
from vglm.tasks.findings import link_findings
from vglm.tasks.suggestion_prompt import MOST_EVIDENCE, MOST_FINDINGS, explained_graph, explained_question

FINDINGS = ["p2", "p4", "p6", "p8"]


# ---- findings


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (["p2", "p6"], ["p2", "p6"]),
        (["Ectopia lentis", "scoliosis"], ["p2", "p6"]),
        (["dislocated lens"], ["p2"]),
        (["Ectopia lentisss"], ["p2"]),
        (["tall stature and scoliosis since birth"], ["p7", "p6"]),
        (["p2", "Dislocated lens", "Ectopia lentis"], ["p2"]),
        ([], []),
    ],
)
def test_findings_are_linked(graph: Graph, given: list[str], ids: list[str]) -> None:
    found = link_findings(graph, given, "findings")
    assert [one.id for one in found] == ids
    assert all(one.name == graph.name_of(one.id) and one.given in given for one in found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("p2", "findings: expected a list"),
        (["p2", 3], r"findings\[1\]: expected an id, or words"),
        (["  "], r"findings\[0\]: expected"),
        (["x" * 2000], r"findings\[0\]: expected"),
        (["p2"] * 1000, "findings: 1,000 are given, the limit is"),
        (["d1"], r"findings\[0\]: 'd1' \(Marfan syndrome\) is a disease, not a phenotype"),
        (["Marfan syndrome"], r"findings\[0\]: 'Marfan syndrome' \(d1\) is a disease, not a phenotype"),
        (["qwertz"], r"findings\[0\]: no phenotype of the graph is called 'qwertz'"),
        (["p2", "no scoliosis"], r"findings\[1\]: 'no scoliosis' says 'no', and .* in `excluded`"),
        (["without seizures"], "says 'without'"),
        (["Scoliosis was excluded"], "says 'excluded'"),
        (["NORMAL hearing"], "says 'NORMAL'"),
    ],
)
def test_what_is_no_finding(graph: Graph, given: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        link_findings(graph, given, "findings")


def test_a_name_may_say_absent() -> None:
    nodes = [
        {"id": "d", "name": "Disease", "type": "disease"},
        {"id": "p", "name": "Absent eyebrow", "type": "phenotype", "aliases": ["No eyebrow (at all)"]},
    ]
    edges = [{"source": "d", "relation": "has phenotype", "target": "p"}]
    graph = Graph.from_dict({"nodes": nodes, "edges": edges})
    for name in ("absent eyebrow", "Absent eyebrow.", "No eyebrow (at all)", "p"):
        assert [one.id for one in link_findings(graph, [name], "findings")] == ["p"]
    with pytest.raises(GraphError, match="negations are not read"):
        link_findings(graph, ["no absent eyebrow"], "findings")


# ---- the ranking


def test_ranking_is_the_ranker_s_with_probabilities(graph: Graph) -> None:
    ranked = likelihood_ranking(graph, FINDINGS, ["p7"], 3)
    ranker = DiseaseRanker(graph)
    assert [replace(one, probability=None) for one in ranked.candidates] == ranker.rank(FINDINGS, ["p7"], 3)
    scores = ranker.scores(FINDINGS, ["p7"])
    weights = np.exp(scores / TEMPERATURE)
    expected = weights / weights.sum()
    assert [one.probability for one in ranked.candidates] == pytest.approx(sorted(expected, reverse=True)[:3])
    assert ranked.num_diseases == len(DISEASES)
    whole = likelihood_ranking(graph, FINDINGS, [], 100)
    assert sum(one.probability or 0 for one in whole.candidates) == pytest.approx(1)


def test_a_model_s_own_ranking_is_used(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGLM_HOME", str(tmp_path / "home"))
    path = tmp_path / "ranking"
    path.mkdir()
    count = len(POOLED)
    rng = np.random.default_rng(0)
    arrays = {"mean": np.zeros(count), "scale": np.ones(count), "match": rng.normal(size=count)}
    arrays |= {"screening": np.ones(1), "prior": np.ones(1), "calibration": np.array([2.0, 0.9])}
    floats = {name: array.astype(np.float32) for name, array in arrays.items()}
    Weights(**floats, genes=np.zeros((0, 2), np.int32)).save(path / WEIGHTS)
    write_card(path, name="r", version="1", base_model=str(tiny_model(tmp_path)), graph=None, files=[WEIGHTS])
    own = LLM(path, kv_cache_memory="32M", max_model_len=2048)
    suggested = own.suggest(graph, FINDINGS, explain=0, top=7)
    expected = DiseaseModel.load(path / WEIGHTS).rank(graph, FINDINGS, top=7)
    assert [one.candidate for one in suggested.candidates] == expected
    assert [one.probability for one in suggested.candidates] == [one.probability for one in expected]
    exported = LLM(export_model(path, "int8", tmp_path / "exported", lambda _: None), max_model_len=2048)
    assert exported.suggest(graph, FINDINGS, explain=0, top=7).candidates == suggested.candidates
    (path / WEIGHTS).write_bytes(b"x")
    with pytest.raises(ModelError, match=r"disease-ranker\.safetensors: damaged or changed"):
        LLM(path, kv_cache_memory="32M", max_model_len=2048).suggest(graph, FINDINGS)


def test_the_structured_result(llm: LLM, graph: Graph) -> None:
    suggested = llm.suggest(graph, ["Ectopia lentis", "p4", "p6", "p8"], ["Tall stature"], top=3, explain=0)
    assert [one.id for one in suggested.findings] == FINDINGS
    assert [one.id for one in suggested.excluded] == ["p7"]
    assert [one.place for one in suggested.candidates] == [1, 2, 3]
    assert suggested.explanations == ()
    best = next(one for one in suggested.candidates if one.id == "d1")
    assert {item.finding for item in best.candidate.evidence} == set(FINDINGS)
    explained = {item.matched for item in best.candidate.evidence if item.explained}
    assert {edge.target for edge in best.edges} == explained
    assert all(edge in graph.edges_of("d1") for edge in best.edges)
    (against,) = best.candidate.against
    assert (against.finding, against.frequency) == ("p7", "10/10")


def test_the_order_of_findings_changes_nothing(llm: LLM, graph: Graph) -> None:
    first = llm.suggest(graph, FINDINGS, explain=1)
    again = llm.suggest(graph, FINDINGS[::-1], explain=1)
    assert first.candidates == again.candidates
    assert first.explanations[0].text == again.explanations[0].text


# ---- the prompt


def test_what_the_model_reads(graph: Graph) -> None:
    (best,) = (one for one in DiseaseRanker(graph).rank(FINDINGS, ["p7"]) if one.id == "d1")
    part = explained_graph(graph, best)
    assert sequential_text(part) == (
        "Marfan syndrome (disease)\n"
        "- has phenotype: Ectopia lentis (frequency 6/10)\n"
        "- has phenotype: Myopia (frequency 9/10)\n"
        "- has phenotype: Scoliosis\n"
        "- has phenotype: Tall stature (frequency 10/10)\n"
    )
    assert explained_question(part, best) == (
        "Patient: Scoliosis, High myopia (as Myopia), Ectopia lentis. Not explained: Deafness. Absent: Tall stature.\n"
        "Why may it be Marfan syndrome?"
    )


def test_a_long_record_is_cut_to_what_matters() -> None:
    names = [f"Sign {i}" for i in range(40)]
    nodes = [{"id": f"p{i}", "name": name, "type": "phenotype"} for i, name in enumerate(names)]
    nodes += [{"id": f"d{i}", "name": f"Disease {i}", "type": "disease"} for i in range(30)]
    edges = [{"source": "d0", "relation": "has phenotype", "target": f"p{i}"} for i in range(40)]
    edges += [{"source": f"d{i}", "relation": "has phenotype", "target": f"p{i}"} for i in range(1, 30)]
    graph = Graph.from_dict({"nodes": nodes, "edges": edges})
    best = next(c for c in DiseaseRanker(graph).rank([f"p{i}" for i in range(20)], top=30) if c.id == "d0")
    part = explained_graph(graph, best)
    assert part.num_edges == MOST_EVIDENCE
    assert explained_question(part, best).count("Sign") == MOST_FINDINGS


# ---- explanations


def names_in_brackets(text: str) -> list[str]:
    return re.findall(r"\[([^\[\]]*)\]", text)


@pytest.mark.parametrize("mode", ["spans", "sequential"])
def test_explanations_name_the_candidate_and_its_phenotypes(llm: LLM, graph: Graph, mode: str) -> None:
    """A model that writes at random, pushed to open brackets."""
    opening = llm.tokenizer.encode("[", add_special=False)[-1]
    mentioned = 0
    for seed in range(12):
        params = SamplingParams(
            max_tokens=80, temperature=1.5, seed=seed, logit_bias={opening: 6.0}, ignore_eos=True
        )
        suggested = llm.suggest(graph, FINDINGS, explain=3, sampling_params=params, graph_mode=mode)
        for one in suggested.explanations:
            own = [edge for edge in graph.edges_of(one.id) if edge.relation == "has phenotype"]
            allowed = {graph.name_of(one.id), *(graph.name_of(edge.target) for edge in own)}
            names = names_in_brackets(one.text)
            mentioned += len(names)
            assert set(names) <= allowed
            assert all(edge in own for edge in one.edges)
            assert {graph.name_of(edge.target) for edge in one.edges} == set(names) - {graph.name_of(one.id)}
            assert one.graph is not None
            assert one.graph.mode == mode
            assert set(one.graph.citations) == {one.id, *(edge.target for edge in one.edges)}
    assert mentioned > 20


def test_a_stream_says_the_same(llm: LLM, graph: Graph) -> None:
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    whole = llm.suggest(graph, FINDINGS, explain=2, sampling_params=params)
    suggested, chunks = llm.stream_suggest(graph, FINDINGS, explain=2, sampling_params=params)
    assert suggested.candidates == whole.candidates
    assert suggested.explanations == ()
    texts: dict[int, str] = {}
    done = []
    for chunk in chunks:
        texts[chunk.place] = texts.get(chunk.place, "") + chunk.text
        if chunk.explained is not None:
            done.append(chunk.explained)
    assert [(one.place, one.text, one.edges) for one in done] == [
        (one.place, one.text, one.edges) for one in whole.explanations
    ]
    assert texts == {one.place: one.text for one in whole.explanations}
    _, abandoned = llm.stream_suggest(graph, FINDINGS)
    next(abandoned)
    del abandoned
    assert not llm.engine.has_unfinished


def test_a_model_that_was_not_trained_for_it_names_phenotypes(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGLM_HOME", str(tmp_path))
    plain = LLM(tiny_model(tmp_path), kv_cache_memory="32M", max_model_len=2048)
    (said,) = plain.suggest(graph, FINDINGS).explanations
    lead = f"{graph.name_of(said.id)} is a candidate because the graph links it to these findings of the patient: "
    assert said.text.startswith(lead)
    named = said.text.removeprefix(lead).split(", ")
    assert said.edges
    assert {graph.name_of(edge.target) for edge in said.edges} == set(named)


def test_nothing_is_said_where_nothing_explains_anything(llm: LLM, graph: Graph) -> None:
    suggested = llm.suggest(graph, ["p9"], explain=7)
    reasons = {one.id: one.reason for one in suggested.explanations}
    assert reasons["d3"] == ""
    assert reasons["d5"] == "the graph links none of the findings to it"
    silent = next(one for one in suggested.explanations if one.id == "d5")
    assert (silent.text, silent.edges, silent.graph, silent.finish_reason) == ("", (), None, None)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"findings": []}, GraphError, "findings: at least one"),
        (
            {"findings": ["p2"], "excluded": ["Ectopia lentis"]},
            GraphError,
            r"excluded: p2 \(Ectopia lentis\) is among the findings",
        ),
        ({"findings": ["p2"], "excluded": ["nothing"]}, GraphError, r"excluded\[0\]: no phenotype"),
        ({"findings": ["p2"], "top": 0}, RequestError, "top is 0"),
        ({"findings": ["p2"], "explain": 99}, RequestError, "explain is 99"),
        ({"findings": ["p2"], "explain": True}, RequestError, "explain is True"),
        ({"findings": ["p2"], "graph_mode": "x"}, RequestError, "graph_mode is 'x'"),
    ],
)
def test_what_cannot_be_served(
    llm: LLM, graph: Graph, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        llm.suggest(graph, **arguments)
    assert not llm.engine.has_unfinished


def test_a_graph_without_phenotypes(llm: LLM) -> None:
    towns = {
        "nodes": [{"id": "a"}, {"id": "b"}],
        "edges": [{"source": "a", "relation": "near", "target": "b"}],
    }
    with pytest.raises(GraphError, match="graph: has no 'has phenotype' edges"):
        llm.suggest(Graph.from_dict(towns), ["a"])
