"""One real server for the tests that only ask it things, its clients, and the same model offline.

A test that harms, limits or stops a server starts one of its own: `ServerProcess` in server_process.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.serve.contract import Contract
from tests.serve.server_process import MODEL, ServerProcess
from vglm import LLM

KV_MEMORY = "300M"
MAX_MODEL_LEN = 4096
TIMEOUT = 120.0  # seconds after which an answer does not come any more


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """`vglm serve` of the small model, without keys, for all tests of the session."""
    store = tmp_path_factory.mktemp("graphs") / "graphs.db"
    options = (
        "--kv-cache-memory",
        KV_MEMORY,
        "--max-model-len",
        str(MAX_MODEL_LEN),
        "--graph-store",
        str(store),
    )
    with ServerProcess(*options) as process:
        yield process
        assert process.alive, f"the server has died: {process.errors()}"


@pytest.fixture(scope="session")
def server_url(server: ServerProcess) -> str:
    """Where it listens, as in http://127.0.0.1:12345."""
    return server.url


@pytest.fixture(scope="session")
def model() -> str:
    """The name of the served model."""
    return MODEL


@pytest.fixture(scope="session")
def http(server_url: str) -> Iterator[httpx.Client]:
    """A plain client, for what OpenAI's does not send."""
    with httpx.Client(base_url=server_url, timeout=TIMEOUT) as client:
        yield client


@pytest.fixture(scope="session")
def openai_client(server_url: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client, which does not try again: a failure is to be seen."""
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT) as client:
        yield client


@pytest.fixture(scope="session")
def llm() -> LLM:
    """The model that is served, offline, with the same options."""
    return LLM(MODEL, kv_cache_memory=KV_MEMORY, max_model_len=MAX_MODEL_LEN)


@pytest.fixture(scope="session")
def contract(http: httpx.Client) -> Contract:
    """The server's OpenAPI document."""
    return Contract(http.get("/openapi.json").json())
