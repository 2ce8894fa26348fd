"""Patterns: exactly their texts can be generated, all of them, and each is read as what it names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

from tests.decode.test_grounded import GRAPH, TOKENIZER, compiled, generate
from vglm import Graph
from vglm.decode.grounded import Grounding, compile_grounding
from vglm.errors import RequestError

PATTERNS: list[Any] = [
    ["A text."],
    {"one_of": ["a", "ab", ["ab", {"one_of": ["c", "d"]}]]},
    {"list": ["a", "b", "c", "d"], "max": 3},
    {"list": ["a", "ab", "abc"], "min": 2, "max": 9},
    {"list": [["x", {"list": ["1", "2"], "max": 2}], "y"], "min": 2, "max": 2},
    [
        {"one_of": ["Because ", "Since "]},
        {
            "list": [[{"entity": "p1"}, " (6/10)"], {"entity": "p2"}, ["café matches ", {"entity": "p3"}]],
            "max": 2,
        },
        {"one_of": [".", " speak for it."]},
    ],
]


def texts_of(pattern: Any, graph: Graph = GRAPH) -> Iterator[str]:
    """Every text, without any program."""
    if isinstance(pattern, str):
        yield pattern
    elif isinstance(pattern, list):
        if pattern:
            yield from (
                one + rest for one in texts_of(pattern[0], graph) for rest in texts_of(pattern[1:], graph)
            )
        else:
            yield ""
    elif "entity" in pattern:
        yield f"[{graph.name_of(pattern['entity'])}]"
    elif "one_of" in pattern:
        yield from (text for inner in pattern["one_of"] for text in texts_of(inner, graph))
    else:
        for count in range(pattern.get("min", 1), min(pattern.get("max", 1), len(pattern["list"])) + 1):
            for chosen in combinations(pattern["list"], count):
                yield from texts_of(_joined(list(chosen)), graph)


def _joined(items: list[Any]) -> list[Any]:
    if len(items) == 1:
        return items
    parts: list[Any] = [part for item in items[:-2] for part in (item, ", ")]
    return [*parts, items[-2], " and ", items[-1]]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_exactly_the_texts_of_a_pattern(pattern: Any) -> None:
    decoder = compiled({"kind": "pattern", "pattern": pattern})
    expected = set(texts_of(pattern))
    found = {generate(decoder, seed).decode() for seed in range(40 * len(expected))}
    assert found == expected
    for text in expected:
        assert decoder.read(text).complete
        for other in {text + "!", text.replace("a", "b"), text[1:]} - expected:
            if any(one.startswith(other) for one in expected):
                assert not decoder.read(other).complete
            else:
                with pytest.raises(RequestError, match="leaves its form"):
                    decoder.read(other)


def test_mentions_are_read() -> None:
    decoder = compiled({"pattern": PATTERNS[-1]})
    read = decoder.read("Since [Tall stature] (6/10) and café matches [Café au lait, many].")
    assert [mention.entity.ids for mention in read.mentions] == [("p1",), ("p3",)]
    assert [read.text[mention.start : mention.end] for mention in read.mentions] == [
        "Tall stature",
        "Café au lait, many",
    ]
    with pytest.raises(RequestError, match="leaves its form"):
        decoder.read("Since [Ectopia lentis] (6/10).")
    shared = compiled({"pattern": [{"entity": "d2"}]}).read("[Marfan]")
    assert shared.mentions[0].entity.ids == ("d2", "d3")  # an ambiguous name may mean either


def test_a_grounding_of_a_pattern() -> None:
    wanted = Grounding.parse('{"pattern": ["a", {"entity": "p1"}]}')
    assert wanted == Grounding(kind="pattern", pattern=("a", {"entity": "p1"}))
    assert wanted == Grounding(kind="pattern", pattern='["a", {"entity": "p1"}]')
    assert len({wanted, Grounding.parse(wanted)}) == 1


@pytest.mark.parametrize(
    ("grounding", "message"),
    [
        ({"kind": "pattern"}, "a pattern and the kind pattern come together"),
        ({"kind": "answer", "pattern": ["a"]}, "a pattern and the kind pattern come together"),
        ({"pattern": "a"}, "pattern is not JSON"),
        ({"pattern": []}, "a sequence of the pattern must be a list of 1 to"),
        ({"pattern": [""]}, "a text of the pattern must have 1 to"),
        ({"pattern": [3]}, "the pattern has 3; it must be a text"),
        ({"pattern": {"entity": "p1", "one_of": ["a"]}}, "the pattern has"),
        ({"pattern": {"any": ["a"]}}, "the pattern has"),
        ({"pattern": {}}, "the pattern has"),
        ({"pattern": {"entity": 1}}, "an entity of the pattern is 1"),
        ({"pattern": {"entity": "nobody"}}, "no node with the id 'nobody'"),
        ({"pattern": {"one_of": "ab"}}, "one_of of the pattern must be a list"),
        (
            {"pattern": {"list": ["a"], "min": 2, "max": 3}},
            "min of a list of the pattern is 2, but it has at most 1",
        ),
        ({"pattern": {"list": ["a"], "max": 0}}, "max of a list of the pattern is 0"),
        ({"pattern": {"list": ["a"], "max": True}}, "max of a list of the pattern is True"),
        ({"pattern": {"list": ["a"] * 2000}}, "list of the pattern must be a list of 1 to 1,000"),
        ({"kind": "pattern+answer"}, "only answer, walk and mentions"),
        ({"parts": [{"pattern": ["a"]}]}, "must not be of the kind pattern"),
        ({"pattern": {"list": ["a" * 100] * 900, "max": 16}}, "instructions; make it simpler"),
    ],
)
def test_what_is_no_pattern(grounding: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        compiled(grounding)
    assert refused.value.param == "constraint"


def test_a_pattern_is_not_deeper_than_it_may_be() -> None:
    pattern: Any = "a"
    for _ in range(40):
        pattern = [pattern]
    with pytest.raises(RequestError, match="constraint: "):
        compiled({"pattern": pattern})


def test_a_name_that_cannot_stand_in_brackets() -> None:
    graph = Graph.from_dict({"nodes": [{"id": "x", "name": "A [b]"}], "edges": []})
    with pytest.raises(RequestError, match="the name of 'x' cannot be put in brackets"):
        compile_grounding({"pattern": {"entity": "x"}}, graph, TOKENIZER)
