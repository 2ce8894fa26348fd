"""/v1/graphs over HTTP: made, listed, read, changed, deleted; links, labels and explanations as offline."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.contract import Contract
from tests.serve.graph_data import EDGES, GRAPH, NODES, new_name, shuffled, synthetic
from tests.serve.server_process import ServerProcess
from vglm import LLM, Graph
from vglm.graph.store import GraphStore

URL = "/v1/graphs"


@pytest.fixture
def name(http: httpx.Client) -> Iterator[str]:
    """A stored graph, gone after the test."""
    name = new_name()
    assert http.post(URL, json={"name": name, "graph": GRAPH}).status_code == 200
    yield name
    http.delete(f"{URL}/{name}")


def ok(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def refused(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    return response.json()["error"]


# ---- the store


def test_a_graph_is_made_read_and_deleted(http: httpx.Client, contract: Contract) -> None:
    name = new_name()
    card = ok(http.post(URL, json={"name": name, "graph": GRAPH}))
    contract.check("StoredGraphCard", card)
    assert (card["id"], card["version"], card["nodes"], card["edges"]) == (name, 1, len(NODES), len(EDGES))
    listed = ok(http.get(URL))
    contract.check("StoredGraphList", listed)
    assert [one for one in listed["data"] if one["id"] == name] == [card]
    details = ok(http.get(f"{URL}/{name}"))
    contract.check("GraphDetails", details)
    assert details["types"] == {"phenotype": 4, "disease": 3, "gene": 1}
    assert details["relations"] == {"has phenotype": 4, "causes": 1}
    whole = ok(http.get(f"{URL}/{name}", params={"format": "node-link"}))
    contract.check("NodeLinkAnswer", whole)
    assert Graph.from_dict(whole) == Graph.from_dict(shuffled(GRAPH, 3))
    gone = ok(http.delete(f"{URL}/{name}"))
    contract.check("GraphDeleted", gone)
    for response in (
        http.get(f"{URL}/{name}"),
        http.delete(f"{URL}/{name}"),
        http.patch(f"{URL}/{name}", json={}),
    ):
        assert refused(response, 404)["code"] == "graph_not_found"


@pytest.mark.parametrize(
    ("format", "data", "nodes", "edges"),
    [
        ("json", json.dumps(GRAPH), 8, 5),
        ("tsv", "Paris\tcapital of\tFrance\nRome\tcapital of\tItaly\n", 4, 2),
        ("csv", "Paris,capital of,France\n", 2, 1),
        ("turtle", "<http://x/a> <http://x/knows> <http://x/b> .", 2, 1),
        ("ntriples", "<http://x/a> <http://x/knows> <http://x/b> .\n", 2, 1),
        ("obo", "[Term]\nid: A:1\nname: a\n\n[Term]\nid: A:2\nname: b\nis_a: A:1\n", 2, 1),
    ],
)
def test_a_graph_in_the_text_of_a_file(
    http: httpx.Client, format: str, data: str, nodes: int, edges: int
) -> None:
    card = ok(http.post(URL, json={"name": new_name(), "data": data, "format": format}))
    assert (card["nodes"], card["edges"]) == (nodes, edges)


def test_versions_stay_and_conflicts_are_told(http: httpx.Client, contract: Contract, name: str) -> None:
    url = f"{URL}/{name}"
    new = {"id": "d4", "name": "Noonan syndrome", "type": "disease"}
    edge = {"source": "d4", "relation": "has phenotype", "target": "p3"}
    card = ok(http.patch(url, json={"upsert_nodes": [new], "upsert_edges": [edge], "expected_version": 1}))
    contract.check("StoredGraphCard", card)
    assert (card["version"], card["nodes"], card["edges"]) == (2, len(NODES) + 1, len(EDGES) + 1)
    error = refused(http.patch(url, json={"delete_nodes": ["d4"], "expected_version": 1}), 409)
    assert error["code"] == "conflict"
    assert "version 2" in error["message"]
    assert ok(http.patch(url, json={"delete_edges": [edge]}))["edges"] == len(EDGES)
    assert ok(http.patch(url, json={"delete_nodes": ["d4"]}))["nodes"] == len(NODES)
    assert ok(http.patch(url, json={}))["version"] == 4, "nothing has changed"
    versions = ok(http.get(f"{url}/versions"))
    contract.check("GraphVersions", versions)
    assert [(one["version"], one["kind"]) for one in versions["data"]] == [
        (4, "patch"), (3, "patch"), (2, "patch"), (1, "create"),
    ]  # fmt: skip
    first, last = (ok(http.get(url, params={"version": v, "format": "node-link"})) for v in (1, 4))
    assert Graph.from_dict(first) == Graph.from_dict(last) == Graph.from_dict(GRAPH)
    assert ok(http.get(url, params={"version": 2}))["nodes"] == len(NODES) + 1
    assert refused(http.get(url, params={"version": 9}), 404)["param"] == "version"
    assert refused(http.get(url, params={"version": "release"}), 404)["param"] == "version"
    assert refused(http.post(URL, json={"name": name, "graph": GRAPH}), 409)["param"] == "name"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"graph": GRAPH}, "name"),
        ({"name": "", "graph": GRAPH}, "name"),
        ({"name": "a/b", "graph": GRAPH}, "name"),
        ({"name": "x" * 201, "graph": GRAPH}, "name"),
        ({"name": "bad-1"}, "graph"),
        ({"name": "bad-2", "graph": GRAPH, "data": "x", "format": "tsv"}, "graph"),
        ({"name": "bad-3", "data": "x"}, "format"),
        ({"name": "bad-4", "data": "x", "format": "doc"}, "format"),
        ({"name": "bad-5", "data": "one\ttwo\n", "format": "tsv"}, "data"),
        ({"name": "bad-6", "data": "{", "format": "json"}, "data"),
        ({"name": "bad-7", "graph": {"nodes": [{"id": "a"}, {"id": "a"}]}}, "graph.nodes.1.id"),
        (
            {"name": "bad-8", "graph": {"nodes": [{"id": "a", "name": "x" * 10_000_000}]}},
            "graph.nodes.0.name",
        ),
        (
            {"name": "bad-9", "graph": {"nodes": [], "edges": [{"source": "a", "target": "b"}]}},
            "graph.edges.0.source",
        ),
    ],
)
def test_a_graph_that_cannot_be_stored(http: httpx.Client, body: Any, param: str) -> None:
    before = ok(http.get(URL))
    assert refused(http.post(URL, json=body), 400)["param"] == param
    assert ok(http.get(URL)) == before


@pytest.mark.parametrize(
    ("patch", "param"),
    [
        ({"upsert_nodes": 3}, "upsert_nodes"),
        ({"upsert_nodes": [{"name": "no id"}]}, "upsert_nodes.0.id"),
        ({"upsert_nodes": [{"id": "a"}, {"id": "a"}]}, "upsert_nodes.1.id"),
        ({"delete_nodes": ["d1", "nobody"]}, "delete_nodes.1"),
        ({"upsert_edges": [{"source": "d1", "relation": "r", "target": "nobody"}]}, "upsert_edges.0.target"),
        ({"delete_edges": [{"source": "d1", "relation": "r", "target": "p1"}]}, "delete_edges.0"),
        ({"expected_version": 0}, "expected_version"),
    ],
)
def test_a_change_that_cannot_be_made_changes_nothing(
    http: httpx.Client, name: str, patch: Any, param: str
) -> None:
    assert refused(http.patch(f"{URL}/{name}", json=patch), 400)["param"] == param
    assert ok(http.get(f"{URL}/{name}"))["version"] == 1


def test_writers_at_once_lose_nothing(http: httpx.Client, server_url: str, name: str) -> None:
    def write(writer: int) -> None:
        with httpx.Client(base_url=server_url, timeout=120) as client:
            for i in range(5):
                node = {"id": f"w{writer}-{i}", "name": f"Node {writer} {i}"}
                ok(client.patch(f"{URL}/{name}", json={"upsert_nodes": [node]}))
                read = ok(client.get(f"{URL}/{name}", params={"format": "node-link"}))
                assert node["id"] in {one["id"] for one in read["nodes"]}, "who has written reads it"

    failures: list[BaseException] = []

    def run(writer: int) -> None:
        try:
            write(writer)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    details = ok(http.get(f"{URL}/{name}"))
    assert (details["version"], details["nodes"]) == (21, len(NODES) + 20)


# ---- tasks


@pytest.mark.parametrize("mode", ["spans", "sequential"])
@pytest.mark.parametrize(
    "asked",
    [
        {"head": "d1", "relation": "has phenotype"},
        {"tail": "p4", "relation": "has phenotype", "top": 2},
        {"head": "d1", "relation": "has phenotype", "filtered": True, "temperature": 3.0},
        {"tail": "d1", "relation": "causes", "types": ["disease", "gene"]},
        {"head": "d2", "relation": "has phenotype", "candidates": ["p4", "p1"], "hops": 1, "budget": 50},
    ],
)
def test_links_are_ranked_as_offline(
    http: httpx.Client, contract: Contract, llm: LLM, name: str, asked: dict[str, Any], mode: str
) -> None:
    ranked = llm.complete(Graph.from_dict(GRAPH), graph_mode=mode, **asked)
    body = ok(http.post(f"{URL}/{name}/complete", json={**asked, "graph_mode": mode}))
    contract.check("LinkAnswer", body)
    assert body["candidates"] == [
        {"id": c.id, "name": c.name, "type": c.type, "score": c.score, "logprob": c.logprob, "known": c.known}
        for c in ranked.candidates
    ]
    assert body["num_candidates"] == ranked.num_candidates
    assert (body["version"], body["relation"]) == (
        1,
        "has phenotype" if "causes" not in asked.values() else "causes",
    )
    assert body["graph"]["mode"] == mode
    assert body["usage"]["prompt_tokens"] == ranked.num_prompt_tokens + ranked.num_candidate_tokens
    scores = [c["score"] for c in body["candidates"]]
    assert scores == sorted(scores, reverse=True)
    if len(scores) == body["num_candidates"]:
        assert sum(scores) == pytest.approx(1)


def test_filtered_links_are_new(http: httpx.Client, name: str) -> None:
    url, asked = f"{URL}/{name}/complete", {"head": "d1", "relation": "has phenotype"}
    every = ok(http.post(url, json=asked))["candidates"]
    assert {c["id"] for c in every if c["known"]} == {"p1", "p2"}
    fresh = ok(http.post(url, json={**asked, "filtered": True}))["candidates"]
    assert {c["id"] for c in fresh} == {"p3", "p4"}
    assert not any(c["known"] for c in fresh)


@pytest.mark.parametrize("mode", ["spans", "sequential"])
def test_labels_are_ranked_as_offline(
    http: httpx.Client, contract: Contract, llm: LLM, name: str, mode: str
) -> None:
    labels = ["genetics", "cookery", "astronomy"]
    graph = Graph.from_dict(GRAPH)
    for entity, question in ((None, None), ("d1", None), ("d1", "Which field studies this disease?")):
        ranked = llm.classify(graph, labels, entity=entity, question=question, graph_mode=mode)
        asked = {"labels": labels, "entity": entity, "question": question, "graph_mode": mode}
        stored = ok(http.post(f"{URL}/{name}/classify", json=asked))
        inline = ok(http.post("/v1/classify", json={**asked, "graph": shuffled(GRAPH, 5)}))
        for body in (stored, inline):
            contract.check("ClassifyAnswer", body)
            assert body["labels"] == [
                {"label": c.name, "score": c.score, "logprob": c.logprob} for c in ranked.candidates
            ]
            assert sum(label["score"] for label in body["labels"]) == pytest.approx(1)
    if mode == "sequential":  # the model was not trained to read spans
        assert stored["labels"][0]["label"] == "genetics"


def test_an_explanation_names_entities_of_its_paths_only(
    http: httpx.Client, contract: Contract, llm: LLM, name: str
) -> None:
    for seed in (None, 1, 2):
        fields = {} if seed is None else {"temperature": 1.5, "seed": seed}
        body = ok(http.post(f"{URL}/{name}/explain", json={"source": "g1", "target": "p2", **fields}))
        contract.check("ExplainAnswer", body)
        assert body["paths"] == [
            [
                {"source": "g1", "relation": "causes", "target": "d1"},
                {"source": "d1", "relation": "has phenotype", "target": "p2"},
            ]
        ]
        text = body["explanation"]
        assert text.startswith(
            "[FBN1] causes [Marfan syndrome]. [Marfan syndrome] has phenotype [Ectopia lentis]."
        )
        names = {piece.split("]")[0] for piece in text.split("[")[1:] if "]" in piece}
        assert names <= {"FBN1", "Marfan syndrome", "Ectopia lentis"}
        assert set(body["graph"]["citations"]) == {"g1", "d1", "p2"}
        if seed is None:
            offline = llm.explain(Graph.from_dict(GRAPH), "g1", "p2")
            assert (text, body["finish_reason"]) == (offline.text, offline.finish_reason)


def test_two_entities_that_nothing_joins(http: httpx.Client, contract: Contract, name: str) -> None:
    body = ok(http.post(f"{URL}/{name}/explain", json={"source": "g1", "target": "p4"}))
    contract.check("ExplainAnswer", body)
    assert (body["paths"], body["explanation"], body["graph"]) == ([], None, None)
    assert "no path" in body["reason"]
    assert body["usage"]["total_tokens"] == 0


@pytest.mark.parametrize(
    ("task", "body", "status", "param"),
    [
        ("complete", {"relation": "causes"}, 400, "head"),
        ("complete", {"relation": "causes", "head": "g1", "tail": "d1"}, 400, "head"),
        ("complete", {"relation": "causes", "head": "nobody"}, 400, "head"),
        ("complete", {"relation": "heals", "head": "g1"}, 400, "relation"),
        ("complete", {"relation": "causes", "head": "g1", "candidates": ["nobody"]}, 400, "candidates"),
        ("complete", {"relation": "causes", "head": "g1", "types": ["nothing"]}, 400, "types.0"),
        ("complete", {"relation": "causes", "head": "g1", "top": 0}, 400, "top"),
        ("complete", {"relation": "causes", "head": "g1", "temperature": 0}, 400, "temperature"),
        (
            "complete",
            {"relation": "causes", "tail": "d1", "filtered": True, "candidates": ["g1"]},
            400,
            "candidates",
        ),
        ("complete", {"relation": "causes", "head": "g1", "version": 5}, 404, "graph"),
        ("complete", {"relation": "causes", "head": "g1", "model": "other"}, 404, "model"),
        ("classify", {"labels": ["one"]}, 400, "labels"),
        ("classify", {"labels": ["one", "one"]}, 400, "labels"),
        ("classify", {"labels": ["one", " "]}, 400, "labels"),
        ("classify", {"labels": ["one", "two"], "entity": "nobody"}, 400, "entity"),
        ("explain", {"source": "g1", "target": "nobody"}, 400, "target"),
        ("explain", {"source": "g1", "target": "g1"}, 400, "target"),
        ("explain", {"source": "g1"}, 400, "target"),
        ("explain", {"source": "g1", "target": "p1", "max_hops": 99}, 400, "max_hops"),
    ],
)
def test_a_task_that_cannot_be_done(
    http: httpx.Client, name: str, task: str, body: Any, status: int, param: str
) -> None:
    assert refused(http.post(f"{URL}/{name}/{task}", json=body), status)["param"] == param


def test_tasks_on_a_graph_that_nobody_has_stored(http: httpx.Client) -> None:
    bodies = {
        "complete": {"relation": "causes", "head": "g1"},
        "classify": {"labels": ["one", "two"]},
        "explain": {"source": "g1", "target": "p1"},
    }
    for task, body in bodies.items():
        for graph in ("no such graph", "a*b"):
            error = refused(http.post(f"{URL}/{graph}/{task}", json=body), 404)
            assert error["code"] == "graph_not_found"


def test_names_that_many_share_share_their_score(http: httpx.Client) -> None:
    nodes = [{"id": f"n{i}", "name": "Springfield", "type": "town"} for i in range(3)]
    nodes += [
        {"id": "o", "name": "Ogdenville", "type": "town"},
        {"id": "s", "name": "Simpson", "type": "person"},
    ]
    graph = {"nodes": nodes, "edges": [{"source": "s", "relation": "lives in", "target": "o"}]}
    name = new_name()
    ok(http.post(URL, json={"name": name, "graph": graph}))
    body = ok(http.post(f"{URL}/{name}/complete", json={"head": "s", "relation": "lives in"}))
    assert {c["id"] for c in body["candidates"]} == {"n0", "n1", "n2", "o"}
    assert sum(c["score"] for c in body["candidates"]) == pytest.approx(1)


# ---- a server of one's own


def test_graphs_are_loaded_at_the_start_and_stay(tmp_path: Path) -> None:
    file, path = tmp_path / "towns.tsv", tmp_path / "graphs.db"
    file.write_text("Paris\tcapital of\tFrance\n")
    options = ("--kv-cache-memory", "100M", "--max-model-len", "512", "--graph-store", str(path))
    with ServerProcess(*options, "--graph", f"towns={file}") as server:
        assert httpx.get(f"{server.url}{URL}/towns").json()["version"] == 1
        parameters = httpx.get(f"{server.url}/openapi.json").json()["paths"][URL + "/{graph}"]["get"][
            "parameters"
        ]
        assert parameters[0]["schema"]["examples"] == ["towns"]
        edit = {"upsert_nodes": [{"id": "Rome"}]}
        assert httpx.patch(f"{server.url}{URL}/towns", json=edit).json()["version"] == 2
        assert server.terminate() == 0
    with GraphStore(path) as store:
        assert "Rome" in store.get("towns")
    with ServerProcess(*options) as server:
        assert httpx.get(f"{server.url}{URL}/towns").json()["nodes"] == 3
    file.write_text("Paris\tcapital of\tFrance\nRome\tcapital of\tItaly\n")
    with ServerProcess(*options, "--graph", f"towns={file}") as server:
        assert httpx.get(f"{server.url}{URL}/towns").json()["nodes"] == 4


def test_a_server_without_a_store(tmp_path: Path) -> None:
    with ServerProcess("--kv-cache-memory", "100M", "--max-model-len", "512", "--no-graph-store") as server:
        for response in (
            httpx.get(server.url + URL),
            httpx.post(server.url + URL, json={"name": "a", "graph": GRAPH}),
            httpx.post(
                server.url + "/v1/completions", json={"prompt": "a", "graph": {"id": "a"}}, timeout=60
            ),
        ):
            assert refused(response, 404)["code"] == "no_graph_store"
        fields = {"prompt": "Who?", "graph": {"nodes": NODES[:2]}, "constraint": "answer"}
        body = ok(httpx.post(server.url + "/v1/completions", json=fields, timeout=60))
        assert body["choices"][0]["graph"]["answer"]


def test_a_start_with_a_graph_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "bad.tsv"
    file.write_text("one\ttwo\n")
    for option in (f"bad={file}", f"bad={tmp_path / 'nothing.tsv'}", "no-file", "a/b=x.tsv"):
        with pytest.raises(AssertionError, match="did not start") as caught:
            ServerProcess("--graph-store", str(tmp_path / "graphs.db"), "--graph", option).__enter__()
        assert "Traceback" not in str(caught.value)


def test_many_candidates_are_scored_while_others_are_answered(http: httpx.Client, server_url: str) -> None:
    name = new_name()
    ok(http.post(URL, json={"name": name, "graph": synthetic(400)}))
    answers: list[Any] = []

    def rank() -> None:
        with httpx.Client(base_url=server_url, timeout=120) as client:
            asked = {"head": "n0", "relation": "knows", "top": 5}
            answers.append(ok(client.post(f"{URL}/{name}/complete", json=asked)))

    threads = [threading.Thread(target=rank) for _ in range(3)]
    for thread in threads:
        thread.start()
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}
    texts = [
        ok(http.post("/v1/chat/completions", json=chat))["choices"][0]["message"]["content"] for _ in range(3)
    ]
    for thread in threads:
        thread.join()
    assert len(set(texts)) == 1
    assert len(answers) == 3
    assert all(answer["candidates"] == answers[0]["candidates"] for answer in answers)
    assert answers[0]["num_candidates"] == 399
