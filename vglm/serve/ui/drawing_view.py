"""The drawing on the page, with its legend, and the same nodes as a list for the keyboard."""

from __future__ import annotations

from collections.abc import Callable

from nicegui import ui
from nicegui.events import GenericEventArguments

from vglm.graph.graph import Graph
from vglm.serve.graph_service import GraphService
from vglm.serve.ui.drawing import Drawn, Highlights, Look, draw
from vglm.serve.ui.layout import Places
from vglm.serve.ui.library import cut

_NODE_OF_CLICK = "(event) => { if (typeof event.data?.node === 'string') emit(event.data.node); }"


class DrawingView:
    """`choose` is called with the id of a node that was clicked."""

    def __init__(self, graphs: GraphService, look: Look, choose: Callable[[str], object]) -> None:
        self.look = look
        self._graphs = graphs
        self._choose = choose
        self._graph: Graph | None = None
        self._highlights = Highlights()
        self._places: Places = {}
        self._steady = False
        self._legend = ui.element("div").classes("v-legend")
        self._chart = ui.echart({}, renderer="svg").classes("v-chart")
        self._chart.on("componentClick", self._clicked, js_handler=_NODE_OF_CLICK)
        self._chart.props["role"] = "img"
        self._instead = ui.element("div").classes("v-empty v-instead")
        self._instead.set_visibility(False)
        with ui.expansion("Nodes").classes("v-options v-all").props("dense") as self._all:
            self._nodes = ui.element("div").classes("v-nodes")

    async def show(self, graph: Graph, highlights: Highlights, title: str, *, steady: bool) -> None:
        """Draw a graph; `steady`: it will be followed by more like it, so nodes keep the places that they have
        in a drawing that is steady, too."""
        known = {}
        if steady and self._steady:
            known = {node: at for node, at in self._places.items() if node in graph}
        if 2 * len(known) < graph.num_nodes:
            known = {}  # another part of the graph: it is better placed anew
        drawn = await self._graphs.run(draw, graph, highlights, self.look, known)
        self._graph, self._highlights, self._places = graph, highlights, drawn.places
        self._steady = steady
        self._instead.set_visibility(False)
        self._update(drawn)
        self._write_legend(drawn, title, bool(highlights.paths))
        self._list_nodes(drawn, graph)

    def instead(self) -> ui.element:
        """A place over the drawing, until there is one."""
        self._instead.clear()
        self._instead.set_visibility(True)
        return self._instead

    async def redraw(self, look: Look) -> None:
        """The same drawing with another look."""
        self.look = look
        if self._graph is not None:
            self._update(await self._graphs.run(draw, self._graph, self._highlights, look, self._places))

    def _update(self, drawn: Drawn) -> None:
        self._chart.options.clear()
        self._chart.options.update(drawn.options)
        self._chart.update()
        self._chart.props["aria-label"] = f"Drawing of {len(drawn.nodes)} nodes; the list below has them too"

    def _write_legend(self, drawn: Drawn, title: str, has_evidence: bool) -> None:
        self._legend.clear()
        with self._legend:
            ui.label(title).classes("v-drawn")
            for kind, colour in drawn.legend:
                with ui.element("span").classes("v-key-entry"):
                    ui.element("span").classes("v-dot").style(f"background: {colour}")
                    ui.label(cut(kind, 40)).classes("v-inline")
            if has_evidence:
                with ui.element("span").classes("v-key-entry"):
                    ui.element("span").classes("v-stroke")
                    ui.label("evidence").classes("v-inline")
            if drawn.left_out:
                ui.label(f"{drawn.left_out:,} more nodes are not drawn")

    def _list_nodes(self, drawn: Drawn, graph: Graph) -> None:
        self._all.text = f"Nodes ({len(drawn.nodes)})"
        self._nodes.clear()
        with self._nodes:
            for node in drawn.nodes:
                button = ui.button(cut(graph.name_of(node) or node, 60), color=None).props("flat no-caps")
                button.on_click(lambda _, node=node: self._choose(node)).classes("v-node")

    def _clicked(self, event: GenericEventArguments) -> object:
        return self._choose(event.args) if isinstance(event.args, str) else None
