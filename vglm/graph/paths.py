"""Evidence: the shortest paths between entities, the specific before the general."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vglm.errors import GraphError
from vglm.graph.closest import known_nodes
from vglm.graph.graph import Graph
from vglm.graph.limits import shown
from vglm.graph.walks import EVERYTHING, Scope, Walks, walks

MAX_HOPS = 16
MAX_PAIRS = 256
_WORK = 1_000_000  # edges that all searches for one question may look at together
_LEAST_WORK = 5_000  # of one search


@dataclass(frozen=True, slots=True)
class EvidencePath:
    """A path: `nodes` are ids, `edges` the indices of the edges between them, walked in either direction.

    To iterate over a path is to iterate over its edges. `cost` is that of `Walks.shortest_paths`: of paths of one
    length, those that cost less go through fewer hubs.
    """

    nodes: tuple[str, ...]
    edges: tuple[int, ...]
    cost: float

    def __iter__(self) -> Iterator[int]:
        return iter(self.edges)

    def __len__(self) -> int:
        return len(self.edges)


@dataclass(frozen=True, slots=True)
class NodePath:
    """A path in node indices."""

    nodes: tuple[int, ...]
    edges: tuple[int, ...]
    cost: float

    @property
    def rank(self) -> tuple[int, float, tuple[int, ...]]:
        """Shorter paths first, then cheaper ones."""
        return len(self.edges), self.cost, self.nodes


def evidence(
    graph: Graph,
    sources: Sequence[str],
    answer: str | Sequence[str],
    max_paths: int = 5,
    max_hops: int = 4,
) -> list[EvidencePath]:
    """The best paths from the entities of a question to its answer (an id or several): what there is to cite.

    Each path begins at a source, ends at an answer, has at most `max_hops` edges and is a shortest one between its
    ends. The best path of every pair comes first, then the others, each time shorter and cheaper ones before others;
    at most `max_paths` are given. Edges are indices into `graph`. Raises GraphError for ids that the graph does not
    have, naming the closest ones, and for more than MAX_PAIRS pairs.
    """
    check_number("max_paths", max_paths, 0, 1_000)
    check_number("max_hops", max_hops, 0, MAX_HOPS)
    starts = known_nodes(graph, sources, "sources").tolist()
    ends = known_nodes(graph, [answer] if isinstance(answer, str) else answer, "answer").tolist()
    pairs = [(start, end) for start in starts for end in ends if start != end]
    if len(pairs) > MAX_PAIRS:
        raise GraphError(f"sources, answer: {len(pairs):,} pairs of ids, the limit is {MAX_PAIRS}")
    found, _ = find_paths(walks(graph), pairs, max_hops, max_paths)
    best: dict[tuple[int, int], NodePath] = {}
    for path in found:
        best.setdefault((path.nodes[0], path.nodes[-1]), path)
    first = {path.nodes: path for path in best.values()}
    others = [path for path in found if path.nodes not in first]
    ids = graph.columns.ids
    return [
        EvidencePath(tuple(ids[node] for node in path.nodes), path.edges, path.cost)
        for path in [*first.values(), *others][:max_paths]
    ]


def find_paths(
    walk: Walks,
    pairs: Iterable[tuple[int, int]],
    max_hops: int,
    count: int,
    scope: Scope = EVERYTHING,
    work: int = _WORK,
) -> tuple[list[NodePath], bool]:
    """For each pair of different nodes the best `count` paths, all of them by `NodePath.rank`, and whether every
    search came to its end; the searches look at some `work` edges together."""
    wanted = list(pairs)
    share = max(work // max(len(wanted), 1), _LEAST_WORK)
    found: list[NodePath] = []
    complete = True
    for start, end in wanted:
        paths = walk.shortest_paths(start, end, max_hops, count, scope, max_work=share)
        complete &= paths.complete
        for nodes, cost in paths.paths:
            steps = tuple(nodes.tolist())
            edges = tuple(walk.edge_between(one, other, scope) for one, other in pairwise(steps))
            found.append(NodePath(steps, edges, cost))
    return sorted(found, key=lambda path: path.rank), complete


def check_number(name: str, value: object, least: int, most: int) -> None:
    """Raises GraphError if `value` is not a whole number from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise GraphError(f"{name}: expected a whole number from {least} to {most:,}, found {shown(value)}")
