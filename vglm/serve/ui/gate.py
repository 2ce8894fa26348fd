"""Which requests are the page's, and its start at the first of them."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vglm.errors import ConfigError
from vglm.serve.limits import BodyLimits
from vglm.serve.refusal import refuse

if TYPE_CHECKING:
    from vglm.serve.ui.visitor import Host

log = logging.getLogger("vglm.serve.ui")

PREFIXES = ("/_nicegui/", "/_nicegui_ws/")
MAX_MESSAGE = 1 << 20  # bytes that a browser may send at once
MAX_PAGES = 256  # open at the same time; each keeps some 100 kB here
STOP_SECONDS = 2.0
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class RunningPage(Protocol):
    """The page, once NiceGUI is there."""

    app: ASGIApp

    @property
    def num_open(self) -> int:
        """Browser tabs that show it."""

    async def open(self) -> None:
        """Begin to serve in the running event loop."""

    async def stop(self) -> None:
        """End; browsers that wait for news are let go."""


def wanted(choice: bool | None) -> bool:
    """Whether there is a page: `choice`, or whether NiceGUI is installed. Raises ConfigError when it is not and must be."""
    installed = importlib.util.find_spec("nicegui") is not None
    if choice and not installed:
        raise ConfigError("the page at / needs NiceGUI, which is not installed: pip install 'vglm[ui]'")
    return installed if choice is None else choice


class PageGate:
    """ASGI: the page's requests go to the page, which asks for keys itself, and all others go on.

    `/` is the page for whoever accepts HTML, and the list of paths for everybody else.
    """

    def __init__(self, app: ASGIApp, host: Host, start: Callable[[Host], RunningPage] | None = None) -> None:
        """`start` is called once, in a thread; by default it is `vglm.serve.ui.start.start`."""
        self.app = app
        self._host = host
        self._start = _start if start is None else start
        self._starting: asyncio.Task[RunningPage] | None = None
        self._bodies: BodyLimits | None = None
        self._stopped = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on (ASGI)."""
        if scope["type"] != "http" or self._stopped or not _is_for_page(scope):
            await self.app(scope, receive, send)
            return
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._started())
        page = await asyncio.shield(self._starting)
        if scope["path"] == "/":
            if page.num_open >= MAX_PAGES:
                message = f"{page.num_open} pages are open, as many as the server allows; close one, or try again later"
                await refuse(send, 503, message, "overloaded")
                return
            send = _with_headers(send)
        assert self._bodies is not None
        await self._bodies(scope, receive, send)

    async def _started(self) -> RunningPage:
        page = await asyncio.to_thread(self._start, self._host)
        await page.open()
        options = self._host.serving.options
        self._bodies = BodyLimits(
            page.app,
            max_bytes=MAX_MESSAGE,
            timeout=options.body_timeout,
            max_depth=options.max_json_depth,
        )
        return page

    async def stop(self) -> None:
        """Let the browsers go, whose requests would hold up the server's end; takes a moment, and never raises."""
        if self._starting is not None:
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await (await self._starting).stop()
            except TimeoutError:
                log.info("a browser that does not answer still has the page")
            except Exception as error:
                log.error("the page could not be ended in order", exc_info=error)
        self._stopped = True


def _start(host: Host) -> RunningPage:
    from vglm.serve.ui.start import start

    return start(host)


def _is_for_page(scope: Scope) -> bool:
    path: str = scope["path"]
    if path == "/":
        return scope["method"] == "GET" and _accepts_html(scope)
    return path.startswith(PREFIXES)


def _accepts_html(scope: Scope) -> bool:
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


def _with_headers(send: Send) -> Send:
    """`send` that adds what keeps other sites out of the page, and the page from loading anything from them."""

    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await send(message)

    return add
