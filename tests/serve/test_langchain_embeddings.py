"""LangChain's standard tests of embeddings, with its OpenAI integration against the server.

By default OpenAIEmbeddings sends token ids of OpenAI's own vocabularies, which mean other words to other models:
`check_embedding_ctx_length=False` sends text. docs/serving.md says so.
"""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("langchain_tests", reason="LangChain's standard tests are not installed")

from langchain_core.embeddings import Embeddings
from langchain_openai import OpenAIEmbeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from pydantic import SecretStr

from vglm import LLM


def client(url: str) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(
        base_url=f"{url}/v1",
        api_key=SecretStr("none"),
        model="smollm2-135m-instruct",
        check_embedding_ctx_length=False,
        max_retries=0,
    )


@pytest.mark.asyncio
@pytest.mark.filterwarnings(
    "ignore:The test .* is marked with '@pytest.mark.asyncio' but it is not an async function"
)
class TestStandard(EmbeddingsIntegrationTests):
    """LangChain's own tests."""

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {}

    @pytest.fixture
    def model(self, server_url: str) -> Embeddings:
        return client(server_url)


def test_documents_and_queries_are_the_offline_embeddings(server_url: str, llm: LLM) -> None:
    texts = ["A cat sleeps.", "Interest rates rose in May.", "naïve \U0001f600"]
    offline = np.stack([output.embedding for output in llm.encode(texts, use_tqdm=False)])
    offline /= np.linalg.norm(offline, axis=1, keepdims=True)
    embedder = client(server_url)
    assert np.allclose(embedder.embed_documents(texts), offline, atol=1e-6)
    assert np.allclose(embedder.embed_query(texts[0]), offline[0], atol=1e-6)


def test_more_documents_than_one_request_holds(server_url: str, http: httpx.Client) -> None:
    texts = [f"document {i}" for i in range(40)]
    rows = client(server_url).embed_documents(texts, chunk_size=7)
    last = http.post("/v1/embeddings", json={"input": texts[-1]}).json()["data"][0]["embedding"]
    assert len(rows) == len(texts)
    assert np.allclose(rows[-1], last, atol=1e-6)
