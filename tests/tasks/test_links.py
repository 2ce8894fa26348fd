"""LLM.complete by the graph encoder of a model, against the encoder itself; by the language model when asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.integration.helpers import tiny_model
from vglm import LLM
from vglm.encoder.relational import RelationalEncoder
from vglm.encoder.relational_structure import MAX_RELATIONS
from vglm.errors import GraphError, ModelError, RequestError
from vglm.graph.graph import Graph
from vglm.model.bundle import write_card
from vglm.parts import ENCODER

SHIPPED = Path(__file__).parents[2] / "models/open-autoglm-v1" / ENCODER


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model with the encoder that ships."""
    base = tiny_model(tmp_path_factory.mktemp("base"))
    model = tmp_path_factory.mktemp("model")
    shutil.copy(SHIPPED, model / ENCODER)
    write_card(model, name="m", version="1", base_model=str(base), graph=None, files=[ENCODER])
    return model


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(str(folder))


@pytest.fixture(scope="module")
def graph() -> Graph:
    nodes = [{"id": f"p{i}", "name": f"Person {i}", "type": "person"} for i in range(9)]
    nodes += [{"id": f"t{i}", "name": f"Town {i}", "type": "town"} for i in range(3)]
    edges = [{"source": f"p{i}", "relation": "lives in", "target": f"t{i % 3}"} for i in range(8)]
    edges += [{"source": f"p{i}", "relation": "knows", "target": f"p{(i + 3) % 9}"} for i in range(9)]
    return Graph.from_dict({"nodes": nodes, "edges": edges})


def test_the_encoder_ranks_all_that_may_stand_there(llm: LLM, graph: Graph) -> None:
    found = llm.complete(graph, head="p8", relation="lives in")
    scores = RelationalEncoder.load(SHIPPED).scores(graph, "p8", "lives in")
    towns = {f"t{i}": scores[graph.index_of(f"t{i}")] for i in range(3)}
    assert [one.id for one in found.candidates] == sorted(towns, key=lambda town: (-towns[town], town))
    assert sum(one.score or 0 for one in found.candidates) == pytest.approx(1)
    assert np.exp([one.logprob for one in found.candidates]).sum() == pytest.approx(1)
    assert found.graph.mode == "encoder"
    assert all(
        edge.source in graph and edge.target in graph for path in found.graph.evidence for edge in path
    )


def test_the_other_end_and_what_is_known(llm: LLM, graph: Graph) -> None:
    found = llm.complete(graph, tail="t0", relation="lives in", top=9)
    assert {one.id for one in found.candidates if one.known} == {"p0", "p3", "p6"}
    new = llm.complete(graph, tail="t0", relation="lives in", top=9, filtered=True)
    assert {one.id for one in new.candidates} == {f"p{i}" for i in (1, 2, 4, 5, 7, 8)}


def test_the_language_model_ranks_when_asked(llm: LLM, graph: Graph) -> None:
    found = llm.complete(graph, head="p8", relation="lives in", scorer="language")
    assert found.graph.mode in ("spans", "sequential")
    assert found.num_prompt_tokens > 0


def test_more_relations_than_the_encoder_takes_are_for_the_language_model(llm: LLM) -> None:
    pairs = [(f"relation {i}", f"n{i % 7}", f"n{(i + 1) % 7}") for i in range(MAX_RELATIONS + 1)]
    edges = [{"source": source, "relation": name, "target": target} for name, source, target in pairs]
    wide = Graph.from_dict({"nodes": [{"id": f"n{i}"} for i in range(7)], "edges": edges})
    found = llm.complete(wide, head="n0", relation="relation 3", budget=256)
    assert found.graph.mode in ("spans", "sequential")
    with pytest.raises(GraphError, match="513 relations; the encoder takes 512: use scorer='language'"):
        llm.complete(wide, head="n0", relation="relation 3", scorer="encoder")


def test_wrong_arguments_are_named(llm: LLM, graph: Graph) -> None:
    with pytest.raises(RequestError, match="scorer"):
        llm.complete(graph, head="p8", relation="lives in", scorer="oracle")
    with pytest.raises(RequestError, match="top"):
        llm.complete(graph, head="p8", relation="lives in", top=0)
    with pytest.raises(GraphError, match="no relation"):
        llm.complete(graph, head="p8", relation="hates")


def test_a_model_without_an_encoder_says_so(graph: Graph, tmp_path: Path) -> None:
    plain = LLM(str(tiny_model(tmp_path)))
    assert plain.complete(graph, head="p8", relation="lives in").graph.mode != "encoder"
    with pytest.raises(RequestError, match="no graph encoder"):
        plain.complete(graph, head="p8", relation="lives in", scorer="encoder")


def test_a_damaged_encoder_is_refused(folder: Path, graph: Graph, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / ENCODER).write_bytes(b"x" * 100)
    llm = LLM(str(tmp_path / "m"))
    with pytest.raises(ModelError, match="SHA-256"):
        llm.complete(graph, head="p8", relation="lives in")
