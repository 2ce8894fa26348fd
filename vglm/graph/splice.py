"""New columns from old ones and a few changes: whole runs of the old arrays are copied, nothing is parsed.

A graph with a million edges takes some tens of milliseconds, whatever has changed in it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError
from vglm.graph.build import canonical_edges
from vglm.graph.changes import EdgeKey, Row
from vglm.graph.graph import Columns, Ints
from vglm.graph.limits import shown
from vglm.graph.strings import StringTable


def spliced(
    columns: Columns, rows: Mapping[str, Row | None], removed: npt.NDArray[np.bool_], added: Sequence[EdgeKey]
) -> Columns:
    """The columns after nodes came (`rows` with a row) or went (None), edges went (`removed` bool[E]) and came.

    What is given is consistent: no edge stays or comes that has an end which goes. The result is canonical, equal
    to what `GraphBuilder` makes of the same content.
    """
    coming = sorted((row for row in rows.values() if row is not None), key=lambda row: row[0])
    replaced = columns.ids.find_all(list(rows))
    keep = np.ones(len(columns.ids), np.bool_)
    keep[replaced[replaced >= 0]] = False
    merge = _Merge.of(columns.ids, keep, [row[0] for row in coming])
    types, node_types = _coded(
        StringTable.of(columns.type_names), columns.node_types[keep], [row[2] for row in coming], ()
    )
    texts = _Tables(merge)
    return Columns(
        ids=texts.joined(columns.ids, [row[0] for row in coming]),
        names=texts.joined(columns.names, [row[1] for row in coming]),
        texts=texts.joined(columns.texts, [row[3] for row in coming]),
        aliases=texts.joined(columns.aliases, [row[4] for row in coming]),
        attributes=texts.joined(columns.attributes, [row[5] for row in coming]),
        node_types=node_types[merge.old_first],
        type_names=tuple(types),
        **_edge_columns(columns, merge, removed, added),
    )


def _edge_columns(
    columns: Columns, merge: _Merge, removed: npt.NDArray[np.bool_], added: Sequence[EdgeKey]
) -> dict[str, Any]:
    """The columns of the edges that stay and come, between nodes renumbered as `merge` says."""
    count = len(columns.sources) - int(np.count_nonzero(removed))
    whole = count == len(columns.sources)
    stay = slice(None) if whole else ~removed  # a slice copies nothing
    relation_names, relations = _coded(
        StringTable.of(columns.relation_names),
        columns.relations[stay],
        [edge[1] for edge in added],
        range(len(columns.relation_names) if whole else 0),
    )
    attribute_texts, attributes = _coded(
        columns.edge_attribute_texts,
        columns.edge_attributes[stay],
        [edge[3] for edge in added],
        range(len(columns.edge_attribute_texts) if whole else 1),  # "", at 0, is there always
    )
    sources, targets = (
        np.append(merge.renumbered(ends[stay]), merge.find(columns.ids, [edge[end] for edge in added]))
        for ends, end in ((columns.sources, 0), (columns.targets, 2))
    )
    sizes = (len(merge.order), len(relation_names), len(merge.order), len(attribute_texts))
    edges = _inserted((sources, relations, targets, attributes), count, sizes)
    return {
        "sources": edges[0],
        "relations": edges[1],
        "targets": edges[2],
        "relation_names": tuple(relation_names),
        "edge_attributes": edges[3],
        "edge_attribute_texts": attribute_texts,
    }


def _inserted(
    edges: tuple[Ints, Ints, Ints, Ints], count: int, sizes: tuple[int, int, int, int]
) -> tuple[Ints, Ints, Ints, Ints]:
    """Edges in canonical order, of which the first `count` are so already and the others differ from them.

    `sizes` bounds each column's codes; where a whole edge does not fit into 63 bits, all are sorted anew.
    """
    if count == len(edges[0]):
        return edges
    if math.prod(max(size, 1) for size in sizes) >= 2**63:
        return canonical_edges(edges, sizes)
    keys = edges[0].astype(np.int64)
    for column, size in zip(edges[1:], sizes[1:], strict=True):
        keys *= max(size, 1)
        keys += column
    order = count + np.argsort(keys[count:], kind="stable")
    places = np.searchsorted(keys[:count], keys[order])
    sources, relations, targets, attributes = (np.insert(c[:count], places, c[order]) for c in edges)
    return sources, relations, targets, attributes


@dataclass(frozen=True, slots=True)
class _Merge:
    """How a sorted table of n strings becomes another: some go, `fresh` ones (sorted) come between the others.

    `order` int64[m] says what the new table holds: i < n is the old string i, n + 1 + j is fresh string j (n itself
    is left out, so that a run of consecutive numbers never leads from one table into the other). `numbers` int32[n]
    is where an old string is now, or where a fresh one took its place, or -1.
    """

    order: npt.NDArray[np.int64]
    numbers: Ints
    fresh: dict[str, int]

    @classmethod
    def of(cls, table: StringTable, keep: npt.NDArray[np.bool_], fresh: list[str]) -> _Merge:
        count = len(table)
        kept = np.flatnonzero(keep)
        places = np.fromiter((bisect_left(table, text) for text in fresh), np.int64, len(fresh))
        comes = count + 1 + np.arange(len(fresh), dtype=np.int64)
        order = np.insert(kept, np.searchsorted(kept, places), comes) if fresh else kept
        positions = np.full(count + 1 + len(fresh), -1, np.int32)
        positions[order] = np.arange(len(order), dtype=np.int32)
        numbers = positions[:count]
        now = positions[count + 1 :]
        same = np.fromiter(
            (p < count and table[p] == text for p, text in zip(places.tolist(), fresh, strict=True)),
            np.bool_,
            len(fresh),
        )
        numbers[places[same]] = now[same]
        return cls(order, numbers, dict(zip(fresh, now.tolist(), strict=True)))

    @property
    def old_first(self) -> npt.NDArray[np.int64]:
        """`order` for an array that has the strings which stay first, and then the fresh ones."""
        fresh = self.order > len(self.numbers)
        places = np.empty(len(self.order), np.int64)
        stay = len(self.order) - len(self.fresh)
        places[~fresh] = np.arange(stay)
        places[fresh] = stay + np.arange(len(self.fresh))
        return places

    def renumbered(self, places: Ints) -> Ints:
        """Where strings are now that were at `places`, and stay."""
        if len(self.order) == len(self.numbers) and np.array_equal(
            self.numbers, np.arange(len(self.numbers))
        ):
            return places
        renumbered: Ints = self.numbers[places]
        return renumbered

    def find(self, table: StringTable, texts: list[str]) -> Ints:
        """Where strings of the new table are, int32[len(texts)]; GraphError if one is not there."""
        numbers = np.append(
            self.numbers, np.int32(-1)
        )  # which is what -1, for "not in the table", then means
        places = zip(texts, numbers[table.find_all(texts)].tolist(), strict=True)
        found = np.fromiter((self.fresh.get(text, place) for text, place in places), np.int32, len(texts))
        for position in np.flatnonzero(found < 0)[:1].tolist():
            raise GraphError(f"an edge has an end that is no node: {shown(texts[position])}")
        return found


class _Tables:
    """Tables that change in the same places; equal ones, such as ids that are the names too, are made once."""

    def __init__(self, merge: _Merge) -> None:
        self._merge = merge
        self._made: list[tuple[StringTable, list[str], StringTable]] = []

    def joined(self, table: StringTable, fresh: list[str]) -> StringTable:
        """`table` without what goes and with `fresh`."""
        for old, texts, made in self._made:
            if old is table and texts == fresh:
                return made
        made = _joined(table, StringTable.of(fresh), self._merge.order)
        self._made.append((table, fresh, made))
        return made


def _joined(table: StringTable, fresh: StringTable, order: npt.NDArray[np.int64]) -> StringTable:
    """The strings of two tables in the order of a `_Merge`."""
    count = len(table)
    lengths = np.concatenate((np.diff(table.offsets), [0], np.diff(fresh.offsets)))[order]
    offsets = np.zeros(len(order) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    ends = (
        np.append(np.flatnonzero(np.diff(order) != 1) + 1, len(order))
        if len(order)
        else np.zeros(0, np.int64)
    )
    begins = np.append(0, ends[:-1]) if len(ends) else ends
    old, new = memoryview(table.data.data), memoryview(fresh.data.data)
    pieces = []
    for first, last in zip(order[begins].tolist(), order[ends - 1].tolist(), strict=True):
        if first < count:
            pieces.append(old[table.offsets[first] : table.offsets[last + 1]])
        else:
            pieces.append(new[fresh.offsets[first - count - 1] : fresh.offsets[last - count]])
    return StringTable(np.frombuffer(b"".join(pieces), np.uint8), offsets)


def _coded(
    table: StringTable, codes: Ints, fresh: list[str], in_use: Iterable[int]
) -> tuple[StringTable, Ints]:
    """A sorted table of distinct strings after uses went and came: without those that no code uses any more, with
    those in `fresh`; and the codes of both, int32[len(codes) + len(fresh)]. `in_use` are codes known to be used."""
    used = np.zeros(len(table), np.bool_)
    used[list(in_use)] = True
    if not used.all():
        used |= np.bincount(codes, minlength=len(table)) > 0
    distinct = sorted(set(fresh))
    known = np.fromiter(map(table.find, distinct), np.int64, len(distinct))
    used[known[known >= 0]] = True
    unknown = [text for text, code in zip(distinct, known.tolist(), strict=True) if code < 0]
    if unknown or not used.all():
        merge = _Merge.of(table, used, unknown)
        table, codes = _joined(table, StringTable.of(unknown), merge.order), merge.renumbered(codes)
    places = {text: table.find(text) for text in distinct}
    return table, np.concatenate((codes, np.array([places[text] for text in fresh], np.int32)))
