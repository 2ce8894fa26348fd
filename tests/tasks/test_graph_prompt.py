"""Graphs that are too large for the model: refused before their text is made, with what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tasks.clinic import trained
from vglm import LLM, Graph, GraphQuery, RequestError, SamplingParams
from vglm.tasks.graph_prompt import GraphPrompts


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VGLM_HOME", str(tmp_path_factory.mktemp("home")))
        yield trained(Path(tmp_path_factory.mktemp("model")))


def ring(size: int) -> Graph:
    nodes = [{"id": f"n{i}", "name": f"somebody with the number {i}"} for i in range(size)]
    edges = [{"source": f"n{i}", "relation": "knows", "target": f"n{(i + 1) % size}"} for i in range(size)]
    return Graph.from_dict({"nodes": nodes, "edges": edges})


def largest(llm: LLM) -> int:
    """Edges of a ring of which every one would have to take three tokens alone to fill the KV cache."""
    return llm.engine.pool.num_blocks * llm.options.block_size // 4


def test_a_graph_that_cannot_fit_is_refused_before_its_text_is_made(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = ring(largest(llm) - 1)
    monkeypatch.setattr(GraphPrompts, "spans", lambda *_: pytest.fail("its text is made"))
    with pytest.raises(RequestError, match=r"GraphQuery\(graph, budget=\.\.\.\)") as caught:
        llm.generate(["Who is it?"], graph=graph)
    assert caught.value.param == "graph"


def test_what_the_estimate_lets_pass_is_counted(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GraphPrompts, "_least_tokens", lambda *_: 0)
    with pytest.raises(RequestError, match="GraphQuery"):
        llm.generate(["Who is it?"], graph=ring(largest(llm) - 1))


@pytest.mark.parametrize("size", [2, 20, 200])
def test_the_estimate_is_under_what_the_graph_takes(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    prompts = llm.asking.prompts
    graph = ring(size)
    taken = prompts.encode(graph, [1], [1]).num_graph_tokens
    monkeypatch.setattr(prompts, "_room", 0)
    assert 0.4 * taken < prompts._least_tokens(graph) < taken


def test_a_part_of_a_large_graph_is_no_large_graph(llm: LLM) -> None:
    source = GraphQuery(ring(largest(llm)), ("n1",), budget=400)
    (output,) = llm.generate(["Who is it?"], SamplingParams(max_tokens=1), graph=source, use_tqdm=False)
    assert output.outputs[0].graph is not None


def test_an_answer_to_which_a_graph_says_nothing_says_so(llm: LLM) -> None:
    empty, params = Graph.from_dict({"nodes": [], "edges": []}), SamplingParams(max_tokens=1)
    outputs = llm.generate(["Who?", "Who?"], params, False, graph=[empty, GraphQuery(empty)])
    for output in outputs:
        about = output.outputs[0].graph
        assert about is not None
        assert about.num_nodes == 0
        assert about.left_out
    (output,) = llm.generate(["Who?"], params, False, graph=ring(2))
    assert output.outputs[0].graph is not None
    assert output.outputs[0].graph.left_out == ""
