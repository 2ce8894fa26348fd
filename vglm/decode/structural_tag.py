"""Free text with structured parts, as for tool calls: a trigger switches to the parts that begin with it.

start: (tags_0 | tags_1)* text           any text; in it, or instead of it,
tags_0: text-up-to-trigger_0 (rest of begin, JSON, end | ...)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from json import dumps
from typing import Any

from vglm.decode.bounds import MAX_BYTES, refuse, shown
from vglm.decode.schema_limits import checked_schema

MAX_TAGS = 128
_KEPT = ("coerce_one_of", "lenient")  # of a schema's own options: oneOf as anyOf, unknown keywords ignored
_ANYTHING = {"type": "object"}
_FIELDS = ("structures", "triggers", "at_least_one", "stop_after_first")


def check_tags(tags: dict[str, Any]) -> None:
    """Raises RequestError when this is not a structural tag; schemas are normalised in place."""
    if tags.pop("type", "structural_tag") != "structural_tag":
        refuse("the type of a structural_tag must be structural_tag")
    if unknown := sorted(tags.keys() - set(_FIELDS)):
        refuse(f"structural_tag has {shown(unknown[0])}, but only {', '.join(_FIELDS)} are known")
    structures, triggers = tags.get("structures"), tags.get("triggers")
    if not isinstance(structures, list) or not 1 <= len(structures) <= MAX_TAGS:
        refuse(f"structures of structural_tag must be a list of 1 to {MAX_TAGS} structures")
    if not isinstance(triggers, list) or not all(isinstance(t, str) and t for t in triggers):
        refuse("triggers of structural_tag must be a list of texts, none of them empty")
    for name in ("at_least_one", "stop_after_first"):
        if not isinstance(tags.get(name, False), bool):
            refuse(f"{name} of structural_tag must be true or false")
    for structure in structures:
        _check_structure(structure, triggers)


def _check_structure(structure: Any, triggers: list[str]) -> None:
    if not isinstance(structure, dict) or structure.keys() - {"begin", "schema", "end"}:
        refuse("a structure of structural_tag must be an object with begin, schema and end")
    for name in ("begin", "end"):
        text = structure.setdefault(name, "")
        if not isinstance(text, str) or len(text) > MAX_BYTES:
            refuse(f"{name} of a structure must be a text")
    if sum(structure["begin"].startswith(trigger) for trigger in triggers) != 1:
        refuse(
            f"a structure begins with {shown(structure['begin'])}, which must start with exactly one of the triggers"
        )
    schema = structure.setdefault("schema", None)
    if schema is None:
        structure["schema"] = dict(_ANYTHING)
    elif isinstance(schema, dict):
        checked_schema(schema)
    else:
        refuse(f"schema of a structure is {shown(schema)}, but must be an object")


def tags_as_lark(tags: Mapping[str, Any], options: Mapping[str, Any], literal: Callable[[str], str]) -> str:
    """The Lark grammar of a checked structural tag.

    `options`: how JSON is written (llguidance's x-guidance). `literal`: text as Lark, with special tokens where the
    tokenizer has them.
    """
    triggers = [t for t in dict.fromkeys(tags["triggers"]) if _of_trigger(tags, t)]
    calls = " | ".join(f"tags_{i}" for i in range(len(triggers)))
    lines = [f"start: {_start(tags, calls)}", "text: TEXT", r"TEXT: /(.|\n)*/"]
    for i, structure in enumerate(tags["structures"]):
        schema = dumps(with_options(structure["schema"], options), ensure_ascii=False)
        lines.append(f"json_{i}: %json {schema}")
        lines.append(f"tag_{i}: {literal(structure['begin'])} json_{i} {literal(structure['end'])}")
    for i, trigger in enumerate(triggers):
        mark = literal(trigger)
        if mark.startswith("<"):  # a special token, which text cannot contain
            lines.append(f"head_{i}: TEXT {mark}")
        else:
            lines.append(f"head_{i}[lazy]: TEXT {mark}")
        parts = [
            f"{literal(s['begin'][len(trigger) :])} json_{k} {literal(s['end'])}"
            for k, s in _of_trigger(tags, trigger)
        ]
        lines.append(f"tags_{i}: head_{i} ({' | '.join(parts)})")
    return "\n".join(lines) + "\n"


def with_options(schema: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A schema that tells llguidance how JSON is written, in place of what it says itself (which may be costly)."""
    own = schema.get("x-guidance")
    kept = (
        {name: own[name] for name in _KEPT if isinstance(own.get(name), bool)}
        if isinstance(own, dict)
        else {}
    )
    return {**schema, "x-guidance": {**kept, **options}}


def _start(tags: Mapping[str, Any], calls: str) -> str:
    required, single = tags.get("at_least_one", False), tags.get("stop_after_first", False)
    first = "(" + " | ".join(f"tag_{i}" for i in range(len(tags["structures"]))) + ")"
    if single:
        return first if required else f"{calls} | text"
    return f"{first} ({calls})* text" if required else f"({calls})* text"


def _of_trigger(tags: Mapping[str, Any], trigger: str) -> list[tuple[int, Mapping[str, Any]]]:
    return [(i, s) for i, s in enumerate(tags["structures"]) if s["begin"].startswith(trigger)]
