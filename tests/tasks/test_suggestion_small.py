"""Suggestions over graphs of one and two diseases, where a finding tells nothing apart and its edge is still there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tasks.clinic import trained
from vglm import LLM, Graph


def small(diseases: dict[str, float]) -> Graph:
    """Diseases that have Ectopia lentis, so often each."""
    nodes = [{"id": "p", "name": "Ectopia lentis", "type": "phenotype"}]
    nodes += [{"id": name, "name": name, "type": "disease"} for name in diseases]
    edges: list[dict[str, Any]] = [
        {"source": name, "relation": "has phenotype", "target": "p", "attributes": {"frequency": frequency}}
        for name, frequency in diseases.items()
    ]
    return Graph.from_dict({"nodes": nodes, "edges": edges})


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VGLM_HOME", str(tmp_path_factory.mktemp("home")))
        yield trained(Path(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("diseases", [{"Marfan": 1.0}, {"Marfan": 0.5, "Homocystinuria": 1.0}])
def test_an_edge_explains_what_all_diseases_have(llm: LLM, diseases: dict[str, float]) -> None:
    suggested = llm.suggest(small(diseases), ["Ectopia lentis"], explain=2)
    assert len(suggested.candidates) == len(diseases)
    for candidate in suggested.candidates:
        assert [(edge.source, edge.target) for edge in candidate.edges] == [(candidate.id, "p")]
    for said in suggested.explanations:
        assert said.reason == ""
        assert "[Ectopia lentis]" in said.text


def test_what_only_another_disease_has_is_not_explained(llm: LLM) -> None:
    graph = small({"Marfan": 1.0})
    other = {"source": "Fever", "relation": "has phenotype", "target": "hot", "attributes": {}}
    both = graph.to_dict()
    both["nodes"] += [
        {"id": "Fever", "name": "Fever", "type": "disease"},
        {"id": "hot", "name": "Hot", "type": "phenotype"},
    ]
    both["edges"].append(other)
    suggested = llm.suggest(Graph.from_dict(both), ["Ectopia lentis"], explain=0)
    assert [(one.id, len(one.edges)) for one in suggested.candidates] == [("Marfan", 1), ("Fever", 0)]
