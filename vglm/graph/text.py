"""The exact text of a sub-graph: one record per node, in canonical order, within a token budget.

    Marfan syndrome (disease)
    - has phenotype: Ectopia lentis (frequency 119/251; PMID:28050285, PMID:29587526)
    Ectopia lentis (phenotype)
    - definition: Dislocation or malposition of the crystalline lens of the eye.
    - is a: Abnormal lens morphology

Every line states one thing that the graph holds, in its own words; what does not fit is left out line
by line, and the last line says how much that was. Names that several nodes share are followed by their
ids.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from vglm.errors import GraphError
from vglm.graph.graph import Edge, Graph

# Characters that could break a line or hide in one; written as escapes, so that a name stays inside its line.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class TextOptions:
    """What a record shows; `references` is how many of an edge's are written out.

    Without `bare_nodes`, a node that is named as the end of an edge and has nothing else to say gets no
    record.
    """

    ids: bool = False
    definitions: bool = True
    frequencies: bool = True
    references: int = 2
    bare_nodes: bool = True


@dataclass(frozen=True, slots=True)
class GraphText:
    """A sub-graph's text, its length in tokens as the given counter counts them, and what is missing in
    it."""

    text: str
    tokens: int
    nodes_left_out: int
    edges_left_out: int
    definitions_left_out: int

    @property
    def complete(self) -> bool:
        """True if nothing was left out."""
        return self.nodes_left_out + self.edges_left_out + self.definitions_left_out == 0


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the whole text; `kind` says what is missing when it is left out, `node` whose record it
    is in."""

    kind: str  # "node", "definition" or "edge"
    node: int
    text: str


DEFAULT_OPTIONS = TextOptions()


def graph_text(
    graph: Graph,
    count_tokens: Callable[[str], int] = len,
    budget: int | None = None,
    first: Iterable[str] = (),
    options: TextOptions = DEFAULT_OPTIONS,
) -> GraphText:
    """Writes a graph within `budget` tokens, as `count_tokens` counts them (None: all of it).

    Records are in order of id and edges in canonical order, so the text depends on the content only. When the
    budget is short, the records of the nodes in `first` are kept before others, in that order, and names and
    edges before definitions. Raises GraphError if the budget cannot even say what was left out.
    """
    lines = list(_lines(graph, options))
    if budget is None:
        return _written(lines, set(range(len(lines))), count_tokens)
    kept = _choose(lines, [graph.index_of(node_id) for node_id in first], count_tokens, budget)
    while True:
        result = _written(lines, set(kept), count_tokens)
        if result.tokens <= budget:
            return result
        if not kept:
            raise GraphError(f"budget: {budget} tokens are too few even to say what was left out")
        kept = kept[: -max(1, len(kept) // 50)]


def edge_text(target: str, edge: Edge, options: TextOptions = DEFAULT_OPTIONS) -> str:
    """What one edge states, with `target` as the name of its end: `has phenotype: Ectopia lentis
    (frequency 3/5; PMID:28050285)`."""
    attributes = edge.attributes
    notes: list[str] = []
    frequency = attributes.get("frequency_label", attributes.get("frequency"))
    if options.frequencies and frequency is not None:
        words = str(frequency)
        notes.append(words if words[:1].isalpha() else f"frequency {words}")
    references = [str(reference) for reference in attributes.get("references", ())]
    if options.references and references:
        more = len(references) - options.references
        notes.append(", ".join(references[: options.references]) + (f" and {more} more" if more > 0 else ""))
    note = f" ({'; '.join(notes)})" if notes else ""
    return one_line(f"{edge.relation}: {target}{note}")


def one_line(text: str) -> str:
    """`text` with line breaks, control and direction characters written as escapes."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def _lines(graph: Graph, options: TextOptions) -> Iterator[_Line]:
    columns = graph.columns
    uses = Counter(columns.names)
    names = [
        f"{name} [{node_id}]" if options.ids or uses[name] > 1 else name
        for node_id, name in zip(columns.ids, columns.names, strict=True)
    ]
    for index, node in enumerate(graph.nodes()):
        outgoing = graph.edge_indices(index)
        says = len(outgoing) or (options.definitions and node.text)
        if not (says or options.bare_nodes) and len(graph.edge_indices(index, "in")):
            continue
        kind = f" ({node.type})" if node.type else ""
        yield _Line("node", index, one_line(names[index] + kind))
        if options.definitions and node.text:
            yield _Line("definition", index, f"- definition: {one_line(node.text)}")
        for edge in outgoing:
            target = names[int(columns.targets[edge])]
            yield _Line("edge", index, f"- {edge_text(target, graph.edge_at(int(edge)), options)}")


def _choose(
    lines: list[_Line], first: list[int], count_tokens: Callable[[str], int], budget: int
) -> list[int]:
    """Positions of the lines that fit, most important first: for each node its name and edges, then
    definitions."""
    rank = {node: place for place, node in reversed(list(enumerate(first)))}
    importance = sorted(
        range(len(lines)),
        key=lambda i: (lines[i].kind == "definition", rank.get(lines[i].node, len(first)), i),
    )
    kept: list[int] = []
    named: set[int] = set()
    left = budget
    for position in importance:
        line = lines[position]
        if line.kind != "node" and line.node not in named:
            continue  # a fact about a node whose name did not fit would be read as one about another node
        cost = count_tokens(line.text + "\n")
        if cost > left:
            continue
        left -= cost
        kept.append(position)
        if line.kind == "node":
            named.add(line.node)
        if left == 0:
            break
    return kept


def _written(lines: list[_Line], kept: set[int], count_tokens: Callable[[str], int]) -> GraphText:
    missing = Counter(line.kind for position, line in enumerate(lines) if position not in kept)
    shown = [line.text for position, line in enumerate(lines) if position in kept]
    if missing:
        parts = [
            f"{n} {kind}{'s' if n > 1 else ''}"
            for kind in ("node", "edge", "definition")
            if (n := missing[kind])
        ]
        shown.append(f"(left out: {', '.join(parts)})")
    text = "\n".join(shown)
    return GraphText(text, count_tokens(text), missing["node"], missing["edge"], missing["definition"])
