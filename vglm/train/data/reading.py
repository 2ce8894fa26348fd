"""Questions that any graph answers by itself: self-supervised reading lessons over small parts of it.

What an edge says, which entities a relation leads to, what is missing, what a part says as a whole, how two entities are
joined. A user's own graph gives as many as are wanted.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from vglm.graph.graph import Edge, Graph
from vglm.graph.paths import evidence
from vglm.graph.records import Records
from vglm.graph.text import one_line
from vglm.tasks.completion import QUESTION as COMPLETE
from vglm.tasks.explanation import FORM, said
from vglm.tasks.explanation import QUESTION as RELATED
from vglm.train.samples import Sample, Turn

MOST_EDGES = 10
MOST_NAMES = 6  # in an answer
LONGEST_TEXT = 160  # characters of a node's text


def reading_sample(graph: Graph, rng: random.Random) -> Sample | None:
    """Questions about a random part of the graph; None when the part has nothing to ask about."""
    if graph.num_edges == 0:
        return None
    part = random_part(graph, rng)
    if rng.random() < 0.2:
        return _missing(part, rng)
    lessons: list[Callable[[Graph, Records, random.Random], Turn | None]] = [
        _forwards, _forwards, _backwards, _backwards, _true_or_not, _kind, _describe_node, _joined,
    ]  # fmt: skip
    if rng.random() < 0.5:
        lessons.append(_describe_all)
    records = Records(part)
    turns = [turn for lesson in lessons if (turn := lesson(part, records, rng)) is not None]
    rng.shuffle(turns)
    return Sample("reading", tuple(dict.fromkeys(turns)), part) if turns else None


def random_part(graph: Graph, rng: random.Random) -> Graph:
    """A connected part of at most MOST_EDGES edges, grown from a random edge, with short texts."""
    columns = graph.columns
    start = rng.randrange(graph.num_edges)
    wanted = rng.randint(2, MOST_EDGES)
    chosen: dict[int, None] = {start: None}
    nodes = [int(columns.sources[start]), int(columns.targets[start])]
    for _ in range(3 * wanted):
        if len(chosen) >= wanted:
            break
        node = rng.choice(nodes)
        near = graph.edge_indices(node, "both")
        edge = int(near[rng.randrange(len(near))])
        chosen[edge] = None
        nodes += [int(columns.sources[edge]), int(columns.targets[edge])]
    part = graph.edge_subgraph(chosen, [])
    return _shortened(part, keep_texts=rng.random() < 0.5)


def _shortened(part: Graph, keep_texts: bool) -> Graph:
    """The part without aliases and attributes, which would fill the rows."""
    nodes = [part.node(node_id) for node_id in part.columns.ids]
    return Graph.from_dict(
        {
            "nodes": [
                {
                    "id": node.id,
                    "name": node.name,
                    "type": node.type,
                    "text": _first_words(node.text) if keep_texts else "",
                }
                for node in nodes
            ],
            "edges": [
                {"source": e.source, "relation": relation_words(e.relation), "target": e.target}
                for e in map(part.edge_at, range(part.num_edges))
            ],
        }
    )


def relation_words(relation: str) -> str:
    """A relation as words: "_derivationally_related_form" is "derivationally related form"."""
    return relation.replace("_", " ").strip() or relation


def _first_words(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    return text[:LONGEST_TEXT].rpartition(" ")[0] + "..."


def _edges(part: Graph, node: int, way: str) -> list[Edge]:
    return [part.edge_at(int(edge)) for edge in part.edge_indices(node, way)]  # type: ignore[arg-type]


def _names(part: Graph, records: Records, ids: list[str]) -> str:
    return ", ".join(dict.fromkeys(records.name(part.index_of(node)) for node in ids))


def _random_edge(part: Graph, rng: random.Random) -> Edge:
    return part.edge_at(rng.randrange(part.num_edges))


def _forwards(part: Graph, records: Records, rng: random.Random) -> Turn | None:
    edge = _random_edge(part, rng)
    node = part.index_of(edge.source)
    ends = [other.target for other in _edges(part, node, "out") if other.relation == edge.relation]
    name = records.short_name(node)
    words = rng.choice(
        ("{} {} what?", "What follows: {} {} ...?", "{}: {}?", "Which entities complete: {} {} ?")
    )
    return _listing(words.format(name, edge.relation), part, records, ends)


def _backwards(part: Graph, records: Records, rng: random.Random) -> Turn | None:
    edge = _random_edge(part, rng)
    node = part.index_of(edge.target)
    ends = [other.source for other in _edges(part, node, "in") if other.relation == edge.relation]
    name = records.short_name(node)
    words = rng.choice(("What {} {}?", "Which entities are in: ? {} {}", "Name everything that {} {}."))
    return _listing(words.format(edge.relation, name), part, records, ends)


def _listing(question: str, part: Graph, records: Records, ends: list[str]) -> Turn | None:
    if len(ends) > MOST_NAMES:
        return None
    return Turn(question, _names(part, records, ends))


def _true_or_not(part: Graph, records: Records, rng: random.Random) -> Turn:
    edge = _random_edge(part, rng)
    true = rng.random() < 0.5
    target = edge.target
    if not true:
        target = rng.choice(list(part.columns.ids))
        true = any(
            other.target == target and other.relation == edge.relation
            for other in _edges(part, part.index_of(edge.source), "out")
        )
    names = (records.short_name(part.index_of(edge.source)), records.short_name(part.index_of(target)))
    words = rng.choice(("Does the graph say: {} {} {}?", "Is this an edge of the graph: {}, {}, {}?"))
    return Turn(words.format(names[0], edge.relation, names[1]), "Yes." if true else "No.")


def _kind(part: Graph, records: Records, rng: random.Random) -> Turn | None:
    node = rng.randrange(part.num_nodes)
    kind = part.node(part.id_of(node)).type
    if not kind:
        return None
    return Turn(f"What is {records.short_name(node)}?", f"{records.name(node)} is a {one_line(kind)}.")


def _describe_node(part: Graph, records: Records, rng: random.Random) -> Turn:
    node = part.index_of(_random_edge(part, rng).source)
    return Turn(f"Describe {records.short_name(node)}.", " ".join(_sentences(part, records, node)))


def _describe_all(part: Graph, records: Records, rng: random.Random) -> Turn | None:
    said = [s for node in range(part.num_nodes) for s in _sentences(part, records, node, brief=True)]
    words = rng.choice(("Describe the graph.", "What does the graph say?", "Sum up the graph."))
    return Turn(words, " ".join(said)) if 0 < len(said) <= 8 else None


def _sentences(part: Graph, records: Records, node: int, brief: bool = False) -> list[str]:
    """What the part says of a node: its type and text, then a sentence for each relation."""
    name = records.name(node)
    about = part.node(part.id_of(node))
    said: list[str] = []
    subject = name
    if about.type and not brief:
        said.append(f"{name} is a {one_line(about.type)}.")
        subject = "It"
    if about.text and not brief:
        said.append(one_line(about.text).rstrip(". ") + ".")
    relations: dict[str, list[str]] = {}
    for edge in _edges(part, node, "out"):
        relations.setdefault(edge.relation, []).append(records.name(part.index_of(edge.target)))
    for relation, names in relations.items():
        said.append(f"{subject} {one_line(relation)} {listed(list(dict.fromkeys(names)))}.")
        subject = "It" if not brief else name
    return said or [f"{name} is in the graph."]


def listed(names: list[str]) -> str:
    """Names as a sentence has them: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _joined(part: Graph, records: Records, rng: random.Random) -> Turn | None:
    """How two entities are joined, as `vglm.tasks.explanation` asks."""
    ids = list(part.columns.ids)
    if len(ids) < 2:
        return None  # an edge from a node to itself
    a, b = rng.sample(ids, 2)
    found = evidence(part, [a], b, 1, 3)
    if not found:
        return None
    path = tuple(part.edge_at(edge) for edge in found[0])
    names = [records.short_name(part.index_of(node)) for node in (a, b)]
    stations = list(dict.fromkeys(node for edge in path for node in (edge.source, edge.target)))
    between = [f"[{records.name(part.index_of(node))}]" for node in stations if node not in (a, b)]
    ends = " and ".join(f"[{records.name(part.index_of(node))}]" for node in (a, b))
    if "[[" in ends or "]]" in ends or any("[[" in name or "]]" in name for name in between):
        return None
    told = (
        f" So {ends} are linked through {listed(between)}." if between else f" So {ends} are linked directly."
    )
    question = RELATED.format(source=names[0], target=names[1])
    return Turn(f"{question}\n{FORM}", told, said(records, path), named=False)


def _missing(part: Graph, rng: random.Random) -> Sample | None:
    """An edge that is taken out, to be found again (see vglm/tasks/completion.py)."""
    hidden = rng.randrange(part.num_edges)
    rest = np.delete(np.arange(part.num_edges), hidden)
    edge = part.edge_at(hidden)
    if not len(rest):
        return None
    left = part.edge_subgraph(rest.tolist(), [edge.source, edge.target])
    records = Records(left)
    ends = [records.short_name(left.index_of(node)) for node in (edge.source, edge.target)]
    if rng.random() < 0.5:
        question, answer = COMPLETE.format(head=ends[0], relation=edge.relation, tail="?"), edge.target
    else:
        question, answer = COMPLETE.format(head="?", relation=edge.relation, tail=ends[1]), edge.source
    return Sample("completion", (Turn(question, records.name(left.index_of(answer)), named=False),), left)
