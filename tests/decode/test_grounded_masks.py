"""Grounded decoding against its naive twin: masks and forced tokens at every state, over random graphs and vocabularies."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.decode.grounded_reference import (
    END,
    TinyTokenizer,
    Twin,
    compare,
    legal_json,
    legal_texts,
    mask_of,
)
from vglm.decode.grounded import GroundedDecoder, Grounding, compile_grounding
from vglm.decode.grounded.decoder import GroundedText
from vglm.errors import RequestError
from vglm.graph.graph import Graph

BYTES = [bytes([byte]) for byte in range(256)]
# Pieces that make names prefixes of each other, and texts that may be read in more than one way.
PIECES = [
    "a",
    "b",
    "ab",
    ", ",
    " -> ",
    " ",
    "é",
    "è",
    "🎉",
    '"',
    "\\",
    "]",
    "[",
    "\n",
    "<think>",
    "</s>",
    "is a",
]
TOKENS = [b"ab", b"aba", b"a, ", b", a", b", ", b" -> ", b" -> is", b"-> a", b" a", b" ab", b"\xc3", b"\xa9a", b'"}',
          b'": "', b'a"', b"[a", b"a]", b"a] [b", b"]", b"\xf0\x9f", b"is", b"is a -> ", b"\xa8", b"true", b"e, "]  # fmt: skip
ALWAYS = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

names = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
vocabularies = st.lists(st.sampled_from(TOKENS), unique=True).map(
    lambda tokens: TinyTokenizer([*BYTES, *tokens])
)


@st.composite
def graphs(draw: st.DrawFn, most: int = 5) -> Graph:
    """Of a few nodes; one may have no name."""
    nodes = [
        {"id": f"n{i}", "name": name, "type": draw(st.sampled_from(["x", "y"]))}
        for i, name in enumerate(draw(st.lists(names, min_size=2, max_size=most)))
    ]
    if draw(st.integers(0, 5)) == 0:
        nodes[-1]["name"] = ""
    ends = st.sampled_from([node["id"] for node in nodes])
    edge = st.fixed_dictionaries(
        {"source": ends, "relation": st.sampled_from(["is a", "a", "é -> "]), "target": ends}
    )
    return Graph.from_dict({"nodes": nodes, "edges": draw(st.lists(edge, min_size=1, max_size=8))})


answers = st.builds(
    lambda count, least, types, separator: Grounding(
        count=count, min_count=min(least, count), types=types, separator=separator
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([(), ("x",)]),
    st.sampled_from([", ", " ", "\n", "a"]),
)
walks = st.builds(
    lambda low, more, inverse, types, start, relations: Grounding(
        kind="walk",
        min_hops=low,
        max_hops=max(1, low + more),
        inverse=inverse,
        types=types,
        start=start,
        relations=relations,
    ),
    st.integers(0, 2),
    st.integers(0, 1),
    st.booleans(),
    st.sampled_from([(), ("y",)]),
    st.sampled_from([(), ("n0",), ("n0", "n1")]),
    st.sampled_from([(), ("is a",)]),
)
ends = st.builds(
    lambda walk, separator: Grounding(
        kind="sequence", parts=(walk, Grounding(of_walk=True)), separator=separator
    ),
    walks,
    st.sampled_from(["\n", " -> "]),
)
sequences = ends | st.builds(
    lambda answer, walk, separator: Grounding(kind="sequence", parts=(answer, walk), separator=separator),
    answers,
    walks,
    st.sampled_from(["\n", ", "]),
)


def compiled(grounding: Any, graph: Graph, tokenizer: TinyTokenizer) -> tuple[GroundedDecoder | None, str]:
    """A decoder, or why there is none."""
    try:
        return compile_grounding(grounding, graph, tokenizer), ""
    except RequestError as error:
        return None, f"{error.param}: {error}"


def check(grounding: Grounding, graph: Graph, tokenizer: TinyTokenizer, rng: random.Random) -> None:
    """A grounding is refused just when it has no text, and followed like its twin otherwise."""
    try:
        texts = legal_texts(grounding, graph)
    except RequestError:
        assume(False)
    assume(len(texts) < 3000)
    if not texts:
        with pytest.raises(RequestError) as refused:
            compile_grounding(grounding, graph, tokenizer)
        assert refused.value.param == "constraint"
        return
    decoder, refusal = compiled(grounding, graph, tokenizer)
    if decoder is None:  # the twin does not mind what the graph does not know
        assert any(word in refusal for word in ("no node type", "no relation", "no node with the id"))
        return
    for _ in range(6):
        text = compare(decoder, Twin(tokenizer, texts), rng.choice)
        assert decoder.read(text).complete


@ALWAYS
@given(grounding=answers, graph=graphs(), tokenizer=vocabularies, rng=st.randoms(use_true_random=False))
def test_answers(grounding: Grounding, graph: Graph, tokenizer: TinyTokenizer, rng: random.Random) -> None:
    check(grounding, graph, tokenizer, rng)


@ALWAYS
@given(grounding=walks, graph=graphs(4), tokenizer=vocabularies, rng=st.randoms(use_true_random=False))
def test_walks(grounding: Grounding, graph: Graph, tokenizer: TinyTokenizer, rng: random.Random) -> None:
    check(grounding, graph, tokenizer, rng)


@ALWAYS
@given(grounding=sequences, graph=graphs(3), tokenizer=vocabularies, rng=st.randoms(use_true_random=False))
def test_sequences(grounding: Grounding, graph: Graph, tokenizer: TinyTokenizer, rng: random.Random) -> None:
    check(grounding, graph, tokenizer, rng)


# ---- JSON ----

bound = st.sampled_from(["entity", {"entity": {"types": ["x"]}}, "relation", "edge"]).map(
    lambda b: {"x-graph": b}
)
leaves = bound | st.sampled_from([{"type": "boolean"}, {"enum": [1, 12, "a", "ab", None]}])
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(
            lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
            inner, st.integers(0, 1), st.integers(0, 1),
        ),
        st.builds(
            lambda properties, optional: {
                "type": "object", "properties": properties, "additionalProperties": False,
                "required": [name for name, free in zip(properties, optional, strict=False) if not free],
            },
            st.dictionaries(st.sampled_from(["a", "ab", "é"]), inner, max_size=3), st.lists(st.booleans(), min_size=3),
        ),
        st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some}),
        st.just({"type": "array", "items": {"x-graph": "entity"}, "minItems": 0, "maxItems": 2, "uniqueItems": True}),
    ),
    max_leaves=4,
)  # fmt: skip


@ALWAYS
@given(schema=values, graph=graphs(3), tokenizer=vocabularies, rng=st.randoms(use_true_random=False))
def test_json(schema: dict[str, Any], graph: Graph, tokenizer: TinyTokenizer, rng: random.Random) -> None:
    texts = {text.encode() for text in legal_json(schema, graph)}
    assume(len(texts) < 3000)
    decoder, refusal = compiled({"schema": schema}, graph, tokenizer)
    if decoder is None:  # for a part that the graph has nothing for, though the whole might do without it
        assert re.match("constraint: .*(graph has no|values are needed)", refusal)
        return
    for _ in range(6):
        text = compare(decoder, Twin(tokenizer, texts), rng.choice)
        assert decoder.read(text).complete


# ---- mentions ----


def prefix_of_mentions(text: bytes, sayable: set[bytes], newline: bool = True) -> bool:
    """Whether text with mentions may begin so, by its characters."""
    whole = text.decode("utf-8", "ignore")
    cut = text[len(whole.encode()) :]
    if whole.encode() != text[: len(text) - len(cut)] or not _may_be_completed(cut):
        return False
    rest = text
    while (start := rest.find(b"[")) >= 0:
        inside, closed, rest = rest[start + 1 :].partition(b"]")
        if not closed:
            return any(name.startswith(inside) for name in sayable)
        if inside not in sayable:
            return False
    return True


def _may_be_completed(cut: bytes) -> bool:
    """Whether some bytes make this a character."""
    if not cut:
        return True
    for tail in (
        b"\x80",
        b"\xbf",
        b"\x80\x80",
        b"\x90\x80",
        b"\xa0\x80",
        b"\x80\x80\x80",
        b"\x90\x80\x80",
        b"\xbf\xbf",
    ):
        try:
            if len((cut + tail).decode()) == 1:
                return True
        except UnicodeDecodeError:
            continue
    return False


def is_mentions(text: bytes, sayable: set[bytes]) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return prefix_of_mentions(text, sayable) and (b"[" not in text or text.rfind(b"]") > text.rfind(b"["))


@ALWAYS
@given(graph=graphs(), tokenizer=vocabularies, data=st.data())
def test_mentions(graph: Graph, tokenizer: TinyTokenizer, data: st.DataObject) -> None:
    all_names = {node.name for node in graph.nodes() if node.name}
    sayable = {name.encode() for name in all_names if not set(name) & set("[]\n")}
    if not sayable:
        with pytest.raises(RequestError, match="brackets"):
            compile_grounding("mentions", graph, tokenizer)
        return
    decoder = compile_grounding("mentions", graph, tokenizer)
    text = decoder.start()
    assert isinstance(text, GroundedText)
    assert text.begin() == []
    known = b""
    for _ in range(data.draw(st.integers(1, 8))):
        wanted = {
            i for i, token in enumerate(tokenizer.tokens)
            if i not in tokenizer.added_ids and prefix_of_mentions(known + token, sayable)
        }  # fmt: skip
        assert mask_of(text, tokenizer.vocab_size) == wanted | (
            {END} if is_mentions(known, sayable) else set()
        )
        brackets = [i for i in sorted(wanted) if b"[" in tokenizer.tokens[i]]
        chosen = brackets if brackets and data.draw(st.booleans()) else sorted(wanted)
        token = data.draw(st.sampled_from(chosen))
        known += tokenizer.tokens[token]
        forced = text.accept(token)
        known += b"".join(tokenizer.tokens[i] for i in forced)
        assert prefix_of_mentions(known, sayable)
    read = decoder.read(known)
    assert read.complete == is_mentions(known, sayable)
    for mention in read.mentions:
        assert read.text[mention.start : mention.end] == mention.entity.name
        assert read.text[mention.start - 1] == "["
        assert all(graph.name_of(node) == mention.entity.name for node in mention.entity.ids)


# ---- vocabularies that cannot spell everything ----


@ALWAYS
@given(
    graph=graphs(4),
    missing=st.sets(st.sampled_from(list(b'ab, ->e"\xc3\xa9\xf0')), min_size=1),
    data=st.data(),
)
def test_what_cannot_be_spelled_is_left_out(graph: Graph, missing: set[int], data: st.DataObject) -> None:
    """Random texts end, whatever bytes the vocabulary lacks: no name is begun that it cannot finish."""
    tokenizer = TinyTokenizer([*(token for token in BYTES if token[0] not in missing), *TOKENS])
    for grounding in (Grounding(), Grounding(count=2), Grounding(kind="walk", max_hops=2)):
        decoder, refusal = compiled(grounding, graph, tokenizer)
        if decoder is None:
            assert refusal.startswith("constraint: ")
            continue
        texts = legal_texts(grounding, graph)
        text = decoder.start()
        assert isinstance(text, GroundedText)
        known = b"".join(tokenizer.tokens[i] for i in text.begin())
        while not text.finished:
            token = data.draw(st.sampled_from(sorted(mask_of(text, tokenizer.vocab_size))))
            following = text.accept(token)
            if token != END:
                known += b"".join(tokenizer.tokens[i] for i in [token, *following])
        assert known in texts


# ---- lists of many names, of which the masks are kept ----


def many_names(count: int) -> list[str]:
    """Names that begin alike, some of them prefixes of others."""
    rng = random.Random(7)
    found: dict[str, None] = {}
    while len(found) < count:
        found[
            "".join(rng.choices(["a", "b", "ab", ", ", "is", "é", "è"], k=rng.randint(1, 4))).strip(", ")
        ] = None
        found.pop("", None)
    return list(found)


@pytest.fixture(scope="module")
def star() -> Graph:
    """A node with edges to 90 others."""
    nodes = [{"id": "hub", "name": "hub"}] + [
        {"id": f"n{i:02}", "name": name} for i, name in enumerate(many_names(90))
    ]
    edges = [{"source": "hub", "relation": "is a", "target": node["id"]} for node in nodes[1:]]
    return Graph.from_dict({"nodes": nodes, "edges": edges})


@pytest.mark.parametrize(
    "grounding",
    [
        Grounding(count=2),
        Grounding(count=2, min_count=1, separator="a"),
        Grounding(kind="walk", start=("hub",), inverse=True, max_hops=2),
        Grounding.parse("walk+answer"),
    ],
    ids=["two", "one or two", "there and back", "walk and end"],
)
def test_many_names(star: Graph, grounding: Grounding) -> None:
    tokenizer = TinyTokenizer([*BYTES, *TOKENS])
    texts = legal_texts(grounding, star)
    assert len(texts) >= 90
    decoder = compile_grounding(grounding, star, tokenizer)
    rng = random.Random(3)
    for _ in range(12):
        text = compare(decoder, Twin(tokenizer, texts), rng.choice)
        assert decoder.read(text).complete


def test_many_names_in_arrays_without_repetition(star: Graph) -> None:
    schema = {
        "type": "array",
        "items": {"x-graph": "entity"},
        "minItems": 2,
        "maxItems": 2,
        "uniqueItems": True,
    }
    tokenizer = TinyTokenizer([*BYTES, *TOKENS, b'", "', b'["', b'ab", "a'])
    texts = {text.encode() for text in legal_json(schema, star)}
    decoder = compile_grounding({"schema": schema}, star, tokenizer)
    rng = random.Random(5)
    for _ in range(8):
        compare(decoder, Twin(tokenizer, texts), rng.choice)


# ---- strings and numbers, of which there are too many to write out ----


def string_prefix(text: bytes, low: int, high: int) -> bool:
    """Whether a JSON string of low to high characters may begin so."""
    if not text.startswith(b'"'):
        return not text
    inside, count = text[1:], 0
    while inside:
        if inside.startswith(b'"'):
            return inside == b'"' and low <= count
        if inside[0] < 0x20 or count >= high:
            return False
        if inside.startswith(b"\\"):
            if len(inside) > 1 and inside[1] not in b'"\\/bfnrt':
                return False
            size = 2
        else:
            size = next((n for n in range(1, 5) if _is_character(inside[:n])), len(inside))
            if size == len(inside) and not _is_character(inside) and not _may_be_completed(inside):
                return False
            if not _is_character(inside[:size]) and size < len(inside):
                return False
        inside, count = inside[size:], count + 1
    return True


def _is_character(text: bytes) -> bool:
    try:
        return len(text.decode()) == 1
    except UnicodeDecodeError:
        return False


@ALWAYS
@given(
    low=st.integers(0, 2),
    more=st.integers(0, 3),
    tokenizer=vocabularies,
    rng=st.randoms(use_true_random=False),
)
def test_strings(low: int, more: int, tokenizer: TinyTokenizer, rng: random.Random) -> None:
    schema = {"type": "string", "minLength": low, "maxLength": low + more}
    decoder = compile_grounding({"schema": schema}, Graph.from_dict({"nodes": [], "edges": []}), tokenizer)
    text = decoder.start()
    assert isinstance(text, GroundedText)
    known = b"".join(tokenizer.tokens[i] for i in text.begin())
    while not text.finished:
        wanted = {
            i for i, token in enumerate(tokenizer.tokens)
            if i not in tokenizer.added_ids and string_prefix(known + token, low, low + more)
        }  # fmt: skip
        assert mask_of(text, tokenizer.vocab_size) == wanted
        multibyte = [i for i in wanted if len(tokenizer.tokens[i]) > 1 or tokenizer.tokens[i][0] > 0x7F]
        token = rng.choice(sorted(multibyte if multibyte and rng.random() < 0.7 else wanted))
        known += b"".join(tokenizer.tokens[i] for i in [token, *text.accept(token)])
    assert low <= len(json.loads(known)) <= low + more
