"""What a graph says of a node, line by line: the words of spans and of sequential text.

    Marfan syndrome (disease): A disorder of connective tissue.
    - also called: MFS
    - has phenotype: Ectopia lentis (frequency 119/251; PMID:28050285, PMID:29587526)

A line depends on its own node or edge alone (and, for an edge, on the names of its ends): never on what else
is in the graph. Text from outside stays inside its line: line breaks and control characters are escaped.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vglm.graph.graph import Graph
from vglm.graph.text import one_line

# Bookkeeping that means nothing to a reader.
HIDDEN = frozenset({"alternative_ids", "evidence"})
# Spaces after the end of a sentence or of a clause; after the full-width marks no space is needed.
_SENTENCE_END = re.compile("(?<=[.!?;])\\s+|(?<=[\u3002\uff01\uff1f\uff1b])\\s*")
SHORT_NAME = 60  # characters of a name where it is only repeated


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """What a record shows of a node and of its edges.

    `aliases` and `references` say how many of them are written out; attributes named in `hidden` are not.
    With `ids`, every name is followed by its id.
    """

    texts: bool = True
    aliases: int = 3
    attributes: bool = True
    references: int = 2
    ids: bool = False
    hidden: frozenset[str] = HIDDEN


DEFAULT_RECORD = RecordOptions()


class Records:
    """The lines of one graph; every line and every sentence carries the space or line break that belongs to it.

    `shared_names` are names that several nodes have, and that are therefore followed by their ids; None looks
    for them in this graph. Give those of the whole graph with a sub-graph of it, so that a line does not depend
    on which of the namesakes are in the sub-graph. With `all_nodes` every string is decoded at once, which is
    quicker when all nodes are going to be written.
    """

    def __init__(
        self,
        graph: Graph,
        options: RecordOptions = DEFAULT_RECORD,
        shared_names: Collection[str] | None = None,
        all_nodes: bool = False,
    ) -> None:
        self.graph = graph
        self.options = options
        self.shared_names = shared_names_of(graph) if shared_names is None else frozenset(shared_names)
        self._shown: dict[int, str] = {}
        columns = graph.columns
        tables = (columns.ids, columns.names, columns.texts, columns.aliases, columns.attributes)
        self._ids, self._names, self._texts, self._aliases, self._attributes = (
            list(table) if all_nodes else table for table in tables
        )

    def name(self, index: int) -> str:
        """The name by which a node is called, on one line; with its id where the name alone is not enough."""
        found = self._shown.get(index)
        if found is None:
            name, node_id = self._names[index], self._ids[index]
            unclear = self.options.ids or name in self.shared_names or not name.strip()
            found = one_line(f"{name} [{node_id}]" if unclear and name != node_id else name)
            self._shown[index] = found
        return found

    def short_name(self, index: int) -> str:
        """The name where it is only repeated."""
        name = self.name(index)
        return name if len(name) <= SHORT_NAME else name[: SHORT_NAME - 3].rstrip() + "..."

    def own(self, index: int) -> list[str]:
        """What a node says of itself: its first sentence with the name, further sentences, aliases, attributes."""
        options = self.options
        head, kind = self.name(index), self._kind(index)
        if kind:
            head = f"{head} ({kind})"
        text = self._texts[index] if options.texts else ""
        first, *more = _sentences(text)
        pieces = [f"{head}: {first}" if first else head, *(f" {sentence}" for sentence in more)]
        pieces[-1] += "\n"
        if options.aliases and self._aliases[index]:
            pieces.append(f"- also called: {_listed(json.loads(self._aliases[index]), options.aliases)}\n")
        if options.attributes and self._attributes[index]:
            pieces += [
                f"- {one_line(key)}: {_value(value, options.references)}\n"
                for key, value in sorted(json.loads(self._attributes[index]).items())
                if key not in options.hidden
            ]
        return pieces

    def edge(self, edge: int) -> str:
        """What one edge says, as a line of its source's record."""
        columns = self.graph.columns
        relation = columns.relation_names[int(columns.relations[edge])]
        text = columns.edge_attribute_texts[int(columns.edge_attributes[edge])]
        notes = edge_notes(json.loads(text), self.options) if text else ""
        target = int(columns.targets[edge])
        kind = (
            self._kind(target) if self.is_thin(target) else ""
        )  # it may have no record of its own to say it
        return f"- {one_line(relation)}: {self.name(target)}{f' ({kind})' if kind else ''}{notes}\n"

    def is_thin(self, index: int) -> bool:
        """True if a node says nothing of itself but its name and type."""
        return not (self._texts[index] or self._aliases[index] or self._attributes[index])

    def _kind(self, index: int) -> str:
        columns = self.graph.columns
        return one_line(columns.type_names[columns.node_types[index]])


def shared_names_of(graph: Graph) -> frozenset[str]:
    """The names that more than one node has."""
    return frozenset(name for name, uses in Counter(graph.columns.names).items() if uses > 1)


def edge_notes(attributes: Mapping[str, Any], options: RecordOptions = DEFAULT_RECORD) -> str:
    """An edge's attributes in brackets: how often, what else, and by which references."""
    notes: list[str] = []
    frequency = attributes.get("frequency_label", attributes.get("frequency"))
    if frequency is not None:
        words = _value(frequency, options.references)
        notes.append(words if words[:1].isalpha() else f"frequency {words}")
    if options.attributes:
        known = options.hidden | {"frequency", "frequency_label", "references"}
        notes += [
            f"{one_line(key)} {_value(value, options.references)}"
            for key, value in sorted(attributes.items())
            if key not in known
        ]
    references = attributes.get("references")
    if options.references and references:
        notes.append(_value(references, options.references))
    return f" ({'; '.join(notes)})" if notes else ""


@lru_cache(4096)  # the same records come again and again; texts are short as a rule
def _sentences(text: str) -> tuple[str, ...]:
    """Sentences of a text, without the spaces between them; at least one."""
    found = tuple(one_line(sentence) for sentence in _SENTENCE_END.split(text.strip()) if sentence)
    return found or ("",)


def _value(value: Any, most: int) -> str:
    """A JSON value in words; of a list the first `most` items."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return _listed(value, most)
    return one_line(json.dumps(value, ensure_ascii=False, sort_keys=True))


def _listed(values: Iterable[object], most: int) -> str:
    words = [one_line(value if isinstance(value, str) else json.dumps(value)) for value in values]
    more = len(words) - most
    return ", ".join(words[:most] if most else words) + (f" and {more} more" if most and more > 0 else "")
