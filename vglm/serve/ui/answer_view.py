"""The answer: its text as it comes, then the entities, the evidence, and what it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nicegui import ui

from vglm.decode.graph_outputs import GraphOutput
from vglm.graph.graph import Edge, Graph
from vglm.serve.ui.library import cut
from vglm.serve.ui.questions import Answer, Reading

MAX_PATHS = 12  # that are shown
MAX_CHIPS = 24


class AnswerView:
    """`choose` is called with the id of a node that was clicked."""

    def __init__(self, choose: Callable[[str], object]) -> None:
        self._choose = choose
        self._ended = 0
        ui.label("Answer").classes("v-title")
        self._text = ui.label("").classes("v-answer").props("aria-live=polite")
        self._error = ui.label("").classes("v-error").props("role=alert")
        self._details = ui.element("div").classes("full v-details")
        self.begin()
        self._text.text = "The answer to a question appears here."
        self._text.classes("v-faint")

    def begin(self) -> None:
        """A new question: nothing is left of the last one."""
        self._text.classes(remove="v-faint")
        self._text.text = ""
        self._text.set_visibility(True)
        self._error.set_visibility(False)
        self._details.clear()

    def show_text(self, text: str) -> None:
        """The text so far."""
        self._text.text = text

    def show_error(self, message: str) -> None:
        """What went wrong, in a line."""
        self._error.text = message
        self._error.set_visibility(True)
        self._count()

    def show(self, answer: Answer) -> None:
        """The whole answer."""
        is_name = answer.output is not None and answer.text == ", ".join(e.name for e in answer.output.answer)
        self._text.set_visibility(not is_name)
        self._text.text = answer.text or (
            "Stopped before the first word." if answer.output is None else "(nothing)"
        )
        self._details.clear()
        with self._details:
            if answer.output is None:
                ui.label("Stopped.").classes("v-faint")
            else:
                self._entities(answer.output)
                self._evidence(answer.output.evidence, answer.reading.graph)
            _took(answer)
        self._count()

    def _count(self) -> None:
        """Say in the page how many questions have had an end, for whoever drives it."""
        self._ended += 1
        self._details.props["data-ended"] = str(self._ended)

    def _entities(self, output: GraphOutput) -> None:
        if not output.answer:
            return
        with ui.element("div").classes("v-chips"):
            for entity in output.answer[:MAX_CHIPS]:
                chip = ui.button(cut(entity.name or entity.id, 80), color=None)
                chip.on_click(lambda _, node=entity.id: self._choose(node))
                chip.props("unelevated no-caps").classes("v-chip")

    def _evidence(self, paths: Sequence[Sequence[Edge]], graph: Graph) -> None:
        ui.label("Evidence").classes("v-title")
        if not paths:
            ui.label("No path of the graph joins what was asked about and the answer.").classes("v-faint")
        for path in paths[:MAX_PATHS]:
            with ui.element("div").classes("v-path"):
                _write_path(path, graph)
        if len(paths) > MAX_PATHS:
            ui.label(f"and {len(paths) - MAX_PATHS} more").classes("v-faint")


def _write_path(path: Sequence[Edge], graph: Graph) -> None:
    """The edges of a path in a line, the way they are walked: A, relation, B, relation, C."""
    at = _first(path)
    _name(graph, at)
    for edge in path:
        onward = edge.source == at
        at = edge.target if onward else edge.source
        relation = cut(edge.relation, 60)
        ui.label(f" → {relation} → " if onward else f" ← {relation} ← ").classes("v-relation v-inline")
        _name(graph, at)


def _first(path: Sequence[Edge]) -> str:
    """Where a path begins: at the end of its first edge that the second one does not share."""
    first = path[0]
    if len(path) > 1 and first.source in (path[1].source, path[1].target):
        return first.target
    return first.source


def _name(graph: Graph, node_id: str) -> None:
    ui.label(cut(graph.name_of(node_id) or node_id, 80)).classes("v-inline v-strong")


def _took(answer: Answer) -> None:
    ui.label("What it took").classes("v-title")
    for line in took_lines(answer):
        ui.label(line).classes("v-faint v-took")


def took_lines(answer: Answer) -> list[str]:
    """What was read, computed and left out, in sentences."""
    lines = []
    if answer.first_token is not None:
        first = f"First word after {_milliseconds(answer.first_token)}"
        lines.append(f"{first}, {counted(answer.num_tokens, 'token')} in {_milliseconds(answer.seconds)}.")
    output = answer.output
    if output is not None:
        cached, total = output.num_cached_tokens, output.num_tokens
        lines.append(
            f"Read {counted(output.num_nodes, 'node')} and {counted(output.num_edges, 'edge')}: {total:,} tokens, "
            f"{share(cached, total)} of them already computed, {total - cached:,} computed now ({output.mode})."
        )
    lines.append(left_out_line(answer.reading))
    return lines


def left_out_line(reading: Reading) -> str:
    """What was found and not read."""
    return f"Left out: {cut(reading.left_out, 400)}." if reading.left_out else "Nothing was left out."


def counted(number: int, noun: str) -> str:
    """As in "1 node" and "2,000 nodes"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def share(part: int, whole: int) -> str:
    """A percentage that is 100 or 0 only where it is exact."""
    if not whole or part in (0, whole):
        return "100 %" if whole and part == whole else "0 %"
    return f"{min(99, max(1, round(100 * part / whole)))} %"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
