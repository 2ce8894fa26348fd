"""Text of graphs stays where it is put: a name cannot begin a line of its own."""

from __future__ import annotations

import re

# Characters that could break a line or hide in one; written as escapes, so that a name stays inside its line.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """`text` with line breaks, control and direction characters written as escapes."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
