"""/v1/graphs/{id}/suggest over HTTP: as offline, whole and as a stream, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serve.contract import Contract, events_of
from tests.serve.graph_data import new_name
from tests.tasks.clinic import clinic
from vglm import LLM

URL = "/v1/graphs"
FINDINGS = ["Ectopia lentis", "p4", "scoliosis"]


@pytest.fixture(scope="module")
def name(http: httpx.Client) -> Iterator[str]:
    name = new_name()
    assert http.post(URL, json={"name": name, "graph": clinic().to_dict()}).status_code == 200
    yield name
    http.delete(f"{URL}/{name}")


def test_suggestions_are_those_offline(http: httpx.Client, contract: Contract, name: str, llm: LLM) -> None:
    response = http.post(
        f"{URL}/{name}/suggest", json={"findings": FINDINGS, "excluded": ["p7"], "top": 4, "explain": 2}
    )
    assert response.status_code == 200, response.text
    body = response.json()
    contract.check("SuggestAnswer", body)
    offline = llm.suggest(clinic(), FINDINGS, ["p7"], top=4, explain=2)
    assert [(one["id"], one["given"]) for one in body["findings"]] == [
        (one.id, one.given) for one in offline.findings
    ]
    assert body["num_candidates"] == offline.num_diseases
    for told, known in zip(body["candidates"], offline.candidates, strict=True):
        assert (told["place"], told["id"], told["name"]) == (known.place, known.id, known.name)
        assert told["probability"] == pytest.approx(known.probability)
        assert [item["matched"] for item in told["evidence"]] == [i.matched for i in known.candidate.evidence]
        assert [edge["target"] for edge in told["edges"]] == [edge.target for edge in known.edges]
    for said, one in zip(body["explanations"], offline.explanations, strict=True):
        assert (said["place"], said["text"], said["finish_reason"]) == (
            one.place,
            one.text,
            one.finish_reason,
        )
        assert said["edges"] == [
            {"source": e.source, "relation": e.relation, "target": e.target} for e in one.edges
        ]
        assert said["graph"]["citations"] == list(one.graph.citations if one.graph else ())
    assert body["usage"]["completion_tokens"] > 0


def test_a_stream_begins_with_the_ranking(http: httpx.Client, contract: Contract, name: str) -> None:
    request: dict[str, Any] = {"findings": FINDINGS, "explain": 2}
    whole = http.post(f"{URL}/{name}/suggest", json=request).json()
    first, *chunks, last, done = (
        data for _, data in events_of(http.post(f"{URL}/{name}/suggest", json={**request, "stream": True}))
    )
    contract.check("SuggestAnswer", first)
    assert first["candidates"] == whole["candidates"]
    assert first["explanations"] == []
    texts: dict[int, str] = {}
    explanations = {}
    for chunk in chunks:
        contract.check("SuggestChunk", chunk)
        assert chunk["id"] == first["id"]
        for delta in chunk["deltas"]:
            texts[delta["place"]] = texts.get(delta["place"], "") + delta["text"]
            if "explanation" in delta:
                explanations[delta["place"]] = delta["explanation"]
    assert texts == {one["place"]: one["text"] for one in whole["explanations"]}
    for one in whole["explanations"]:
        assert explanations[one["place"]]["edges"] == one["edges"]
    assert (last["deltas"], done) == ([], "[DONE]")
    assert last["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def test_without_explanations(http: httpx.Client, contract: Contract, name: str) -> None:
    for stream in (False, True):
        body = {"findings": ["p2"], "explain": 0, "top": 1, "stream": stream}
        response = http.post(f"{URL}/{name}/suggest", json=body)
        answers = [data for _, data in events_of(response)] if stream else [response.json()]
        contract.check("SuggestAnswer", answers[0])
        assert len(answers[0]["candidates"]) == 1
        assert answers[0]["usage"]["total_tokens"] == 0
        assert [answer == "[DONE]" for answer in answers[1:]] == ([False, True] if stream else [])


def test_a_candidate_that_nothing_speaks_for(http: httpx.Client, contract: Contract, name: str) -> None:
    body = http.post(f"{URL}/{name}/suggest", json={"findings": ["Seizure"], "explain": 7}).json()
    contract.check("SuggestAnswer", body)
    silent = next(one for one in body["explanations"] if one["id"] == "d5")
    assert (silent["text"], silent["graph"], silent["edges"]) == (None, None, [])
    assert "none of the findings" in silent["reason"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "findings"),
        ({"findings": []}, 400, "findings"),
        ({"findings": ["p2", "nonsense"]}, 400, "findings.1"),
        ({"findings": ["p2"], "excluded": ["Marfan syndrome"]}, 400, "excluded.0"),
        ({"findings": ["p2"], "excluded": ["p2"]}, 400, "excluded"),
        ({"findings": ["p2"], "top": 0}, 400, "top"),
        ({"findings": ["p2"], "explain": 17}, 400, "explain"),
        ({"findings": ["p2"], "max_tokens": 0}, 400, "max_tokens"),
        ({"findings": ["p2"], "version": 9}, 404, "graph"),
        ({"findings": ["p2"], "model": "other"}, 404, "model"),
    ],
)
def test_what_is_refused(http: httpx.Client, name: str, body: Any, status: int, param: str) -> None:
    for stream in (False, True):
        response = http.post(f"{URL}/{name}/suggest", json={**body, "stream": stream})
        assert response.status_code == status, response.text
        assert response.json()["error"]["param"] == param


def test_graphs_that_have_no_diseases_or_do_not_exist(http: httpx.Client) -> None:
    name = new_name()
    http.post(URL, json={"name": name, "graph": {"nodes": [{"id": "a"}]}})
    error = http.post(f"{URL}/{name}/suggest", json={"findings": ["a"]}).json()["error"]
    assert (error["param"], "has phenotype" in error["message"]) == ("graph", True)
    assert http.post(f"{URL}/nobody/suggest", json={"findings": ["a"]}).status_code == 404
