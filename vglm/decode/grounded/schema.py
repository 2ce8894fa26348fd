"""JSON schemas whose values are bound to a graph, as programs over bytes.

    {"type": "object", "properties": {
        "disease": {"x-graph": {"entity": {"types": ["disease"]}}},
        "evidence": {"type": "array", "items": {"x-graph": "edge"}, "maxItems": 3},
        "certain": {"type": "boolean"}}, "required": ["disease", "evidence", "certain"]}

`x-graph` is `"entity"` (a name; options `types`, `candidates`), `"relation"` (a name; option `relations`) or `"edge"` (an
object with source, relation and target that is an edge; options `types` and `candidates` of its target, `start`, `relations`).

A program knows: type, enum, const, anyOf, properties, required, items, minItems, maxItems, uniqueItems (of bound names and
enums), minLength, maxLength, minimum and maximum of integers within `MAX_VALUES` of each other, and local $ref. Other keywords
are left to the grammar library (`schema_enums.py`), where the graph's names are few enough to be written out.
JSON is written as {"a": 1, "b": [2, 3]}, properties in the order of the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from json import dumps
from typing import Any
from urllib.parse import unquote

import numpy as np

from vglm import _native
from vglm.decode.bounds import shown
from vglm.decode.grounded.forms import FormBuilder, json_text
from vglm.decode.grounded.grounding import Grounding, refuse
from vglm.decode.grounded.names import Index
from vglm.decode.grounded.program import UNBOUNDED, Chars, Effect, Op, Source
from vglm.graph.strings import StringTable

BOUND = "x-graph"
MAX_VALUES = 10_000  # of an integer with bounds
MAX_LENGTH = 1_000_000
_MAX_DEPTH = 64
_DIGITS, _MORE_DIGITS = b"0123456789", 15
_NOTES = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions",
          "readOnly", "writeOnly", "deprecated", "additionalProperties"}  # fmt: skip
_OF_TYPE = {
    "object": {"properties", "required"},
    "array": {"items", "minItems", "maxItems", "uniqueItems"},
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum"},
    "number": set(),
    "boolean": set(),
    "null": set(),
}
_OPTIONS = {
    "entity": {"types", "candidates"},
    "relation": {"relations"},
    "edge": {"types", "candidates", "start", "relations"},
}
Schema = Mapping[str, Any]


class Unsupported(Exception):
    """A keyword that no program is written for."""


def binding(schema: Any) -> tuple[str, dict[str, Any]] | None:
    """What a schema's value is bound to, "entity", "relation" or "edge", and its options; None: to nothing.

    Raises RequestError for a binding that makes no sense.
    """
    if not isinstance(schema, Mapping) or BOUND not in schema:
        return None
    value = schema[BOUND]
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in _OPTIONS:
        refuse(
            f"{BOUND} is {shown(schema[BOUND])}, but must be one of {', '.join(_OPTIONS)}, or an object with one of them"
        )
    ((what, options),) = value.items()
    if not isinstance(options, Mapping) or not options.keys() <= _OPTIONS[what]:
        refuse(f"the options of {BOUND} {what} must be an object with {', '.join(sorted(_OPTIONS[what]))}")
    expected = "object" if what == "edge" else "string"
    if schema.get("type", expected) != expected:
        refuse(f"{BOUND} {what} is of the type {expected}")
    if others := sorted(schema.keys() - _NOTES - {BOUND, "type"}):
        refuse(f"{BOUND} stands beside {shown(others[0])}, which would say something else of the same value")
    return what, dict(options)


class SchemaWriter:
    """Writes a schema into the program of a form builder. Raises Unsupported for what is not known here."""

    def __init__(self, form: FormBuilder, root: Schema) -> None:
        self._form, self._program = form, form.program
        self._root = root
        self._open: list[str] = []  # references that are being followed
        self._indices: list[Index] = []  # of enums, which lists refer to

    def write(self, schema: Any, depth: int = 0, effect: Effect = Effect.KEEP) -> int | None:
        """One value. Returns the list that it comes from, if it is a name of one."""
        if depth > _MAX_DEPTH:
            raise Unsupported("more than 64 levels")
        if not isinstance(schema, Mapping):
            raise Unsupported(f"a schema that is {shown(schema)}")
        if (bound := binding(schema)) is not None:
            return self._bound(*bound, effect)
        if "$ref" in schema:
            return self._reference(schema, depth, effect)
        if "const" in schema or "enum" in schema:
            return self._enum(schema, effect)
        if "anyOf" in schema:
            self._known(schema, {"anyOf"})
            self._program.one_of([partial(self.write, s, depth + 1) for s in _list(schema["anyOf"])])
            return None
        types = schema.get("type")
        if isinstance(types, list) and types:
            kept = {t: {**{k: schema[k] for k in schema.keys() - _known_words()}, "type": t} for t in types}
            for t in types:
                kept[t] |= {k: schema[k] for k in schema.keys() & _OF_TYPE.get(t, set())}
            self._program.one_of([partial(self.write, kept[t], depth + 1) for t in types])
            return None
        if not isinstance(types, str) or types not in _OF_TYPE:
            raise Unsupported(f"a schema without a type, or of the type {shown(types)}")
        self._known(schema, {"type", *_OF_TYPE[types]})
        return self._of_type(types, schema, depth, effect)

    def _known(self, schema: Schema, words: set[str]) -> None:
        if unknown := sorted(schema.keys() - _NOTES - words):
            raise Unsupported(shown(unknown[0]))

    def _reference(self, schema: Schema, depth: int, effect: Effect) -> int | None:
        self._known(schema, {"$ref"})
        reference = schema["$ref"]
        if not isinstance(reference, str) or reference in self._open:
            raise Unsupported("a $ref to itself")
        target = target_of(reference, self._root)
        if target is None or not reference.startswith("#"):
            refuse(f"$ref is {shown(reference)}, but nothing is there in the schema")
        self._open.append(reference)
        names = self.write(target, depth + 1, effect)
        self._open.pop()
        return names

    # ---- values of the graph

    def _bound(self, what: str, options: dict[str, Any], effect: Effect) -> int | None:
        form, program = self._form, self._program
        wanted = Grounding(kind="walk" if what == "edge" else "answer", **options)
        if what == "edge":
            self._edge(wanted)
            return None
        if what == "entity":
            names = form.entity_list(form.nodes(wanted), True, "entities that a value is bound to")
        else:
            flags = form.relation_flags(wanted.relations)
            chosen = None if flags is None else np.flatnonzero(flags).astype(np.int32)
            found = _native.NameList(form.names.json_relations.native, chosen)
            if not len(found):
                refuse("the graph has no relation that a value could be bound to")
            names = program.list_of(found)
        program.text('"')
        program.name(names, effect)
        program.text('"')
        return names

    def _edge(self, wanted: Grounding) -> None:
        program = self._program
        walk, starts = self._form.walk(wanted, True, 1, 1)
        program.text('{"source": "')
        program.name(starts, Effect.SET_NODES)
        program.text('", "relation": "')
        program.name_on(Source.RELATIONS, walk, Effect.SET_RELATION)
        program.text('", "target": "')
        program.name_on(Source.TARGETS, walk, Effect.STEP)
        program.text('"}')
        program.emit(Op.CLEAR)

    # ---- other values

    def _enum(self, schema: Schema, effect: Effect) -> int:
        self._known(schema, {"const", "enum", "type"})
        values = [schema["const"]] if "const" in schema else _list(schema["enum"])
        if "type" in schema:
            types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            values = [value for value in values if any(_is_of_type(value, t) for t in types)]
        texts = sorted({dumps(value, ensure_ascii=False) for value in values})
        if not texts:
            refuse("an enum of the schema allows no value")
        for text in texts:
            self._program.vocabulary.require_spellable(text)
        return self._one_of(texts, effect)

    def _one_of(self, texts: list[str], effect: Effect) -> int:
        table = StringTable.of(texts)
        index = Index(table, table, None, None)
        names = self._program.list_of(_native.NameList(index.native))
        self._program.name(names, effect)
        return names

    def _of_type(self, kind: str, schema: Schema, depth: int, effect: Effect) -> int | None:
        program = self._program
        if kind == "object":
            self._object(schema, depth)
        elif kind == "array":
            self._array(schema, depth)
        elif kind == "string":
            least, most = _bounds(schema, "minLength", "maxLength", MAX_LENGTH)
            program.text('"')
            if most:
                json_text(program, least, most)
            program.text('"')
        elif kind in ("boolean", "null"):
            return self._one_of(["false", "true"] if kind == "boolean" else ["null"], effect)
        elif "minimum" in schema or "maximum" in schema:
            return self._one_of(_between(schema.get("minimum"), schema.get("maximum")), effect)
        else:
            self._number(fraction=kind == "number")
        return None

    def _number(self, fraction: bool) -> None:
        """RFC 8259, with a bounded number of digits so that it ends."""
        program = self._program
        positive = program.split()
        program.text("-")
        program.patch(positive)
        longer = program.split()
        program.text("0")
        whole = program.jump()
        program.patch(longer)
        program.chars(b"123456789", 1, 1, Chars.ASCII)
        program.chars(_DIGITS, 0, _MORE_DIGITS, Chars.ASCII)
        program.patch(whole)
        if not fraction:
            return
        without = program.split()
        program.text(".")
        program.chars(_DIGITS, 1, _MORE_DIGITS, Chars.ASCII)
        program.patch(without)
        without = program.split()
        program.chars(b"eE", 1, 1, Chars.ASCII)
        program.chars(b"+-", 0, 1, Chars.ASCII)
        program.chars(_DIGITS, 1, 2, Chars.ASCII)
        program.patch(without)

    def _object(self, schema: Schema, depth: int) -> None:
        """Properties in order, each left out if it may be; a counter says whether one was written before."""
        program = self._program
        properties, required = schema.get("properties", {}), _list(schema.get("required", []))
        if not isinstance(properties, Mapping):
            raise Unsupported("properties that are no object")
        if missing := [name for name in required if name not in properties]:
            raise Unsupported(f"a required property {shown(missing[0])} that is not described")
        program.text("{")
        program.emit(Op.PUSH)
        certain = False  # whether one was written before in any case
        for position, (name, inner) in enumerate(properties.items()):
            left_out = None if name in required else program.split()
            if certain:
                program.text(", ")
            elif position:
                self._comma_unless_first()
            program.text(f"{dumps(name, ensure_ascii=False)}: ")
            self.write(inner, depth + 1)
            program.emit(Op.COUNT, 1)
            if left_out is not None:
                program.patch(left_out)
            certain |= name in required
        program.emit(Op.POP)
        program.text("}")

    def _comma_unless_first(self) -> None:
        program = self._program
        first = program.split()
        program.emit(Op.AT_LEAST, 1)
        program.text(", ")
        written = program.jump()
        program.patch(first)
        program.emit(Op.LESS, 1)
        program.patch(written)

    def _array(self, schema: Schema, depth: int) -> None:
        program = self._program
        least, most = _bounds(schema, "minItems", "maxItems", MAX_LENGTH)
        unique = schema.get("uniqueItems", False)
        if not isinstance(unique, bool) or "items" not in schema:
            raise Unsupported("an array without items")
        if most == 0:
            return program.text("[]")
        program.text("[")
        program.emit(Op.PUSH)
        empty = program.split() if least == 0 else None
        self._items(schema["items"], depth, least, most, unique)
        if empty is not None:
            program.patch(empty)
        program.emit(Op.POP)
        return program.text("]")

    def _items(self, items: Any, depth: int, least: int, most: int, unique: bool) -> None:
        program, limit = self._program, max(least, most)
        effect = Effect.USE if unique else Effect.KEEP
        first = program.jump()
        again = program.here
        program.emit(Op.LESS, most)
        guard = program.emit(Op.LESS, UNBOUNDED)
        program.text(", ")
        program.patch(first)
        names = self.write(items, depth + 1, effect)
        if unique:
            if names is None:
                raise Unsupported("uniqueItems of items that are neither bound names nor enums")
            program.require_unused(guard, names, least)
        program.emit(Op.COUNT, limit)
        end = program.split()
        program.jump(again)
        program.patch(end)
        program.emit(Op.AT_LEAST, least)


def _known_words() -> set[str]:
    return set().union(*_OF_TYPE.values()) | {"type"}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Unsupported(f"{shown(value)} where a list is expected")
    return value


def _bounds(schema: Schema, low: str, high: str, largest: int) -> tuple[int, int]:
    least, most = schema.get(low, 0), schema.get(high, UNBOUNDED)
    for name, value in ((low, least), (high, most)):
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or value > largest
            or (value < 0 and name in schema)
        ):
            raise Unsupported(f"{name} that is {shown(value)}")
    if 0 <= most < least:
        refuse(f"the schema's {low} {least} is more than its {high} {most}")
    return least, most


def _between(low: Any, high: Any) -> list[str]:
    for value in (low, high):
        if not isinstance(value, int) or isinstance(value, bool):
            raise Unsupported("an integer without minimum and maximum that are integers")
    if low > high:
        refuse(f"the schema's minimum {low} is more than its maximum {high}")
    if high - low >= MAX_VALUES:
        raise Unsupported(f"an integer of more than {MAX_VALUES} values")
    return sorted(str(value) for value in range(low, high + 1))


def _is_of_type(value: Any, kind: Any) -> bool:
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    types = {"string": str, "boolean": bool, "object": dict, "array": list, "null": type(None)}
    return isinstance(kind, str) and kind in types and isinstance(value, types[kind])


def target_of(reference: str, root: Any) -> Any:
    """What a reference within a schema refers to; None: nothing."""
    target = root
    for key in reference.removeprefix("#").split("/")[1:]:
        key = unquote(key).replace("~1", "/").replace("~0", "~")
        target = target.get(key) if isinstance(target, Mapping) else None
    return target
