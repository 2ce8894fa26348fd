"""What to tell a model about the form that is expected of its text."""

from __future__ import annotations

from typing import Any

from vglm.decode.grounded.forms import ALONG
from vglm.decode.grounded.grounding import Grounding
from vglm.graph.limits import shown


def instructions(grounding: Grounding) -> str:
    """A sentence or two that tell a model which form is expected."""
    if grounding.kind == "sequence":
        parts: Any = grounding.parts
        said = [instructions(part) for part in parts]
        return f"{len(parts)} parts, separated by {shown(grounding.separator)}. " + " ".join(
            f"Part {number}: {text}" for number, text in enumerate(said, 1)
        )
    if grounding.kind == "answer":
        return _say_answer(grounding)
    if grounding.kind == "walk":
        return _say_walk(grounding)
    if grounding.kind == "mentions":
        return f"Write text, and put the name of every {_entity(grounding)} of the graph that you mention in [brackets]."
    if grounding.kind == "pattern":
        return "Write a text of the form that is expected, with the names of entities in [brackets]."
    return f"Answer with JSON after this schema, with names as the graph has them: {grounding.schema}"


def _say_answer(grounding: Grounding) -> str:
    if grounding.of_walk:
        return "Repeat the name of the last entity of the walk."
    if grounding.count == 1:
        wanted = f"the name of one {_entity(grounding)} of the graph, exactly as it is written there"
    else:
        several = _range(grounding.min_count or grounding.count, grounding.count)
        wanted = (
            f"the names of {several} different entities{_of_types(grounding)} of the graph, exactly as they are written "
            f"there, separated by {shown(grounding.separator)}"
        )
    return f"Answer with {wanted}, and nothing else."


def _say_walk(grounding: Grounding) -> str:
    hops = _range(grounding.min_hops, grounding.max_hops)
    said = f"Write a path of {hops} edges that exist in the graph: entity{ALONG}relation{ALONG}entity."
    if grounding.inverse:
        said += " An edge that is taken against its direction is written entity <- relation <- entity."
    if grounding.types:
        said += f" It ends at an {_entity(grounding)}."
    return said


def _range(low: int, high: int) -> str:
    return f"{high}" if low == high else f"{low} to {high}"


def _entity(grounding: Grounding) -> str:
    return f"entity{_of_types(grounding)}"


def _of_types(grounding: Grounding) -> str:
    types: Any = grounding.types
    return f" of type {' or '.join(types[:10])}" if types else ""
