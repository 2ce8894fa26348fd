"""The OpenAPI document: whole, valid, and true of the model and the options that are served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from vglm import LLM
from vglm.serve.app import create_app
from vglm.serve.openapi import EVENTS
from vglm.serve.options import ServeOptions
from vglm.serve.schemas.common import SERVED_MARK
from vglm.serve.serving import Serving

WORDS = {  # of JSON Schema, and OpenAPI's own
    "type", "enum", "const", "default", "title", "description", "example", "examples", "format", "$ref",
    "anyOf", "oneOf", "allOf", "not", "discriminator", "properties", "required", "additionalProperties",
    "propertyNames", "minProperties", "maxProperties", "items", "prefixItems", "minItems", "maxItems",
    "uniqueItems", "minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf", "contentMediaType", "contentSchema", "deprecated",
}  # fmt: skip


def document_of(llm: LLM, **options: Any) -> dict[str, Any]:
    return create_app(Serving(llm, ServeOptions(**options))).openapi()


@pytest.fixture(scope="module")
def document(llm: LLM) -> dict[str, Any]:
    return document_of(llm)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def schemas_in(node: Any) -> Iterator[dict[str, Any]]:
    """Every schema below one, itself included."""
    if not isinstance(node, dict):
        return
    yield node
    for word in ("properties", "$defs"):
        for child in node.get(word, {}).values():
            yield from schemas_in(child)
    for word in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for child in node.get(word, ()):
            yield from schemas_in(child)
    for word in ("items", "additionalProperties", "propertyNames", "not", "contentSchema"):
        yield from schemas_in(node.get(word))


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from nodes(child)
    elif isinstance(node, list):
        for child in node:
            yield from nodes(child)


def test_schemas_use_words_that_clients_know(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        for one in schemas_in(schema):
            assert set(one) <= WORDS, (name, set(one) - WORDS)
    assert not any(SERVED_MARK in node for node in nodes(document))


def test_every_reference_leads_somewhere_and_every_schema_is_used(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    used = {node["$ref"] for node in nodes(document) if isinstance(node.get("$ref"), str)}
    assert used == {f"#/components/schemas/{name}" for name in schemas}


def test_every_operation_has_a_name_of_its_own_and_says_what_it_does(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)
    assert all(operation["description"] for _, operation in operations(document))


def test_refusals_are_documented_with_openais_shape_and_fastapis_own_are_not(
    document: dict[str, Any],
) -> None:
    for name, operation in operations(document):
        responses = operation["responses"]
        assert "422" not in responses
        refusals = {"400", "408", "413", "500", "503", "504"}
        if "requestBody" in operation:
            refusals |= {"404", "429"}
        assert refusals <= responses.keys(), name
        for status in responses.keys() - {"200"}:
            schema = responses[status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}


def test_examples_fit_their_schemas(document: dict[str, Any]) -> None:
    seen = 0
    for name, schema in document["components"]["schemas"].items():
        examples = [*schema.get("examples", ()), *([schema["example"]] if "example" in schema else [])]
        for example in examples:
            whole = {**document, "$ref": f"#/components/schemas/{name}"}
            jsonschema.Draft202012Validator(whole).validate(example)
            seen += 1
    assert seen >= 10


def test_limits_are_those_of_the_model(document: dict[str, Any], llm: LLM, model: str) -> None:
    schemas, config = document["components"]["schemas"], llm.engine.config
    completion = schemas["CompletionRequest"]["properties"]
    assert completion["model"]["anyOf"][0]["enum"] == ["", model]
    assert completion["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": config.max_num_seqs}
    text, ids, texts, lists = completion["prompt"]["anyOf"]
    token = {"type": "integer", "minimum": 0, "maximum": config.vocab_size - 1}
    assert ids == {"type": "array", "items": token, "minItems": 1, "maxItems": config.max_model_len}
    assert (texts["items"], lists["items"]) == (text, ids)
    assert text == {"type": "string", "minLength": 1}, "this model puts nothing around an empty text"
    dimensions = schemas["EmbeddingRequest"]["properties"]["dimensions"]["anyOf"][0]
    assert dimensions["minimum"] == dimensions["maximum"] == config.hidden_size
    (parameter,) = document["paths"]["/v1/models/{model}"]["get"]["parameters"]
    assert parameter["schema"]["enum"] == [model]


def test_names_are_those_that_are_served(llm: LLM) -> None:
    schemas = document_of(llm, served_model_names=("a", "b/c"))["components"]["schemas"]
    for name in ("CompletionRequest", "ChatRequest", "EmbeddingRequest", "ScoreRequest"):
        assert schemas[name]["properties"]["model"]["anyOf"][0]["enum"] == ["", "a", "b/c"]


def test_keys_are_documented_where_they_are_needed(document: dict[str, Any], llm: LLM) -> None:
    assert "securitySchemes" not in document["components"]
    assert not any(
        "security" in operation or "401" in operation["responses"] for _, operation in operations(document)
    )
    keyed = document_of(llm, api_keys=("secret",))
    assert keyed["components"]["securitySchemes"].keys() == {"bearer", "header"}
    for name, operation in operations(keyed):
        path = name.split()[1]
        is_open = path in ("/health", "/ping", "/version", "/metrics")
        assert ("security" in operation) == ("401" in operation["responses"]) == (not is_open), name
    assert "secret" not in str(keyed)
    if "/metrics" in keyed["paths"]:
        closed = document_of(llm, api_keys=("secret",), metrics_open=False)
        assert "401" in closed["paths"]["/metrics"]["get"]["responses"]


def test_streams_are_documented_event_by_event(document: dict[str, Any]) -> None:
    for path in EVENTS:
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        assert content.keys() == {"application/json", "text/event-stream"}
        item = content["text/event-stream"]["itemSchema"]
        assert "contentSchema" in str(item)
    streaming = {
        path
        for path, methods in document["paths"].items()
        for operation in methods.values()
        if "stream" in str(operation.get("requestBody")) or path in EVENTS
    }
    assert streaming == set(EVENTS)
