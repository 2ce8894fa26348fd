"""What a generated text must be, as a caller asks for it: checked when made, before any grammar is compiled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from json import dumps
from typing import Any

from vglm.decode.bounds import MAX_BYTES, checked_text, parse_object, refuse, shown

MAX_CHOICES = 10_000
KINDS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")


@dataclass(frozen=True, kw_only=True, slots=True)
class StructuredOutputs:
    """What a generated text must be, with vLLM's names; exactly one of the first six is given.

    Values are normalised: JSON becomes text, `choice` a tuple. Raises RequestError (of parameter
    `structured_outputs`) for what cannot be used or would cost too much to compile.

    Args:
        json: a JSON schema, as a mapping or as text. The order of properties is the schema's. A keyword that
            is not enforced is refused when the grammar is compiled, never ignored.
        json_object: any JSON object.
        regex: a regular expression that the whole text matches, without look-around; `\\d` and `\\w` are ASCII.
        choice: texts of which one is generated.
        grammar: a context-free grammar whose rule `start` the text follows: Lark as llguidance reads it
            (without `&`, `~`, parameters and options), or GBNF, whose rule is `root`.
        structural_tag: free text with structured parts, as for tool calls: a mapping, or JSON, with
            `structures` (each has `begin`, `schema` and `end`; a schema that is missing means any JSON object)
            and `triggers` (each `begin` starts with one; it switches free text to structure).
            `at_least_one`: the text begins with a structure. `stop_after_first`: it ends after one.
        disable_any_whitespace: JSON is written as `{"a": 1, "b": [2, 3]}`, which lets the engine fill in more
            by itself. False leaves white space to the model. (vLLM's default is False.)
    """

    json: str | Mapping[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Iterable[str] | None = None
    grammar: str | None = None
    structural_tag: str | Mapping[str, Any] | None = None
    disable_any_whitespace: bool = True

    def __post_init__(self) -> None:
        if self.json_object is not None and not isinstance(self.json_object, bool):
            refuse(f"json_object is {shown(self.json_object)}, but must be True or False")
        if self.json_object is False:
            self._normalise("json_object", None)
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            refuse(f"give exactly one of {', '.join(KINDS)}; got {' and '.join(given) or 'none of them'}")
        if not isinstance(self.disable_any_whitespace, bool):
            refuse(
                f"disable_any_whitespace is {shown(self.disable_any_whitespace)}, but must be True or False"
            )
        self._normalise(self.kind, _CHECKS[self.kind](getattr(self, self.kind)))

    @property
    def kind(self) -> str:
        """The name of what was given, one of KINDS."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    def _normalise(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


# The checks of schemas and grammars are imported when there are some: most requests have none.


def _json(value: Any) -> str:
    from vglm.decode.schema_limits import checked_schema

    return dumps(checked_schema(parse_object("json", value)), ensure_ascii=False)


def _choice(value: Any) -> tuple[str, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        refuse(f"choice is {shown(value)}, but must be a list of texts")
    choices = tuple(value)
    if not 1 <= len(choices) <= MAX_CHOICES:
        refuse(f"choice has {len(choices)} texts, but must have 1 to {MAX_CHOICES}")
    for text in choices:
        checked_text("each choice", text)
    if sum(len(text.encode()) for text in choices) > MAX_BYTES:
        refuse(f"the choices have more than {MAX_BYTES} bytes together")
    return choices


def _grammar(value: Any) -> str:
    from vglm.decode.gbnf import as_lark, is_gbnf
    from vglm.decode.lark_limits import check_lark

    text = checked_text("grammar", value)
    check_lark(as_lark(text) if is_gbnf(text) else text)
    return text


def _structural_tag(value: Any) -> str:
    from vglm.decode.structural_tag import check_tags

    parsed = parse_object("structural_tag", value)
    check_tags(parsed)
    return dumps(parsed, ensure_ascii=False)


_CHECKS = {
    "json": _json,
    "json_object": lambda value: value,
    "regex": lambda value: checked_text("regex", value),
    "choice": _choice,
    "grammar": _grammar,
    "structural_tag": _structural_tag,
}
