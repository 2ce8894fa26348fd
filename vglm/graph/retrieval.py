"""Retrieval: the part of a graph that a question is about, within a budget of tokens.

Entities are linked from the question; from them a walk finds what is near (personalised PageRank, or all nodes
within some hops) and searches find the shortest paths between them. The best of it that fits is the sub-graph, and
what does not fit is said. The result depends on the graph's content, the question and the options alone.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np

from vglm.errors import GraphError
from vglm.graph.build import restrict
from vglm.graph.closest import known_nodes
from vglm.graph.graph import Graph
from vglm.graph.limits import shown
from vglm.graph.linking import MAX_QUESTION_CHARACTERS, LinkedEntity, Mention, linker, shared_index
from vglm.graph.paths import EvidencePath, NodePath, check_number
from vglm.graph.records import DEFAULT_RECORD, RecordOptions, Records
from vglm.graph.search import MAX_MET, WORK, Method, Start, Surroundings, look_around
from vglm.graph.selection import UNREAD, Neighborhood, Selection, grow
from vglm.graph.token_counts import CountTokens, estimate_tokens
from vglm.graph.walks import DEGREE_CAP, Scope, walks

MAX_BUDGET = 1_000_000
MAX_HOPS = 8
_MAX_EDGES = 65_536
_TOKENS_PER_NODE = 3  # least tokens of a node in a sub-graph
NO_ENTITY = (
    "the question names no entity of the graph; name one as the graph does, or give the ids of entities"
)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What was found and is not in the sub-graph: nodes, edges, and why ("" if nothing was left out).

    Edges are counted among the best 2,000 nodes found. `best` is the id of the node that ranks first of those that
    were left out. `not_followed` counts edges of hubs along which the walk did not look.
    """

    nodes: int = 0
    edges: int = 0
    why: str = ""
    best: str | None = None
    not_followed: int = 0


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A sub-graph for a question; `tokens` is what its records take.

    `entities` are the mentions that were linked, or one for each id that was given, at the empty place 0..0.
    `scores` are those of the walk, id -> 0..1, the best first; 0 for nodes that only a path has met. `paths` join
    entities; their edges are indices into this `graph`. `shared_names` are names in it that several nodes of the
    whole graph have: give them to `Records`, `node_spans` or `sequential_text`.
    """

    graph: Graph
    entities: tuple[Mention, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    scores: dict[str, float] = field(default_factory=dict)
    paths: tuple[EvidencePath, ...] = ()
    tokens: int = 0
    shared_names: frozenset[str] = frozenset()


def retrieve(
    graph: Graph,
    question: str,
    *,
    entities: Sequence[str] | None = None,
    hops: int = 2,
    budget: int = 1024,
    count_tokens: CountTokens = estimate_tokens,
    method: Method = "auto",
    types: Collection[str] = (),
    fuzzy: bool = True,
    relations: Collection[str] | None = None,
    record: RecordOptions = DEFAULT_RECORD,
) -> Retrieved:
    """The sub-graph that a question is about: at most `hops` edges from its entities, at most `budget` tokens.

    Args:
        entities: node ids to start from; None links the question (`types`, `fuzzy`: see `link`).
        count_tokens: measures lines of records; give `TokenCounts(tokenizer)`, which remembers them.
        method: "ppr" ranks nodes by personalised PageRank, "khop" by distance; "paths" takes the shortest paths
            between entities alone, of at most 2 x `hops` edges; "auto" takes those first and fills up by PageRank.
        relations: walk along these only.
        record: what records show, which is what is measured.

    A question that names no entity gives an empty graph, and `left_out.why` says so. Raises GraphError for options
    that are out of range, and for ids (naming the closest ones) and relations that the graph does not have. The
    first call for a graph builds its index: see `prepare`.
    """
    check_number("hops", hops, 0, MAX_HOPS)
    check_number("budget", budget, 1, MAX_BUDGET)
    if method not in get_args(Method):
        raise GraphError(f"method: expected one of {', '.join(get_args(Method))}, found {shown(method)}")
    scope = walks(graph).scope(None, relations)
    if entities is None:
        mentions = tuple(linker(graph).link(question, types, fuzzy=fuzzy))
    else:
        mentions = tuple(_given(graph, node) for node in known_nodes(graph, entities, "entities").tolist())
    if not mentions:
        why = NO_ENTITY if graph.num_nodes else "the graph is empty"
        return Retrieved(_part(graph, (), ()), left_out=LeftOut(why=why))
    start = Start.of(graph, mentions)
    around = look_around(graph, start, hops, method, scope)
    selection = Selection(Records(graph, record, linker(graph).shared_names), count_tokens, budget)
    for node in start.entities:
        selection.add([node], [])
    paths = [path for path in around.paths if selection.add(path.nodes, path.edges)]
    if method != "paths":
        _fill(graph, selection, start, around, budget, scope)
    left_out = _left_out(graph, selection, around, budget, scope, question if entities is None else "")
    return _retrieved(graph, mentions, around, selection, paths, left_out)


def prepare(graph: Graph, directory: str | Path | None = None) -> float:
    """Builds what retrieval needs of a graph, once, and returns the seconds that it took.

    About a second for a million edges among 200,000 nodes, and little if another version of the graph has the same
    names (`shared_index`). With a `directory`, what takes longest is kept there for the next start. Queries of other
    graphs and versions do not wait: call it in a thread before a new version is served.
    """
    started = time.perf_counter()
    index = shared_index(graph, directory)  # kept until the linker has it
    _ = linker(graph).shared_names
    del index
    walks(graph)
    return time.perf_counter() - started


def _given(graph: Graph, node: int) -> Mention:
    columns = graph.columns
    kind = columns.type_names[columns.node_types[node]]
    return Mention("", 0, 0, (LinkedEntity(columns.ids[node], columns.names[node], kind, 1.0, "given"),), 1)


def _fill(
    graph: Graph, selection: Selection, start: Start, around: Surroundings, budget: int, scope: Scope
) -> None:
    """Uses the rest of the budget for the best nodes, and all edges among them that fit."""
    ranked = around.nodes[: around.fixed + budget // _TOKENS_PER_NODE]
    edges, _ = walks(graph).edges_among(np.sort(ranked), _MAX_EDGES, scope)
    neighborhood = Neighborhood(ranked, edges, graph.columns.sources, graph.columns.targets)
    grow(selection, neighborhood, np.flatnonzero(np.isin(ranked, start.seeds)).tolist())


def _left_out(
    graph: Graph, selection: Selection, around: Surroundings, budget: int, scope: Scope, question: str
) -> LeftOut:
    _, among = walks(graph).edges_among(np.sort(around.nodes), 0, scope)
    nodes, edges = around.total - len(selection.nodes), among - len(selection.edges)
    best = next((node for node in around.nodes.tolist() if node not in selection.nodes), None)
    why: list[str] = []
    if nodes or edges:
        missing = f"{_counted(nodes, 'node')} and {_counted(edges, 'edge')}"
        why.append(f"{missing} did not fit into the budget of {budget:,} tokens")
    if best is not None:
        tokens = selection.own_tokens(best)
        size = f"{tokens:,}" if tokens < UNREAD else f"more than {budget:,}"
        name, node_id = graph.columns.names[best], graph.columns.ids[best]
        why[-1] += f", the best of them {shown(name)} ({shown(node_id)}) with {size} tokens"
    if around.not_followed:
        why.append(
            f"{around.not_followed:,} edges of nodes with more than {DEGREE_CAP:,} edges were not followed"
        )
    if not around.complete:
        why.append(f"the search was ended after {WORK:,} edges or {MAX_MET:,} nodes, so there is more")
    if len(question) > MAX_QUESTION_CHARACTERS:
        why.append(f"the question was read up to character {MAX_QUESTION_CHARACTERS:,}")
    best_id = None if best is None else graph.columns.ids[best]
    return LeftOut(nodes, edges, "; ".join(why), best_id, around.not_followed)


def _retrieved(
    graph: Graph,
    mentions: tuple[Mention, ...],
    around: Surroundings,
    selection: Selection,
    paths: list[NodePath],
    left_out: LeftOut,
) -> Retrieved:
    part = _part(graph, selection.nodes, selection.edges)
    ids = graph.columns.ids
    edges = np.array(sorted(selection.edges), np.int64)
    order = np.lexsort((around.nodes, -around.scores))
    ranked = zip(around.nodes[order].tolist(), around.scores[order].tolist(), strict=True)
    return Retrieved(
        part,
        mentions,
        left_out,
        {ids[node]: score for node, score in ranked if node in selection.nodes},
        tuple(
            EvidencePath(
                tuple(ids[node] for node in path.nodes),
                tuple(np.searchsorted(edges, path.edges).tolist()),
                path.cost,
            )
            for path in paths
        ),
        selection.tokens,
        linker(graph).shared_names.intersection(part.columns.names),
    )


def _part(graph: Graph, nodes: Collection[int], edges: Collection[int]) -> Graph:
    kept = (np.array(sorted(nodes), np.int64), np.array(sorted(edges), np.int64))
    return Graph(restrict(graph.columns, *kept))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
