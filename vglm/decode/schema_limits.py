"""Whether compiling a JSON schema costs bounded time and memory, found before the compiler sees it.

The grammar library limits most of what it does by fuel, but not all: intersecting n patterns takes time that is
exponential in n (even while masks are computed), multiples of large numbers make automata with as many states, some
steps are quadratic in the properties of an object, and its compiler recurses along references. A schema is a graph of
nodes (references are edges); this module bounds along that graph what would be intersected at one place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import unquote

from vglm.decode.bounds import refuse, shown

MAX_PATTERNS = 8  # patterns and formats that one string has to match
MAX_MULTIPLE = 20_000  # product of the multipleOf of one number, as whole numbers without trailing zeros
MAX_MULTIPLE_DIGITS = 5  # of one multipleOf, with trailing zeros
MAX_PROPERTIES = 1_000  # of one object, by all schemas that describe it
MAX_PATTERN_PAIRS = 10_000  # of patternProperties that are checked against each other
MAX_LEVELS = 8_000  # depth of the schema and of each definition that it refers to, added up

_ONE = ("items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else",
        "additionalItems", "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
_LISTS = ("prefixItems", "items")
_MAPS = ("properties", "dependentSchemas")

Schema = dict[str, Any]


class _Weight(NamedTuple):
    """What schemas that describe one value bring together in the worst case."""

    patterns: int = 0
    multiple: int = 1
    properties: int = 0

    def meet(self, other: _Weight) -> _Weight:
        """The weight of both schemas at once."""
        multiple = min(self.multiple * other.multiple, 10**9)
        return _Weight(self.patterns + other.patterns, multiple, self.properties + other.properties)

    def either(self, other: _Weight) -> _Weight:
        """The weight of one schema or the other."""
        return _Weight(*map(max, self, other))


def checked_schema(schema: Schema) -> Schema:
    """The schema without `$id` (so that references start at its root). Raises RequestError when it is too costly.

    The schema is changed in place.
    """
    nodes = _Nodes(schema)
    weights: dict[int, _Weight] = {}
    num_pairs = 0
    for node in nodes.in_post_order():
        for name in ("$id", "id"):
            if isinstance(node.get(name), str):
                del node[name]
        num_pairs += len(_mapping(node, "patternProperties")) ** 2
        weights[id(node)] = weight = _weigh(node, nodes, weights)
        _check_weight(weight)
        _check_data(node)
    if num_pairs > MAX_PATTERN_PAIRS:
        refuse(
            "the schema has more patternProperties than can be checked against each other; at most 100 are allowed"
        )
    return schema


def _check_weight(weight: _Weight) -> None:
    if weight.patterns > MAX_PATTERNS:
        refuse(
            f"the schema asks a string to match {weight.patterns} patterns or formats; at most {MAX_PATTERNS} can be met"
        )
    if weight.multiple > MAX_MULTIPLE:
        refuse(
            f"the schema's multipleOf values are too large: their product is {weight.multiple}, at most {MAX_MULTIPLE}"
        )
    if weight.properties > MAX_PROPERTIES:
        refuse(
            f"the schema gives an object {weight.properties} properties; at most {MAX_PROPERTIES} are allowed"
        )


def _weigh(node: Schema, nodes: _Nodes, weights: dict[int, _Weight]) -> _Weight:
    """A node that is still being weighed (a recursive schema) counts nothing where it refers to itself."""

    def known(schemas: list[Schema]) -> list[_Weight]:
        return [weights.get(id(schema), _Weight()) for schema in schemas]

    patterns = isinstance(node.get("pattern"), str) + isinstance(node.get("format"), str)
    weight = _Weight(patterns, _multiple(node.get("multipleOf")))
    weight = weight.either(_worst(known(list(_parts(node)))))
    weight = weight.meet(_worst(known(_of_names(node, "patternProperties"))))  # a property may match one, too
    names = {*_mapping(node, "properties"), *_strings(node.get("required"))}
    weight = weight._replace(properties=len(names))
    for whole in known(_schemas(node.get("allOf")) + nodes.targets(node)):
        weight = weight.meet(whole)
    for name in ("anyOf", "oneOf"):
        weight = weight.meet(_worst(known(_schemas(node.get(name)))))
    return weight


def _worst(weights: Iterable[_Weight]) -> _Weight:
    worst = _Weight()
    for weight in weights:
        worst = worst.either(weight)
    return worst


def _multiple(value: Any) -> int:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        return 1
    digits = "".join(map(str, Decimal(str(value)).as_tuple().digits)).lstrip("0")
    exponent = Decimal(str(value)).as_tuple().exponent
    if isinstance(exponent, int) and len(digits) + max(0, exponent) > MAX_MULTIPLE_DIGITS:
        refuse(f"multipleOf is {shown(value)}; at most {MAX_MULTIPLE_DIGITS} digits are allowed")
    return int(digits.rstrip("0") or 1)


def _check_data(node: Schema) -> None:
    """Objects in `const` and `enum` have properties, too."""
    level = [node.get("const"), node.get("enum")]
    while level:
        value = level.pop()
        if isinstance(value, dict):
            _check_weight(_Weight(properties=len(value)))
            level += value.values()
        elif isinstance(value, list):
            level += [v for v in value if isinstance(v, (dict, list))]


class _Nodes:
    """The nodes of a schema: the schemas in it and those that it refers to."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._depth: dict[int, int] = {}
        self._targets: dict[str, Schema] = {}
        self._levels = self._measure(root)

    def _measure(self, value: Any) -> int:
        """Depth of a container, remembered for each container in it."""
        if not isinstance(value, (dict, list)):
            return 0
        inner = value.values() if isinstance(value, dict) else value
        depth = 1 + max(map(self._measure, inner), default=0)
        self._depth[id(value)] = depth
        return depth

    def targets(self, node: Schema) -> list[Schema]:
        """The schema that a node refers to, if it is an object."""
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return []
        if reference not in self._targets:
            self._targets[reference] = target = self._resolve(reference)
            self._levels += self._depth[id(target)] if target else 1
            if self._levels > MAX_LEVELS:
                refuse(
                    f"the schema and the definitions that it refers to are more than {MAX_LEVELS} levels deep together"
                )
        target = self._targets[reference]
        return [target] if target else []

    def _resolve(self, reference: str) -> Schema:
        if reference != "#" and not reference.startswith("#/"):
            refuse(f"$ref is {shown(reference)}, but references must stay in the schema (#/...)")
        value: Any = self._root
        for key in reference.split("/")[1:]:
            key = unquote(key).replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and key.isdecimal() and len(key) < 7 and int(key) < len(value):
                value = value[int(key)]
            elif isinstance(value, dict) and key in value:
                value = value[key]
            else:
                refuse(f"$ref is {shown(reference)}, but nothing is there in the schema")
        return value if isinstance(value, dict) else {}

    def in_post_order(self) -> Iterator[Schema]:
        """Every node after those that it needs, except where it needs itself. Without recursion: chains are long."""
        seen = {id(self._root)}
        stack = [(self._root, self._needed(self._root))]
        while stack:
            node, needed = stack[-1]
            child = next((n for n in needed if id(n) not in seen), None)
            if child is None:
                stack.pop()
                yield node
            else:
                seen.add(id(child))
                stack.append((child, self._needed(child)))

    def _needed(self, node: Schema) -> Iterator[Schema]:
        yield from _parts(node)
        yield from _of_names(node, "patternProperties")
        for name in ("allOf", "anyOf", "oneOf"):
            yield from _schemas(node.get(name))
        yield from self.targets(node)


def _parts(node: Schema) -> Iterator[Schema]:
    """Schemas of the parts of a value."""
    for name in _ONE:
        if isinstance(node.get(name), dict):
            yield node[name]
    for name in _LISTS:
        yield from _schemas(node.get(name))
    for name in _MAPS:
        yield from _of_names(node, name)


def _of_names(node: Schema, name: str) -> list[Schema]:
    return [schema for schema in _mapping(node, name).values() if isinstance(schema, dict)]


def _schemas(value: Any) -> list[Schema]:
    return [schema for schema in value if isinstance(schema, dict)] if isinstance(value, list) else []


def _mapping(node: Schema, name: str) -> dict[str, Any]:
    value = node.get(name)
    return value if isinstance(value, dict) else {}


def _strings(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
