"""LLM.classify and the server with a classifier that was trained: its classes, the model's own ones, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.encoder.test_graph_classifier import molecule
from tests.integration.helpers import tiny_model
from tests.serve.server_process import ServerProcess
from vglm import LLM, Graph, GraphError, ModelError, RequestError
from vglm.encoder.graph_classifier import GraphClassifier
from vglm.model.bundle import write_card
from vglm.model.export import export_model
from vglm.train.graph_classes import train_classifier


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of `vglm train classifier`: molecules with a nitro group are active."""
    nitro = [seed % 3 != 0 for seed in range(30)]
    graphs = [molecule(seed, nitro=flag) for seed, flag in enumerate(nitro)]
    path = tmp_path_factory.mktemp("classes") / "my-classes.safetensors"
    train_classifier(graphs, ["active" if flag else "not" for flag in nitro]).save(path)
    return path


@pytest.fixture(scope="module")
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose card lists the classifier."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / trained.name).write_bytes(trained.read_bytes())
    base = str(tiny_model(tmp_path_factory.mktemp("base")))
    write_card(folder, name="b", version="1", base_model=base, graph=None, files=[trained.name])
    return folder


@pytest.fixture(scope="module")
def llm(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VGLM_HOME", str(tmp_path_factory.mktemp("home")))
        yield LLM(bundle, kv_cache_memory="32M", max_model_len=512)


GRAPH = molecule(101, nitro=True)


def test_a_trained_classifier_ranks_its_classes(llm: LLM, trained: Path) -> None:
    classifier = GraphClassifier.load(trained)
    expected = classifier.predict_proba([GRAPH])[0]
    for given in (trained, str(trained), classifier, "my-classes"):
        ranked = llm.classify(GRAPH, classifier=given)
        assert [one.name for one in ranked.candidates] == ["active", "not"]
        assert [one.score for one in ranked.candidates] == pytest.approx(expected.tolist(), abs=1e-6)
        assert [one.logprob for one in ranked.candidates] == pytest.approx(
            np.log(expected).tolist(), abs=1e-5
        )
    assert ranked.graph.mode == "classifier"
    assert {"n", "o", "x"} <= set(ranked.graph.citations)
    assert all(edge in GRAPH.edges() for path in ranked.graph.evidence for edge in path)
    assert not llm.engine.has_unfinished


def test_labels_choose_among_the_classes_and_the_temperature_flattens(llm: LLM, trained: Path) -> None:
    plain = llm.classify(GRAPH, ["not", "active"], classifier=trained)
    assert plain.candidates == llm.classify(GRAPH, classifier=trained).candidates
    flat = llm.classify(GRAPH, classifier=trained, temperature=1000.0)
    assert flat.best.name == plain.best.name
    assert flat.best.score == pytest.approx(0.5, abs=0.01)


def test_a_file_that_has_changed_is_read_again(llm: LLM, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(trained.read_bytes())
    assert llm.classify(GRAPH, classifier=path).best.name == "active"
    assert llm.parts.classifier(path) is llm.parts.classifier(str(path))
    graphs = [molecule(seed, nitro=seed % 2 == 0) for seed in range(20)]
    train_classifier(graphs, ["left" if seed % 2 == 0 else "right" for seed in range(20)]).save(path)
    os.utime(path, ns=(1, 1))
    assert llm.classify(GRAPH, classifier=path).best.name == "left"


def test_an_exported_model_takes_its_classifiers_along(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGLM_HOME", str(tmp_path / "home"))
    exported = LLM(export_model(bundle, "int8", tmp_path / "exported", lambda _: None), max_model_len=512)
    assert exported.classify(GRAPH, classifier="my-classes").best.name == "active"


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (
            ["active", "toxic"],
            {},
            RequestError,
            "labels: the classifier knows no class 'toxic'; it knows 'active', 'not'",
        ),
        (["active"], {}, RequestError, "there are 1 labels; give 2 to"),
        (["active", "active"], {}, RequestError, "labels must differ"),
        (None, {"entity": "n"}, RequestError, "entity is for a language model"),
        (None, {"question": "Is it?"}, RequestError, "question is for a language model"),
        (None, {"temperature": 0.0}, RequestError, "temperature is 0.0"),
        (
            None,
            {"classifier": "nobody"},
            ModelError,
            "'nobody': no such file, and the model has none of this name",
        ),
        (None, {"classifier": "encoder"}, ModelError, "'encoder': no such file"),
        (None, {"classifier": None}, RequestError, "labels must be a list"),
    ],
)
def test_refusals(
    llm: LLM, trained: Path, labels: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        llm.classify(GRAPH, labels, **{"classifier": trained, **options})
    assert not llm.engine.has_unfinished


def test_files_that_are_no_classifier_and_graphs_that_are_too_large(
    llm: LLM, trained: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "x.safetensors"
    wrong.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="the graph classifier is damaged"):
        llm.classify(GRAPH, classifier=wrong)
    nodes = [{"id": str(i)} for i in range(3_000)]
    with pytest.raises(GraphError, match="nodes"):
        llm.classify(Graph.from_dict({"nodes": nodes, "edges": []}), classifier=trained)


def test_the_server_classifies(bundle: Path, trained: Path, tmp_path: Path) -> None:
    options = ("--kv-cache-memory", "32M", "--max-model-len", "512", "--graph-store", str(tmp_path / "g.db"))
    graph = GRAPH.to_dict()
    with (
        ServerProcess(*options, "--classifier", f"mine={trained}", model=str(bundle)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        assert client.post("/v1/graphs", json={"name": "mol", "graph": graph}).status_code == 200
        for name in ("mine", "my-classes"):
            inline = client.post("/v1/classify", json={"graph": graph, "classifier": name})
            stored = client.post("/v1/graphs/mol/classify", json={"classifier": name})
            for response in (inline, stored):
                assert response.status_code == 200, response.text
                answer = response.json()
                assert [one["label"] for one in answer["labels"]] == ["active", "not"]
                assert answer["graph"]["mode"] == "classifier"
                assert answer["usage"]["total_tokens"] == 0
        for body, param in (
            ({"classifier": "nobody"}, "classifier"),
            ({"classifier": str(trained)}, "classifier"),  # never a file
            ({"classifier": "mine", "labels": ["active", "toxic"]}, "labels"),
            ({"classifier": "mine", "entity": "n"}, "entity"),
            ({}, "labels"),
        ):
            response = client.post("/v1/classify", json={"graph": graph, **body})
            assert response.status_code == 400, response.text
            assert response.json()["error"]["param"] == param
        assert "classifier" in json.dumps(client.get("/openapi.json").json())


def test_a_server_with_a_wrong_classifier_does_not_start(bundle: Path, tmp_path: Path) -> None:
    for option, message in (("x", "expected NAME=FILE"), (f"x={tmp_path / 'no'}", "no such file")):
        with pytest.raises(AssertionError, match=message):
            ServerProcess("--classifier", option, "--max-model-len", "512", model=str(bundle)).__enter__()
