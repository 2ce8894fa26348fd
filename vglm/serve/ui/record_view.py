"""The record of a node: what it is, its edges, and the editor that changes one of them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from nicegui import ui

from vglm.graph.graph import Edge, Node
from vglm.serve.ui.library import LONGEST_TEXT, Link, Record, cut

MAX_OFFERED = 12  # relations of the graph, to choose from
Change = Callable[[Edge | None, Edge | None], Coroutine[Any, Any, None]]  # what goes, what comes
Find = Callable[[str], Coroutine[Any, Any, list[Node]]]


class RecordView:
    """`change` is called with the edge that goes and the one that comes, `find` with the beginning of a name."""

    def __init__(self, change: Change, find: Find, choose: Callable[[str], object]) -> None:
        self._change, self._find, self._choose = change, find, choose
        self._record: Record | None = None
        self._root = ui.element("div").classes("full").style("height: 100%")
        self.clear()

    @property
    def record(self) -> Record | None:
        """What is shown."""
        return self._record

    def clear(self) -> None:
        """Show no record."""
        self._record = None
        self._root.clear()
        with self._root, ui.element("div").classes("v-empty"):
            ui.label("Choose a node in the drawing to see what the graph says of it, and to change it.")

    def show(self, record: Record) -> None:
        """Show a node."""
        self._record = record
        node = record.node
        self._root.clear()
        with self._root:
            ui.label(cut(node.name or node.id)).classes("v-name")
            ui.label(" · ".join(filter(None, (cut(node.type, 60), cut(node.id, 80))))).classes("v-type")
            if node.text:
                ui.label(cut(node.text, LONGEST_TEXT)).classes("v-text v-small").style("margin-top: 10px")
            if node.aliases:
                names = ", ".join(cut(alias, 60) for alias in node.aliases[:8])
                ui.label(f"Also called: {names}").classes("v-faint").style("margin-top: 8px")
            ui.label(_heading(record)).classes("v-title")
            for link in record.links:
                self._link(link)
            self._below = ui.element("div").classes("full")
            with self._below:
                self._offer()

    def _link(self, link: Link) -> None:
        with ui.element("div").classes("v-link"):
            with ui.element("div").classes("v-link-text"):
                arrow = "→" if link.outward else "←"
                ui.label(f"{arrow} {cut(link.edge.relation, 60)}").classes("v-relation")
                other = link.edge.target if link.outward else link.edge.source
                name = ui.button(link.other or cut(other), color=None, on_click=lambda: self._choose(other))
                name.props("flat dense no-caps align=left").style(
                    "font-weight: 400; min-height: 24px; padding: 0"
                )
            edit = ui.button(icon="edit", color=None, on_click=lambda: self._edit(link))
            gone = ui.button(icon="delete", color=None, on_click=lambda: self._change(link.edge, None))
            for button, verb in ((edit, "Edit"), (gone, "Delete")):
                button.props("flat dense round size=sm").classes(f"v-{verb.lower()}")
                button.props["aria-label"] = f"{verb}: {cut(link.edge.relation, 60)} {link.other}"
                button.props["title"] = f"{verb} this edge"

    def _offer(self) -> None:
        add = ui.button("Add an edge", icon="add", color=None, on_click=lambda: self._edit(None))
        add.props("flat dense no-caps").classes("v-plain v-add").style("margin-top: 10px")

    def _edit(self, link: Link | None) -> None:
        """Open the editor, for an edge that is there or for a new one."""
        if self._record is None:
            return
        self._below.clear()
        with self._below:
            Editor(self._record, link, self._change, self._find, self._close)

    def _close(self) -> None:
        self._below.clear()
        with self._below:
            self._offer()


class Editor:
    """Choose a relation and the node at the other end."""

    def __init__(
        self, record: Record, link: Link | None, change: Change, find: Find, close: Callable[[], None]
    ) -> None:
        self._record, self._link, self._change, self._find = record, link, change, find
        outward = link is None or link.outward
        self._other = None if link is None else link.edge.target if link.outward else link.edge.source
        with ui.element("div").classes("v-editor full") as box:
            ui.label("New edge" if link is None else "Change the edge").classes("v-title")
            self._relation = ui.input("Relation", value="" if link is None else link.edge.relation)
            self._relation.props("outlined dense maxlength=200").classes("full v-edit-relation")
            with ui.element("div").classes("v-nodes"):
                for relation in record.relations[:MAX_OFFERED]:
                    offer = (
                        ui.button(cut(relation, 60), color=None)
                        .props("flat no-caps")
                        .classes("v-node v-relation-offer")
                    )
                    offer.on_click(lambda _, relation=relation: self._relation.set_value(relation))
            label = "Search the node it leads to" if outward else "Search the node it comes from"
            self._search = ui.input(label, on_change=self._searched)
            self._search.props("outlined dense debounce=200 maxlength=200").classes("full v-edit-search")
            self._search.style("margin-top: 8px")
            self._found = ui.element("div").classes("v-nodes").style("min-height: 34px")
            self._chosen = ui.label("").classes("v-small")
            with ui.row().classes("v-row").style("margin-top: 8px"):
                self._save = ui.button("Save", on_click=self._saved, color=None).props("unelevated")
                self._save.classes("v-action v-save")
                ui.button("Cancel", on_click=close, color=None).props("flat").classes("v-plain")
        self._say(link.other if link else "")
        box.run_method("scrollIntoView", {"block": "nearest"})

    async def _searched(self) -> None:
        text = self._search.value or ""
        found = await self._find(text)
        if text != (self._search.value or ""):
            return  # a later search is on its way
        self._found.clear()
        with self._found:
            for node in found:
                button = ui.button(cut(node.name or node.id, 60), color=None).props("flat no-caps")
                button.on_click(lambda _, node=node: self._pick(node)).classes("v-node v-found")
            if text.strip() and not found:
                ui.label("No node has this in its name.").classes("v-faint")

    def _pick(self, node: Node) -> None:
        self._other = node.id
        self._say(cut(node.name or node.id))

    def _say(self, name: str) -> None:
        relation_to = f"At the other end: {name}" if self._other is not None else "No node is chosen yet."
        self._chosen.text = relation_to
        self._save.set_enabled(self._other is not None)

    async def _saved(self) -> None:
        if self._other is None:
            return
        here, relation = self._record.node.id, (self._relation.value or "").strip()
        old = None if self._link is None else self._link.edge
        attributes = {} if old is None else old.attributes
        if self._link is None or self._link.outward:
            new = Edge(here, relation, self._other, attributes)
        else:
            new = Edge(self._other, relation, here, attributes)
        await self._change(old, new)


def _heading(record: Record) -> str:
    shown = len(record.links)
    return f"{shown} of {record.num_links:,} edges" if shown < record.num_links else f"Edges ({shown})"
