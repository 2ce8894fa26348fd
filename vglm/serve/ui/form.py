"""The form: a question and how it is to be answered."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from nicegui import ui

from vglm.serve.ui.library import cut
from vglm.serve.ui.questions import Question

FORMS = {"answer": "Entity", "walk": "Path", "mentions": "Grounded", "": "Free"}
MEANINGS = {
    "answer": "One entity of the graph, and nothing else.",
    "walk": "A path along edges of the graph.",
    "mentions": "Words in which all that is in [brackets] is in the graph.",
    "": "Whatever the model writes; the graph's names are found in it.",
}
MODES = {"auto": "As the model's card says", "spans": "Spans", "sequential": "Sequential"}
MAX_QUESTION = 2000  # characters
Submit = Callable[[], Coroutine[Any, Any, None]]


class QuestionForm:
    """Inputs of a question; `submit` is called by the button and by Enter, `stop` by the button that replaces it."""

    def __init__(self, submit: Submit, stop: Callable[[], None]) -> None:
        self._submit = submit
        self.busy = False
        self._known_types: tuple[str, ...] = ()
        self._suggested = ""
        ui.label("Question").classes("v-title")
        self._text = ui.textarea(placeholder="What do you want to know?")
        self._text.props(f'outlined autogrow dense maxlength={MAX_QUESTION} aria-label="Question"')
        self._text.classes("full v-question")
        self._text.on("keydown.enter.exact.prevent", submit)
        ui.label("Answer with").classes("v-title")
        self._form = ui.toggle(FORMS, value="answer", on_change=self._explain).props(
            "unelevated no-caps spread toggle-color=v-on toggle-text-color=v-on"
        )
        self._form.classes("v-toggle")
        self._meaning = (
            ui.label(MEANINGS["answer"]).classes("v-faint").style("margin-top: 6px; min-height: 20px")
        )
        with ui.expansion("Options").classes("v-options full").props("dense"):
            self._types = ui.select([], multiple=True, label="Types of the answer")
            self._types.props("outlined dense use-chips").classes("full")
            self._types.props["hint"] = "None: those that the question names, else all"
            with ui.row().classes("full no-wrap").style("gap: 10px; margin-top: 10px"):
                self._hops = _number("Hops", 2, 0, 8)
                self._budget = _number("Token budget", 1024, 16, 32768)
            self._mode = ui.select(MODES, value="auto", label="The graph is read as")
            self._mode.props("outlined dense").classes("full v-mode").style("margin-top: 10px")
        with ui.row().classes("v-row").style("margin-top: 12px"):
            self._ask = (
                ui.button("Ask", on_click=submit, color=None).props("unelevated").classes("v-action v-ask")
            )
            self._stop = ui.button("Stop", on_click=stop, color=None).props("flat").classes("v-plain v-stop")
            self._state = ui.label("").classes("v-faint v-state").props("role=status")
        self._progress = ui.linear_progress(show_value=False).props("indeterminate").classes("v-progress")
        self.set_busy("")

    def question(self, graph: str) -> Question:
        """What is asked now, about a graph."""
        text = (self._text.value or "").strip()[:MAX_QUESTION]
        return Question(
            graph=graph,
            text=text,
            form=self._form.value or "",
            types=tuple(self._types.value or types_named(text, self._known_types)),
            hops=_whole(self._hops.value, 2),
            budget=_whole(self._budget.value, 1024),
            mode=self._mode.value or "auto",
        )

    def set_text(self, text: str) -> None:
        """Put a question into the form."""
        self._text.value = text[:MAX_QUESTION]

    def suggest(self, text: str) -> None:
        """Put a question into the form, unless the user has written one."""
        if (self._text.value or "") in ("", self._suggested):
            self._suggested = text[:MAX_QUESTION]
            self.set_text(text)

    def set_types(self, types: Sequence[str]) -> None:
        """The node types of the graph; none is chosen, which leaves it to the question."""
        self._known_types = tuple(types)
        self._types.set_options({kind: cut(kind, 60) for kind in types}, value=[])

    def set_busy(self, state: str) -> None:
        """What goes on, or "" for nothing."""
        self.busy = bool(state)
        self._state.text = state
        self._ask.set_enabled(not self.busy)
        self._stop.set_visibility(self.busy)
        self._progress.style("visibility: " + ("visible" if self.busy else "hidden"))

    def _explain(self) -> None:
        self._meaning.text = MEANINGS[self._form.value or ""]


def types_named(text: str, types: Sequence[str]) -> list[str]:
    """The node types that a question names: "Which diseases ...?" asks for those of the type disease."""
    words = set(re.findall(r"\w+", text.casefold()))
    words |= {word.removesuffix("s") for word in words}
    return [kind for kind in types if kind.casefold() in words]


def _number(label: str, value: int, low: int, high: int) -> ui.number:
    number = ui.number(label, value=value, min=low, max=high, step=1, precision=0)
    number.props("outlined dense").style("flex: 1 1 0; min-width: 0")
    return number


def _whole(value: float | None, default: int) -> int:
    return default if value is None else int(value)
