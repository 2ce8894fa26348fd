"""The key at the door: nothing of the page is built before a valid one is given."""

from __future__ import annotations

import asyncio

from nicegui import ui

from vglm.serve.errors import ApiError
from vglm.serve.ui.browser import Browser
from vglm.serve.ui.visitor import Visitor

MAX_KEY = 1024  # characters


async def let_in(visitor: Visitor, browser: Browser) -> None:
    """Return when the visitor has a valid key: at once where none is needed or the tab has kept one."""
    visitor.key = _bytes(browser.key)
    if await _valid(visitor):
        return
    entered = asyncio.Event()

    async def check() -> None:
        visitor.key = _bytes(key.value or "")
        if await _valid(visitor):
            browser.keep_key(key.value or "")
            entered.set()
        else:
            refusal.text = "This API key is not valid; ask whoever runs the server for one."
            refusal.set_visibility(True)

    with ui.element("main").classes("v-card v-login") as box:
        ui.label("vGLM").classes("v-brand")
        ui.label("This server asks for an API key.").classes("v-faint").style("margin: 4px 0 14px")
        key = ui.input("API key", password=True).props(f"outlined dense autofocus maxlength={MAX_KEY}")
        key.classes("full v-key").on("keydown.enter", check)
        refusal = ui.label("").classes("v-error").props("role=alert")
        refusal.set_visibility(False)
        enter = ui.button("Enter", color=None, on_click=check).props("unelevated")
        enter.classes("v-action v-enter").style("margin-top: 12px")
    client = ui.context.client
    client.on_delete(entered.set)
    await entered.wait()
    if client.is_deleted:
        raise asyncio.CancelledError
    box.delete()


async def _valid(visitor: Visitor) -> bool:
    try:
        await visitor.check()
    except ApiError:
        return False
    return True


def _bytes(key: str) -> bytes:
    return key[:MAX_KEY].strip().encode("utf-8", "replace")
