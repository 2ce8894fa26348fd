"""What is no conversation is refused in our own words, not in those of a template, and values are shown as they were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tasks.clinic import clinic, trained
from vglm import LLM, RequestError
from vglm.prompts import check_messages
from vglm.tasks.ranking import check_temperature, check_top


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VGLM_HOME", str(tmp_path_factory.mktemp("home")))
        yield trained(Path(tmp_path_factory.mktemp("model")))


HELLO = {"role": "user", "content": "Hello"}
WRONG: list[tuple[Any, str]] = [
    ([{"role": "foo", "content": "x"}], r"messages\[0\] has the role 'foo'; choose system, developer, user"),
    ([HELLO, {"content": "x"}], r"messages\[1\] has no role; choose system"),
    ([HELLO, {"role": "user"}], r"messages\[1\] has no content"),
    ([{"role": "assistant", "content": None}], r"messages\[0\] has no content"),
    ([HELLO, "x"], r"messages\[1\] must be a mapping with a role and a content; got str"),
]


@pytest.mark.parametrize(("messages", "said"), WRONG)
@pytest.mark.parametrize("graph", [False, True])
def test_messages_that_are_none(llm: LLM, messages: Any, said: str, graph: bool) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        llm.chat(messages, graph=clinic() if graph else None)
    assert caught.value.param == "messages"
    if isinstance(messages[0], dict):
        with pytest.raises(RequestError, match=said):
            llm.stream(messages)


def test_a_call_of_a_tool_needs_no_content() -> None:
    check_messages([HELLO, {"role": "assistant", "content": None, "tool_calls": [{"function": {}}]}])
    with pytest.raises(RequestError, match="messages must be a list of mappings; got str"):
        check_messages("Hello")


def test_a_text_in_place_of_a_number_shows_its_quotes(llm: LLM) -> None:
    with pytest.raises(RequestError, match="top is '3'; it must be a whole number"):
        check_top("3")
    with pytest.raises(RequestError, match=r"temperature is '1\.0'"):
        check_temperature("1.0")
    with pytest.raises(RequestError, match="top is '3'"):
        llm.suggest(clinic(), ["p2"], top="3")  # type: ignore[arg-type]
