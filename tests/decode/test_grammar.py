"""Compiled grammars: every text that their matchers let through is one, whatever the vocabulary."""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.model.test_tokenizer import byte_level, sentencepiece
from vglm.decode.grammar import GrammarCompiler
from vglm.decode.matcher import Matcher
from vglm.decode.structured import StructuredOutputs
from vglm.errors import RequestError, VGLMError
from vglm.model.tokenizer import Tokenizer

VOCAB = 1024  # logits; both vocabularies are smaller
EOS = 2
MakeTokenizer = Callable[[Path], Tokenizer]


def gpt2(path: Path) -> Tokenizer:
    return byte_level(path, "gpt-2")


@pytest.fixture(scope="module", params=[gpt2, sentencepiece], ids=["byte-level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    made: Tokenizer = request.param(tmp_path_factory.mktemp("tokenizer") / "vocabulary.gguf")
    return made


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, VOCAB, [EOS])


def start(compiler: GrammarCompiler, **fields: Any) -> Matcher:
    return compiler.compile(StructuredOutputs(**fields)).start()


def allowed(matcher: Matcher) -> list[int]:
    row = np.zeros(VOCAB // 32, np.uint32)
    matcher.fill_mask(row)
    assert matcher.error is None
    tokens: list[int] = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
    return tokens


def token_of(tokenizer: Tokenizer, text: str) -> int:
    return next(i for i in range(VOCAB) if tokenizer.token_bytes(i) == text.encode())


def generate(tokenizer: Tokenizer, matcher: Matcher, seed: int, limit: int = 600) -> str | None:
    """A random text; None when it is not complete after `limit` tokens.

    First bytes are equally likely, whatever the number of tokens that begin with them, so that texts end.
    """
    rng = random.Random(seed)
    tokens = matcher.begin()
    while not matcher.finished and len(tokens) < limit:
        by_byte: dict[bytes, list[int]] = {}
        for token in allowed(matcher):
            by_byte.setdefault(b"" if token == EOS else tokenizer.token_bytes(token)[:1], []).append(token)
        assert by_byte, "nothing is allowed, not even the end"
        token = rng.choice(rng.choice(list(by_byte.values())))
        if token == EOS:
            break
        tokens += [token, *matcher.accept(token)]
    else:
        if not matcher.finished:
            return None
    return b"".join(map(tokenizer.token_bytes, tokens)).decode("utf-8")  # strictly


def texts(tokenizer: Tokenizer, compiler: GrammarCompiler, count: int = 20, **fields: Any) -> list[str]:
    found = [generate(tokenizer, start(compiler, **fields), seed) for seed in range(count)]
    complete = [text for text in found if text is not None]
    assert complete, "no text has ended"
    return complete


def follow(tokenizer: Tokenizer, matcher: Matcher, text: str) -> bool:
    """Whether a text, as the tokenizer writes it, is complete and allowed. The matcher may force parts of it."""
    known = b"".join(map(tokenizer.token_bytes, matcher.begin()))
    wanted = text.encode()
    while len(known) < len(wanted):
        if wanted[: len(known)] != known:
            return False
        fitting = [
            token
            for token in allowed(matcher)
            if token not in tokenizer.special_ids
            and wanted.startswith(tokenizer.token_bytes(token), len(known))
        ]
        if not fitting:
            return False
        token = max(fitting, key=lambda token: len(tokenizer.token_bytes(token)))
        known += tokenizer.token_bytes(token)
        known += b"".join(map(tokenizer.token_bytes, matcher.accept(token)))
    return known == wanted and (matcher.finished or EOS in allowed(matcher))


# ---- every kind ----


@pytest.mark.parametrize(
    "pattern", [r"\d{4}-\d{2}-\d{2}", "(ab|cd)*e", "[a-zà-ü]{3,9}", "x+y?", "(日本|中文)+", r"\w\s\S", "a{5}"]
)
def test_expressions(tokenizer: Tokenizer, compiler: GrammarCompiler, pattern: str) -> None:
    for text in texts(tokenizer, compiler, regex=pattern):
        assert re.fullmatch(pattern, text)


def test_choices(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    choices = ["yes", "no", "yessir", "ünsure", 'a "quoted" \\ one', "line\nbreak", "<|im_end|>", "🎉"]
    found = set(texts(tokenizer, compiler, 150, choice=choices))
    assert found == set(choices)
    assert texts(tokenizer, compiler, 1, choice=["only this"]) == ["only this"]
    assert start(compiler, choice=["only this"]).begin()


def test_json_objects(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    for text in texts(tokenizer, compiler, 40, json_object=True):
        assert isinstance(json.loads(text), dict)


SUM = r"""
start: sum
sum: product ("+" product)*
product: NUMBER | "(" sum ")"
NUMBER: /[0-9]{1,3}/
"""
SUM_GBNF = r"""
root ::= product ("+" product)*  # a sum
product ::= number | "(" root ")"
number ::= [0-9]{1,3}
"""


@pytest.mark.parametrize("grammar", [SUM, SUM_GBNF], ids=["Lark", "GBNF"])
def test_grammars(tokenizer: Tokenizer, compiler: GrammarCompiler, grammar: str) -> None:
    for text in texts(tokenizer, compiler, grammar=grammar):
        assert set(text) <= set("0123456789+()")
        assert text.count("(") == text.count(")")
        assert not re.search(r"\d{4}|\+\+|\(\)|\)\(|^\+|\+$", text)
    for text, good in (("1+2", True), ("(12+345)+6", True), ("1+", False), ("(1", False), ("1234", False)):
        assert follow(tokenizer, start(compiler, grammar=grammar), text) == good


def test_schemas_within_grammars(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    grammar = 'start: "=" body\nbody: %json {"enum": ["a", 1, null]}'
    assert set(texts(tokenizer, compiler, grammar=grammar)) == {'="a"', "=1", "=null"}


CALL = {
    "begin": '<call>{"name": "add", "args": ',
    "schema": {"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"], "additionalProperties": False},
    "end": "}</call>",
}  # fmt: skip
STOP = {"begin": "<call>stop", "schema": {"const": None}, "end": "!"}
TAGS = {"structures": [CALL, STOP], "triggers": ["<call>"]}
ADD = '<call>{"name": "add", "args": {"n": 22}}</call>'


@pytest.mark.parametrize(
    ("options", "good", "bad"),
    [
        (
            {},
            ["", "any text, <b>even</b> {this}", ADD, f"so: {ADD} and <call>stopnull! then", ADD + ADD],
            ["<call>", "<call>other", f"{ADD}<call>x", ADD[:-1]],
        ),
        ({"at_least_one": True}, [ADD, ADD + " and more " + ADD], ["", "text", f"text {ADD}"]),
        ({"stop_after_first": True}, ["", "some text", f"text {ADD}"], [ADD + " more", ADD + ADD]),
        (
            {"at_least_one": True, "stop_after_first": True},
            [ADD, "<call>stopnull!"],
            ["", f"a {ADD}", ADD + " "],
        ),
    ],
)
def test_structural_tags(
    tokenizer: Tokenizer, compiler: GrammarCompiler, options: dict[str, bool], good: list[str], bad: list[str]
) -> None:
    tags = {**TAGS, **options}
    for text in good:
        assert follow(tokenizer, start(compiler, structural_tag=tags), text), text
    for text in bad:
        assert not follow(tokenizer, start(compiler, structural_tag=tags), text), text


def test_what_follows_a_trigger_is_forced(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    matcher = start(compiler, structural_tag={**TAGS, "structures": [CALL], "at_least_one": True})
    forced = b"".join(map(tokenizer.token_bytes, matcher.begin())).decode()
    assert len(forced) > 20
    assert ADD.startswith(forced)


def test_tags_that_are_special_tokens(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    """A control token in a tag is that token, and text that spells it is not."""
    name = next(tokenizer.id_to_token(i) for i in sorted(tokenizer.special_ids) if i not in (0, EOS))
    special = tokenizer.token_to_id(name or "")
    tags = {"structures": [{"begin": f"{name}x", "end": "."}], "triggers": [name]}
    matcher = start(compiler, structural_tag={**tags, "at_least_one": True})
    assert matcher.begin()[0] == special
    matcher = start(compiler, structural_tag=tags)
    assert matcher.begin() == []
    assert special in allowed(matcher)
    assert follow(tokenizer, start(compiler, structural_tag=tags), f"no {name}y")  # just text


# ---- JSON schemas ----

NAMES = st.sampled_from(["a", "name", "long_property_name", "ü", "a b", 'q"', "0"])
SCALARS = st.one_of(
    st.just({"type": "string"}),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 4),
        st.integers(0, 6),
    ),
    st.sampled_from(["^[a-z]{2,5}$", "^(yes|no)$", r"^\d+(\.\d+)?$", "a.*b", "^é+$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.sampled_from(["date", "date-time", "ipv4", "uuid", "email"]).map(lambda f: {"type": "string", "format": f}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-1000, 1000),
        st.integers(0, 5000),
    ),
    st.builds(lambda low: {"type": "number", "exclusiveMinimum": low}, st.integers(-9, 9)),
    st.sampled_from([3, 7, 25]).map(lambda n: {"type": "integer", "multipleOf": n}),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}, {"type": "number"}]),
    st.lists(st.one_of(st.integers(-5, 5), st.text(max_size=5), st.none()), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.just({"const": {"k": [1, None, "x"]}}),
)  # fmt: skip


def objects(schemas: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def build(properties: dict[str, Any], optional: list[bool], more: Any) -> dict[str, Any]:
        required = [name for name, free in zip(properties, optional, strict=False) if not free]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": more,
        }

    return st.builds(
        build,
        st.dictionaries(NAMES, schemas, max_size=4),
        st.lists(st.booleans(), min_size=4, max_size=4),
        st.one_of(st.just(False), st.just(False), schemas),
    )


def lists(schemas: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        schemas,
        st.integers(0, 3),
        st.integers(0, 3),
    )


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        objects(inner),
        lists(inner),
        st.lists(inner, min_size=2, max_size=3).map(lambda some: {"anyOf": some}),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda some: {"type": "array", "prefixItems": some, "items": False}
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, spaced=st.booleans(), seed=st.integers(0, 1000))
def test_what_a_schema_lets_through_is_valid(
    tokenizer: Tokenizer, compiler: GrammarCompiler, schema: dict[str, Any], spaced: bool, seed: int
) -> None:
    structured = StructuredOutputs(json=schema, disable_any_whitespace=not spaced)
    text = generate(tokenizer, compiler.compile(structured).start(), seed)
    assume(text is not None)
    assert text is not None
    value = json.loads(text)
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    assert [error.message for error in validator.iter_errors(value)] == [], text
    if not spaced:
        assert not re.search(r"\n|\t|[\[{] | [\]}]|,(?! )|:(?! )", re.sub(r'"(\\.|[^"\\])*"', '""', text)), (
            text
        )


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["value", "children"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}  # fmt: skip


def test_recursive_schemas(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    for text in texts(tokenizer, compiler, 30, json=TREE):
        jsonschema.validate(json.loads(text), TREE)


def test_long_names_are_forced(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    schema = {
        "type": "object",
        "properties": {
            "the_first_long_name": {"enum": ["x", "y"]},
            "the_second_long_name": {"type": "boolean"},
        },
        "required": ["the_first_long_name", "the_second_long_name"],
        "additionalProperties": False,
    }
    matcher = start(compiler, json=schema)
    tokens, sampled = matcher.begin(), 0
    while not matcher.finished:
        token = allowed(matcher)[-1]
        tokens += [token, *matcher.accept(token)]
        sampled += 1
    text = b"".join(map(tokenizer.token_bytes, tokens)).decode()
    jsonschema.validate(json.loads(text), schema)
    assert sampled * 4 < len(tokens)


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "string", "format": "color"}, "color"),
        ({"type": "string", "pattern": "(?<=a)b"}, "look-around"),
        ({"type": "nothing"}, "nothing"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
        ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "oneOf"),
    ],
)
def test_what_would_not_be_enforced_is_refused(
    compiler: GrammarCompiler, schema: dict[str, Any], word: str
) -> None:
    for _ in range(2):  # the second time from what is remembered
        with pytest.raises(RequestError, match=word) as refused:
            compiler.compile(StructuredOutputs(json=schema))
        assert refused.value.param == "structured_outputs"
        assert "json cannot be compiled" in str(refused.value)


def test_a_schema_may_ask_for_leniency(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    schema = {
        "type": "array",
        "uniqueItems": True,
        "items": {"enum": [1]},
        "maxItems": 2,
        "x-guidance": {"lenient": True},
    }
    assert set(texts(tokenizer, compiler, 40, json=schema)) == {"[]", "[1]", "[1, 1]"}


# ---- matchers ----


def test_matchers_of_a_grammar_are_independent(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(StructuredOutputs(regex="a{1,4}|b{1,4}"))
    first, second = grammar.start(), grammar.start()
    a, b = (token_of(tokenizer, text) for text in ("a", "b"))
    assert first.accept(a) == []
    assert second.accept(b) == []
    assert b not in allowed(first)
    assert a not in allowed(second)
    assert {a, b} <= set(allowed(grammar.start()))


def test_many_masks_at_once_are_those_of_each(compiler: GrammarCompiler) -> None:
    matchers = [start(compiler, regex=f"{letter}+") for letter in "abcdef"] + [
        start(compiler, json_object=True)
    ]
    masks = np.full((len(matchers), VOCAB // 32), 0xFFFFFFFF, np.uint32)
    Matcher.fill_masks(matchers, masks)
    for matcher, mask in zip(matchers, masks, strict=True):
        single = np.zeros(VOCAB // 32, np.uint32)
        matcher.fill_mask(single)
        assert np.array_equal(mask, single)
    Matcher.fill_masks([], masks[:0])


def test_ids_that_the_tokenizer_does_not_know_are_never_allowed(
    tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    matcher = start(compiler, regex="(?s:.*)")
    assert max(allowed(matcher)) < tokenizer.vocab_size < VOCAB
    assert not set(allowed(matcher)) & (tokenizer.special_ids - {EOS})


def test_a_token_that_was_not_allowed_is_an_error(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(StructuredOutputs(regex="a{3}z"))
    matcher = grammar.start()
    with pytest.raises(VGLMError, match="doesn't satisfy the grammar"):
        matcher.accept(token_of(tokenizer, "b"))
    assert matcher.error
    row = np.ones(VOCAB // 32, np.uint32)
    matcher.fill_mask(row)
    assert not row.any()


# ---- the compiler ----


def test_grammars_are_kept_and_the_oldest_forgotten(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, VOCAB, [EOS], capacity=3)
    wanted = [StructuredOutputs(regex=f"{letter}+") for letter in "abcd"]
    grammars = [compiler.compile(w) for w in wanted[:3]]
    assert compiler.compile(wanted[0]) is grammars[0]
    compiler.compile(wanted[3])  # in the place of the second, which was used least recently
    assert compiler.compile(wanted[0]) is grammars[0]
    assert compiler.compile(wanted[1]) is not grammars[1]


def test_a_grammar_that_has_reached_a_limit_is_compiled_again(compiler: GrammarCompiler) -> None:
    """Matchers share the states of the lexer, so that one which has used them up spoils the others."""
    structured = StructuredOutputs(regex=".*(.*(.*(.*a.{10}){3}b.{9}){4}c.{8}){5}")
    grammar = compiler.compile(structured)
    assert compiler.compile(structured) is grammar
    matcher = grammar.start()
    follow_until_it_fails(matcher)
    assert matcher.error is not None
    assert grammar.spoiled
    assert compiler.compile(structured) is not grammar


def follow_until_it_fails(matcher: Matcher) -> None:
    rng, row = random.Random(0), np.zeros(VOCAB // 32, np.uint32)
    while matcher.error is None:
        matcher.fill_mask(row)
        tokens = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        with contextlib.suppress(VGLMError):
            matcher.accept(int(rng.choice([token for token in tokens.tolist() if token != EOS] or [0])))


def test_threads_compile_at_once(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, VOCAB, [EOS])
    same = StructuredOutputs(json=TREE)
    found: list[Any] = []
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(10):
                mine = StructuredOutputs(regex=f"[a-f]{{{1 + number}}}x{{{1 + i}}}")
                text = generate(tokenizer, compiler.compile(mine).start(), i)
                assert text is not None
                assert re.fullmatch(f"[a-f]{{{1 + number}}}x{{{1 + i}}}", text)
                found.append(compiler.compile(same))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed
    assert len(found) == 60
    assert len(set(map(id, found))) == 1


class Words(Tokenizer):
    """A tokenizer whose decoder puts spaces between tokens."""

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return " ".join(super(Words, self).decode([i], skip_special) for i in ids)


def test_models_that_cannot_follow_a_grammar(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="no end-of-text token"):
        GrammarCompiler(tokenizer, VOCAB, []).compile(StructuredOutputs(regex="a"))
    words = Words.from_json(tokenizer.to_json())
    with pytest.raises(RequestError, match="do not spell bytes"):
        GrammarCompiler(words, VOCAB, [EOS]).compile(StructuredOutputs(regex="a"))


def test_a_start_without_grammars_does_not_load_the_library() -> None:
    script = (
        "import sys, vglm, vglm.llm\n"
        "vglm.SamplingParams(structured_outputs=vglm.StructuredOutputs(regex='a'))\n"
        "assert 'llguidance' not in sys.modules\n"
        "assert 'vglm.decode.schema_limits' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
