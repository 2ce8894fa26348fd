"""What a grounded text must be, as a caller asks for it: checked when made, before it meets a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from json import dumps, loads
from typing import Any, NoReturn

from vglm.decode.bounds import parse_object, shown
from vglm.errors import RequestError

KINDS = ("answer", "walk", "mentions", "pattern", "json", "sequence")
MAX_COUNT = 256
MAX_HOPS = 16
MAX_PARTS = 16
MAX_IDS = 1_000_000
MAX_SEPARATOR = 200
_ANSWER = "\nAnswer: "  # between a walk and its end
_OF_WALK = ("max_hops", "min_hops", "start", "relations", "inverse")
_OF_ANSWER = ("types", "candidates", "count", "min_count")


def refuse(message: str) -> NoReturn:
    """Raises RequestError of the parameter `constraint`."""
    raise RequestError(f"constraint: {message}", "constraint")


@dataclass(frozen=True, kw_only=True, slots=True)
class Grounding:
    """What a generated text must be. Values are normalised: lists become tuples, a schema JSON text.

    Raises RequestError (of parameter `constraint`) for what makes no sense. What does not fit a graph is refused when
    the grounding is compiled for it.

    Args:
        kind: `answer`: names of entities. `walk`: a path that exists, `A -> relation -> B -> ...`. `mentions`: free text
            in which every `[...]` is the name of an entity. `pattern`: a text of `pattern`. `json`: a JSON value after
            `schema`. `sequence`: `parts`.
        types: node types of the answer, of the entities that are mentioned, or of the entity where a walk ends;
            none: all.
        candidates: likewise, ids of nodes.
        count: how many different names an answer has.
        min_count: as few as so many, if it is less than `count`.
        separator: between the names of an answer (", "), or between the parts of a sequence (a new line).
        start: ids of the nodes where a walk may start; none: all.
        min_hops, max_hops: edges of a walk.
        relations: that a walk may take; none: all.
        inverse: whether a walk may take edges against their direction, written `B <- relation <- A`.
        schema: of kind `json`, in which `x-graph` binds values to the graph (see `vglm.decode.grounded.schema`).
        pattern: of kind `pattern`: texts, choices, lists and names (see `vglm.decode.grounded.pattern`).
        parts: of kind `sequence`.
        of_walk: in a sequence: the answer is the end of the walk just before it.
    """

    kind: str = "answer"
    types: Iterable[str] = ()
    candidates: Iterable[str] = ()
    count: int = 1
    min_count: int | None = None
    separator: str | None = None
    start: Iterable[str] = ()
    min_hops: int = 1
    max_hops: int = 3
    relations: Iterable[str] = ()
    inverse: bool = False
    schema: str | Mapping[str, Any] | None = None
    pattern: str | Sequence[Any] | Mapping[str, Any] | None = None
    parts: Iterable[Grounding | Mapping[str, Any]] = ()
    of_walk: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            refuse(f"kind is {shown(self.kind)}; there are {', '.join(KINDS)}, and kinds joined by +")
        for name in ("types", "candidates", "start", "relations"):
            self._set(name, _texts(name, getattr(self, name)))
        if self.separator is None:
            self._set("separator", "\n" if self.kind == "sequence" else ", ")
        self._check_numbers()
        separator = self.separator
        if (
            not isinstance(separator, str)
            or not 0 < len(separator) <= MAX_SEPARATOR
            or not _is_unicode(separator)
        ):
            refuse(f"separator must be a text of 1 to {MAX_SEPARATOR} characters")
        if (self.schema is not None) != (self.kind == "json"):
            refuse("a schema and the kind json come together")
        if self.schema is not None:
            self._set("schema", dumps(_object("schema", self.schema), ensure_ascii=False))
        if (self.pattern is not None) != (self.kind == "pattern"):
            refuse("a pattern and the kind pattern come together")
        if self.pattern is not None:
            self._set("pattern", _pattern(self.pattern))
        self._set("parts", self._checked_parts())

    def _check_numbers(self) -> None:
        if self.min_count is None:
            self._set("min_count", self.count)
        for name, low, high in (
            ("count", 1, MAX_COUNT),
            ("min_count", 1, self.count),
            ("max_hops", 1, MAX_HOPS),
            ("min_hops", 0, self.max_hops),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                refuse(f"{name} is {shown(value)}, but must be a whole number")
            if not low <= value <= high:
                refuse(f"{name} is {shown(value)}, but must lie in {low} to {high}")
        for name in ("inverse", "of_walk"):
            if not isinstance(getattr(self, name), bool):
                refuse(f"{name} is {shown(getattr(self, name))}, but must be true or false")

    def _checked_parts(self) -> tuple[Grounding, ...]:
        if isinstance(self.parts, (str, bytes, Mapping)) or not isinstance(self.parts, Iterable):
            refuse("parts must be a list")
        given = tuple(self.parts)
        if (self.kind == "sequence") != bool(given):
            refuse("a sequence has parts, and no other kind has")
        if len(given) > MAX_PARTS:
            refuse(f"a sequence has {len(given)} parts; at most {MAX_PARTS} are allowed")
        if any(isinstance(part, Grounding) and part.kind == "sequence" for part in given):
            refuse("a part of a sequence must not be a sequence")
        parts = tuple(Grounding.parse(part) for part in given)
        for before, part in zip((None, *parts), parts, strict=False):
            if part.kind in ("json", "pattern", "sequence"):
                refuse(f"a part of a sequence must not be of the kind {part.kind}")
            if part.of_walk and (
                part.kind != "answer" or part.count != 1 or before is None or before.kind != "walk"
            ):
                refuse("of_walk is for an answer of one entity after a walk")
        return parts

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @staticmethod
    def parse(value: str | Mapping[str, Any] | Grounding) -> Grounding:
        """A grounding from a kind (`"answer"`, or several joined: `"walk+answer"`), from a mapping of its fields, or from
        JSON text of one.

        In joined kinds, types, candidates and counts are the answer's, and start, hops and relations the walk's; the
        answer after a walk is the walk's end. Raises RequestError of parameter `constraint`.
        """
        if isinstance(value, Grounding):
            return value
        if isinstance(value, str) and not value.lstrip().startswith("{"):
            value = {"kind": value}
        if not isinstance(value, (str, Mapping)):
            refuse(f"expected a kind or an object, found {shown(value)}")
        given = dict(value) if isinstance(value, Mapping) else _object("it", value)
        if unknown := sorted(str(name) for name in given.keys() - _NAMES):
            refuse(f"it has {shown(unknown[0])}, but only {', '.join(sorted(_NAMES))} are known")
        kind = given.get("kind", next((kind for name, kind in _KIND_OF.items() if name in given), "answer"))
        if isinstance(kind, str) and "+" in kind:
            return _joined(kind.split("+"), given)
        return Grounding(**{**given, "kind": kind})


_NAMES = {field.name for field in fields(Grounding)}
_KIND_OF = {"schema": "json", "pattern": "pattern", "parts": "sequence"}


def _joined(kinds: list[str], given: dict[str, Any]) -> Grounding:
    if len(kinds) > MAX_PARTS or "parts" in given or {"json", "pattern", "sequence"} & set(kinds):
        refuse("only answer, walk and mentions can be joined, at most 16 of them")
    parts: list[Grounding] = []
    for position, kind in enumerate(kinds):
        bound = kind == "answer" and position > 0 and kinds[position - 1] == "walk"
        names = _OF_WALK if kind == "walk" else _OF_ANSWER if kind == "answer" and not bound else ()
        part = Grounding(kind=kind, of_walk=bound, **{name: given[name] for name in names if name in given})
        if bound:
            if given.get("count", 1) != 1:
                refuse("a walk has one end; count must be 1")
            ends = {name: given[name] for name in ("types", "candidates") if name in given}
            parts[-1] = replace(parts[-1], **ends)
        parts.append(part)
    separator = given.get("separator", _ANSWER if kinds[-1] == "answer" else None)
    return Grounding(kind="sequence", parts=parts, separator=separator)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        refuse(f"{name} is {shown(value)}, but must be a list of texts")
    texts = tuple(value)
    if len(texts) > MAX_IDS:
        refuse(f"{name} has {len(texts)} entries; at most {MAX_IDS} are allowed")
    for text in texts:
        if not isinstance(text, str) or not _is_unicode(text):
            refuse(f"{name} has {shown(text)}, but must be a list of texts")
    return tuple(dict.fromkeys(texts))


def _pattern(value: Any) -> str:
    """A checked pattern, as JSON text."""
    from vglm.decode.grounded.pattern import check_pattern

    if isinstance(value, str):
        try:
            value = loads(value)
        except (ValueError, RecursionError) as error:
            refuse(f"pattern is not JSON: {str(error)[:200]}")
    made = _object("pattern", {"pattern": value})["pattern"]
    check_pattern(made)
    return dumps(made, ensure_ascii=False)


def _is_unicode(text: str) -> bool:
    return text.isascii() or text.encode("utf-8", "replace").decode() == text


def _object(name: str, value: Any) -> dict[str, Any]:
    """A JSON object of bounded size and depth."""
    try:
        return parse_object(name, value)
    except RequestError as error:
        refuse(str(error).removeprefix("structured_outputs: "))
