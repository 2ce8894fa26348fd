"""NiceGUI, set up to serve one page inside of our server. Imported at the first visit, in a thread."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import Any

from fastapi import FastAPI
from nicegui import Client, core, ui
from starlette.requests import Request
from starlette.types import ASGIApp

from vglm.serve.ui.gate import RunningPage
from vglm.serve.ui.page import show_page
from vglm.serve.ui.visitor import Host, Visitor

LAST_WORDS = 0.3  # seconds in which the browsers hear what the page had to say at the end
RECONNECT = 10.0  # seconds that a page outlives its connection
MAX_PACKETS = (
    1024  # in one message of a browser; by default as few as somebody types while it waits for an answer
)
HISTORY = 50  # messages that are sent again after a lost connection
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><g stroke="#0072b2" stroke-width="2.5">'
    '<path d="M8 9 24 8M8 9 16 24M24 8 16 24" fill="none"/></g><circle cx="8" cy="9" r="5" fill="#0072b2"/>'
    '<circle cx="24" cy="8" r="5" fill="#0072b2"/><circle cx="16" cy="24" r="6" fill="#c8401a"/></svg>'
)


def start(host: Host) -> RunningPage:
    """The page of a server; called once in a process, as NiceGUI's state is the process's."""

    @ui.page("/", title="vGLM")
    async def page(request: Request, graph: str = "", q: str = "") -> None:
        client = request.client
        visitor = Visitor(host, None if client is None else (client.host, client.port))
        await show_page(visitor, graph, q)

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    core.app.config.socket_io_js_transports = ["polling"]  # plain HTTP, so the server's limits hold for it
    core.app.config.quasar_config["loadingBar"]["skipHijack"] = True  # every message would show it
    core.sio.eio.allow_upgrades = False
    import_module("engineio.payload").Payload.max_decode_packets = MAX_PACKETS
    ui.run_with(
        app,
        favicon=ICON,
        dark=None,
        language="en-US",
        tailwind=False,
        binding_refresh_interval=None,
        reconnect_timeout=RECONNECT,
        message_history_length=HISTORY,
        show_welcome_message=False,
    )
    return _Running(app)


class _Running:
    """See `RunningPage`."""

    def __init__(self, app: FastAPI) -> None:
        self.app: ASGIApp = app
        self._lifespan: AbstractAsyncContextManager[Any] = app.router.lifespan_context(app)

    @property
    def num_open(self) -> int:
        return len(Client.instances)

    async def open(self) -> None:
        await self._lifespan.__aenter__()

    async def stop(self) -> None:
        await asyncio.sleep(LAST_WORDS)
        if core.sio.eio.sockets:
            await core.sio.eio.disconnect()
        await self._lifespan.__aexit__(None, None, None)
