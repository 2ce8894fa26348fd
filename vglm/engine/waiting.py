"""Who runs next: the priorities that a request may have."""

from __future__ import annotations

import re

from vglm.errors import RequestError

#: The named classes; any integer from MIN_PRIORITY to MAX_PRIORITY is a class of its own. Lower runs first.
PRIORITY_CLASSES = {"high": -1, "normal": 0, "low": 1}
MIN_PRIORITY, MAX_PRIORITY = -100, 100


def parse_priority(value: int | str) -> int:
    """The number of a class: "high", "normal", "low", or a whole number. Raises RequestError otherwise."""
    if isinstance(value, str):
        name = value.strip().lower()
        if name in PRIORITY_CLASSES:
            return PRIORITY_CLASSES[name]
        number = int(name) if re.fullmatch(r"[+-]?[0-9]{1,3}", name, re.ASCII) else None
    else:
        number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if number is None or not MIN_PRIORITY <= number <= MAX_PRIORITY:
        shown = repr(value) if not isinstance(value, int) or abs(value) < 10**9 else "a far larger number"
        raise RequestError(
            f"priority is {shown[:60]}, but must be 'high', 'normal', 'low', or a whole number from "
            f"{MIN_PRIORITY} to {MAX_PRIORITY}; lower runs first",
            "priority",
        )
    return number
