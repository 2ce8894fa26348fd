"""Link prediction by the graph encoder: message passing over the whole graph instead of a prompt about a part of it.

A query takes milliseconds whatever the number of candidates, reads edges that no prompt has room for, and works for entities
and relations that no training has seen. Scores are the softmax over the candidates.
"""

from __future__ import annotations

import numpy as np

from vglm.decode.graph_outputs import GraphOutput
from vglm.encoder.relational import RelationalEncoder
from vglm.graph.graph import Graph
from vglm.graph.paths import evidence
from vglm.tasks.calibration import calibrated
from vglm.tasks.completion import OpenEnd, named_node
from vglm.tasks.ranking import Ranked, Scored, check_temperature, check_top

MODE = "encoder"  # of reading a graph
MAX_PATHS = 3
MAX_HOPS = 3


def encoded_links(
    encoder: RelationalEncoder, graph: Graph, end: OpenEnd, top: int, temperature: float
) -> Ranked:
    """The candidates for an open end of a triple by the encoder's scores, with paths of edges from the given node to the best.

    `logprob` is the log of the softmax over the candidates, in nats. Raises RequestError for `top` or `temperature`.
    """
    check_top(top)
    check_temperature(temperature)
    given = graph.id_of(end.node)
    scores = encoder.scores(graph, given, end.relation, inverse=not end.outwards)[end.nodes].astype(
        np.float64
    )
    ids = [graph.id_of(index) for index in end.nodes.tolist()]
    chances = calibrated(scores.tolist(), ids, temperature)
    logprobs = scores - scores.max()
    logprobs -= np.log(np.exp(logprobs).sum())
    order = sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))[:top]
    known = set(end.known.tolist())
    best = []
    for place in order:
        index = int(end.nodes[place])
        node = named_node(graph, index)
        chance, logprob = float(chances[place]), float(logprobs[place])
        best.append(Scored(node.id, node.name, node.type, chance, logprob, index in known))
    return Ranked(tuple(best), len(ids), temperature, _read(graph, given, best[0]))


def _read(graph: Graph, given: str, best: Scored) -> GraphOutput:
    """What was read is the whole graph; cited are the edges that join the given node and the best candidate."""
    paths = evidence(graph, [given], best.id, MAX_PATHS, MAX_HOPS) if best.id != given else []
    edges = tuple(tuple(graph.edge_at(edge) for edge in path) for path in paths)
    ends = (end for path in edges for edge in path for end in (edge.source, edge.target))
    return GraphOutput(
        mode=MODE,
        evidence=edges,
        citations=tuple(dict.fromkeys((given, best.id, *ends))),
        entities=(named_node(graph, graph.index_of(given)),),
        num_nodes=graph.num_nodes,
        num_edges=graph.num_edges,
        graph=graph,
    )
