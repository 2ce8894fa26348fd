"""The canonical text of a graph: span records for the span cache, or one text in canonical order.

A **record** is what the graph says of one node: its name, type, text, aliases and attributes, and its edges to
nodes that are in the graph, one line each (see `records`). `node_spans` writes records as spans of some 20 to 96
tokens, so that what stays the same from one request to the next keeps its spans:

- A short record is one span without parents. A record changes with its node, with its own edges, and with the
  names of their targets; not with anything else that is in the graph.
- A long record begins with what the node says of itself; further sentences and the edges follow in **continuation
  spans**, which name the node again and are children of its first span. A span of edges is also the child of the
  first spans of the edges' targets: it reads both ends, as message passing does.
- A node that has only a name and a type is said by the edges that name it. Nodes of which nothing else is known
  stand together in lists.
- Records that would leave much of their pages empty are packed with records near them in the graph: all those
  whose best-connected neighbour is the same node are candidates for one span. Records without edges are never
  packed, because chance neighbours differ from request to request.

The list depends on the graph's content alone, so it is the same whatever order the graph came in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from vglm.graph.graph import Graph
from vglm.graph.records import DEFAULT_RECORD, RecordOptions, Records
from vglm.graph.span_layout import SpanLayout, cut, pack, stable_hash
from vglm.graph.token_counts import CountTokens, estimate_tokens

DEFAULT_LAYOUT = SpanLayout()


@dataclass(frozen=True, slots=True)
class SpanText:
    """One span: `text`, the positions in the list of the spans that it attends to, ascending, and the ids of the
    nodes that it says something of, `node` being the first of them.

    `tokens` is the sum of its pieces as they were counted; the whole text may have a token more or less.
    """

    node: str
    text: str
    parents: tuple[int, ...] = ()
    nodes: tuple[str, ...] = ()
    tokens: int = 0

    @property
    def level(self) -> int:
        """0 for spans that attend to none, 1 for those that attend to spans of level 0."""
        return 1 if self.parents else 0


def node_spans(
    graph: Graph,
    count_tokens: CountTokens = estimate_tokens,
    layout: SpanLayout = DEFAULT_LAYOUT,
    options: RecordOptions = DEFAULT_RECORD,
    shared_names: Collection[str] | None = None,
) -> list[SpanText]:
    """The spans of a graph, parents before children.

    `count_tokens` decides where long records are cut; give `TokenCounts(tokenizer)`, which remembers lines.
    `shared_names`: see `Records`. Texts are untrusted: encode them with `allow_special_tokens=False`.
    """
    return _SpanWriter(
        graph, count_tokens, layout, Records(graph, options, shared_names, all_nodes=True)
    ).spans()


def sequential_text(
    graph: Graph,
    options: RecordOptions = DEFAULT_RECORD,
    shared_names: Collection[str] | None = None,
) -> str:
    """All records in order of id, each with its edges in canonical order, as one text; "" for an empty graph."""
    records = Records(graph, options, shared_names, all_nodes=True)
    return "".join(piece for index in range(graph.num_nodes) for piece in record_pieces(records, index))


def record_pieces(records: Records, index: int) -> list[str]:
    """A node's record in pieces; nothing for a node that edges name and that has nothing else to say."""
    graph = records.graph
    edges = graph.edge_indices(index).tolist()
    if records.is_thin(index) and not edges and len(graph.edge_indices(index, "in")):
        return []
    return records.own(index) + [records.edge(edge) for edge in edges]


def page_use(spans: Iterable[SpanText], block_size: int = DEFAULT_LAYOUT.block_size) -> float:
    """Tokens of the spans over the slots of the pages that they take, 0..1; 1 for no spans."""
    tokens = [span.tokens for span in spans]
    slots = sum(-(-count // block_size) * block_size for count in tokens)
    return sum(tokens) / slots if slots else 1.0


@dataclass(frozen=True, slots=True)
class _Piece:
    """Words that stay together: their length in tokens, and the target of the edge that they state, or -1."""

    text: str
    tokens: int
    target: int = -1


@dataclass(frozen=True, slots=True)
class _Record:
    node: int
    own: list[_Piece]
    edges: list[_Piece]

    @property
    def tokens(self) -> int:
        return sum(piece.tokens for piece in (*self.own, *self.edges))

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in (*self.own, *self.edges))


class _SpanWriter:
    """Writes the spans of one graph: those of level 0 first, then those that attend to them."""

    def __init__(self, graph: Graph, count_tokens: CountTokens, layout: SpanLayout, records: Records) -> None:
        self._graph = graph
        self._count = count_tokens
        self._layout = layout
        self._records = records
        self._written: list[SpanText] = []
        self._first: dict[int, int] = {}  # node -> its first span
        self._later: list[tuple[int, str, list[_Piece]]] = []  # node, heading, pieces

    def spans(self) -> list[SpanText]:
        layout = self._layout
        small: list[_Record] = []
        listed: list[_Record] = []
        for node in range(self._graph.num_nodes):
            record = self._record(node)
            if record is None:
                continue
            alone = not record.edges and not len(self._graph.edge_indices(node, "in"))
            if alone and self._records.is_thin(node) and record.tokens < layout.block_size:
                listed.append(record)
            elif record.tokens > layout.max_tokens:
                self._write_long(record)
            elif not alone and layout.is_packed(record.tokens):
                small.append(record)
            else:
                self._write([record])
        for group in self._near_each_other(small):
            self._write_packed(group)
        if listed:
            self._write_packed(listed)
        for node, heading, pieces in self._later:
            self._write_continuation(node, heading, pieces)
        return self._written

    def _record(self, node: int) -> _Record | None:
        pieces = record_pieces(self._records, node)
        if not pieces:
            return None
        edges = self._graph.edge_indices(node).tolist()
        split = len(pieces) - len(edges)
        targets = self._graph.columns.targets[edges].tolist()
        own = [part for piece in pieces[:split] for part in self._parts(piece, -1)]
        lines = zip(pieces[split:], targets, strict=True)
        return _Record(node, own, [part for piece, target in lines for part in self._parts(piece, target)])

    def _parts(self, text: str, target: int) -> list[_Piece]:
        """A piece, or what it falls into when it is too long for a span: parts cut at spaces where there are any."""
        limit = self._layout.max_tokens // 2
        return [_Piece(part, tokens, target) for part, tokens in _cut_words(text, limit, self._count)]

    def _write(self, records: Sequence[_Record]) -> None:
        """One span of whole records, without parents."""
        for record in records:
            self._first[record.node] = len(self._written)
        text = "".join(record.text for record in records)
        nodes = [node for record in records for node in (record.node, *_named(record.edges, self._records))]
        self._append(text, (), nodes, sum(record.tokens for record in records))

    def _write_packed(self, records: list[_Record]) -> None:
        hashes = [stable_hash(self._graph.id_of(record.node)) for record in records]
        for group in pack([record.tokens for record in records], hashes, self._layout):
            self._write(records[group])

    def _write_long(self, record: _Record) -> None:
        """The first span of a long record; the others are written when their parents are."""
        heading = self._records.short_name(record.node)
        overhead = self._count(heading + "\n")
        own = self._cut(record.own, overhead, first=True)
        together = sum(piece.tokens for piece in record.own) <= self._layout.max_tokens // 3
        if together:  # a short beginning takes the first edges along
            own, edges = self._cut([*record.own, *record.edges], overhead, first=True), []
        else:
            edges = self._cut(record.edges, overhead, first=False)
        head, *rest = own
        self._first[record.node] = len(self._written)
        nodes = [record.node, *_named(head, self._records)]
        tokens = sum(piece.tokens for piece in head)
        self._append("".join(piece.text for piece in head), (), nodes, tokens)
        self._later += [(record.node, heading, pieces) for pieces in (*rest, *edges)]

    def _cut(self, pieces: list[_Piece], overhead: int, first: bool) -> list[list[_Piece]]:
        hashes = [stable_hash(piece.text) for piece in pieces]
        groups = cut([piece.tokens for piece in pieces], hashes, overhead, self._layout, first)
        return [pieces[group] for group in groups]

    def _write_continuation(self, node: int, heading: str, pieces: list[_Piece]) -> None:
        link = ":" if pieces[0].text.startswith(" ") else "\n"
        text = heading + link + "".join(piece.text for piece in pieces)
        ends = {piece.target for piece in pieces} & self._first.keys()
        parents = {self._first[end] for end in (node, *ends)}
        tokens = self._count(heading + link) + sum(piece.tokens for piece in pieces)
        self._append(text, sorted(parents), [node, *_named(pieces, self._records)], tokens)

    def _append(self, text: str, parents: Sequence[int], nodes: Iterable[int], tokens: int) -> None:
        ids = tuple(self._graph.id_of(node) for node in dict.fromkeys(nodes))
        self._written.append(SpanText(ids[0], text, tuple(parents), ids, tokens))

    def _near_each_other(self, records: list[_Record]) -> list[list[_Record]]:
        """Records by the neighbour (or the node itself) that has the most neighbours, the first of several."""
        columns = self._graph.columns
        neighbors: dict[int, set[int]] = defaultdict(set)
        for source, target in zip(columns.sources.tolist(), columns.targets.tolist(), strict=True):
            neighbors[source].add(target)
            neighbors[target].add(source)
        groups: dict[int, list[_Record]] = defaultdict(list)
        for record in records:
            around = (record.node, *neighbors[record.node])
            groups[min(around, key=lambda node: (-len(neighbors[node]), node))].append(record)
        return [groups[center] for center in sorted(groups)]


def _named(pieces: Iterable[_Piece], records: Records) -> list[int]:
    """The nodes that edges in these pieces name and that have no more to say: this is where they are said."""
    targets = dict.fromkeys(piece.target for piece in pieces if piece.target >= 0)
    return [target for target in targets if records.is_thin(target)]


def _cut_words(text: str, limit: int, count: CountTokens) -> list[tuple[str, int]]:
    """Parts of a text with their counts, which make it up again: all of it if it has at most twice `limit` tokens,
    else parts of at most `limit`, cut at spaces where there are any."""
    if len(text) <= 8 * limit and (tokens := count(text)) <= 2 * limit:
        return [(text, tokens)]
    found: list[tuple[str, int]] = []
    start = 0
    while start < len(text):
        end = _space_before(text, start, min(start + 4 * limit, len(text)))
        while (tokens := count(text[start:end])) > limit and end - start > 1:
            end = _space_before(text, start, (start + end) // 2)
        found.append((text[start:end], tokens))
        start = end
    return found


def _space_before(text: str, start: int, end: int) -> int:
    """Where the last space before `end` is, in the second half of what follows `start`; else `end`."""
    space = text.rfind(" ", (start + end) // 2 + 1, end) if end < len(text) else -1
    return space if space > start else end
