"""What may be asked of structured outputs, and what a refusal says."""

from __future__ import annotations

import json
from typing import Any

import pytest

import vglm
from vglm.decode.bounds import MAX_BYTES
from vglm.decode.sampling_params import SamplingParams
from vglm.decode.schema_limits import checked_schema
from vglm.decode.structured import StructuredOutputs
from vglm.errors import RequestError

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
TAG = {"begin": "<f>", "schema": SCHEMA, "end": "</f>"}
loop: dict[str, Any] = {"type": "array"}
loop["items"] = loop


def test_values_are_normalised_and_hashable() -> None:
    from_mapping, from_text = (
        StructuredOutputs(json=SCHEMA),
        StructuredOutputs(json=json.dumps(SCHEMA, indent=3)),
    )
    assert from_mapping == from_text
    assert hash(from_mapping) == hash(from_text)
    assert from_mapping.kind == "json"
    assert isinstance(from_mapping.json, str)
    assert list(json.loads(from_mapping.json)["properties"]) == ["b", "a"]  # the order is the schema's
    assert StructuredOutputs(choice=["a", "b"]).choice == ("a", "b")
    assert StructuredOutputs(json_object=True) != StructuredOutputs(
        json_object=True, disable_any_whitespace=False
    )
    assert StructuredOutputs(json_object=False, regex="a").kind == "regex"
    assert vglm.StructuredOutputs is StructuredOutputs
    schema = {"$id": "http://example.org/x", **SCHEMA}
    StructuredOutputs(json=schema)
    assert "$id" in schema  # what a caller gives is left as it is


def test_sampling_parameters_take_them() -> None:
    structured = StructuredOutputs(regex="a+")
    assert SamplingParams(structured_outputs=structured).structured_outputs is structured
    for wrong in ({"regex": "a+"}, "a+", True):
        with pytest.raises(RequestError, match="structured_outputs is") as refused:
            SamplingParams(structured_outputs=wrong)  # type: ignore[arg-type]
        assert refused.value.param == "structured_outputs"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of json, json_object, regex, choice, grammar, structural_tag; got none"),
        ({"json_object": False}, "got none"),
        ({"json": SCHEMA, "regex": "a"}, "got json and regex"),
        ({"json_object": 1}, "json_object is 1, but must be True or False"),
        ({"json_object": True, "disable_any_whitespace": None}, "disable_any_whitespace is None"),
        # JSON schemas
        ({"json": "{"}, "json is not JSON"),
        ({"json": "[]"}, r"json is \[\], but must be a JSON object"),
        ({"json": "true"}, "json is True, but must be a JSON object"),
        ({"json": True}, "json is True, but must be a mapping or JSON text"),
        ({"json": ""}, "json is '', but must be a text that is not empty"),
        ({"json": '{"minimum": NaN}'}, "NaN"),
        ({"json": '{"a": ' + "[" * 100_000}, "nested deeper than 128"),
        ({"json": '{"a": ' + "1" * 5000 + "}"}, "json is not JSON"),
        ({"json": "x" * (MAX_BYTES + 1)}, f"at most {MAX_BYTES}"),
        ({"json": {"a": object()}}, "cannot be written as JSON"),
        ({"json": {"a": float("inf")}}, "cannot be written as JSON"),
        ({"json": {"a": "\ud800"}}, "not valid Unicode"),
        ({"json": loop}, "nested deeper than 128"),
        ({"json": {"a": [0] * 200_000}}, "more than 150000 values"),
        ({"json": {"$ref": "#/$defs/x"}}, r"\$ref is '#/\$defs/x', but nothing is there"),
        ({"json": {"$ref": "other.json#/x"}}, "references must stay in the schema"),
        ({"json": {"$ref": "#/a/9", "a": [1]}}, "nothing is there"),
        # texts
        ({"regex": ""}, "regex is ''"),
        ({"regex": 5}, "regex is 5"),
        ({"regex": "é" * (MAX_BYTES // 2 + 1)}, "bytes"),
        ({"choice": "yes"}, "choice is 'yes', but must be a list"),
        ({"choice": 7}, "choice is 7"),
        ({"choice": []}, "choice has 0 texts"),
        ({"choice": ["a", ""]}, "each choice is ''"),
        ({"choice": ["a", 1]}, "each choice is 1"),
        ({"choice": ["a"] * 10_001}, "choice has 10001 texts"),
        ({"choice": ["a" * 1000] * 300}, "more than 262144 bytes together"),
        # grammars
        ({"grammar": 'start: "a'}, 'line 1 at column 8, a " without its end'),
        ({"grammar": "start: /a"}, "a / without its end"),
        ({"grammar": 'start: A\nA: "a" & "b"'}, "line 2 at column 8, &"),
        ({"grammar": '%llguidance {}\nstart: "a"'}, "%llguidance; only %ignore, %import, %json are supported"),
        ({"grammar": "start: %regex {}"}, "%regex"),
        ({"grammar": "start: @other"}, "@"),
        ({"grammar": 'start[stop=""]: /a/'}, "the option stop"),
        ({"grammar": "start: %json no"}, "%json without a JSON schema"),
        ({"grammar": 'start: %json {"$ref": "#/a"}'}, "nothing is there"),
        ({"grammar": 'root ::= "a'}, "cannot be read as GBNF"),
        ({"grammar": 'other ::= "a"'}, "No 'root' rule"),
        # structural tags
        ({"structural_tag": {}}, "structures of structural_tag must be a list"),
        ({"structural_tag": {"structures": [TAG]}}, "triggers of structural_tag must be a list"),
        ({"structural_tag": {"structures": [TAG], "triggers": [""]}}, "none of them empty"),
        ({"structural_tag": {"structures": [TAG], "triggers": ["<g>"]}}, "exactly one of the triggers"),
        ({"structural_tag": {"structures": [TAG], "triggers": ["<", "<f"]}}, "exactly one of the triggers"),
        ({"structural_tag": {"structures": [5], "triggers": ["<"]}}, "must be an object with begin"),
        ({"structural_tag": {"structures": [{**TAG, "x": 1}], "triggers": ["<"]}}, "must be an object with begin"),
        ({"structural_tag": {"structures": [{**TAG, "end": 1}], "triggers": ["<"]}}, "end of a structure"),
        ({"structural_tag": {"structures": [{**TAG, "schema": 1}], "triggers": ["<"]}}, "schema of a structure"),
        ({"structural_tag": {"structures": [TAG], "triggers": ["<"], "at_least_one": 1}}, "at_least_one"),
        ({"structural_tag": {"structures": [TAG], "triggers": ["<"], "format": {}}}, "'format'"),
        ({"structural_tag": {"type": "tag", "structures": [TAG], "triggers": ["<"]}}, "type of a structural_tag"),
        ({"structural_tag": "no"}, "structural_tag is not JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        StructuredOutputs(**fields)
    assert refused.value.param == "structured_outputs"
    assert str(refused.value).startswith("structured_outputs: ")
    assert len(str(refused.value)) < 400


# ---- costs of schemas ----


def test_identifiers_of_schemas_are_dropped_but_not_those_of_data() -> None:
    schema = {
        "$id": "https://example.org/a",
        "properties": {"id": {"id": "#b", "const": {"id": "kept"}}, "$id": {"type": "string"}},
        "$defs": {"x": {"$id": "#/x"}},
        "$ref": "#/$defs/x",
    }
    assert checked_schema(schema) == {
        "properties": {"id": {"const": {"id": "kept"}}, "$id": {"type": "string"}},
        "$defs": {"x": {}},
        "$ref": "#/$defs/x",
    }


PATTERN = {"type": "string", "pattern": "a.*b"}


def all_of(count: int, schema: dict[str, Any]) -> dict[str, Any]:
    return {"allOf": [schema] * count}


@pytest.mark.parametrize(
    ("schema", "refused"),
    [
        (all_of(8, PATTERN), False),
        (all_of(9, PATTERN), True),
        ({"anyOf": [PATTERN] * 50}, False),
        ({"properties": {f"p{i}": PATTERN for i in range(50)}}, False),
        (all_of(9, {"properties": {"x": PATTERN}}), True),
        (all_of(9, {"items": {"properties": {"x": PATTERN}}}), True),
        ({**all_of(4, PATTERN), "anyOf": [all_of(3, PATTERN), all_of(5, PATTERN)]}, True),
        ({**all_of(4, PATTERN), "anyOf": [all_of(3, PATTERN), all_of(4, PATTERN)]}, False),
        ({**all_of(8, PATTERN), "pattern": "x"}, True),
        ({"$ref": "#/$defs/x", "$defs": {"x": all_of(8, PATTERN)}}, False),
        ({"$ref": "#/$defs/x", "format": "uuid", "$defs": {"x": all_of(8, PATTERN)}}, True),
        ({"properties": {"a~/b": all_of(9, PATTERN)}, "allOf": [{"$ref": "#/properties/a~0~1b"}]}, True),
        ({"patternProperties": {"^x": all_of(5, PATTERN)}, "properties": {"x": all_of(5, PATTERN)}}, True),
        ({"properties": {"pattern": {"type": "string"}, "format": {"type": "string"}}}, False),
        # recursive schemas weigh what they say once
        ({"properties": {"next": {"$ref": "#"}, "value": PATTERN}}, False),
        # multiples
        ({"multipleOf": 0.01}, False),
        ({"multipleOf": 1e-5}, False),
        ({"multipleOf": 10000}, False),
        ({"multipleOf": 1000000}, True),
        ({"multipleOf": 12345.6}, True),
        ({"allOf": [{"multipleOf": 97}, {"multipleOf": 101}]}, False),
        ({"allOf": [{"multipleOf": 997}, {"multipleOf": 101}]}, True),
        ({"properties": {f"p{i}": {"multipleOf": 997 + i} for i in range(90)}}, False),
        ({"multipleOf": "3"}, False),  # nonsense is left to the compiler
        ({"multipleOf": -7}, False),
        # properties
        ({"properties": {f"p{i}": {} for i in range(1000)}}, False),
        ({"properties": {f"p{i}": {} for i in range(1001)}}, True),
        ({"properties": {f"p{i}": {} for i in range(600)}, "required": [f"r{i}" for i in range(600)]}, True),
        ({"properties": {f"p{i}": {} for i in range(600)}, "required": [f"p{i}" for i in range(600)]}, False),
        ({"enum": [{f"k{i}": 0 for i in range(1001)}]}, True),
        ({"patternProperties": {f"^{i}": {} for i in range(100)}}, False),
        ({"patternProperties": {f"^{i}": {} for i in range(101)}}, True),
        ({"anyOf": [{"patternProperties": {f"^{i}": {} for i in range(71)}} for _ in range(3)]}, True),
    ],
)
def test_what_would_meet_at_one_place_is_bounded(schema: dict[str, Any], refused: bool) -> None:
    if not refused:
        StructuredOutputs(json=schema)
        return
    with pytest.raises(RequestError):
        StructuredOutputs(json=schema)
