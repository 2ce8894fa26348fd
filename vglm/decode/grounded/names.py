"""What is sorted once for a graph: the names of its nodes and relations, and its edges both ways.

An edited graph is another object that shares most names: its index is made from that of a graph before it, in one pass
over both, and only names that are new are sorted.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from vglm import _native
from vglm.decode.grounded.vocabulary import Vocabulary
from vglm.graph.derived import once_per_graph
from vglm.graph.graph import Columns, Graph
from vglm.graph.strings import StringTable

Flags = npt.NDArray[np.uint8]
SMALL = 10_000  # nodes and edges of a graph that is known again by its content
_REMEMBERED = 2  # graphs whose index is kept for the next edit of them


class Index:
    """The distinct strings of a column in order (`native`), and the column; `keys` says which rows are the same."""

    def __init__(
        self, strings: StringTable, keys: StringTable, left_out: Flags | None, before: Index | None
    ) -> None:
        self.strings, self.keys = strings, keys
        if before is None:
            self.native = _native.StringIndex(strings.data, strings.offsets, left_out)
        else:
            old = before.keys
            self.native = before.native.updated(
                old.data, old.offsets, strings.data, strings.offsets, keys.data, keys.offsets, left_out
            )

    def escaped(self, left_out: Flags | None) -> Index:
        """The same strings as they stand in a JSON string; this very index if none of them changes."""
        changed = _native.json_escaped(self.strings.data, self.strings.offsets)
        return self if changed is None else Index(StringTable(*changed), self.keys, left_out, None)


LeftOut = tuple[Flags | None, Flags | None]  # nodes and relations whose names a vocabulary cannot spell


class Names:
    """The indices of one graph's names, without those that are left out."""

    def __init__(self, columns: Columns, left_out: LeftOut, before: Names | None) -> None:
        self._left_out = left_out
        relations = StringTable.of(columns.relation_names)
        known = None if before is None else before.nodes
        self.nodes: Index = Index(columns.names, columns.ids, left_out[0], known)
        self.relations = Index(relations, relations, left_out[1], None)

    @cached_property
    def json_nodes(self) -> Index:
        return self.nodes.escaped(self._left_out[0])

    @cached_property
    def json_relations(self) -> Index:
        return self.relations.escaped(self._left_out[1])

    def of_nodes(self, json: bool) -> Index:
        """Names of nodes, as text or within a JSON string."""
        return self.json_nodes if json else self.nodes

    def of_relations(self, json: bool) -> Index:
        """Names of relations, as text or within a JSON string."""
        return self.json_relations if json else self.relations


class GraphIndex:
    """What grounded decoding keeps of a graph. Immutable but for what is computed when it is first asked for."""

    def __init__(self, graph: Graph) -> None:
        self.columns = graph.columns  # and not the graph: what is kept for it must not keep it alive
        self._lock = threading.Lock()
        self._names: WeakKeyDictionary[Vocabulary, Names] = WeakKeyDictionary()
        self.decoders: OrderedDict[object, Any] = (
            OrderedDict()
        )  # that were compiled, the latest last; see decoder.py
        self.compiling = threading.Lock()

    @cached_property
    def graph(self) -> Graph:
        """A graph of the same content."""
        return Graph(self.columns)

    def names(self, vocabulary: Vocabulary) -> Names:
        """The names that this vocabulary can spell."""
        with self._lock:
            kept = self._names.get(vocabulary)
            if kept is None:
                relations = StringTable.of(self.columns.relation_names)
                left_out = (vocabulary.unspellable(self.columns.names), vocabulary.unspellable(relations))
                plain = left_out[0] is None and left_out[1] is None
                kept = self._all_names if plain else Names(self.columns, left_out, None)
                self._names[vocabulary] = kept
            return kept

    @cached_property
    def _all_names(self) -> Names:
        made = Names(self.columns, (None, None), _before(self.columns))
        with _recent_lock:
            _recent.append(made)
        return made

    @cached_property
    def edges(self) -> _native.Adjacency:
        """The edges, along their direction."""
        return _adjacency(self.columns, inverse=False)

    @cached_property
    def edges_both_ways(self) -> _native.Adjacency:
        """The edges, along their direction and against it."""
        return _adjacency(self.columns, inverse=True)


def _adjacency(columns: Columns, inverse: bool) -> _native.Adjacency:
    num_nodes = len(columns.ids)
    sources, targets, relations = (
        np.ascontiguousarray(column, np.int32)
        for column in (columns.sources, columns.targets, columns.relations)
    )
    in_start = in_edge = None
    if inverse:
        in_start = _starts(targets, num_nodes)
        in_edge = np.lexsort((sources, relations, targets)).astype(np.int32)
    out_start = _starts(sources, num_nodes)
    return _native.Adjacency(
        out_start, sources, targets, relations, len(columns.relation_names), in_start, in_edge
    )


def _starts(rows: npt.NDArray[np.int32], num_rows: int) -> npt.NDArray[np.int64]:
    starts = np.zeros(num_rows + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=num_rows), out=starts[1:])
    return starts


_recent: deque[Names] = deque(maxlen=_REMEMBERED)
_recent_lock = threading.Lock()


def _before(columns: Columns) -> Names | None:
    """Names of a graph that this one may be an edit of: about as many, the latest first."""
    with _recent_lock:
        for names in reversed(_recent):
            known = len(names.nodes.keys)
            if known >= 1000 and abs(known - len(columns.ids)) * 8 <= known:
                return names
    return None


_by_content: OrderedDict[str, GraphIndex] = OrderedDict()
_by_object = once_per_graph(GraphIndex)
_content_lock = threading.Lock()
_MAX_BY_CONTENT = 64


def graph_index(graph: Graph) -> GraphIndex:
    """The index of a graph: of small graphs one for equal content, of others one for each object."""
    if graph.num_nodes + graph.num_edges > SMALL:
        return _by_object(graph)
    with _content_lock:
        key = graph.fingerprint
        found = _by_content.pop(key, None) or GraphIndex(graph)
        _by_content[key] = found
        while len(_by_content) > _MAX_BY_CONTENT:
            _by_content.popitem(last=False)
        return found
