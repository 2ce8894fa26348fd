"""Whether compiling a Lark grammar costs bounded time and memory, found before the compiler sees it.

Refused is what the grammar library does not limit by itself (intersection and negation of expressions take exponential
time, its compiler recurses along rules) and what would not be honoured (options of sampling).
"""

from __future__ import annotations

import re
from json import JSONDecodeError, JSONDecoder
from typing import NoReturn

from vglm.decode.bounds import check_extent, refuse
from vglm.decode.schema_limits import checked_schema

MAX_LEVELS = 4_000  # rules and groups, which may all be nested in each other

_TOKEN = re.compile(
    r"""
    (?P<space> \s+ | (?://|\#)[^\n]* )
  | (?P<string> "(?:[^"\\\n]|\\[^\n])*"i? )
  | (?P<regex> /(?:[^/\\\n]|\\[^\n])+/[a-z]* )
  | (?P<special> <[^<>\s]+> )
  | (?P<directive> %[A-Za-z]+ )
  | (?P<option> \b(?:stop|stop_capture|max_tokens|temperature)\b(?=\s*=) )
  | (?P<word> [A-Za-z0-9_\-.]+ )
  | (?P<parameter> :: )
  | (?P<mark> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_DIRECTIVES = ("%ignore", "%import", "%json")
_DECODER = JSONDecoder()


def check_lark(text: str) -> None:
    """Raises RequestError when the grammar uses what is not supported, or is too large."""
    position = levels = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        assert token is not None  # any character is a mark
        position = token.end()
        kind, spelled = token.lastgroup, token.group()
        if kind == "mark" and spelled in '"/':
            _refuse_at(text, token.start(), f"a {spelled} without its end")
        elif kind == "directive":
            if spelled not in _DIRECTIVES:
                _refuse_at(text, token.start(), f"{spelled}; only {', '.join(_DIRECTIVES)} are supported")
            if spelled == "%json":
                position = _skip_schema(text, position)
        elif kind == "option":
            _refuse_at(text, token.start(), f"the option {spelled}; set it with the sampling parameters")
        elif kind == "parameter" or spelled in ("&", "~", "@"):
            _refuse_at(text, token.start(), f"{spelled}, which is not supported")
        elif spelled in (":", "(", "[") and kind == "mark":
            levels += 1
            if levels > MAX_LEVELS:
                refuse(f"the grammar has more than {MAX_LEVELS} rules and groups")


def _skip_schema(text: str, position: int) -> int:
    start = position + len(text[position:]) - len(text[position:].lstrip())
    try:
        schema, end = _DECODER.raw_decode(text, start)
    except (JSONDecodeError, RecursionError):
        _refuse_at(text, start, "%json without a JSON schema after it")
    check_extent("a schema in the grammar", schema)
    if isinstance(schema, dict):
        checked_schema(schema)
    return end


def _refuse_at(text: str, position: int, what: str) -> NoReturn:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    refuse(f"the grammar has, in line {line} at column {column}, {what}")
