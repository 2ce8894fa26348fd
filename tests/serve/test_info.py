"""What the server tells about itself, and what it says where it has nothing to say."""

from __future__ import annotations

import asyncio
import os

import httpx
import pytest

from tests.serve.contract import Contract
from tests.serve.server_process import MODEL, ServerProcess, wait_until
from vglm import LLM, __version__
from vglm.engine.core import EngineCore
from vglm.serve.app import create_app
from vglm.serve.options import ServeOptions
from vglm.serve.serving import Serving


def test_models(http: httpx.Client, llm: LLM, model: str) -> None:
    contract = Contract(http.get("/openapi.json").json())
    models = http.get("/v1/models").json()
    contract.check("ModelList", models)
    (card,) = models["data"]
    contract.check("ModelCard", card)
    assert (card["id"], card["object"], card["owned_by"], card["root"]) == (model, "model", "vglm", model)
    assert card["max_model_len"] == llm.engine.config.max_model_len
    assert http.get(f"/v1/models/{model}").json() == card


def test_a_model_under_several_names(llm: LLM) -> None:
    names = ("org/model", "alias", "with space")
    serving = Serving(llm, ServeOptions(served_model_names=names))

    async def ask() -> None:
        app = create_app(serving)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://vglm") as http:
            models = (await http.get("/v1/models")).json()["data"]
            assert [card["id"] for card in models] == list(names)
            assert {card["root"] for card in models} == {MODEL}
            for card, path in zip(models, ("org/model", "alias", "with%20space"), strict=True):
                assert (await http.get(f"/v1/models/{path}")).json() == card
            assert (await http.get("/v1/models/org%2Fmodel")).json() == models[0]
            missing = await http.get(f"/v1/models/{MODEL}")
            assert missing.status_code == 404
            error = missing.json()["error"]
            assert (error["param"], error["code"]) == ("model", "model_not_found")
            assert "alias" in error["message"]

    asyncio.run(ask())


def test_health_is_told_by_get_and_post(http: httpx.Client) -> None:
    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        response = http.request(method, path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_health_is_503_with_the_reason_when_the_engine_has_died(llm: LLM) -> None:
    serving = Serving(llm, ServeOptions())

    def die(_: EngineCore) -> None:
        raise SystemExit("the end")

    async def ask() -> None:
        app = create_app(serving)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://vglm") as http,
        ):
            assert (await http.get("/health")).status_code == 200
            call = asyncio.ensure_future(serving.engine.call(die))
            while serving.engine.alive:
                await asyncio.sleep(0.01)
            call.cancel()
            for path in ("/health", "/ping"):
                response = await http.get(path)
                assert response.status_code == 503
                error = response.json()["error"]
                assert error["code"] == "engine_dead"
                assert "SystemExit: the end" in error["message"]
            refused = await http.post("/v1/completions", json={"prompt": "a"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")

    asyncio.run(ask())


def test_health_is_503_while_the_server_drains_and_requests_still_finish() -> None:
    with ServerProcess("--kv-cache-memory", "100M") as server, httpx.Client(timeout=60) as http:
        body = {"prompt": "Once", "max_tokens": 300, "ignore_eos": True, "stream": True}
        with http.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
            events = answer.iter_lines()
            next(events)
            os.kill(server.process.pid, 15)
            wait_until(lambda: httpx.get(f"{server.url}/health").status_code == 503, what="the drain")
            error = httpx.get(f"{server.url}/health").json()["error"]
            assert error["code"] == "draining"
            assert [line for line in events if line][-1] == "data: [DONE]"
        assert server.process.wait(60) == 0


def test_load_counts_answers_in_the_making(http: httpx.Client, llm: LLM) -> None:
    idle = http.get("/load").json()
    Contract(http.get("/openapi.json").json()).check("Load", idle)
    assert idle["server_load"] == idle["num_requests_running"] == idle["num_requests_waiting"] == 0
    assert (idle["max_num_seqs"], idle["draining"]) == (llm.options.max_num_seqs, False)
    body = {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()  # kept: a reader that is dropped closes the connection
        next(lines)
        busy = http.get("/load").json()
        assert (busy["server_load"], busy["num_requests_running"]) == (1, 1)
        assert busy["kv_cache_usage"] > 0
    wait_until(
        lambda: http.get("/load").json()["server_load"] == 0,
        what="the end of a request whose client has gone",
    )


def test_version_and_index(http: httpx.Client, model: str) -> None:
    document = http.get("/openapi.json").json()
    assert http.get("/version").json() == {"version": __version__} == {"version": document["info"]["version"]}
    index = http.get("/").json()
    Contract(document).check("Index", index)
    assert index["models"] == [model]
    assert index["paths"].keys() == document["paths"].keys()
    assert index["paths"]["/ping"] == ["GET", "POST"]


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/nothing", "/v1/completions/", "/health/x", "/favicon.ico", "/%00"]
)
def test_an_unknown_path_is_404_in_openais_shape(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    assert response.status_code == 404
    Contract(http.get("/openapi.json").json()).check("ErrorAnswer", response.json())
    error = response.json()["error"]
    assert error["type"] == "not_found_error"
    assert "there is no path" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("DELETE", "/v1/models/smollm2-135m-instruct", "GET"),
        ("PUT", "/ping", "GET, POST"),
        ("OPTIONS", "/ping", "GET, POST"),
        ("PATCH", "/tokenize", "POST"),
        ("TRACE", "/", "GET"),
    ],
)
def test_a_method_that_a_path_does_not_take_is_405_with_those_that_it_takes(
    http: httpx.Client, method: str, path: str, allowed: str
) -> None:
    response = http.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert method in error["message"]
    assert path in error["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize"])
@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        ("[1]", "application/json"),
        ("null", "application/json"),
        ('{"prompt": "a"}', "application/x-www-form-urlencoded"),
    ],
)
def test_a_body_that_is_no_json_object_is_told_what_to_be(
    http: httpx.Client, path: str, content: str, media_type: str
) -> None:
    response = http.post(path, content=content, headers={"content-type": media_type})
    assert response.status_code == 400
    assert "JSON object" in response.json()["error"]["message"]
    assert "application/json" in response.json()["error"]["message"]


def test_head_has_no_body(http: httpx.Client) -> None:
    response = http.head("/v1/models")
    assert (response.status_code, response.headers["allow"], response.content) == (405, "GET", b"")
