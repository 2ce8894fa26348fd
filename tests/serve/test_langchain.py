"""LangChain's standard tests of chat models: its OpenAI integration against the server, over both of OpenAI's interfaces.

What the suite asks of a model's wits, 135 million parameters do not have: where that decides, the answer is constrained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest

pytest.importorskip("langchain_tests", reason="LangChain's standard tests are not installed")

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from tests.serve.server_process import MODEL, ServerProcess

OTHER_NAME = "the-same-model"
TIMEOUT = 120.0  # seconds after which an answer does not come any more
Detail = Literal[
    "audio_input", "audio_output", "reasoning_output", "cache_read_input", "cache_creation_input"
]

pytestmark = pytest.mark.filterwarnings(
    "ignore:The test .* is marked with '@pytest.mark.asyncio' but it is not an async function"
)


@pytest.fixture(scope="module")
def two_names() -> Iterator[ServerProcess]:
    """A server whose model has two names."""
    names = ("--served-model-name", MODEL, "--served-model-name", OTHER_NAME)
    with ServerProcess(*names, "--max-model-len", "2048") as process:
        yield process
        assert "Traceback" not in process.errors()


class TestUnit(ChatModelUnitTests):
    """The client with a model of ours in it; nothing is sent."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL, "base_url": "http://127.0.0.1:8000/v1", "api_key": "none"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment = {"OPENAI_API_KEY": "none", "OPENAI_API_BASE": "http://127.0.0.1:8000/v1"}
        expected = {"openai_api_key": "none", "openai_api_base": "http://127.0.0.1:8000/v1"}
        return environment, {"model": MODEL}, expected


class AgentModel(ChatOpenAI):
    """Calls a tool whenever it has one: the small model, asked for the weather, would rather make it up."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return super().bind_tools(tools, **{"tool_choice": "any", **kwargs})


class OverHTTP(ChatModelIntegrationTests):
    """What holds for both interfaces.

    The model reads text only, so that the capabilities for images, documents, audio and video stay False. So do recorded
    answers (`enable_vcr_tests`): the server itself is here.
    """

    @pytest.fixture(autouse=True)
    def _at(self, two_names: ServerProcess) -> None:
        self.url = f"{two_names.url}/v1"

    @pytest.fixture
    def model(self, request: Any) -> BaseChatModel:
        own = getattr(request, "param", None) or {}
        test = request.node.originalname
        if test.startswith(("test_structured_output", "test_json_mode")):
            own |= {"extra_body": {"repetition_penalty": 1.1}}  # or a string of its may never end
        kind = AgentModel if test == "test_agent_loop" else ChatOpenAI
        return kind(**{**self.chat_model_params, **own})

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": MODEL,
            "base_url": self.url,
            "api_key": "none",
            "temperature": 0,
            "max_tokens": 256,
            "timeout": TIMEOUT,
            "max_retries": 0,  # a failure is to be seen
            "stream_usage": True,
            "model_kwargs": {"parallel_tool_calls": False},  # the small model does not know when to stop
        }

    @property
    def model_override_value(self) -> str | None:
        return OTHER_NAME

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> dict[Literal["invoke", "stream"], list[Detail]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        model = self.chat_model_class(**{**self.chat_model_params, "max_tokens": 8})
        question = "Marfan syndrome is a disorder of connective tissue. " * 20 + "What is it?"
        answer: AIMessage | None = None
        for _ in range(2):
            answer = whole(model, question) if stream else model.invoke(question)
        assert answer is not None
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["input_token_details"]["cache_read"] > 100
        return answer


def whole(model: BaseChatModel, question: str) -> AIMessage:
    """A streamed answer, put together."""
    full: AIMessageChunk | None = None
    for chunk in model.stream(question):
        assert isinstance(chunk, AIMessageChunk)
        full = chunk if full is None else full + chunk
    assert full is not None
    return full


@pytest.mark.asyncio(loop_scope="module")  # the client keeps its connections from test to test
class TestChatCompletions(OverHTTP):
    """Over /v1/chat/completions."""


@pytest.mark.asyncio(loop_scope="module")  # the client keeps its connections from test to test
class TestResponses(OverHTTP):
    """Over /v1/responses."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "use_responses_api": True}
