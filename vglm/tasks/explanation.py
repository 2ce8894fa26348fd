"""Explanation: how two entities of a graph are joined, as paths of edges and in words that name nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vglm.decode.graph_outputs import GraphOutput
from vglm.errors import GraphError, RequestError
from vglm.graph.graph import Edge, Graph
from vglm.graph.paths import evidence
from vglm.graph.records import Records
from vglm.graph.text import one_line
from vglm.tasks.asking import Asked, Asking
from vglm.tasks.completion import given_node

QUESTION = "How is {source} related to {target}?"
FORM = (
    "Explain it in one or two sentences, from the graph alone. Write the name of each entity in [brackets]."
)


@dataclass(frozen=True, slots=True)
class Explained:
    """An explanation.

    Attributes:
        paths: of edges between the two entities, the shortest and most specific first; an edge may be walked either way.
        text: the explanation; it begins with the edges of the best path, said one by one, and goes on in the model's words.
            Every name in [brackets] is an entity of the paths. "" if there is none.
        reason: why there is no explanation, else "".
        finish_reason: "stop", or "length" for one that was cut off; None if there is none.
        graph: what the model has read, and what is cited: the paths, and what the text mentions; None if there is no text.
    """

    paths: tuple[tuple[Edge, ...], ...]
    text: str = ""
    reason: str = ""
    finish_reason: str | None = None
    graph: GraphOutput | None = None


@dataclass(frozen=True, slots=True)
class ExplanationTask:
    """An explanation that is to be written: `asked` is None, with a `reason`, when there is nothing to explain.

    `lead` is what it begins with, and is in the prompt.
    """

    paths: tuple[tuple[Edge, ...], ...]
    asked: Asked | None
    reason: str = ""
    lead: str = ""

    def explained(self, text: str, finish_reason: str | None, graph: GraphOutput | None) -> Explained:
        """The explanation, of what the model has written."""
        if graph is None:
            return Explained(self.paths, reason=self.reason)
        cited = (end for path in self.paths for edge in path for end in (edge.source, edge.target))
        citations = tuple(dict.fromkeys((*cited, *graph.citations)))
        graph = replace(graph, evidence=self.paths, citations=citations)
        return Explained(self.paths, self.lead + text, "", finish_reason, graph)


def explanation_task(
    asking: Asking,
    graph: Graph,
    source: str,
    target: str,
    *,
    question: str | None = None,
    max_paths: int = 3,
    max_hops: int = 4,
    graph_mode: str = "auto",
) -> ExplanationTask:
    """How the nodes with the ids `source` and `target` are joined: at most `max_paths` paths of at most `max_hops` edges,
    and the prompt in which the model reads them and nothing else. `question` replaces "How is ... related to ...?".

    Raises GraphError and RequestError that name the argument at fault.
    """
    ends = [given_node(graph, source, "source"), given_node(graph, target, "target")]
    if ends[0] == ends[1]:
        raise GraphError("target: is the source itself; give two different nodes")
    found = evidence(graph, [source], target, max_paths, max_hops)
    paths = tuple(tuple(graph.edge_at(edge) for edge in path) for path in found)
    if not paths:
        return ExplanationTask((), None, f"no path of at most {max_hops} edges joins the two")
    part = graph.edge_subgraph({edge for path in found for edge in path}, [source, target])
    records = Records(part)
    names = [records.short_name(part.index_of(node_id)) for node_id in (source, target)]
    asks = question if question is not None else QUESTION.format(source=names[0], target=names[1])
    try:
        asked = asking.question(f"{asks}\n{FORM}", part, {"kind": "mentions"}, graph_mode, named=False)
    except RequestError as error:
        if error.param != "constraint":
            raise
        return ExplanationTask(paths, None, "none of the names on the paths can stand in brackets")
    lead = said(records, paths[0])
    words = asking.tokenizer.encode(asking.answer_lead + lead, add_special=False, allow_special_tokens=False)
    asked.prompt = replace(asked.prompt, token_ids=[*asked.prompt.token_ids, *words])
    return ExplanationTask(paths, asked, lead=lead)


def said(records: Records, path: tuple[Edge, ...]) -> str:
    """The edges of a path as sentences: what a small model might get wrong is said before it begins."""
    graph = records.graph

    def name(node_id: str) -> str:
        written = records.name(graph.index_of(node_id))
        return written if "[" in written or "]" in written else f"[{written}]"

    return " ".join(f"{name(edge.source)} {one_line(edge.relation)} {name(edge.target)}." for edge in path)
