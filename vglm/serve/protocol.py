"""HTTP connections: uvicorn's protocol with limits on heads, on time and on the number of connections."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from vglm.serve.errors import error_body

log = logging.getLogger("vglm.serve.connections")

ABORT = "vglm.abort"  # the ASGI extension that ends a connection at once
LINGER_SECONDS = (
    1.0  # that a refused connection is read from, so that the client sees its answer and no reset
)
RESERVE = 256  # connections above the limit that get an answer; those above it are closed without one


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Limits of a connection; times are seconds.

    Args:
        header_timeout: from the connection, or the first byte after an answer, to the end of the request's head.
        write_timeout: in which a client must take something when it has much to take.
        max_header_bytes, max_headers: of a request's head in all, and lines of it.
        max_url_bytes: of the path and query.
        max_connections: open at once.
    """

    header_timeout: float = 30.0
    write_timeout: float = 120.0
    max_header_bytes: int = 64 << 10
    max_headers: int = 128
    max_url_bytes: int = 8 << 10
    max_connections: int = 16384


def limited_protocol(limits: ConnectionLimits) -> type[LimitedProtocol]:
    """The class to give to `uvicorn.Config(http=...)`."""
    return type(
        "LimitedProtocol", (LimitedProtocol,), {"limits": limits, "next_warning": 0.0, "refused": Counter()}
    )


def abort_connection(scope: Scope) -> None:
    """End the connection of a request at once, whatever is unsent. Raises RuntimeError on a server that cannot."""
    extension = scope.get("extensions", {}).get(ABORT)
    if extension is None:
        raise RuntimeError("the server cannot end a connection in the middle of an answer")
    extension["abort"]()


class _RefusedError(Exception):
    """A head that passes a limit; ends the parsing of it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class LimitedProtocol(HttpToolsProtocol):
    """One connection.

    It is always in one of three states: waiting for a head (`_head_timer` runs), answering (uvicorn's cycle), or idle after
    an answer (uvicorn's keep-alive timer runs). A refused connection lingers: what comes is dropped until it is closed.
    """

    limits = ConnectionLimits()
    next_warning = 0.0  # event loop's time
    refused: ClassVar[Counter[int]] = Counter()  # by status; 0 is a connection closed without an answer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unsent = 0  # bytes, when the write timer was set
        self._head_begun = False
        self._head_bytes = 0  # received since the last head or piece of a body was complete
        self._refusal: _RefusedError | None = None
        self._lingering = False

    # ---- the connection's life ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it when there are too many."""
        super().connection_made(transport)
        excess = len(self.connections) - self.limits.max_connections
        if excess > RESERVE:
            self.refused[0] += 1
            transport.abort()
        elif excess > 0:
            self._warn_of_connections()
            self._refuse(
                503, "the server has as many connections as it can; try again later", b"retry-after: 5\r\n"
            )
        else:
            self._await_head()

    def _warn_of_connections(self) -> None:
        now, kind = self.loop.time(), type(self)
        if now >= kind.next_warning:  # a flood of connections must not become one of lines
            kind.next_warning = now + 10.0
            log.warning("%d connections are open: more are refused", self.limits.max_connections)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_head_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, within the limits of a head."""
        if self._lingering:
            return
        self._unset_keepalive_if_required()  # or the last answer's timer would close the connection within the next one
        if self._head_timer is None and not self._answering:
            self._await_head()
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(data[upgrade.args[0] :])
        if self._head_bytes > self.limits.max_header_bytes and not self._lingering:
            self._refusal = self._head_too_large()  # a line without end: the parser has not told of it yet
            self.send_400_response("")

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle after an answer."""
        super().timeout_keep_alive_handler()
        self._watch_unsent()

    def on_response_complete(self) -> None:
        """Go on to the next request, or see that a closed connection does end."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_unsent()

    # ---- heads --------------------------------------------------------------------------------------------

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def on_message_begin(self) -> None:
        """A head begins (parser)."""
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}
        self._head_begun = True
        self._await_head()

    def on_url(self, url: bytes) -> None:
        """Some of the URL (parser)."""
        super().on_url(url)
        if len(self.url) > self.limits.max_url_bytes:
            most = self.limits.max_url_bytes
            self._refusal = _RefusedError(414, f"the URL has more than {most} bytes; send less in it")
            raise self._refusal

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line (parser)."""
        super().on_header(name, value)
        if len(self.headers) > self.limits.max_headers:
            most = self.limits.max_headers
            self._refusal = _RefusedError(431, f"the request has more than {most} headers; send fewer")
            raise self._refusal

    def on_headers_complete(self) -> None:
        """A head is complete (parser)."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_header_bytes:
            self._refusal = self._head_too_large()
            raise self._refusal
        if self.parser.should_upgrade():
            return  # data_received goes on with it
        self._stop_head_timer()
        self._head_begun = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body (parser)."""
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete (parser)."""
        if self.parser.should_upgrade():
            return
        self._head_bytes = 0
        super().on_message_complete()

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Take a request to change the protocol (as h2c, which some clients always ask for) as one of HTTP/1.1.

        The parser has dropped the request's body as it would not be HTTP: another one starts anew, and never hears of it.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(400, "this is no proxy: CONNECT is not supported")
            return
        lines = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        head = b"\r\n".join([method + b" " + self.url + b" HTTP/1.1", *lines, b"\r\n"])
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._head_bytes = 0
        self.data_received(head + rest)

    def _head_too_large(self) -> _RefusedError:
        most = self.limits.max_header_bytes
        return _RefusedError(431, f"the request's head has more than {most} bytes; send less in it")

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.header_timeout, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._answering:
            self._await_head()  # a later request on this connection has begun; the answer before it goes on
        elif self._head_begun:
            self._refuse(408, f"the request's head did not arrive within {self.limits.header_timeout:g} s")
        else:
            self._close()

    # ---- refusing and closing -----------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Answer a head that cannot be parsed or passes a limit (uvicorn calls this)."""
        if self._answering:
            self._close()  # an answer is under way, and another one must not go into it
        elif self._refusal is not None:
            self._refuse(self._refusal.status, self._refusal.message)
        else:
            self._refuse(400, "this is not a valid HTTP request")

    def _refuse(self, status: int, message: str, headers: bytes = b"") -> None:
        """Answer with an error in OpenAI's shape and close, giving the client a moment to read it."""
        self.refused[status] += 1
        log.debug("a connection is refused: %d %s", status, message)
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        body = error_body(status, message)
        self.transport.write(
            b"%scontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%s\r\n%s"
            % (STATUS_LINE[status], len(body), headers, body)
        )
        self._lingering = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._head_timer = self.loop.call_later(LINGER_SECONDS, self._close)
        else:
            self._close()

    def eof_received(self) -> None:
        """The client sends nothing more; the transport closes."""

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
        self._watch_unsent()

    # ---- clients that do not read -------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The client is behind with reading."""
        super().pause_writing()
        self._watch_unsent()

    def resume_writing(self) -> None:
        """The client has caught up."""
        if not self.transport.is_closing():
            self._stop_write_timer()
        super().resume_writing()

    def _watch_unsent(self) -> None:
        """Give up the connection when the client takes nothing of what is unsent for `write_timeout`."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and self._write_timer is None:
            self._unsent = unsent
            self._write_timer = self.loop.call_later(self.limits.write_timeout, self._check_unsent)

    def _check_unsent(self) -> None:
        self._write_timer = None
        unsent = self.transport.get_write_buffer_size()
        if unsent >= self._unsent:
            log.info("a client has taken nothing for %g s: its connection ends", self.limits.write_timeout)
            self.transport.abort()
        else:
            self._watch_unsent()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
