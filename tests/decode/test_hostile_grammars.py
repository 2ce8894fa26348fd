"""What is made to cost too much is refused or bounded: it neither hangs, nor kills the process, nor fills memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.decode.hostile_grammars import GROUPS

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds after which a group hangs; it takes two to five
ADDED = 400  # megabytes that one grammar may add, in states that it has met on its way

# What becomes of the others: they compile and generate.
REFUSED = {
    "json": {
        "nested objects": "deeper than 128",
        "reference to itself": "allows no text",
        "references in a circle": "allows no text",
        "an object in itself": "Too many items",
        "long chain of objects": "bytes",
        "doubling patterns": "patterns",
        "everything refers to everything": "allows no text",
        "far reference": "must stay in the schema",
        "reference to a file": "must stay in the schema",
        "long value": "too many expressions",
        "long name": "bytes",
        "object of many values": "5000 properties",
        "many properties": "8000 properties",
        "properties in many parts": "6000 properties",
        "much that is required": "10000 properties",
        "many items in many items": "Too many items",
        "product of choices": "schema too large",
        "choices of objects": "Too many items",
        "hidden repetition": "too many expressions",
        "many patterns at once": "25 patterns",
        "many hidden patterns at once": "25 patterns",
        "patterns at once by reference": "13 patterns",
        "patterns of many names": "patternProperties",
        "large multiple": "digits",
        "multiples at once": "product",
        "many multiples": "fuel exhausted",
        "ranges": "too big",
        "exact range": "float range",
    },
    "regex": {
        "repeated repetition": "too many expressions",
        "thrice repeated repetition": "too many expressions",
        "hidden repetition": "too many expressions",
        "many groups": "invalid regex",
        "look-ahead": "look-around",
        "not closed": "unclosed",
    },
    "grammar": {
        "a rule that is itself": "allows no text",
        "many groups": "4000 rules and groups",
        "long chain of rules": "4000 rules and groups",
        "long chain of terminals": "4000 rules and groups",
        "doubling terminals": "too big",
        "intersection": "line 2 at column 13, &",
        "negation": "line 2 at column 4, ~",
        "a schema in it": "25 patterns",
        "options": "option temperature",
        "parameters": "::",
        "string without end": "without its end",
        "groups in GBNF": "nested too deep",
        "long GBNF": "16384 characters",
    },
}
STOPPED = {  # by a limit, in the middle of generation
    "json": {"chain of choices": "4001 items"},
    "regex": {"many states": "too many expressions"},
    "grammar": {"many words": "20001 items"},
}


@pytest.fixture(scope="module", params=sorted(GROUPS))
def group(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, Any]]]:
    """What became of a group, each case tried in one process of limited address space."""
    command = [sys.executable, "-m", "tests.decode.hostile_grammars", request.param]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"killed by {lines[-1]}: {done.stderr}"
    return request.param, [line for line in lines if "became" in line]


def test_every_case_is_bounded(group: tuple[str, list[dict[str, Any]]]) -> None:
    kind, outcomes = group
    assert [outcome["name"] for outcome in outcomes] == list(GROUPS[kind]())
    assert REFUSED[kind].keys() | STOPPED[kind].keys() <= GROUPS[kind]().keys()
    for outcome in outcomes:
        name = outcome["name"]
        wanted = "refused" if name in REFUSED[kind] else "stopped" if name in STOPPED[kind] else "generated"
        assert outcome["became"] == wanted, outcome
        assert outcome["added"] < ADDED, outcome


def test_every_refusal_says_why(group: tuple[str, list[dict[str, Any]]]) -> None:
    kind, outcomes = group
    for outcome in outcomes:
        why = REFUSED[kind].get(outcome["name"]) or STOPPED[kind].get(outcome["name"], "")
        assert why in outcome["why"]
        assert len(outcome["why"]) < 400
        if outcome["became"] == "refused":
            assert outcome["param"] == "structured_outputs"
