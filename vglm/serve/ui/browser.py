"""What the page asks the browser: the scheme of colours, the drawing's room, and the key it has kept for this tab."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from nicegui import ui
from nicegui.events import GenericEventArguments

from vglm.serve.ui.drawing import Look

WAIT = 30.0  # seconds for the browser to connect, and then to answer
_KEY = "vglm-key"  # in the session storage: a reload does not ask again, another tab does
_ASK = f"""
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", (event) => emitEvent("vglm-scheme", event.matches));
  return {{
    dark: dark.matches,
    key: sessionStorage.getItem("{_KEY}") ?? "",
  }};
"""
Redraw = Callable[[Look], Coroutine[Any, Any, None]]


class Browser:
    """The browser of the current NiceGUI client."""

    def __init__(self, answer: Any) -> None:
        """`answer`: what it says of itself; it may be anything, as browsers are not to be trusted."""
        said = answer if isinstance(answer, dict) else {}
        self.look = Look(dark=said.get("dark") is True)
        key = said.get("key")
        self.key = key if isinstance(key, str) else ""

    @staticmethod
    async def connected() -> Browser:
        """Wait for the browser; raises TimeoutError when it does not come."""
        await ui.context.client.connected(WAIT)
        return Browser(await ui.run_javascript(_ASK, timeout=WAIT))

    def keep_key(self, key: str) -> None:
        """Keep a key until the tab is closed."""
        ui.run_javascript(f"sessionStorage.setItem('{_KEY}', {json.dumps(key)})")

    async def measure(self, selector: str) -> Look:
        """The look of a drawing that fills an element."""
        said = await ui.run_javascript(
            f"const room = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            "return [room.width, room.height];",
            timeout=WAIT,
        )
        width, height = said if isinstance(said, list) and len(said) == 2 else (None, None)
        self.look = replace(self.look, frame=(_within(width, 240, 4000), _within(height, 240, 4000)))
        return self.look

    def on_scheme(self, redraw: Redraw) -> None:
        """Call when the user changes between light and dark."""

        async def changed(event: GenericEventArguments) -> None:
            self.look = replace(self.look, dark=event.args is True)
            await redraw(self.look)

        ui.on("vglm-scheme", changed)


def _within(value: Any, low: float, high: float) -> float:
    number = float(value) if isinstance(value, int | float) else 600.0
    return min(max(number, low), high)
