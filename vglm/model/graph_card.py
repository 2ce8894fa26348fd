"""The part of a model's card that says how the model was trained to read graphs.

A GGUF file has it as JSON text under the key `vglm.graph`, a Hugging Face directory as the object `vglm_graph` in its
`config.json`:

    {"spans": true, "span_tokens": 96, "levels": 2, "heading": "Graph:\\n"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from vglm.errors import ModelError

GGUF_KEY = "vglm.graph"
CONFIG_KEY = "vglm_graph"
MAX_SPAN_TOKENS = 4096
MAX_LEVELS = 16


@dataclass(frozen=True, slots=True)
class GraphCard:
    """How a model reads graphs; the defaults hold for models that say nothing.

    Attributes:
        spans: whether the model was trained with span masks; otherwise graphs are written out in canonical order.
        span_tokens: positions of a level of spans; longer spans are cut.
        levels: levels of spans; the question stands after all of them, however many a graph needs.
        heading: the words before a graph.
        facts: whether the model was trained to answer questions about graphs: one about the shape of a graph then follows a
            line of facts about it (see vglm/graph/structure.py), and a text with a graph goes through the chat template.
    """

    spans: bool = False
    span_tokens: int = 128
    levels: int = 2
    heading: str = "Graph:\n"
    facts: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.spans, bool) or not isinstance(self.facts, bool):
            raise ModelError("graph card: 'spans' and 'facts' must be true or false")
        if not isinstance(self.heading, str) or not self.heading:
            raise ModelError("graph card: 'heading' must be some text")
        for name, low, high in (("span_tokens", 16, MAX_SPAN_TOKENS), ("levels", 2, MAX_LEVELS)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ModelError(
                    f"graph card: {name!r} is {value!r}; it must be a whole number from {low} to {high}"
                )

    @property
    def tokens(self) -> int:
        """Positions between the words before a graph and those after it."""
        return self.span_tokens * self.levels

    def to_json(self) -> str:
        """The card as a model file has it."""
        return json.dumps(asdict(self))


def parse_graph_card(value: Any) -> GraphCard | None:
    """The card in a model file, as JSON text or a mapping; None for None. Raises ModelError that says what is wrong."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"graph card: not valid JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise ModelError(f"graph card: expected an object, found {type(value).__name__}")
    known = {field.name for field in fields(GraphCard)}
    if unknown := value.keys() - known:
        raise ModelError(f"graph card: unknown key {min(unknown)!r}; there are {', '.join(sorted(known))}")
    return GraphCard(**value)
