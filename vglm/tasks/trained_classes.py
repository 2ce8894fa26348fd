"""Classification by a classifier that was trained for it (`vglm train classifier`), without a language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vglm.decode.graph_outputs import GraphOutput
from vglm.encoder.graph_classifier import GraphClassifier
from vglm.encoder.graph_features import count
from vglm.errors import RequestError
from vglm.graph.graph import Graph
from vglm.tasks.calibration import calibrated
from vglm.tasks.classification import checked_labels
from vglm.tasks.ranking import Ranked, Scored, check_temperature

MODE = "classifier"  # of reading a graph
MOST_EVIDENCE = 3  # kinds of substructure whose edges are cited


def trained_classes(
    classifier: GraphClassifier,
    graph: Graph,
    labels: Sequence[str] | None = None,
    temperature: float = 1.0,
    **of_language_model: object,
) -> Ranked:
    """The classes of a graph, or those of them that `labels` names, with the edges of what spoke most for the best.

    `logprob` is the log of the class's probability among them, in nats. Raises RequestError for labels that are no classes of
    the classifier and for options that only a language model reads (not None); GraphError for a graph that is too large.
    """
    for name, value in of_language_model.items():
        if value is not None:
            raise RequestError(
                f"{name} is for a language model; a trained classifier reads the whole graph alone", name
            )
    check_temperature(temperature)
    chosen = _chosen(classifier, labels)
    chances = classifier.probabilities([count(graph, directed=classifier.directed)])[0].astype(np.float64)
    logs = [float(np.log(max(chances[classifier.classes.index(name)], 1e-30))) for name in chosen]
    total = float(np.logaddexp.reduce(logs))
    scores = calibrated(logs, chosen, temperature)
    order = sorted(range(len(chosen)), key=lambda place: (-logs[place], chosen[place]))
    ranked = tuple(
        Scored(chosen[i], chosen[i], "", float(scores[i]), logs[i] - total, known=False) for i in order
    )
    return Ranked(ranked, len(ranked), float(temperature), _read(classifier, graph, ranked[0].name))


def _chosen(classifier: GraphClassifier, labels: Sequence[str] | None) -> list[str]:
    if labels is None:
        return list(classifier.classes)
    checked_labels(labels)
    for label in labels:
        if label not in classifier.classes:
            known = ", ".join(map(repr, classifier.classes[:20]))
            raise RequestError(
                f"labels: the classifier knows no class {label[:80]!r}; it knows {known}", "labels"
            )
    return list(labels)


def _read(classifier: GraphClassifier, graph: Graph, best: str) -> GraphOutput:
    """What was read is the whole graph; cited is what spoke for the best class."""
    found = [one for one in classifier.explain(graph, MOST_EVIDENCE, best) if one.weight > 0]
    nodes = (node for one in found for nodes in one.nodes for node in nodes)
    return GraphOutput(
        mode=MODE,
        evidence=tuple(tuple(graph.edge_at(edge) for edge in one.edges) for one in found if one.edges),
        citations=tuple(dict.fromkeys(nodes)),
        num_nodes=graph.num_nodes,
        num_edges=graph.num_edges,
        graph=graph,
    )
