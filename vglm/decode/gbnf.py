"""Grammars in GBNF, the notation of llama.cpp, turned into Lark."""

from __future__ import annotations

import re

from vglm.decode.bounds import refuse

MAX_CHARACTERS = 16 * 1024  # the conversion is quadratic in the number of rules

_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
_OPTIONS = "%llguidance {}"  # what the conversion puts before the rules


def is_gbnf(text: str) -> bool:
    """Whether a grammar has a rule in GBNF's notation."""
    return _RULE.search(text) is not None


def as_lark(text: str) -> str:
    """The grammar in Lark's notation. Raises RequestError when it is malformed or too long."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if len(text) > MAX_CHARACTERS:
        refuse(f"a grammar in GBNF may have at most {MAX_CHARACTERS} characters; write it in Lark")
    try:
        return gbnf_to_lark(text).removeprefix(_OPTIONS)
    except RecursionError:
        refuse("the grammar's groups are nested too deep")
    except Exception as error:
        refuse(f"the grammar cannot be read as GBNF: {str(error)[:200]}")
