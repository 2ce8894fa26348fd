"""The drawing of what the model has read, as options of an ECharts graph: what the answer rests on stands out.

All text of the graph goes where ECharts shows text: labels, and tooltips that are drawn rather than written as HTML.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vglm.graph.graph import Edge, Graph
from vglm.serve.ui.layout import Places, place
from vglm.serve.ui.library import cut

MAX_NODES, MAX_EDGES = 60, 400
ALL_RELATIONS_UP_TO = 14  # edges: with more, only those of the evidence are labelled
OTHER = "other types"
MAX_NAME = 34  # characters at a node
LETTER_WIDTH, NODE_WIDTH = 5.8, 8.0  # pixels, about
#: Of node types, in order of their frequency: after Okabe and Ito (2008), for all kinds of colour vision.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8a63d2", "#b8860b")
OTHER_COLOUR = "#8b919a"


@dataclass(frozen=True, slots=True)
class Look:
    """What a drawing depends on besides the graph."""

    dark: bool = False
    frame: tuple[float, float] = (640.0, 560.0)  # pixels

    @property
    def text(self) -> str:
        return "#e6e8eb" if self.dark else "#1d2127"

    @property
    def faint(self) -> str:
        return "#9aa1ab" if self.dark else "#5d6570"

    @property
    def line(self) -> str:
        return "#3d444d" if self.dark else "#cdd2d8"

    @property
    def accent(self) -> str:
        return "#ff8a5c" if self.dark else "#c8401a"

    @property
    def ground(self) -> str:
        return "#181b20" if self.dark else "#ffffff"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawing: the chart's options, the nodes in it by rank, what the colours mean, how many nodes it leaves out."""

    options: dict[str, Any]
    nodes: tuple[str, ...]
    legend: tuple[tuple[str, str], ...]
    places: Places
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Highlights:
    """What stands out: the evidence's edges, the entities of the question and those of the answer."""

    paths: Sequence[Sequence[Edge]] = ()
    asked: Collection[str] = ()
    answer: Collection[str] = ()
    chosen: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def edges(self) -> set[tuple[str, str, str]]:
        return {(edge.source, edge.relation, edge.target) for path in self.paths for edge in path}

    @property
    def nodes(self) -> dict[str, None]:
        """Ids in the order of their importance."""
        ends = (end for path in self.paths for edge in path for end in (edge.source, edge.target))
        return dict.fromkeys((*self.answer, *self.asked, *ends))


def draw(graph: Graph, highlights: Highlights, look: Look, known: Places | None = None) -> Drawn:
    """Draw at most MAX_NODES nodes of a graph, those that matter first; nodes of `known` keep their places."""
    nodes = _chosen(graph, highlights)
    part = graph.subgraph(nodes)
    edges = list(part.edges()) if part.num_edges <= MAX_EDGES else [part.edge_at(i) for i in range(MAX_EDGES)]
    names = [_short(graph, node) for node in nodes]
    widths = [NODE_WIDTH + LETTER_WIDTH * len(name) for name in names]
    places = place(nodes, [(edge.source, edge.target) for edge in edges], look.frame, known, widths)
    legend = _legend(part)
    colours = dict(legend)
    series = {
        "type": "graph",
        "layout": "none",
        "left": 0,
        "right": 0,
        "top": 0,
        "bottom": 0,
        "preserveAspect": True,
        "roam": "move",
        "data": [_node(graph, node, places[node], highlights, look, colours) for node in nodes]
        + _corners(look.frame),
        "links": _edges(edges, highlights, look),
        "edgeSymbol": ["none", "arrow"],
        "edgeSymbolSize": 7,
        "labelLayout": {"hideOverlap": True},
        "emphasis": {"focus": "adjacency", "label": {"show": True}},
        "animation": False,
    }
    tooltip = {
        "show": True,
        "renderMode": "richText",
        "confine": True,
        "backgroundColor": look.ground,
        "borderColor": look.line,
        "textStyle": {"color": look.text, "fontSize": 13},
    }
    options = {"animation": False, "tooltip": tooltip, "series": [series]}
    return Drawn(options, tuple(nodes), legend, places, graph.num_nodes - len(nodes))


def _chosen(graph: Graph, highlights: Highlights) -> list[str]:
    ranked = dict.fromkeys((*highlights.nodes, *highlights.scores))
    if highlights.chosen is not None:
        ranked = {highlights.chosen: None, **ranked}
    nodes = [node for node in ranked if node in graph][:MAX_NODES]
    if len(nodes) < min(MAX_NODES, graph.num_nodes):
        there = set(nodes)
        ids = (graph.id_of(i) for i in range(graph.num_nodes))
        nodes += [node for node in ids if node not in there][: MAX_NODES - len(nodes)]
    return nodes


def _legend(graph: Graph) -> tuple[tuple[str, str], ...]:
    """(type, colour), the commonest first; types beyond the colours share one."""
    counts: dict[str, int] = {}
    for code in graph.columns.node_types.tolist():
        kind = graph.columns.type_names[code]
        counts[kind] = counts.get(kind, 0) + 1
    types = sorted(counts, key=lambda kind: (-counts[kind], kind))
    coloured = list(zip((kind for kind in types if kind), COLOURS, strict=False))
    rest = len(types) > len(coloured)
    return (*coloured, *(((OTHER, OTHER_COLOUR),) if rest else ()))


def _node(
    graph: Graph,
    node_id: str,
    at: tuple[float, float],
    highlights: Highlights,
    look: Look,
    colours: Mapping[str, str],
) -> dict[str, Any]:
    node = graph.node(node_id)
    matters = node_id in highlights.nodes
    answers = node_id in highlights.answer
    ring = look.accent if matters else look.ground
    name = _short(graph, node_id)
    return {
        "id": _id(node_id),
        "name": plain(name),
        "node": node_id,
        "x": at[0],
        "y": at[1],
        "symbolSize": 24 if answers else 17 if matters else 12,
        "symbol": "circle",
        "itemStyle": {
            "color": colours.get(node.type, OTHER_COLOUR),
            "borderColor": look.text if node_id == highlights.chosen else ring,
            "borderWidth": 3 if matters or node_id == highlights.chosen else 1,
            "opacity": 1,
        },
        "label": {
            "show": True,
            "position": "bottom",
            "distance": 4,
            "formatter": plain(name),
            "color": look.text if matters else look.faint,
            "fontWeight": "bold" if matters else "normal",
            "fontSize": 13 if answers else 12 if matters else 11,
            "textBorderColor": look.ground,
            "textBorderWidth": 3,
        },
        "tooltip": {"formatter": _about(node.name or node.id, node.type, node.text)},
        "z": 3 if matters else 2,
    }


def _short(graph: Graph, node_id: str) -> str:
    """A node's name as the drawing has it."""
    return cut(graph.name_of(node_id) or node_id, MAX_NAME)


def _edges(edges: Sequence[Edge], highlights: Highlights, look: Look) -> list[dict[str, Any]]:
    marked, labelled = highlights.edges, len(edges) <= ALL_RELATIONS_UP_TO
    pairs: dict[tuple[str, str], int] = {}
    drawn = []
    for edge in sorted(edges, key=lambda e: (e.source, e.relation, e.target) in marked):
        matters = (edge.source, edge.relation, edge.target) in marked
        pair = (min(edge.source, edge.target), max(edge.source, edge.target))
        before = pairs[pair] = pairs.get(pair, -1) + 1
        drawn.append(
            {
                "source": _id(edge.source),
                "target": _id(edge.target),
                "lineStyle": {
                    "color": look.accent if matters else look.line,
                    "width": 2.5 if matters else 1,
                    "curveness": 0.5 if edge.source == edge.target else min(0.8, 0.16 * before),
                    "opacity": 1,
                },
                "label": {
                    "show": matters or labelled,
                    "formatter": plain(cut(edge.relation, 30)),
                    "color": look.accent if matters else look.faint,
                    "fontSize": 10,
                    "textBorderColor": look.ground,
                    "textBorderWidth": 3,
                },
                "tooltip": {"formatter": plain(cut(edge.relation))},
            }
        )
    return drawn


def _corners(frame: tuple[float, float]) -> list[dict[str, Any]]:
    """Two nodes that nobody sees, so that the chart's scale is the frame's, whatever is drawn."""
    look = {"symbolSize": 0, "label": {"show": False}, "silent": True, "tooltip": {"show": False}}
    return [
        {"id": f"corner:{i}", "name": "", "x": x, "y": y, **look} for i, (x, y) in enumerate(((0, 0), frame))
    ]


def _id(node_id: str) -> str:
    """A node's id in the chart, which is never that of a corner."""
    return f"node:{node_id}"


def plain(text: str) -> str:
    """A text as a chart's formatter that shows just this.

    `{a}` would stand for something else. `__proto__` is a key that the chart's cache of text widths cannot tell from the
    prototype of all objects, which it then changes; nothing in the browser works any more after that.
    """
    return text.replace("{", "{\u200b").replace("|", "|\u200b").replace("__proto__", "__\u200bproto__")


def _about(name: str, kind: str, text: str) -> str:
    lines = textwrap.wrap(cut(name), 52)
    if kind:
        lines.append(cut(kind))
    lines += textwrap.wrap(cut(text, 300), 52)
    return plain("\n".join(lines))
