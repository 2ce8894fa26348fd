"""What is near the entities of a question: nodes by rank, and the paths between entities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt

from vglm.graph.graph import Graph, Ints
from vglm.graph.linking import Mention
from vglm.graph.paths import MAX_HOPS, NodePath, find_paths
from vglm.graph.walks import RESTART, Scope, Walked, walks

Method = Literal["auto", "ppr", "khop", "paths"]
MAX_FOUND = 2_000  # nodes of a neighbourhood that are looked at, the best ones
MAX_MET = 20_000  # nodes that a walk by distance may meet
WORK = 100_000  # edges that a walk, or all searches for paths, may look at: about a millisecond
_MAX_SEEDS = 64  # entities that are looked around
_PATH_ENTITIES = 6  # entities between which paths are looked for
_PATHS_PER_PAIR = 3
_CERTAIN = 0.75  # mentions that score less than this share of the best one's are not looked around
_AS_LIKELY = 0.03  # candidates of one name that count beside the best one score at most so much less
_CANDIDATES = 3
_EPSILON = 1e-4
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Start:
    """Where to look: `entities`, the likeliest node of each certain mention, the best first; and where walks start,
    `seeds` ascending with `weights` that sum to 1, which have other candidates of ambiguous names, too."""

    entities: list[int]
    seeds: Ints
    weights: Floats

    @classmethod
    def of(cls, graph: Graph, mentions: Sequence[Mention]) -> Start:
        """The start for at least one mention."""
        find = graph.columns.ids.find
        best = sorted(mentions, key=lambda mention: -mention.best.score)[:_MAX_SEEDS]
        best = [mention for mention in best if mention.best.score >= _CERTAIN * best[0].best.score]
        weights: dict[int, float] = {}
        for mention in best:
            for place, entity in enumerate(mention.entities[:_CANDIDATES]):
                if entity.score >= mention.best.score - _AS_LIKELY:
                    node = find(entity.id)
                    weights[node] = weights.get(node, 0.0) + entity.score / (place + 1)
        seeds = np.array(sorted(weights), np.int32)
        values = np.array([weights[node] for node in seeds.tolist()])
        entities = dict.fromkeys(find(mention.best.id) for mention in best)
        return cls(list(entities), seeds, values / values.sum())


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Nodes by rank, int32[n], with `scores` float64[n]: entities, then nodes of paths (`fixed` in all), then others;
    at most MAX_FOUND of the `total` that were found.

    `not_followed` counts edges of hubs that were not followed; `complete` is false if a search was ended.
    """

    nodes: Ints
    scores: Floats
    fixed: int
    total: int
    paths: list[NodePath]
    not_followed: int
    complete: bool


def look_around(graph: Graph, start: Start, hops: int, method: Method, scope: Scope) -> Surroundings:
    """The nodes at most `hops` away from the seeds, ranked, and the paths between entities if `method` wants them."""
    paths: list[NodePath] = []
    complete = True
    if method in ("auto", "paths"):
        pairs = combinations(start.entities[:_PATH_ENTITIES], 2)
        longest = min(2 * hops, MAX_HOPS)
        paths, complete = find_paths(walks(graph), pairs, longest, _PATHS_PER_PAIR, scope, WORK)
    on_paths = [node for path in paths for node in path.nodes]
    fixed = np.array(list(dict.fromkeys([*start.entities, *on_paths])), np.int32)
    if method == "paths":
        return Surroundings(fixed, np.zeros(len(fixed)), len(fixed), len(fixed), paths, 0, complete)
    walked = _ranked(graph, start, hops, method, scope)
    others = ~np.isin(walked.nodes, fixed)
    nodes = np.concatenate((fixed, walked.nodes[others]))
    scores = np.concatenate((_scores_of(fixed, walked), walked.scores[others]))
    return Surroundings(
        nodes[:MAX_FOUND],
        scores[:MAX_FOUND],
        len(fixed),
        len(nodes),
        paths,
        walked.passed_over,
        complete and walked.complete,
    )


def _ranked(graph: Graph, start: Start, hops: int, method: Method, scope: Scope) -> Walked:
    """What a walk met, best first. By PageRank, or by distance and then by PageRank ("khop")."""
    walk = walks(graph)
    ranked = walk.pagerank(start.seeds, start.weights, hops, scope, _EPSILON, max_work=WORK)
    # What reaches the last nodes stays there; the others pass on all but the restart's share of it.
    scores = np.where((ranked.hops == hops) & (hops > 0), RESTART, 1.0) * ranked.scores
    if method != "khop":
        order = np.lexsort((ranked.nodes, -scores))
        return Walked(
            ranked.nodes[order], ranked.hops[order], scores[order], ranked.passed_over, ranked.complete
        )
    near = walk.neighborhood(start.seeds, hops, MAX_MET, scope, max_work=WORK)
    scores = _scores_of(
        near.nodes, Walked(ranked.nodes, ranked.hops, scores, ranked.passed_over, ranked.complete)
    )
    order = np.lexsort((near.nodes, -scores, near.hops))
    return Walked(near.nodes[order], near.hops[order], scores[order], near.passed_over, near.complete)


def _scores_of(nodes: Ints, walked: Walked) -> Floats:
    """The scores of some nodes in a walk, 0 for those that it did not meet."""
    if not len(walked.nodes):
        return np.zeros(len(nodes))
    order = np.argsort(walked.nodes)
    places = np.minimum(np.searchsorted(walked.nodes[order], nodes), len(order) - 1)
    places = order[places]
    return np.where(walked.nodes[places] == nodes, walked.scores[places], 0.0)
