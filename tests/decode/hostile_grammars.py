"""Structured outputs that are made to cost too much. Run as a program, it tries one group and prints what became of each.

    python -m tests.decode.hostile_grammars json|regex|grammar [name ...]

Prints a line of JSON for each case: its name, what became of it, why, seconds to make and compile, seconds of the
slowest mask and of the slowest token, megabytes that it has added. The address space is limited: a library that
allocates without end kills this process.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from typing import Any

import numpy as np

from vglm.decode.grammar import GrammarCompiler
from vglm.decode.structured import StructuredOutputs
from vglm.errors import RequestError, VGLMError
from vglm.model.pull import resolve_model
from vglm.model.tokenizer import Tokenizer
from vglm.model.weight_cache import load_packed

Schema = dict[str, Any]
ADDRESS_SPACE = 3 << 30
STEPS = 200  # tokens generated at random
MODEL = "smollm2-135m-instruct"


def definitions(count: int, link: Any, last: Schema) -> Schema:
    """A schema whose definitions a0, a1, ... refer to each other as `link(i)` says."""
    return {"$ref": "#/$defs/a0", "$defs": {f"a{i}": link(i) for i in range(count)} | {f"a{count}": last}}


def ref(i: int) -> Schema:
    return {"$ref": f"#/$defs/a{i}"}


def nested(depth: int, wrap: Any) -> Schema:
    schema: Schema = {"type": "string"}
    for _ in range(depth):
        schema = wrap(schema)
    return schema


def of_strings(count: int, **rest: Any) -> Schema:
    return {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(count)}, **rest}


def patterns(count: int, pattern: str) -> Schema:
    return {"allOf": [{"type": "string", "pattern": pattern.replace("#", str(i))} for i in range(count)]}


def multiples(*values: float) -> Schema:
    return {"allOf": [{"type": "number", "multipleOf": value} for value in values]}


def schemas() -> dict[str, Schema]:
    string = {"type": "string"}
    big = {"type": "array", "minItems": 10**6, "maxItems": 10**6}
    return {
        # nesting and references
        "nested objects": nested(2000, lambda s: {"properties": {"a": s}, "required": ["a"]}),
        "nested lists": nested(120, lambda s: {"type": "array", "items": s, "minItems": 1}),
        "nested choices": nested(50, lambda s: {"anyOf": [s, {"type": "null"}]}),
        "reference to itself": {"$ref": "#"},
        "references in a circle": definitions(1, lambda i: ref(1), ref(0)),
        "an object in itself": {
            "type": "object",
            "properties": {"a": {"$ref": "#"}},
            "required": ["a"],
            "additionalProperties": False,
        },
        "long chain of references": definitions(3000, lambda i: ref(i + 1), string),
        "long chain of objects": definitions(
            3500, lambda i: {"properties": {"x": ref(i + 1)}, "required": ["x"]}, string
        ),
        "chain of objects": definitions(
            2000, lambda i: {"properties": {"x": ref(i + 1)}, "required": ["x"]}, string
        ),
        "chain of intersections": definitions(2000, lambda i: {"allOf": [ref(i + 1), string]}, string),
        "chain of choices": definitions(2000, lambda i: {"anyOf": [ref(i + 1), {"type": "null"}]}, string),
        "doubling intersections": definitions(24, lambda i: {"allOf": [ref(i + 1), ref(i + 1)]}, string),
        "doubling patterns": definitions(
            24, lambda i: {"allOf": [ref(i + 1), ref(i + 1)]}, {"type": "string", "pattern": "a.*b"}
        ),
        "doubling choices": definitions(24, lambda i: {"anyOf": [ref(i + 1), ref(i + 1)]}, string),
        "everything refers to everything": definitions(
            20, lambda i: {"anyOf": [ref((i * 7 + j) % 20) for j in range(20)]}, string
        ),
        "options of the library": {
            "x-guidance": {"whitespace_pattern": '"+', "key_separator": "(a{1000}){1000}"},
            **nested(2, lambda s: {"properties": {"a": s}, "required": ["a"]}),
        },
        "far reference": {"$ref": "http://127.0.0.1:9/schema.json"},
        "reference to a file": {"$ref": "file:///etc/passwd"},
        # sizes
        "many values": {"enum": [f"value {i * 7919 % 1000003}" for i in range(12000)]},
        "long value": {"const": "x" * 200_000},
        "long name": {
            "type": "object",
            "properties": {"k" * 200_000: string},
            "required": ["k" * 200_000],
        },
        "long value behind a choice": {"anyOf": [{"const": 1}, {"const": "x" * 200_000}]},
        "object of many values": {"const": {f"k{i}": [i] * 5 for i in range(5000)}},
        "many properties": of_strings(8000),
        "properties": of_strings(1000),
        "properties, all required": of_strings(1000, required=[f"p{i}" for i in range(1000)]),
        "properties in many parts": {
            "allOf": [{"properties": {f"p{i}_{j}": string for j in range(300)}} for i in range(20)]
        },
        "much that is required": {"type": "object", "required": [f"r{i}" for i in range(10000)]},
        "long strings": {"type": "string", "minLength": 10**6, "maxLength": 10**9},
        "many items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
        "many items in many items": {**big, "items": {**big, "items": {"type": "null"}}},
        "many properties of any name": {"type": "object", "minProperties": 10**6, "maxProperties": 10**7},
        "long tuples": {"type": "array", "prefixItems": [{"type": "integer"}] * 5000},
        "product of choices": {
            "allOf": [{"anyOf": [{"properties": {f"p{i}_{j}": string}} for j in range(8)]} for i in range(6)]
        },
        "choices of objects": {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {**{f"q{j}": string for j in range(20)}, "t": {"const": f"k{i}"}},
                    "required": ["t"],
                }
                for i in range(400)
            ]
        },
        # expressions in schemas
        "ambiguous pattern": {"type": "string", "pattern": "^(x+x+)+y$"},
        "repeated repetition": {"type": "string", "pattern": "(a{1000}){1000}"},
        "hidden repetition": {"type": "string", "pattern": "^qqq(a{1000}){1000}$"},
        "few patterns at once": patterns(8, "^(z|b{3}.*a#.*)$"),
        "many patterns at once": patterns(25, ".*a#.*"),
        "many hidden patterns at once": patterns(25, "^(z|b{3}.*a#.*)$"),
        "patterns at once by reference": {
            **patterns(12, ".*a#.*"),
            "$ref": "#/$defs/x",
            "$defs": {"x": {"pattern": ".*b.*"}},
        },
        "patterns of many names": {
            "type": "object",
            "patternProperties": {f"^k{i}_.*": string for i in range(500)},
        },
        "patterns of names": {
            "type": "object",
            "patternProperties": {f"^k{i}_.*": string for i in range(90)},
            "additionalProperties": False,
        },
        "many formats": {"allOf": [{"format": "email"}, {"format": "uri"}, {"format": "hostname"}]},
        # numbers
        "large multiple": multiples(999_983),
        "multiples at once": multiples(101, 103, 107, 109),
        "multiple": multiples(9_973),
        "many multiples": {
            "type": "object",
            "properties": {
                f"p{i}": {"type": "integer", "multipleOf": 9973, "minimum": 12345 * i} for i in range(1000)
            },
        },
        "ranges": {
            "anyOf": [{"type": "integer", "minimum": i * 98765432109, "maximum": 10**18} for i in range(1000)]
        },
        "exact range": {"type": "number", "minimum": 1.23456789e-300, "maximum": 1e300},
    }


def expressions() -> dict[str, str]:
    return {
        "ambiguous": "(x+x+)+y",
        "repeated repetition": "(a{1000}){1000}",
        "thrice repeated repetition": "((a{100}){100}){100}",
        "hidden repetition": "qqq(a{1000}){1000}",
        "long": ".{100000}",
        "long words": r"\w{5000}",
        "far back": ".*a.{1000}",
        "far back in three ways": "(.*a.{20})|(.*b.{21})|(.*c.{22})",
        "many states": ".*(.*(.*(.*a.{10}){3}b.{9}){4}c.{8}){5}",
        "letters of all scripts": r"(\p{L}|\p{N}){3000}x",
        "many words": "|".join(f"w{i}ord{i * 7919 % 10007}" for i in range(15000)),
        "many groups": "(" * 20000 + "a" + ")" * 20000,
        "look-ahead": "(?=a)b",
        "not closed": "[0-9",
    }


def grammars() -> dict[str, str]:
    def rules(count: int, rule: str, last: str) -> str:
        lines = [rule.replace("#", str(i)).replace("+1", str(i + 1)) for i in range(count)]
        return "\n".join([*lines, last])

    return {
        "ambiguous": 'start: e\ne: e e | "a" | e e e',
        "a rule that is itself": "start: a\na: a",
        "a text without end": "start: A A\nA: /x+/",
        "a text without end in GBNF": "root ::= a a\na ::= [x]+",
        "nothing again and again": 'start: a*\na: b*\nb: "x"?',
        "many groups": "start: " + "(" * 20000 + '"a"' + ")" * 20000,
        "chain of rules": rules(3900, "r#: r+1", 'r3900: "a"\nstart: r0'),
        "long chain of rules": rules(8000, "r#: r+1", 'r8000: "a"\nstart: r0'),
        "chain of terminals": rules(1900, 'R#: ("x" R+1) | "y"', 'R1900: "a"\nstart: R0'),
        "long chain of terminals": rules(8000, "R#: R+1", 'R8000: "a"\nstart: R0'),
        "doubling terminals": rules(30, "R#: R+1 R+1", 'R30: "a"\nstart: R0'),
        "doubling rules": rules(3000, "r#: r+1 r+1", 'r3000: "a"\nstart: r0'),
        "repetition": 'start: "a"{1000000}',
        "repeated repetition": 'start: ((("a"{100}){100}){100}){100}',
        "intersection": "start: T\nT: " + " & ".join(f"/.*a{i}.*/" for i in range(30)),
        "negation": "start: T\nT: ~/.*a.{30}/",
        "many words": "start: " + " | ".join(f'"w{i * 7919 % 100003}"' for i in range(20000)),
        "a schema in it": "start: %json " + json.dumps(patterns(25, ".*a#.*")),
        "options": 'start[temperature=0.5]: "a"',
        "parameters": 'start: a::0\na::_: "x"',
        "string without end": 'start: "' + '\\"' * 100_000,
        "blank lines in GBNF": "\n" * 16_000 + 'root ::= "a"',
        "chain of rules in GBNF": rules(800, "r# ::= r+1", 'r800 ::= "a"\nroot ::= r0'),
        "groups in GBNF": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000,
        "long GBNF": "root ::= " + " | ".join(f'"w{i}"' for i in range(6000)),
    }


GROUPS: dict[str, Any] = {"json": schemas, "regex": expressions, "grammar": grammars}


def load_compiler() -> GrammarCompiler:
    packed = load_packed(resolve_model(MODEL), "int8", lambda done: None)
    tokenizer = Tokenizer.from_json(packed.tokenizer_json)
    return GrammarCompiler(tokenizer, packed.config.vocab_size, packed.config.eos_token_ids)


def attempt(compiler: GrammarCompiler, kind: str, value: Any) -> dict[str, Any]:
    """What becomes of one: refused when made or compiled, stopped on the way, or generated."""
    began = time.perf_counter()
    out: dict[str, Any] = {"became": "generated", "why": "", "mask": 0.0, "token": 0.0}
    try:
        grammar = compiler.compile(StructuredOutputs(**{kind: value}))
        out["compile"] = time.perf_counter() - began
        generate(grammar.start(), out)
    except RequestError as error:
        out |= {"became": "refused", "why": str(error), "param": error.param}
        out["compile"] = time.perf_counter() - began
    except VGLMError as error:
        out |= {"became": "stopped", "why": str(error)}
    return out


def generate(matcher: Any, out: dict[str, Any]) -> None:
    """Follow random tokens, as a model that makes no sense would."""
    rng = random.Random(0)
    row = np.zeros(-(-49152 // 32), np.uint32)
    matcher.begin()
    for _ in range(STEPS):
        if matcher.finished:
            return
        began = time.perf_counter()
        matcher.fill_mask(row)
        out["mask"] = max(out["mask"], time.perf_counter() - began)
        if matcher.error is not None:
            raise VGLMError(matcher.error)
        allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        token = int(rng.choice(allowed.tolist()))
        if token in (0, 2):  # the end
            return
        began = time.perf_counter()
        matcher.accept(token)
        out["token"] = max(out["token"], time.perf_counter() - began)


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main(kind: str, *names: str) -> None:
    compiler = load_compiler()
    compiler.compile(StructuredOutputs(regex="a"))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    for name, value in GROUPS[kind]().items():
        if names and name not in names:
            continue
        print(json.dumps({"name": name}), flush=True)  # who was it, should the process die
        before = resident()
        out = attempt(compiler, kind, value)
        print(json.dumps({"name": name, **out, "added": (resident() - before) >> 20}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
