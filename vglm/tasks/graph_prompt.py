"""Prompts with a graph in them: as spans that the engine caches one by one, or written out in canonical order.

The parts of a prompt in `spans` mode and where they stand (see vglm/model/graph_card.py):

    words before the graph   one span, from position 0
    level 0                  node records, all from the same position; each attends to the words before
    level 1                  continuations, with the edges of long records; each attends to its parents, too
    the question             attends to everything; its position does not depend on how many spans there are

So the order in which a graph was written does not matter, and what one graph has in common with another is computed
once. In `sequential` mode the same text follows the words before it as ordinary tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Literal

import numpy as np

from vglm.engine.request import IntArray, SpanSpec
from vglm.errors import RequestError
from vglm.graph.graph import Graph
from vglm.graph.records import Records
from vglm.graph.span_layout import SpanLayout
from vglm.graph.spans import SpanText, node_spans, sequential_text
from vglm.graph.token_counts import TokenCounts
from vglm.model.graph_card import GraphCard
from vglm.model.tokenizer import Tokenizer
from vglm.prompts import EncodedPrompt

GraphMode = Literal["auto", "spans", "sequential"]
GRAPH_MODES = ("auto", "spans", "sequential")
REMEMBERED_TEXTS = 32_768
REMEMBERED_GRAPHS = 64
TOKENS_OF_EDGE = 3  # at the least
BYTES_OF_EDGE = 5  # besides its relation and the name at its end: "- ", ": " and the end of the line
SAMPLED_EDGES = 200  # of a graph that may be too large
ESTIMATE_MARGIN = 0.8  # so that only what certainly cannot fit is refused on an estimate


@dataclass(frozen=True, slots=True)
class GraphPrompt(EncodedPrompt):
    """A prompt with a graph in it: `mode` is "spans" or "sequential"; `num_graph_tokens` counts the graph's tokens in
    either.
    """

    mode: str = "spans"
    num_graph_tokens: int = 0


def parse_graph_mode(mode: object) -> GraphMode:
    """The mode. Raises RequestError for anything else."""
    if mode not in GRAPH_MODES:
        raise RequestError(f"graph_mode is {mode!r}; choose {', '.join(GRAPH_MODES)}", "graph_mode")
    return mode  # type: ignore[return-value]


class GraphPrompts:
    """Makes prompts with graphs for one model, and remembers the tokens of texts; safe to share between threads."""

    def __init__(
        self, tokenizer: Tokenizer, card: GraphCard | None, block_size: int, mode: GraphMode, room: int
    ) -> None:
        """`mode` holds for requests that choose "auto"; "auto" itself follows the model's card. `room`: tokens that the
        KV cache can hold.
        """
        self.card = card or GraphCard()
        self.mode = ("spans" if self.card.spans else "sequential") if mode == "auto" else mode
        self._tokenizer = tokenizer
        self._room = room
        self.count_tokens = TokenCounts(tokenizer)
        self._layout = SpanLayout(block_size, max_tokens=max(block_size, self.card.span_tokens * 3 // 4))
        self._ids = lru_cache(REMEMBERED_TEXTS)(self._encode)
        self._graphs: OrderedDict[tuple[object, ...], tuple[SpanSpec, ...]] = OrderedDict()
        self._lock = Lock()

    def encode(
        self,
        graph: Graph,
        before: Sequence[int],
        after: Sequence[int],
        mode: GraphMode = "auto",
        text: str | None = None,
        shared_names: Collection[str] | None = None,
    ) -> GraphPrompt:
        """A prompt of the tokens `before`, the graph, and the tokens `after`; `text` is what the user asked.

        `shared_names`: names that other nodes have, too, in the graph of which this one is a part (see `Records`).
        """
        self._check_size(graph)
        if (self.mode if mode == "auto" else mode) == "sequential":
            written = self._encode(sequential_text(graph, shared_names=shared_names)).tolist()
            return GraphPrompt(
                text, [*before, *written, *after], mode="sequential", num_graph_tokens=len(written)
            )
        spans = self._node_spans(graph, len(before), shared_names)
        prefix = SpanSpec(np.array(before, np.int32), 0)
        tokens = sum(len(spec.tokens) for spec in spans)
        if tokens > self._room:
            raise self._too_large(graph)
        return GraphPrompt(
            text,
            list(after),
            first_position=len(before) + self.card.tokens,
            span_specs=(prefix, *spans),
            num_graph_tokens=tokens,
        )

    def _check_size(self, graph: Graph) -> None:
        """Raises RequestError for a graph that cannot fit, before its text is made."""
        if max(graph.num_nodes + TOKENS_OF_EDGE * graph.num_edges, self._least_tokens(graph)) > self._room:
            raise self._too_large(graph)

    def _least_tokens(self, graph: Graph) -> float:
        """A number of tokens that the edges of a graph, as they are written, will hardly be under: their length, by the tokens
        that the same number of bytes takes in some records. 0 for a graph whose edges have fewer bytes than there is room.
        """
        columns = graph.columns
        names = np.diff(columns.names.offsets)
        relations = np.array([len(name.encode()) for name in columns.relation_names] or [0])
        written = int((names[columns.targets] + relations[columns.relations]).sum())
        written += BYTES_OF_EDGE * graph.num_edges + int(names[np.unique(columns.sources)].sum())
        if written <= self._room:
            return 0
        records = Records(graph, shared_names=frozenset())
        some = np.linspace(0, graph.num_edges - 1, SAMPLED_EDGES).astype(int)
        text = "".join(records.edge(edge) for edge in np.unique(some).tolist())
        return ESTIMATE_MARGIN * written * len(self._encode(text)) / len(text.encode())

    def _too_large(self, graph: Graph) -> RequestError:
        return RequestError(
            f"the graph has {graph.num_nodes:,} nodes and {graph.num_edges:,} edges, and the KV cache has room for "
            f"{self._room:,} tokens; ask about the part that matters, GraphQuery(graph, budget=...) or a stored graph by its "
            "id, or raise kv_cache_memory",
            "graph",
        )

    def spans(self, graph: Graph, shared_names: Collection[str] | None = None) -> list[SpanText]:
        """The graph's spans as text."""
        return node_spans(graph, self.count_tokens, self._layout, shared_names=shared_names)

    def _node_spans(
        self, graph: Graph, start: int, shared_names: Collection[str] | None
    ) -> tuple[SpanSpec, ...]:
        """The graph's spans when the words before it are span 0 and end at `start`; those of recent graphs are kept."""
        key = graph.fingerprint, start, None if shared_names is None else frozenset(shared_names)
        with self._lock:
            if (known := self._graphs.get(key)) is not None:
                self._graphs.move_to_end(key)
                return known
        specs = self._make_specs(self.spans(graph, shared_names), start)
        with self._lock:
            self._graphs[key] = specs
            if len(self._graphs) > REMEMBERED_GRAPHS:
                self._graphs.popitem(last=False)
        return specs

    def _make_specs(self, spans: Sequence[SpanText], start: int) -> tuple[SpanSpec, ...]:
        specs: list[SpanSpec] = []
        places: list[tuple[int, ...]] = []  # of each text: its specifications, counted with the prefix
        for span in spans:
            parents = (0, *(place for parent in span.parents for place in places[parent]))
            position = start + span.level * self.card.span_tokens
            first = len(specs) + 1
            for part in self._parts(self._ids(span.text)):
                specs.append(SpanSpec(part, position, parents))
            places.append(tuple(range(first, len(specs) + 1)))
        return tuple(specs)

    def _parts(self, tokens: IntArray) -> list[IntArray]:
        """The tokens of a span, cut where they are more than a level has positions for."""
        size = self.card.span_tokens
        return [tokens[i : i + size] for i in range(0, len(tokens), size)]

    def _encode(self, text: str) -> IntArray:
        """Tokens of a text that nobody trusts: what spells a control token is text."""
        return np.array(self._tokenizer.encode(text, add_special=False, allow_special_tokens=False), np.int32)
