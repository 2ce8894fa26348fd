"""The page of one visitor: what is on it, and what happens when something is done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

from nicegui import ui

from vglm.graph.graph import Edge, Graph, Node
from vglm.graph.store import GraphStore
from vglm.graph.store_names import GraphInfo
from vglm.serve.errors import ApiError, as_api_error
from vglm.serve.graph_errors import graph_errors
from vglm.serve.ui import library
from vglm.serve.ui.answer_view import AnswerView, counted
from vglm.serve.ui.browser import Browser
from vglm.serve.ui.drawing import Highlights, Look
from vglm.serve.ui.drawing_view import DrawingView
from vglm.serve.ui.form import QuestionForm
from vglm.serve.ui.login import let_in
from vglm.serve.ui.questions import Answer, Asking, Reading
from vglm.serve.ui.record_view import RecordView
from vglm.serve.ui.visitor import Visitor

log = logging.getLogger("vglm.serve.ui")

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
T = TypeVar("T")
CONFLICT = "The graph was changed elsewhere meanwhile, so nothing was saved; this is its record now."


async def show_page(visitor: Visitor, graph: str, question: str) -> None:
    """Build the page in the current NiceGUI client, behind its key where one is needed."""
    ui.add_css(STYLE)
    ui.colors(primary="#0b63a5")
    browser = await Browser.connected()
    await let_in(visitor, browser)
    page = Page(visitor, browser.look)
    page.drawing.look = await browser.measure(".v-chart")
    browser.on_scheme(page.drawing.redraw)
    await page.open(graph, question)


class Page:
    """One tab's page."""

    def __init__(self, visitor: Visitor, look: Look) -> None:
        self._visitor = visitor
        self._serving = visitor.host.serving
        self._asking = Asking(visitor)
        self._name = ""
        self._version = 0
        self._answer: Answer | None = None
        self._build(look)
        ui.context.client.on_delete(self._asking.stop)

    def _build(self, look: Look) -> None:
        with ui.element("header").classes("v-head"):
            ui.label("vGLM").classes("v-brand")
            ui.label(library.cut(self._serving.model_names[0], 60)).classes("v-model")
            ui.element("div").classes("v-grow")
            self._graphs = ui.select([], label="Graph", on_change=self._chosen_graph).classes("v-graph")
            self._graphs.props("outlined dense options-dense")
            self._about = ui.label("").classes("v-version")
        with ui.element("main").classes("v-grid"):
            with ui.element("div").classes("v-column"):
                with ui.element("section").classes("v-card v-fixed"):
                    self.form = QuestionForm(self.ask, self._asking.stop)
                with ui.element("section").classes("v-card v-stretch"):
                    self.answer = AnswerView(self.choose)
            with ui.element("section").classes("v-card v-draw"):
                self.drawing = DrawingView(self._serving.graphs, look, self.choose)
            with ui.element("section").classes("v-card v-record"):
                self._error = ui.label("").classes("v-error").props("role=alert")
                self._note = ui.element("div").classes("v-note").props("role=status")
                self._record = RecordView(self.change, self.find, self.choose)
        self._error.set_visibility(False)
        self._note.set_visibility(False)

    # ---- graphs -------------------------------------------------------------------------------------------

    async def open(self, wanted: str = "", question: str = "") -> None:
        """Show the graph of this name, or the first one; with no graph at all, offer the example."""
        with self._errors():
            infos = await self._store(lambda store: store.graphs()[: library.MAX_GRAPHS])
            if not infos:
                self._offer_example()
                return
            self._graphs.set_options([info.name for info in infos])
            names = {info.name for info in infos}
            if wanted and wanted not in names:
                self.answer.show_error(f"There is no graph named {library.cut(wanted)!r} here.")
            self._graphs.value = wanted if wanted in names else infos[0].name
            await self._show_graph(str(self._graphs.value), question)

    async def _chosen_graph(self) -> None:
        if self._graphs.value and self._graphs.value != self._name:
            with self._errors():
                await self._show_graph(self._graphs.value)

    async def _show_graph(self, name: str, question: str = "") -> None:
        self._name = name
        self._answer = None
        self._record.clear()
        self._note.set_visibility(False)
        info, types, example, part = await self._store(lambda store: _opening(store, name))
        if name != self._name:
            return  # another one was chosen meanwhile
        self._say_version(info)
        self.form.set_types(types)
        if question:
            self.form.set_text(question)
        else:
            self.form.suggest(example)
        self._address()
        await self.drawing.show(part, Highlights(), _title(part, info), steady=False)

    def _offer_example(self) -> None:
        self._graphs.set_enabled(False)
        with self.drawing.instead():
            ui.label("No graph is stored yet.").classes("v-name")
            ui.label(
                "Store one with “vglm graph import NAME FILE”, or begin with a small example: eight diseases of "
                "connective tissue and their signs, from the Human Phenotype Ontology."
            )
            button = ui.button("Load the example", color=None, on_click=self._load_example)
            button.props("unelevated").classes("v-action v-example")

    async def _load_example(self) -> None:
        with self._errors():
            name = await self._store(library.add_example)
            self._graphs.set_enabled(True)
            await self.open(name)

    # ---- asking -------------------------------------------------------------------------------------------

    async def ask(self) -> None:
        """Ask what is in the form."""
        question = self.form.question(self._name)
        if self.form.busy or not question.graph:
            return
        if not question.text:
            self.answer.begin()
            self.answer.show_error("Write a question first.")
            return
        self.answer.begin()
        self.form.set_busy("Looking for what the question is about …")
        self._note.set_visibility(False)
        self._address(question.text)
        try:
            answer = await self._asking.ask(question, self._reads, self._written)
            self._answer = answer
            self.answer.show(answer)
            await self._draw(answer.reading, answer)
        except Exception as error:
            self.answer.show_error(_message(error))
        finally:
            self.form.set_busy("")

    def _reads(self, reading: Reading) -> None:
        self.form.set_busy(f"Reading {counted(reading.graph.num_nodes, 'node')} …")

    def _written(self, text: str) -> None:
        self.form.set_busy("Writing …")
        self.answer.show_text(text)

    async def _draw(self, reading: Reading, answer: Answer) -> None:
        output = answer.output
        highlights = Highlights(
            () if output is None else output.evidence,
            reading.entities,
            () if output is None else [entity.id for entity in output.answer],
            scores=reading.scores,
        )
        title = f"Read from version {reading.version}:"
        await self.drawing.show(reading.graph, highlights, title, steady=True)

    # ---- records ------------------------------------------------------------------------------------------

    async def choose(self, node_id: str) -> None:
        """Show the record of a node."""
        self._note.set_visibility(False)
        with self._errors(self._say_error):
            name = self._name
            self._record.show(await self._store(lambda store: library.record(store, name, node_id)))

    async def find(self, text: str) -> list[Node]:
        """Nodes that a text may mean."""
        with self._errors(self._say_error):
            name = self._name
            return await self._store(lambda store: library.find_nodes(store, name, text))
        return []

    async def change(self, old: Edge | None, new: Edge | None) -> None:
        """Put one edge in another's place, in the store; the record is then that of the new version."""
        record = self._record.record
        if record is None:
            return
        self._note.set_visibility(False)
        with self._errors(self._say_error):
            try:
                await self._store(
                    lambda store: library.change_edge(
                        store, record.graph, record.version, delete=old, add=new
                    )
                )
            except ApiError as error:
                if error.status != 409:
                    raise
                await self._refresh(record.node.id)
                self._say_error(CONFLICT)
                return
            await self._refresh(record.node.id)
            self._say_saved(old, new)

    async def _refresh(self, node_id: str) -> None:
        name = self._name
        self._record.show(await self._store(lambda store: library.record(store, name, node_id)))
        self._say_version(await self._store(lambda store: store.info(name)))

    def _say_saved(self, old: Edge | None, new: Edge | None) -> None:
        done = "Added" if old is None else "Deleted" if new is None else "Changed"
        self._note.clear()
        with self._note:
            ui.label(
                f"{done}: this is version {self._version:,}. Ask again to see what has become of the answer."
            )
            with ui.row().classes("v-row"):
                again = ui.button("Ask again", color=None, on_click=self.ask).props("flat dense")
                again.classes("v-plain v-again")
                undo = ui.button("Undo", color=None, on_click=lambda: self.change(new, old))
                undo.props("flat dense").classes("v-plain v-undo")
        self._note.set_visibility(True)

    # ---- what all of it needs -----------------------------------------------------------------------------

    async def _store(self, function: Callable[[GraphStore], T]) -> T:
        """The result of a function of the graph store, in a thread. Raises ApiError."""
        await self._visitor.check()

        def call() -> T:
            with graph_errors("graph"):
                return function(self._serving.graphs.store)

        return await self._serving.graphs.run(call)

    @contextmanager
    def _errors(self, say: Callable[[str], None] | None = None) -> Iterator[None]:
        """An error becomes a line on the page."""
        self._error.set_visibility(False)
        try:
            yield
        except Exception as error:
            (say or self.answer.show_error)(_message(error))

    def _say_error(self, message: str) -> None:
        self._error.text = message
        self._error.set_visibility(True)

    def _say_version(self, info: GraphInfo) -> None:
        self._version = info.version
        self._about.text = (
            f"Version {info.version:,}: {counted(info.nodes, 'node')}, {counted(info.edges, 'edge')}"
        )

    def _address(self, question: str = "") -> None:
        """The address bar names the graph and the question, so that a reload or a link shows them."""
        query = {"graph": self._name, **({"q": question} if question else {})}
        ui.navigate.history.replace(f"/?{urlencode(query)}")


def _opening(store: GraphStore, name: str) -> tuple[GraphInfo, list[str], str, Graph]:
    """What is shown of a graph before anything is asked."""
    return (
        store.info(name),
        library.node_types(store, name),
        library.example_question(store, name),
        library.glimpse(store, name),
    )


def _title(part: Graph, info: GraphInfo) -> str:
    return (
        "The graph:"
        if part.num_nodes == info.nodes
        else f"{part.num_nodes:,} of {counted(info.nodes, 'node')}:"
    )


def _message(error: Exception) -> str:
    """An error in a line; of a defect the log has the rest."""
    told = as_api_error(error)
    if told.status == 500:
        log.error("the page has failed", exc_info=error)
    text = library.cut(told.message, 400)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "…")) else ".")
