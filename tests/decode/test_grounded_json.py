"""JSON whose values are bound to a graph: what is generated validates, what cannot be followed is refused."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.decode.grounded_reference import END, TinyTokenizer
from tests.decode.test_grounded import GRAPH, TOKENIZER, generate
from tests.decode.test_grounded_masks import BYTES
from vglm.decode.grounded import GroundedDecoder, compile_grounding
from vglm.decode.grounded.decoder import GroundedText
from vglm.decode.matcher import Matcher
from vglm.errors import RequestError
from vglm.graph.build import GraphBuilder
from vglm.graph.graph import Graph

DIAGNOSIS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "disease": {"x-graph": {"entity": {"types": ["disease"]}}},
        "findings": {
            "type": "array",
            "items": {"x-graph": "entity"},
            "minItems": 1,
            "maxItems": 3,
            "uniqueItems": True,
        },
        "evidence": {
            "type": "array",
            "items": {"x-graph": {"edge": {"relations": ["has phenotype"]}}},
            "maxItems": 2,
        },
        "relation": {"anyOf": [{"x-graph": "relation"}, {"type": "null"}]},
        "grade": {"type": "integer", "minimum": -2, "maximum": 12},
        "note": {"type": "string", "maxLength": 8},
        "certain": {"type": "boolean"},
    },
    "required": ["disease", "evidence", "certain"],
}


def compiled(schema: Any, graph: Graph = GRAPH) -> GroundedDecoder:
    return compile_grounding({"schema": schema}, graph, TOKENIZER)


def in_program(schema: Any) -> bool:
    """Whether a schema is followed by a program, and not by the grammar library."""
    return isinstance(compiled(schema).start(), GroundedText)


def test_two_thousand_random_documents_validate_and_name_what_exists() -> None:
    decoder = compiled(DIAGNOSIS)
    met = set()
    for seed in range(2_000):
        text = generate(decoder, seed)
        value = json.loads(text)
        jsonschema.validate(value, DIAGNOSIS)
        assert json.dumps(value, ensure_ascii=False) == text.decode() or "note" in value
        read = decoder.read(text)
        assert read.complete
        assert read.json == value
        assert [e.name for e in read.entities] == [value["disease"], *value.get("findings", [])]
        assert [GRAPH.node(e.ids[0]).type for e in read.entities[:1]] == ["disease"]
        written = [(e["source"], e["relation"], e["target"]) for e in value["evidence"]]
        edges = [
            (GRAPH.name_of(e.edge.source), e.edge.relation, GRAPH.name_of(e.edge.target)) for e in read.edges
        ]
        assert edges == written
        assert all(GRAPH.edge_at(e.index) == e.edge for e in read.edges)
        met.update(value)
    assert met == set(DIAGNOSIS["properties"])


SCALARS = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "minLength": 2, "maxLength": 5},
        {"type": "integer"},
        {"type": "number"},
        {"type": ["boolean", "null"]},
        {"enum": [0, "0", None, {"k": [1.5, "é"]}]},
        {"const": "x"},
        {"x-graph": "entity"},
        {"x-graph": "edge"},
        {"x-graph": "relation"},
    ]
)
NAMES = st.sampled_from(["a", "name", "ü", 'q"', "long name"])
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(
            lambda properties, optional: {
                "type": "object",
                "properties": properties,
                "required": [name for name, free in zip(properties, optional, strict=False) if not free],
            },
            st.dictionaries(NAMES, inner, max_size=4),
            st.lists(st.booleans(), min_size=4),
        ),
        st.builds(
            lambda items, low, more: {
                "type": "array",
                "items": items,
                "minItems": low,
                "maxItems": low + more,
            },
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some}),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 10**6))
def test_what_any_schema_lets_through_validates(schema: dict[str, Any], seed: int) -> None:
    decoder = compiled(schema)
    for offset in range(3):
        text = generate(decoder, seed + offset, 3_000)
        read = decoder.read(text)
        if not read.complete:
            continue  # an endless string
        value = json.loads(text)
        jsonschema.Draft202012Validator(schema).validate(value)
        assert read.json == value


def test_documents_that_are_valid_are_read() -> None:
    schema = {
        "type": "object",
        "properties": {
            "s": {"type": "string"},
            "n": {"type": "number"},
            "i": {"type": "integer"},
            "e": {"x-graph": "edge"},
        },
        "required": [],
    }
    decoder = compiled(schema)
    edge = {"source": "Marfan", "relation": "causes", "target": "Marfan syndrome"}
    for value in (
        {},
        {"s": 'é\n"\\🎉'},
        {"n": -1.5e-7},
        {"n": 0, "i": -120},
        {"s": "", "n": 3, "i": 0, "e": edge},
    ):
        text = json.dumps(value, ensure_ascii=False)
        assert decoder.read(text).json == value
    assert [e.edge.source for e in decoder.read(json.dumps({"e": edge})).edges] == ["d3"]
    beginning = '{"e": {"source": "Marfan", "relation": "has'
    for wrong in (
        '{"i": 01}',
        '{"n": 1.}',
        '{"n": .5}',
        '{"i": 1, "s": "x"}',
        '{"s": "\n"}',
        '{"i":1}',
        beginning,
    ):
        with pytest.raises(RequestError, match="leaves its form"):
            decoder.read(wrong)


def test_names_are_escaped_as_json_escapes_them() -> None:
    names = ['a "quoted" name', "back\\slash", "line\nbreak\ttab", "bell\x07", "\x7f é 🎉", "/"]
    nodes = [{"id": str(i), "name": name} for i, name in enumerate(names)]
    edges = [{"source": str(i), "relation": 'says "so"', "target": str((i + 1) % 6)} for i in range(6)]
    graph = Graph.from_dict({"nodes": nodes, "edges": edges})
    seen = set()
    for schema in ({"x-graph": "entity"}, {"x-graph": "relation"}, {"x-graph": "edge"}):
        decoder = compiled(schema, graph)
        for seed in range(60):
            text = generate(decoder, seed)
            value = json.loads(text)
            assert text.decode() == json.dumps(value, ensure_ascii=False)
            read = decoder.read(text)
            if schema["x-graph"] == "edge":
                assert read.edges[0].edge.source == str(names.index(value["source"]))
            elif schema["x-graph"] == "entity":
                assert read.answer == (str(names.index(value)),)
                seen.add(value)
    assert seen == set(names)


def test_arrays_of_different_names_end_when_none_is_left() -> None:
    schema = {
        "type": "array",
        "items": {"x-graph": {"entity": {"types": ["disease", "gene"]}}},
        "uniqueItems": True,
    }
    decoder = compiled(schema)
    lengths = set()
    for seed in range(200):
        value = json.loads(generate(decoder, seed))
        assert len(set(value)) == len(value) <= 2
        lengths.add(len(value))
    assert lengths == {0, 1, 2}
    with pytest.raises(RequestError, match="3 different values are needed, but there are only 2"):
        compiled({**schema, "minItems": 3})


def test_optional_properties_and_their_commas() -> None:
    properties = {name: {"const": name} for name in "abcd"}
    decoder = compiled({"type": "object", "properties": properties, "required": ["c"]})
    seen = {generate(decoder, seed).decode() for seed in range(300)}
    expected = set()
    for mask in range(16):
        chosen = [name for bit, name in enumerate("abcd") if mask >> bit & 1]
        if "c" in chosen:
            expected.add(json.dumps({name: name for name in chosen}))
    assert seen == expected


def test_references_are_followed() -> None:
    schema = {
        "$defs": {
            "named": {"type": "object", "properties": {"of": {"x-graph": "entity"}}, "required": ["of"]}
        },
        "type": "array",
        "items": {"$ref": "#/$defs/named"},
        "minItems": 1,
        "maxItems": 2,
    }
    decoder = compiled(schema)
    for seed in range(30):
        text = generate(decoder, seed)
        jsonschema.validate(json.loads(text), schema)
        assert len(decoder.read(text).entities) == len(json.loads(text))


# ---- what is left to the grammar library ----

WITH_PATTERN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": "^HP:[0-9]{3}$"},
        "entity": {"x-graph": {"entity": {"types": ["phenotype"]}}},
        "edge": {"x-graph": "edge"},
        "relation": {"x-graph": {"relation": {"relations": ["causes"]}}},
    },
    "required": ["code", "entity", "edge", "relation"],
    "additionalProperties": False,
}


def test_other_keywords_are_followed_by_the_grammar_library() -> None:
    assert in_program(DIAGNOSIS)
    decoder = compiled(WITH_PATTERN)
    text = decoder.start()
    assert isinstance(text, Matcher)
    rng = random.Random(1)
    for _ in range(20):
        text, tokens = decoder.start(), []
        tokens += text.begin()
        while not text.finished:
            row = np.zeros(-(-TOKENIZER.vocab_size // 32), np.uint32)
            text.fill_mask(row)
            allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
            token = rng.choice(allowed)
            if token == END:
                break
            tokens += [token, *text.accept(token)]
        read = decoder.read([*tokens])
        jsonschema.validate(read.json, WITH_PATTERN)
        assert re.fullmatch("HP:[0-9]{3}", read.json["code"])
        assert GRAPH.node(read.answer[0]).type == "phenotype"
        edge = read.edges[0].edge
        assert (GRAPH.name_of(edge.source), edge.relation) == (
            read.json["edge"]["source"],
            read.json["edge"]["relation"],
        )
        assert read.json["relation"] == "causes"
    with pytest.raises(RequestError, match="not JSON after the schema"):
        decoder.read('{"code": "HP:123", "entity": "nobody", "edge": {}, "relation": "causes"}')


def test_large_graphs_with_other_keywords_are_refused_at_once() -> None:
    builder = GraphBuilder()
    for i in range(12_000):
        builder.add_node(f"n{i}", name=f"name {i}")
    properties = {"e": {"x-graph": "entity"}, "s": {"type": "string", "format": "date"}}
    schema = {"type": "object", "properties": properties, "required": ["e", "s"]}
    with pytest.raises(
        RequestError, match="schema has 'format', which only works while a binding has at most 10000"
    ):
        compiled(schema, builder.build())


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"x-graph": "entity", "type": "integer"},
        {"type": "array", "items": {"x-graph": "edge"}, "uniqueItems": True},
        {
            "type": "object",
            "properties": {"a": {"$ref": "#"}, "e": {"x-graph": "entity"}},
            "uniqueItems": True,
            "not": {},
        },
    ],
)
def test_what_nobody_can_follow_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refused:
        compiled(schema)
    assert refused.value.param == "constraint"


def test_hostile_schemas_take_bounded_work() -> None:
    """Deep, wide, and exponentially many ways through nothing."""
    deep: Any = {"x-graph": "entity"}
    for _ in range(60):
        deep = {"type": "array", "items": deep, "minItems": 1, "maxItems": 1}
    assert json.loads(generate(compiled(deep), 1))
    wide = {"type": "object", "properties": {f"p{i}": {"enum": [i]} for i in range(200)}, "required": []}
    for seed in range(3):
        jsonschema.validate(json.loads(generate(compiled(wide), seed, 5_000)), wide)
    empties = {"anyOf": [{"type": "array", "items": {"type": "null"}, "maxItems": 0}] * 50}
    assert generate(compiled({"type": "array", "items": empties, "maxItems": 2}), 3).decode() in (
        "[]",
        "[[]]",
        "[[], []]",
    )
    doubled: dict[str, Any] = {"$defs": {"d0": {"type": "null"}}}
    for i in range(25):
        both = {name: {"$ref": f"#/$defs/d{i}"} for name in "ab"}
        doubled["$defs"][f"d{i + 1}"] = {"type": "object", "properties": both}
    with pytest.raises(RequestError, match="instructions"):
        compiled({**doubled, "$ref": "#/$defs/d25"})


def test_vocabularies_that_cannot_spell_json() -> None:
    tokenizer = TinyTokenizer(byte for byte in BYTES if byte != b'"')
    with pytest.raises(RequestError, match="cannot spell"):
        compile_grounding({"schema": {"x-graph": "entity"}}, GRAPH, tokenizer)
