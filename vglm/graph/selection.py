"""Which nodes and edges of a neighbourhood are shown: those that rank first, connected, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from heapq import heappop, heappush

import numpy as np

from vglm.graph.graph import Ints
from vglm.graph.records import Records
from vglm.graph.token_counts import CountTokens

MAX_MISSES = 16  # what may not fit before no more is tried
UNREAD = 1 << 60  # tokens; more than any budget
_BYTES_PER_TOKEN = 32  # a longer text than this will not fit, and is not read
_ALWAYS_READ = 1 << 16


class Selection:
    """A sub-graph that grows as long as its records fit into `budget` tokens.

    `tokens` is the sum of `count_tokens` over `record_pieces` of its nodes. A node that has nothing to say but its
    name gets no record of its own where an edge names it, so that adding an edge may also make room.
    """

    def __init__(self, records: Records, count_tokens: CountTokens, budget: int) -> None:
        self._records = records
        self._columns = records.graph.columns
        self._count = count_tokens
        self._budget = budget
        self.tokens = 0
        self.nodes: dict[int, None] = {}
        self.edges: dict[int, None] = {}
        self._own: dict[int, int] = {}  # tokens of what a node says of itself, of nodes that were tried
        self._thin: set[int] = set()
        self._out: dict[int, int] = {}  # edges that leave a node
        self._in: dict[int, int] = {}

    def add(self, nodes: Iterable[int], edges: Iterable[int]) -> bool:
        """Adds nodes, and edges whose ends are among all nodes then; all of them or, if they do not fit, none."""
        fresh = [node for node in dict.fromkeys(nodes) if node not in self.nodes]
        lines = [edge for edge in dict.fromkeys(edges) if edge not in self.edges]
        ends = [(int(self._columns.sources[edge]), int(self._columns.targets[edge])) for edge in lines]
        changed = set(fresh).union(*ends)
        before = sum(self._shown(node) for node in changed if node in self.nodes)
        self._link(ends, 1)
        after = sum(map(self._shown, changed))
        tokens = self.tokens - before + after
        for edge in lines:
            if tokens > self._budget:
                break
            tokens += self._edge_tokens(edge)
        if tokens > self._budget:
            self._link(ends, -1)
            return False
        self.tokens = tokens
        self.nodes.update(dict.fromkeys(fresh))
        self.edges.update(dict.fromkeys(lines))
        return True

    def own_tokens(self, node: int) -> int:
        """The tokens of what a node says of itself; UNREAD if its text is so long that it was not read."""
        known = self._own.get(node)
        if known is None:
            if self._records.is_thin(node):
                self._thin.add(node)
            if self._is_readable(self._length(node)):
                known = sum(map(self._count, self._records.own(node)))
            else:
                known = UNREAD
            self._own[node] = known
        return known

    def _shown(self, node: int) -> int:
        """The tokens of a node's record without its edges."""
        tokens = self.own_tokens(node)
        named_elsewhere = node in self._thin and not self._out.get(node) and self._in.get(node)
        return 0 if named_elsewhere else tokens

    def _link(self, ends: Iterable[tuple[int, int]], change: int) -> None:
        for source, target in ends:
            self._out[source] = self._out.get(source, 0) + change
            self._in[target] = self._in.get(target, 0) + change

    def _edge_tokens(self, edge: int) -> int:
        offsets = self._columns.edge_attribute_texts.offsets
        text = int(self._columns.edge_attributes[edge])
        length = int(offsets[text + 1] - offsets[text])
        return self._count(self._records.edge(edge)) if self._is_readable(length) else UNREAD

    def _length(self, node: int) -> int:
        """Bytes of what a record says of a node."""
        columns = self._columns
        tables = (columns.texts, columns.aliases, columns.attributes)
        return sum(int(table.offsets[node + 1] - table.offsets[node]) for table in tables)

    def _is_readable(self, length: int) -> bool:
        return length <= max(_BYTES_PER_TOKEN * self._budget, _ALWAYS_READ)


class Neighborhood:
    """Nodes by rank, and the edges among them: edge i joins the nodes of ranks `ends[0][i]` and `ends[1][i]`."""

    def __init__(self, ranked: Ints, edges: Ints, sources: Ints, targets: Ints) -> None:
        self.nodes: list[int] = ranked.tolist()
        order = np.argsort(ranked, kind="stable").astype(np.int32)
        one, other = (
            order[np.searchsorted(ranked[order], ends)] for ends in (sources[edges], targets[edges])
        )
        apart = one != other
        here = np.concatenate((one, other[apart]))  # a self-loop once
        there = np.concatenate((other, one[apart]))
        numbers = np.concatenate((edges, edges[apart]))
        by_rank = np.lexsort((numbers, there, here))
        self._there, self._edges = there[by_rank], numbers[by_rank]
        self._starts = np.searchsorted(here[by_rank], np.arange(len(ranked) + 1))

    def around(self, rank: int) -> tuple[Ints, Ints]:
        """The ranks of a node's neighbours, ascending, once for each edge, and those edges."""
        here = slice(self._starts[rank], self._starts[rank + 1])
        return self._there[here], self._edges[here]


def grow(selection: Selection, neighborhood: Neighborhood, roots: Collection[int]) -> None:
    """Fills the budget from what is selected already and from `roots` (ranks) on.

    The node of best rank among those that an edge joins to a selected one is next; it is added with that edge, and
    then with its other edges to selected nodes. Ends when MAX_MISSES did not fit.
    """
    growth = _Growth(selection, neighborhood)
    for rank, node in enumerate(neighborhood.nodes):
        if node in selection.nodes:
            growth.settle(rank)
    for rank in sorted(roots):
        growth.wait(rank)
    growth.run()


class _Growth:
    def __init__(self, selection: Selection, neighborhood: Neighborhood) -> None:
        self._selection = selection
        self._neighborhood = neighborhood
        self._chosen = np.zeros(len(neighborhood.nodes), bool)
        self._seen = np.zeros(len(neighborhood.nodes), bool)
        self._waiting: list[int] = []
        self._misses = 0

    def wait(self, rank: int) -> None:
        """A node that may be added."""
        if not self._seen[rank]:
            self._seen[rank] = True
            heappush(self._waiting, rank)

    def run(self) -> None:
        while self._waiting and self._misses < MAX_MISSES:
            rank = heappop(self._waiting)
            node = self._neighborhood.nodes[rank]
            if self._selection.add([node], self._links(rank)[:1]):
                self.settle(rank)
            else:
                self._misses += 1

    def settle(self, rank: int) -> None:
        """After a node was added: its other edges to selected nodes, and its neighbours may follow."""
        self._seen[rank] = self._chosen[rank] = True
        for edge in self._links(rank):
            if self._misses >= MAX_MISSES:
                return
            if not self._selection.add([], [edge]):
                self._misses += 1
        near, _ = self._neighborhood.around(rank)
        for other in np.unique(near[~self._seen[near]]).tolist():
            self.wait(other)

    def _links(self, rank: int) -> Sequence[int]:
        """Edges to selected nodes, those to the best ones first."""
        near, edges = self._neighborhood.around(rank)
        links: list[int] = edges[self._chosen[near]].tolist()
        return links
