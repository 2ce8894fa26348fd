"""The Jinja sandbox of chat templates, with a budget of work built in.

The sandbox keeps a template away from Python's internals; the budget keeps it from using up the machine. Each
loop round, call and character is charged, sizes are checked before anything large is built, and filters and
methods that can build large values from small ones are not there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any, cast

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from vglm.errors import ModelError

_MAX_NUMBER = 10_000


class Refused(Exception):
    """Raised by a template through `raise_exception`."""


class Budget:
    """What one rendering may still do."""

    def __init__(self, steps: int, characters: int) -> None:
        self.steps = steps
        self.characters = characters

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise ModelError("the model's chat template does too much work: too many loop rounds and calls")

    def produce(self, characters: int) -> None:
        self.characters -= characters
        if self.characters < 0:
            raise ModelError("the model's chat template does too much work: it builds too much text")

    def weigh(self, value: object) -> None:
        """Charge for the text of a value before it is made: a small nested list can have an enormous one."""
        pending = [value]
        while pending:
            item = pending.pop()
            self.step()
            if isinstance(item, str):
                self.produce(len(item))
            elif isinstance(item, Mapping):
                pending.extend(item.keys())
                pending.extend(item.values())
            elif isinstance(item, list | tuple | set | frozenset):
                pending.extend(item)
            elif isinstance(item, int):
                self.produce(item.bit_length() // 3 + 1)


budget_now: ContextVar[Budget] = ContextVar("chat_templatebudget_now")


class _Meter(NodeTransformer):
    """Puts the budget's filters around loops, outputs and joined strings of a parsed template."""

    def visit_For(self, node: nodes.For, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node, *args, **kwargs)
        if node.recursive:
            raise jinja2.TemplateSyntaxError("recursive loops are not supported", node.lineno)
        node.iter = _filtered(node.iter, "_each")
        return node

    def visit_Concat(self, node: nodes.Concat, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node, *args, **kwargs)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_concat")

    def visit_Output(self, node: nodes.Output, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node, *args, **kwargs)
        node.nodes = [n if isinstance(n, nodes.TemplateData) else _filtered(n, "_emit") for n in node.nodes]
        return node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    wrapped = nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)
    return wrapped.set_environment(ENVIRONMENT)  # type: ignore[return-value,unused-ignore]


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with the budget built in."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Meter().visit(super()._parse(source, name, filename))
        return template

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` can build any amount of text from a few characters."""
        named = getattr(value, "__name__", "") in ("format", "format_map")
        if named and isinstance(getattr(value, "__self__", None), str):
            raise ModelError("the model's chat template calls str.format, which is not supported")
        return None

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = budget_now.get()
        budget.step()
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                    budget.produce(len(sequence) * max(times, 0))
        elif operator == "**" and not (abs(left) <= _MAX_NUMBER and abs(right) <= 64):
            raise ModelError("the model's chat template computes a power that is too large")
        elif operator == "%" and isinstance(left, str):
            raise ModelError("the model's chat template uses % formatting, which is not supported")
        elif (
            operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple)
        ):
            budget.produce(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = budget_now.get()
        budget.step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _check_method(budget, owner, str(getattr(__obj, "__name__", "")), args)
        return super().call(__context, __obj, *args, **kwargs)


_STRING_METHODS = frozenset(
    name
    for name in dir(str)
    if name.startswith("is")
    or name in ("capitalize", "casefold", "count", "endswith", "find", "index", "join", "lower", "lstrip")
    or name
    in ("partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit")
    or name in ("rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper")
)


def _check_method(budget: Budget, text: str, name: str, args: Sequence[Any]) -> None:
    """Charge a string method for its result before it runs."""
    if name not in _STRING_METHODS:
        raise ModelError(f"the model's chat template calls str.{name}, which is not supported")
    budget.produce(len(text))
    if name == "replace" and len(args) >= 2 and isinstance(args[1], str):
        found = text.count(args[0]) if isinstance(args[0], str) else 0
        budget.produce(found * len(args[1]))
    elif name == "join" and args and isinstance(args[0], list | tuple):
        budget.weigh(args[0])
        budget.produce(len(text) * len(args[0]))


@pass_context
def _each(_context: Context, values: Iterable[Any]) -> Iterator[Any]:
    budget = budget_now.get()
    for value in values:
        budget.step()
        yield value


@pass_context
def _concat(_context: Context, values: list[Any]) -> str:
    budget_now.get().weigh(values)
    return "".join(str(value) for value in values)


@pass_context
def _emit(_context: Context, value: Any) -> Any:
    budget_now.get().weigh(value)
    return value


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: plain JSON, not escaped for HTML."""
    budget = budget_now.get()
    budget.weigh(value)
    if isinstance(indent, str):
        indent = len(indent)
    if indent is not None and not 0 <= indent <= 16:
        raise ModelError("the model's chat template indents JSON by more than 16")
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    budget.produce(len(text))
    return text


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(str(form)[:100])


def _raise_exception(message: object) -> None:
    raise Refused(str(message)[:1000])


def _join(values: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    items: list[Any] = list(values) if attribute is None else [value[attribute] for value in values]
    budget = budget_now.get()
    budget.weigh(items)
    budget.produce(len(items) * len(str(separator)))
    return str(separator).join(str(item) for item in items)


def _replace(text: Any, old: str, new: str) -> str:
    source = str(text)
    budget_now.get().produce(len(source) + source.count(old) * len(new))
    return source.replace(old, new)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * min(max(int(width), 0), 256)
    lines = str(text).splitlines()
    budget_now.get().produce(len(text) + len(lines) * len(margin))
    kept = [margin + line if (i or first) and (line or blank) else line for i, line in enumerate(lines)]
    return "\n".join(kept)


def _string(value: Any) -> str:
    budget_now.get().weigh(value)
    return str(value)


_REMOVED_FILTERS = (
    *("batch", "center", "filesizeformat", "forceescape", "format", "pprint", "random", "slice", "truncate"),
    *("urlencode", "urlize", "wordcount", "wordwrap", "xmlattr"),
)
_OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "_each": _each,
    "_concat": _concat,
    "_emit": _emit,
    "tojson": _tojson,
    "join": _join,
    "replace": _replace,
    "indent": _indent,
    "string": _string,
}


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it only renders its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols]
    )
    del environment.globals["lipsum"]
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    for name in _REMOVED_FILTERS:
        del environment.filters[name]
    environment.filters.update(_OWN_FILTERS)
    return environment


ENVIRONMENT = _environment()
