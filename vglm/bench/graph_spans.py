"""Graphs as spans: what a question costs by how much of its graph is new, and how full the pages are."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vglm.bench.report import Report, Table
from vglm.console import progress_bar
from vglm.decode.sampling_params import SamplingParams
from vglm.graph.graph import Graph
from vglm.graph.span_layout import SpanLayout
from vglm.graph.spans import node_spans, page_use
from vglm.graph.token_counts import TokenCounts
from vglm.llm import LLM

QUESTION = "Question: which of these is it?\nAnswer:"
ONE_TOKEN = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
_WORDS = [
    "acid",
    "bone",
    "cell",
    "duct",
    "enzyme",
    "factor",
    "gene",
    "heart",
    "ion",
    "joint",
    "kidney",
    "lung",
    "muscle",
    "nerve",
    "organ",
    "protein",
    "renal",
    "skin",
    "tissue",
    "vessel",
    "wall",
    "acute",
    "benign",
    "chronic",
    "distal",
    "early",
    "focal",
    "genetic",
    "infantile",
    "late",
    "mild",
    "severe",
    "the",
    "of",
    "in",
]
FRAME_TOKENS = 256  # more than the question and the words around a graph take
COLUMNS = [
    ("nodes", "nodes", ",d"),
    ("tokens_per_node", "tokens/node", ".0f"),
    ("new", "new", ".1%"),
    ("new_tokens", "tokens computed", ",.0f"),
    ("spans", "TTFT spans, ms", ",.1f"),
    ("sequential", "sequential, ms", ",.1f"),
    ("ratio", "ratio", ".1f"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpans:
    """Questions over graphs of `nodes` records; each cell of a table is the mean of `repeats` questions."""

    nodes: int = 24
    words: int = 16
    repeats: int = 8
    large: int = 1000
    shuffles: int = 100
    graphs: tuple[Path, ...] = ()


class Nodes:
    """An endless supply of records that no other one equals."""

    def __init__(self, seed: int = 0) -> None:
        self._draw = random.Random(seed)
        self._count = 0

    def take(self, count: int, words: int) -> list[dict[str, Any]]:
        """`count` nodes in node-link form, with texts of `words` words."""
        return [self._one(words) for _ in range(count)]

    def _one(self, words: int) -> dict[str, Any]:
        self._count += 1
        text = " ".join(self._draw.choices(_WORDS, k=words))
        return {"id": f"n{self._count}", "name": f"entity {self._count}", "text": text}


def run(model: str, work: GraphSpans, options: dict[str, Any]) -> Report:
    """Measure. Raises VGLMError for a model or a graph file that cannot be read."""
    given = [(path.name, Graph.load(path)) for path in work.graphs]
    llm, supply = LLM(model, **options), Nodes()
    sweeps = list(_sweeps(work))
    cells = sum(len(rows) for _, rows in sweeps)
    with progress_bar("graph", cells + len(given) + 1) as bar:
        tables = []
        for title, rows in sweeps:
            table = Table(title, COLUMNS)
            for nodes, words, new in rows:
                table.rows.append(_cell(llm, supply, nodes, words, new, work.repeats))
                bar.advance(what=title)
            tables.append(table)
        tables[0].notes.append(
            "TTFT: from the node-link document, in a new order, to the first token; ratio: sequential / spans; "
            "-: the text is longer than the model's context"
        )
        tables.append(_order(llm, work))
        bar.advance(what="order")
        if given:
            tables.append(_pages(llm, given, bar.advance))
    settings = {"model": model, "repeats": work.repeats, "threads": llm.options.threads}
    return Report("graph", settings, tables)


def _sweeps(work: GraphSpans) -> Iterator[tuple[str, list[tuple[int, int, float]]]]:
    nodes, words = work.nodes, work.words
    yield "share of the graph that is new", [(nodes, words, new) for new in (0.0, 0.1, 0.25, 0.5, 1.0)]
    yield "size of the graph", [(n, words, 0.1) for n in (10, 100, work.large)]
    yield "length of a record", [(nodes, length, 0.1) for length in (2, 16, 40)]
    yield (
        f"edits of a graph of {work.large:,} nodes",
        [(work.large, words, new) for new in (0.0, 0.001, 0.01, 0.1)],
    )


def _cell(llm: LLM, supply: Nodes, nodes: int, words: int, new: float, repeats: int) -> dict[str, Any]:
    """Mean times of questions over graphs of which the share `new` has never been seen, shuffled, in both modes."""
    row: dict[str, Any] = {"nodes": nodes, "new": new, "sequential": None, "ratio": None}
    row["spans"], row["new_tokens"], tokens = _mean(llm, supply, nodes, words, new, repeats, "spans")
    row["tokens_per_node"] = tokens / nodes
    if tokens + FRAME_TOKENS <= llm.engine.config.max_model_len:  # a longer text has no room in the model
        row["sequential"], _, _ = _mean(llm, supply, nodes, words, new, repeats, "sequential")
        row["ratio"] = row["sequential"] / row["spans"]
    return row


def _mean(
    llm: LLM, supply: Nodes, nodes: int, words: int, new: float, repeats: int, mode: str
) -> tuple[float, float, int]:
    """Milliseconds to the first token and tokens computed, means of questions in one mode; tokens of the last graph."""
    kept = supply.take(nodes, words)
    draw = random.Random(nodes)
    seconds, computed, tokens = [], [], 0
    for repeat in range(repeats + 1):  # the first one fills the cache
        count = round(new * nodes) if repeat else 0
        kept = draw.sample(kept, nodes - count) + supply.take(count, words)
        before = llm.engine.metrics.prompt_tokens
        begin = time.perf_counter()
        graph = Graph.from_dict({"nodes": kept, "edges": []})
        output = llm.generate(QUESTION, ONE_TOKEN, use_tqdm=False, graph=graph, graph_mode=mode)[0]
        seconds.append(time.perf_counter() - begin)
        computed.append(llm.engine.metrics.prompt_tokens - before)
        assert output.graph is not None
        tokens = output.graph.num_tokens
    return 1e3 * sum(seconds[1:]) / repeats, sum(computed[1:]) / repeats, tokens


def _order(llm: LLM, work: GraphSpans) -> Table:
    """The same graph in many orders: how many different answers, and how much was found in the cache."""
    rows = []
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, logprobs=1)
    kept = Nodes(99).take(work.nodes, work.words)
    for mode in ("spans", "sequential"):
        answers: set[str] = set()
        hits = 0.0
        for shuffle in range(work.shuffles):
            graph = Graph.from_dict({"nodes": random.Random(shuffle).sample(kept, len(kept)), "edges": []})
            output = llm.generate(QUESTION, params, use_tqdm=False, graph=graph, graph_mode=mode)[0]
            first, about = output.outputs[0], output.graph
            assert about is not None
            answers.add(repr((first.token_ids, first.logprobs)))
            hits += about.num_cached_tokens / about.num_tokens if shuffle else 0.0
        share = hits / max(1, work.shuffles - 1)
        rows.append({"mode": mode, "shuffles": work.shuffles, "answers": len(answers), "hits": share})
    columns = [
        ("mode", "mode", ""),
        ("shuffles", "orders of one graph", ",d"),
        ("answers", "different answers", ",d"),
        ("hits", "found in the cache", ".1%"),
    ]
    return Table("order", columns, rows, ["answers: tokens and log-probabilities, to the bit"])


def _pages(llm: LLM, graphs: Iterable[tuple[str, Graph]], advance: Callable[[], None]) -> Table:
    """How full the pages of whole graphs are: one record a span, and as vGLM lays them out."""
    counts = TokenCounts(llm.tokenizer)
    size = llm.options.block_size
    rows = []
    for name, graph in graphs:
        row: dict[str, Any] = {"graph": name, "nodes": graph.num_nodes, "edges": graph.num_edges}
        for key, layout in (("alone", SpanLayout(size, pack_below=0)), ("packed", SpanLayout(size))):
            spans = node_spans(graph, counts, layout)
            row[key] = page_use(spans, size)
        row["spans"], row["mean"] = len(spans), sum(span.tokens for span in spans) / max(1, len(spans))
        rows.append(row)
        advance()
    columns = [
        ("graph", "graph", ""),
        ("nodes", "nodes", ",d"),
        ("edges", "edges", ",d"),
        ("spans", "spans", ",d"),
        ("mean", "tokens/span", ".1f"),
        ("alone", "page use, a span for each record", ".1%"),
        ("packed", "packed with their neighbours", ".1%"),
    ]
    return Table("fragmentation", columns, rows)
