"""What is no graph is refused with the same words by every method that wants one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.clinic import trained
from vglm import LLM, RequestError

METHODS: dict[str, Callable[[LLM, Any], object]] = {
    "generate": lambda llm, graph: llm.generate(["?"], graph=graph),
    "complete": lambda llm, graph: llm.complete(graph, head="a", relation="r"),
    "link_encoder": lambda llm, graph: llm.link_encoder(graph),
    "classify": lambda llm, graph: llm.classify(graph, ["a", "b"]),
    "classify by a classifier": lambda llm, graph: llm.classify(graph, classifier="none"),
    "explain": lambda llm, graph: llm.explain(graph, "a", "b"),
    "suggest": lambda llm, graph: llm.suggest(graph, ["a"]),
    "stream_suggest": lambda llm, graph: llm.stream_suggest(graph, ["a"]),
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VGLM_HOME", str(tmp_path_factory.mktemp("home")))
        yield trained(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "got NoneType$"),
        ("graph.json", r"got str; Graph\.load\(path\) reads a file"),
        (Path("graph.json"), "got [A-Za-z]*Path"),
        ({"nodes": []}, r"got dict; Graph\.from_dict makes one"),
    ],
)
def test_what_is_no_graph(llm: LLM, method: str, given: object, said: str) -> None:
    if method == "generate" and given is None:
        return  # a prompt without a graph
    with pytest.raises(RequestError, match=f"graph must be a Graph.*{said}") as caught:
        METHODS[method](llm, given)
    assert caught.value.param == "graph"
