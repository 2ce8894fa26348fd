"""Bound JSON schemas with the graph's names written out as enums, for the grammar library: where they are few."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from json import dumps
from typing import Any

import numpy as np

from vglm.decode.bounds import MAX_BYTES
from vglm.decode.grounded.grounding import Grounding, refuse
from vglm.decode.grounded.names import GraphIndex
from vglm.decode.grounded.schema import binding

MAX_VALUES = 10_000  # of one binding
Values = Callable[[str, Grounding], list[Any]]


def with_enums(schema: Any, values: Values) -> Any:
    """The schema with an enum in place of every binding."""
    bound = binding(schema)
    if bound is not None:
        what, options = bound
        return {"enum": values(what, Grounding(kind="walk" if what == "edge" else "answer", **options))}
    if isinstance(schema, Mapping):
        return {key: with_enums(value, values) for key, value in schema.items()}
    return [with_enums(value, values) for value in schema] if isinstance(schema, list) else schema


class WrittenOut:
    """The values that a graph has for a binding, as JSON.

    `nodes` and `relations` resolve options as the form builder does. Raises RequestError, saying which keyword asks for the
    grammar library, when there are too many values for it, or none.
    """

    def __init__(self, index: GraphIndex, nodes: Any, relations: Any, starts: Any, keyword: str) -> None:
        self._index, self._nodes, self._relations, self._starts = index, nodes, relations, starts
        self._keyword = keyword

    def __call__(self, what: str, wanted: Grounding) -> list[Any]:
        found = {"entity": self._entities, "relation": self._relation_names, "edge": self._edges}[what](
            wanted
        )
        unique = {dumps(value, sort_keys=True): value for value in found}
        if not unique:
            refuse(f"the graph has nothing that a value of the kind {what} could be bound to")
        self._check(len(unique), sum(map(len, unique)))
        return [unique[key] for key in sorted(unique)]

    def _check(self, count: int, size: int = 0) -> None:
        if count > MAX_VALUES or size > MAX_BYTES:
            refuse(
                f"the schema has {self._keyword}, which only works while a binding has at most {MAX_VALUES} values of "
                f"{MAX_BYTES} bytes together; this one has {count}. Leave the keyword out, or narrow the binding"
            )

    def _entities(self, wanted: Grounding) -> list[Any]:
        columns, nodes = self._index.columns, self._nodes(wanted)
        chosen = range(len(columns.ids)) if nodes is None else nodes.tolist()
        self._check(len(chosen))
        return [name for name in (columns.names[i] for i in chosen) if name]

    def _relation_names(self, wanted: Grounding) -> list[Any]:
        flags = self._relations(wanted.relations)
        names = self._index.columns.relation_names
        return [name for i, name in enumerate(names) if name and (flags is None or flags[i])]

    def _edges(self, wanted: Grounding) -> list[Any]:
        columns = self._index.columns
        keep = np.ones(len(columns.sources), bool)
        if (flags := self._relations(wanted.relations)) is not None:
            keep &= flags[columns.relations] == 1
        if (ends := self._nodes(wanted)) is not None:
            keep &= np.isin(columns.targets, ends)
        if wanted.start:
            keep &= np.isin(columns.sources, self._starts(wanted.start, "start"))
        chosen = np.flatnonzero(keep)
        self._check(len(chosen))
        edges = (
            (columns.names[s], columns.relation_names[r], columns.names[t])
            for s, r, t in zip(
                columns.sources[chosen].tolist(),
                columns.relations[chosen].tolist(),
                columns.targets[chosen].tolist(),
                strict=True,
            )
        )
        return [{"source": s, "relation": r, "target": t} for s, r, t in edges if s and t]
