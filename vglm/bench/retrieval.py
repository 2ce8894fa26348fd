"""Retrieval from a graph: what the index costs, what a question costs by method, and what an edit costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import numpy as np

from vglm.bench.report import Report, Table
from vglm.bench.synthetic_graph import synthetic_graph
from vglm.console import progress_bar
from vglm.errors import ConfigError, GraphError
from vglm.graph.graph import Graph
from vglm.graph.linking import link, linker
from vglm.graph.retrieval import Retrieved, prepare, retrieve
from vglm.graph.search import Method
from vglm.graph.strings import StringTable
from vglm.graph.walks import walks
from vglm.graph.words import words

_Found = TypeVar("_Found")
_PERCENTILES = (50, 90, 99)
_LONGEST_NAME = 12  # words of names that questions are made of
_SHORTEST_TYPO = 6  # letters of a word in which two are swapped
_EDITS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """`questions` of each kind over a graph file with a table of its nodes, or a synthetic graph of `nodes` and
    `edges`."""

    graph: Path | None = None
    node_table: Path | None = None
    nodes: int = 200_000
    edges: int = 1_000_000
    questions: int = 200
    hops: int = 2
    budget: int = 1024
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Question:
    kind: str
    text: str
    entities: tuple[str, ...]  # what it asks about


def run(work: Retrieval) -> Report:
    """All tables. Raises ConfigError for a graph that no questions can be made of."""
    kinds = len(get_args(Method)) * 3
    with progress_bar("retrieval", kinds + 3) as bar:
        graph = _graph(work)
        bar.advance(what="index")
        index = _index(graph)
        questions = _questions(graph, work)
        tables = [index]
        bar.advance(what="questions")
        tables += [_linking(graph, questions), *_by_method(graph, questions, work, bar.advance)]
        tables.append(_edits(graph))
        bar.advance()
    settings = {
        "graph": str(work.graph or "synthetic"),
        "nodes": f"{graph.num_nodes:,}",
        "edges": f"{graph.num_edges:,}",
        "largest degree": f"{_degrees(graph).max():,}",
        "questions": work.questions,
        "hops": work.hops,
        "budget": f"{work.budget:,} tokens",
    }
    return Report("retrieval", settings, tables)


def _graph(work: Retrieval) -> Graph:
    if work.graph is None:
        return synthetic_graph(work.nodes, work.edges, work.seed)
    options: dict[str, Any] = {} if work.node_table is None else {"nodes": work.node_table}
    return Graph.load(work.graph, **options)


def _index(graph: Graph) -> Table:
    table = Table(
        "index, built once for a graph",
        [
            ("part", "part", ""),
            ("seconds", "s", ".2f"),
            ("cpu", "processor s", ".2f"),
            ("megabytes", "MB", ".1f"),
        ],
        notes=["the graph's own columns are not part of it"],
    )
    parts: tuple[tuple[str, Callable[[Graph], object]], ...] = (("names", linker), ("edges both ways", walks))
    for part, build in parts:
        _, spent = _timed(build, graph)
        held = linker(graph).index.nbytes if part == "names" else walks(graph).nbytes
        table.rows.append(
            {"part": part, "seconds": spent.seconds, "cpu": spent.processor, "megabytes": held / 1e6}
        )
    table.rows.append({"part": "the graph", "seconds": None, "cpu": None, "megabytes": graph.nbytes / 1e6})
    return table


def _questions(graph: Graph, work: Retrieval) -> list[_Question]:
    """Questions about one entity, about two that an edge joins, and about one whose name is misspelt."""
    rng = np.random.default_rng(work.seed)
    columns = graph.columns
    found: list[_Question] = []
    edges = rng.permutation(graph.num_edges)[: 20 * work.questions].tolist()
    for edge in edges:
        ends = [int(columns.sources[edge]), int(columns.targets[edge])]
        names = [columns.names[end] for end in ends]
        ids = tuple(columns.ids[end] for end in ends)
        if ends[0] == ends[1] or any(not 1 <= len(words(name)) <= _LONGEST_NAME for name in names):
            continue
        made = [
            _Question("one entity", f"What is known about {names[0]}?", ids[:1]),
            _Question("two entities", f"How is {names[0]} related to {names[1]}?", ids),
        ]
        misspelt = _misspelt(names[0], rng)
        if misspelt:
            made.append(_Question("misspelt", f"What is known about {misspelt}?", ids[:1]))
        for question in made:
            if sum(other.kind == question.kind for other in found) < work.questions:
                found.append(question)
        if len(found) == 3 * work.questions:
            break
    if not found:
        raise ConfigError("the graph has no edges between nodes with names that questions could be made of")
    return found


def _misspelt(name: str, rng: np.random.Generator) -> str | None:
    """A name with two letters of its longest word swapped, or None if that word is short."""
    longest = max(name.split(), key=len)
    if len(longest) < _SHORTEST_TYPO or not longest.isalpha():
        return None
    place = int(rng.integers(1, len(longest) - 2))
    swapped = longest[:place] + longest[place + 1] + longest[place] + longest[place + 2 :]
    return name.replace(longest, swapped, 1) if swapped != longest else None


def _linking(graph: Graph, questions: list[_Question]) -> Table:
    table = Table(
        "linking entities alone, milliseconds",
        [("kind", "questions about", ""), *_time_columns(), ("linked", "asked for among them", ".1%")],
    )
    for kind in dict.fromkeys(question.kind for question in questions):
        spent: list[_Spent] = []
        right = asked = 0
        for question in (q for q in questions if q.kind == kind):
            mentions, took = _timed(link, graph, question.text)
            spent.append(took)
            found = {entity.id for mention in mentions for entity in mention.entities}
            right += len(found.intersection(question.entities))
            asked += len(set(question.entities))
        table.rows.append({"kind": kind, **_times(spent), "linked": right / asked})
    return table


def _by_method(
    graph: Graph, questions: list[_Question], work: Retrieval, advance: Callable[[], None]
) -> list[Table]:
    times = Table(
        "retrieve, milliseconds, linking included",
        [("method", "method", ""), ("kind", "questions about", ""), *_time_columns()],
    )
    sizes = Table(
        "what was retrieved, means",
        [
            ("method", "method", ""),
            ("kind", "questions about", ""),
            ("nodes", "nodes", ".1f"),
            ("edges", "edges", ".1f"),
            ("tokens", "tokens", ".0f"),
            ("largest", "most tokens", ",d"),
            ("nodes_left", "nodes left out", ",.0f"),
            ("paths", "paths", ".1f"),
        ],
        notes=["both entities of each question about two are neighbours"],
    )
    for method in get_args(Method):
        for kind in dict.fromkeys(question.kind for question in questions):
            chosen = [question.text for question in questions if question.kind == kind]
            spent: list[_Spent] = []
            found: list[Retrieved] = []
            for text in chosen:
                one, took = _timed(retrieve, graph, text, hops=work.hops, budget=work.budget, method=method)
                found.append(one)
                spent.append(took)
            times.rows.append({"method": method, "kind": kind, **_times(spent)})
            sizes.rows.append({"method": method, "kind": kind, **_sizes(found)})
            advance()
    return [times, sizes]


def _sizes(found: list[Retrieved]) -> dict[str, Any]:
    def mean(value: Callable[[Retrieved], int]) -> float:
        return float(np.mean([value(one) for one in found]))

    return {
        "nodes": mean(lambda one: one.graph.num_nodes),
        "edges": mean(lambda one: one.graph.num_edges),
        "tokens": mean(lambda one: one.tokens),
        "largest": max(one.tokens for one in found),
        "nodes_left": mean(lambda one: one.left_out.nodes),
        "paths": mean(lambda one: len(one.paths)),
    }


def _edits(graph: Graph) -> Table:
    table = Table(
        "after an edit: until a new version answers questions",
        [("edit", "edit", ""), ("seconds", "s", ".3f"), ("cpu", "processor s", ".3f")],
        notes=[f"the index of the version before exists; the median of {_EDITS}"],
    )
    for edit, changed in (("an edge", _without_edge), ("a name", _renamed)):
        spent = [_timed(prepare, changed(graph, number))[1] for number in range(_EDITS)]
        seconds, cpu = (float(np.median(column)) for column in zip(*spent, strict=True))
        table.rows.append({"edit": edit, "seconds": seconds, "cpu": cpu})
    return table


def _without_edge(graph: Graph, edge: int) -> Graph:
    columns = graph.columns
    if edge >= graph.num_edges:
        raise GraphError("the graph has too few edges to edit")
    kept: dict[str, Any] = {
        name: np.delete(getattr(columns, name), edge)
        for name in ("sources", "relations", "targets", "edge_attributes")
    }
    return Graph(replace(columns, **kept))


def _renamed(graph: Graph, number: int) -> Graph:
    names = list(graph.columns.names)
    names[number % len(names)] = f"a new name {number}"
    return Graph(replace(graph.columns, names=StringTable.of(names)))


def _degrees(graph: Graph) -> Any:
    columns = graph.columns
    return np.bincount(np.concatenate((columns.sources, columns.targets)), minlength=1)


class _Spent(NamedTuple):
    seconds: float
    processor: float  # seconds


def _timed(work: Callable[..., _Found], *arguments: Any, **options: Any) -> tuple[_Found, _Spent]:
    begin, cpu = time.perf_counter(), time.thread_time()
    found = work(*arguments, **options)
    return found, _Spent(time.perf_counter() - begin, time.thread_time() - cpu)


def _time_columns() -> list[tuple[str, str, str]]:
    shown = [(f"p{p}", f"p{p}", ".2f") for p in _PERCENTILES]
    processor = [("cpu", "processor, mean", ".2f"), ("cpu_p99", "processor, p99", ".2f")]
    return [*shown, ("mean", "mean", ".2f"), *processor, ("count", "measured", ",d")]


def _times(spent: list[_Spent]) -> dict[str, Any]:
    seconds, cpu = (np.array(column) * 1e3 for column in zip(*spent, strict=True))
    shown = {f"p{p}": float(np.percentile(seconds, p)) for p in _PERCENTILES}
    processor = {"cpu": float(cpu.mean()), "cpu_p99": float(np.percentile(cpu, 99))}
    return {**shown, "mean": float(seconds.mean()), **processor, "count": len(spent)}
