"""Tool calls are found in text that is cut anywhere, and told of as they come."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vglm.serve.tool_calls import CLOSE, OPEN, CallNews, ToolCallReader, call_text
from vglm.serve.tools import closed

Told = tuple[str, list[tuple[str, str, bool]]]

CALL = call_text("get_weather", {"city": "Z\u00fcrich", "days": [1, 2]})
ANSWERS = {
    " Just <tool> and </tool_call>, a < b.\n": (" Just <tool> and </tool_call>, a < b.\n", []),
    CALL: ("", [("get_weather", '{"city": "Z\u00fcrich", "days": [1, 2]}', True)]),
    f"I look.\n\n{CALL}\n{call_text('now', {})}\n": (
        "I look.",
        [("get_weather", '{"city": "Z\u00fcrich", "days": [1, 2]}', True), ("now", "{}", True)],
    ),
    f"{CALL}\n\nDone: <b>. \n": (
        "Done: <b>. \n",
        [("get_weather", '{"city": "Z\u00fcrich", "days": [1, 2]}', True)],
    ),
    # brackets, quotes, backslashes and the call's own end in strings
    OPEN + '{"name":"f","arguments":{"a":"}\\"]\\\\","b":"</tool_call>{[","c":{"d":[{}]}}}' + CLOSE: (
        "",
        [("f", '{"a":"}\\"]\\\\","b":"</tool_call>{[","c":{"d":[{}]}}', True)],
    ),
    # cut by the length limit
    OPEN + '\n{"name": "f", "arguments": {"a": "b': ("", [("f", '{"a": "b', False)]),
    OPEN + '\n{"name": "f", "arguments": {"a": 1}': ("", [("f", '{"a": 1}', True)]),
    "x " + OPEN + '\n{"name": "f", "arg': ("x " + OPEN + '\n{"name": "f", "arg', []),
    "x <tool_ca": ("x <tool_ca", []),
    # other forms
    OPEN + '{"arguments": {"a": 1}, "name": "f"}' + CLOSE: ("", [("f", '{"a": 1}', True)]),
    OPEN + '{"name": "f"}' + CLOSE: ("", [("f", "{}", True)]),
    OPEN + '{"name": "f", "arguments": "{\\"a\\": 1}"}' + CLOSE: ("", [("f", '{"a": 1}', True)]),
    f"a {OPEN}nonsense{CLOSE} b": (f"a {OPEN}nonsense{CLOSE} b", []),
    OPEN + '{"name": "a</tool_call>", "arguments": {}}': (
        OPEN + '{"name": "a</tool_call>", "arguments": {}}',
        [],
    ),
    OPEN + '{"name": "\\ud800", "arguments": {}}' + CLOSE: (
        OPEN + '{"name": "\\ud800", "arguments": {}}' + CLOSE,
        [],
    ),
}


def told_of(pieces: list[str]) -> Told:
    """What a client puts together from the news."""
    reader = ToolCallReader()
    text = ""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in pieces:
        for one in reader.feed(piece):
            if isinstance(one, str):
                text += one
                continue
            index = one.call.index
            assert one.begins == (index not in names)
            assert index == max([*names, index]), "a call that is over has no news"
            names[index] = one.call.name
            arguments[index] = arguments.get(index, "") + one.arguments
    text += reader.finish()
    assert [call.arguments for call in reader.calls] == [arguments[i] for i in range(len(names))]
    assert len({call.id for call in reader.calls}) == len(reader.calls)
    return text, [(call.name, call.arguments, call.done) for call in reader.calls]


@pytest.mark.parametrize("answer", ANSWERS)
def test_in_one_piece_and_in_single_characters(answer: str) -> None:
    assert told_of([answer]) == ANSWERS[answer]
    assert told_of(list(answer)) == ANSWERS[answer]


@pytest.mark.parametrize("answer", ANSWERS)
def test_cut_in_three_at_every_two_places(answer: str) -> None:
    for first in range(len(answer)):
        for second in range(first, len(answer)):
            pieces = [answer[:first], answer[first:second], answer[second:]]
            assert told_of(pieces) == ANSWERS[answer], pieces


PIECES = st.sampled_from(
    [
        OPEN,
        CLOSE,
        CALL,
        "\n",
        " ",
        "<",
        "tool_call>",
        '{"name": "f", ',
        '"arguments": {',
        "}",
        '"',
        "\\",
        "x",
        "[",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=14), st.data())
def test_cuts_change_nothing(parts: list[str], data: st.DataObject) -> None:
    answer = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=6)))
    pieces = [answer[a:b] for a, b in pairwise([0, *cuts, len(answer)])]
    assert told_of(pieces) == told_of([answer])


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet="abc <>\n", max_size=12),
    st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=6), max_size=3), min_size=1, max_size=3),
)
def test_calls_come_back_as_they_were_written(before: str, calls: list[dict[str, str]]) -> None:
    answer = before + "\n".join(call_text(f"tool-{i}", arguments) for i, arguments in enumerate(calls))
    text, told = told_of(list(answer))
    assert text == before.rstrip()
    assert [(name, json.loads(arguments), done) for name, arguments, done in told] == [
        (f"tool-{i}", arguments, True) for i, arguments in enumerate(calls)
    ]


def test_names_and_arguments_are_told_at_once() -> None:
    reader = ToolCallReader()
    assert reader.feed("Let me see. ") == ["Let me see."]
    assert reader.feed(OPEN + '\n{"name": "f", "arguments": ') == []
    (begun,) = reader.feed('{"a": ')
    assert isinstance(begun, CallNews)
    assert (begun.begins, begun.call.name, begun.arguments) == (True, "f", '{"a": ')
    (more,) = reader.feed('"b')
    assert more == CallNews(begun.call, False, '"b')
    (last,) = reader.feed('"}}\n</tool')
    assert last == CallNews(begun.call, False, '"}')
    assert begun.call.done
    assert reader.feed("_call>\n") == []
    assert reader.finish() == ""


def test_text_and_calls_come_in_their_order() -> None:
    pieces = ToolCallReader().feed(f"before\n{CALL}\nbetween\n{CALL}\nafter")
    assert [p if isinstance(p, str) else p.call.index for p in pieces] == ["before", 0, "between", 1, "after"]


# Schemas of arguments

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}}
CLOSED_PERSON = {**PERSON, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        (PERSON, CLOSED_PERSON),
        (
            {"type": "object", "properties": {}},
            {"type": "object", "properties": {}, "additionalProperties": False},
        ),
        ({"type": "object"}, {"type": "object"}),  # nothing is said about them
        ({}, {}),
        ({**PERSON, "additionalProperties": True}, {**PERSON, "additionalProperties": True}),
        ({**PERSON, "patternProperties": {}}, {**PERSON, "patternProperties": {}}),
        (
            {"properties": {"a": PERSON, "b": {"items": PERSON}, "c": {"anyOf": [PERSON, {"type": "null"}]}}},
            {
                "properties": {
                    "a": CLOSED_PERSON,
                    "b": {"items": CLOSED_PERSON},
                    "c": {"anyOf": [CLOSED_PERSON, {"type": "null"}]},
                },
                "additionalProperties": False,
            },
        ),
        ({"$ref": "#/$defs/p", "$defs": {"p": PERSON}}, {"$ref": "#/$defs/p", "$defs": {"p": CLOSED_PERSON}}),
    ],
)
def test_arguments_that_a_schema_does_not_name_are_not_written(schema: object, wanted: object) -> None:
    assert closed(schema) == wanted


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [PERSON, {"properties": {"age": {}}}]},
        {**PERSON, "$ref": "#/$defs/p", "$defs": {"p": {"properties": {"age": {}}}}},
        {**PERSON, "anyOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"properties": {"x": {**PERSON, "if": PERSON, "then": {"properties": {"b": {}}}}}},
    ],
)
def test_schemas_that_are_composed_stay_as_they_are(schema: object) -> None:
    assert closed(schema) == schema
