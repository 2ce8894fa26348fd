"""Classification: which label fits a graph, or an entity in its neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence

from vglm.decode.graph_outputs import Named
from vglm.errors import RequestError
from vglm.graph.graph import Graph
from vglm.graph.linking import linker
from vglm.graph.records import Records
from vglm.graph.text import one_line
from vglm.tasks.asking import Asking, GraphQuery, GraphSource
from vglm.tasks.completion import given_node
from vglm.tasks.ranking import RankingTask, ranking_task

MAX_LABELS = 4096
MAX_LABEL = 1_000  # characters
QUESTION = "Which label fits {what}?"


def classification_task(
    asking: Asking,
    graph: Graph,
    labels: Sequence[str] | None,
    *,
    entity: str | None = None,
    question: str | None = None,
    temperature: float = 1.0,
    hops: int = 2,
    budget: int = 1024,
    graph_mode: str = "auto",
) -> RankingTask:
    """Which of `labels` fits the graph, or the node with the id `entity`, of which the model then reads what is near
    (`hops` and `budget` as in `retrieve`). `question` replaces "Which label fits ...?". All labels are ranked.

    Raises GraphError and RequestError that name the argument at fault.
    """
    texts = checked_labels(labels)
    source: GraphSource = graph
    what = "the graph"
    if entity is not None:
        node = given_node(graph, entity, "entity")
        source = GraphQuery(graph, (entity,), hops, budget)
        what = Records(graph, shared_names=linker(graph).shared_names).short_name(node)
    asks = question if question is not None else QUESTION.format(what=what)
    asked = asking.question(label_question(asks, texts), source, mode=graph_mode, named=entity is not None)
    named = [Named(label, label) for label in labels or ()]
    return ranking_task(asking, asked, named, texts, len(texts), temperature)


def label_question(question: str, labels: Sequence[str]) -> str:
    """A question that is to be answered with one of the labels."""
    return f"{question}\nLabels: {', '.join(labels)}\nAnswer with one of the labels."


def checked_labels(labels: object) -> list[str]:
    """The labels as they are written, each on one line. Raises RequestError for what are none."""
    if not isinstance(labels, Sequence) or isinstance(labels, str | bytes):
        raise RequestError("labels must be a list of texts", "labels")
    if not 2 <= len(labels) <= MAX_LABELS:
        raise RequestError(f"there are {len(labels)} labels; give 2 to {MAX_LABELS}", "labels")
    for place, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip() or len(label) > MAX_LABEL:
            raise RequestError(f"labels[{place}] must be a text of 1 to {MAX_LABEL} characters", "labels")
    if len(set(labels)) != len(labels):
        raise RequestError("labels must differ from each other", "labels")
    return [one_line(label.strip()) for label in labels]
