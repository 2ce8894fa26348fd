"""`vglm graph query`: what retrieval finds for a question, as tables, as JSON, or as a model reads it."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from rich.text import Text

from vglm.cli_graph_files import as_version
from vglm.cli_graph_view import plain, print_json
from vglm.console import console, plain_table
from vglm.graph.graph import Graph
from vglm.graph.retrieval import Retrieved, prepare, retrieve
from vglm.graph.search import Method
from vglm.graph.store import GraphStore, Stored
from vglm.model.pull import home

_NODES = 20  # that a terminal shows
_PATHS = 10


@dataclass(frozen=True, slots=True)
class Question:
    """A question and how to look for what it is about; see `retrieve`."""

    text: str
    hops: int
    budget: int
    method: str
    entities: tuple[str, ...]
    version: str | None


def answer(store: Path | None, name: str, question: Question, as_text: bool, as_json: bool) -> None:
    """Retrieves and prints."""
    with GraphStore(store, create=False) as opened:
        stored = opened.read(name, as_version(question.version))
    with console(stderr=True).status("indexing the graph's names") if sys.stderr.isatty() else nullcontext():
        prepare(stored.graph, home() / "graphs")
    started = time.perf_counter()
    found = retrieve(
        stored.graph,
        question.text,
        entities=question.entities or None,
        hops=question.hops,
        budget=question.budget,
        method=cast(Method, question.method),
    )
    seconds = time.perf_counter() - started
    if as_json:
        print_json(_document(stored, question, found, seconds))
    elif as_text:
        from vglm.graph.spans import sequential_text

        sys.stdout.write(sequential_text(found.graph, shared_names=found.shared_names))
    else:
        _print(found, seconds)


def _document(stored: Stored, question: Question, found: Retrieved, seconds: float) -> dict[str, Any]:
    return {
        "name": stored.name,
        "version": stored.version,
        "question": question.text,
        "entities": [asdict(mention) for mention in found.entities],
        "graph": found.graph.to_dict(),
        "scores": found.scores,
        "paths": [{"nodes": path.nodes, "edges": path.edges} for path in found.paths],
        "left_out": asdict(found.left_out),
        "tokens": found.tokens,
        "seconds": seconds,
    }


def _print(found: Retrieved, seconds: float) -> None:
    out = console()
    graph = found.graph
    if found.entities:
        table = plain_table("in the question", "entity", "id", "type", "found by", "score")
        for mention in found.entities:
            best = mention.best
            more = f" and {mention.total - 1:,} more" if mention.total > 1 else ""
            cells = (mention.text, best.name + more, best.id, best.type, best.method, f"{best.score:.2f}")
            table.add_row(*(plain(cell, 80) for cell in cells))
        out.print(table)
    if found.paths:
        table = plain_table("paths between entities")
        for path in found.paths[:_PATHS]:
            table.add_row(plain(_path(graph, path.nodes, path.edges), 400))
        out.print(table)
    if found.scores:
        table = plain_table("node", "id", "type", "score")
        for node_id, score in list(found.scores.items())[:_NODES]:
            node = graph.node(node_id)
            table.add_row(plain(node.name, 80), plain(node.id, 60), plain(node.type, 40), f"{score:.4f}")
        out.print(table)
    counts = f"{graph.num_nodes:,} nodes, {graph.num_edges:,} edges, {found.tokens:,} tokens"
    out.print(Text(f"{counts}, found in {seconds * 1e3:.1f} ms"))
    if found.left_out.why:
        out.print(plain(found.left_out.why, 1_000))


def _path(graph: Graph, nodes: tuple[str, ...], edges: tuple[int, ...]) -> str:
    """A path in words, each edge in its own direction."""
    words = [graph.name_of(nodes[0])]
    for (here, there), index in zip(pairwise(nodes), edges, strict=True):
        edge = graph.edge_at(index)
        words.append(f"-[{edge.relation}]->" if edge.source == here else f"<-[{edge.relation}]-")
        words.append(graph.name_of(there))
    return " ".join(words)
