"""Listening, signals and draining: what stands between `vglm serve` and the application."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from vglm.errors import ConfigError
from vglm.llm import LLM
from vglm.serve.app import create_app, surrounded
from vglm.serve.logs import configure_logging
from vglm.serve.monitoring import Monitoring
from vglm.serve.options import ServeOptions
from vglm.serve.protocol import ConnectionLimits, limited_protocol
from vglm.serve.serving import Serving
from vglm.serve.ui.gate import PageGate

log = logging.getLogger("vglm.serve")

BACKLOG = 4096  # connections that the kernel holds until they are accepted
SWITCH_INTERVAL = (
    0.0005  # seconds that one thread may keep another from the interpreter; by default ten times that
)
INTERRUPTED = 130


def serve(model: str, engine: dict[str, Any], options: ServeOptions) -> int:
    """Load a model and serve it until a signal ends it; returns the exit status.

    SIGTERM and SIGINT let the requests in flight finish (new ones get 503); a second one ends at once. Raises ModelError and
    ConfigError for what cannot be loaded or listened on.
    """
    writer = configure_logging(options.log_level, options.log_format)
    listener = listen(options)
    raise_file_limit(options.max_connections + 64)
    llm = LLM(model, **engine)
    _ = llm.tokenizer  # read before the first request needs it
    serving = Serving(llm, options)
    serving.log_writer = writer
    serving.graphs.prepare()
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()  # what has been loaded stays: the collector need not look at it again
    server = Server(serving, url_of(listener, options))
    try:
        server.run(sockets=[listener])
    finally:
        gc.unfreeze()  # so that what has been loaded is freed in order, and nothing is reported as leaked
        server.monitoring.stop()
        writer.stop()
    return INTERRUPTED if server.interrupted else 0


class Server(uvicorn.Server):
    """uvicorn with a drain before its shutdown."""

    def __init__(self, serving: Serving, url: str) -> None:
        serving.protocol = limited_protocol(_connection_limits(serving.options))
        serving.num_connections = lambda: len(self.server_state.connections)
        app = create_app(serving)
        surroundings = surrounded(app, serving)
        self.monitoring: Monitoring = app.state.monitoring
        config = uvicorn.Config(
            surroundings,
            loop="uvloop",
            http=serving.protocol,
            ws="none",
            log_config=None,
            access_log=False,
            backlog=BACKLOG,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self.interrupted = False
        self._page = surroundings if isinstance(surroundings, PageGate) else None
        self._signals = 0
        self._serving = serving
        self._url = url
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            seconds = process_age()
            names = ", ".join(self._serving.model_names)
            print(f"serving {names} at {self._url} (ready in {seconds:.2f} s; Ctrl-C ends it)", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second one ends what is in flight, the third one does not wait for anything."""
        self.interrupted = self.interrupted or sig == signal.SIGINT
        self._signals += 1
        if self._loop is None or self._signals > 2:
            self.should_exit = self.force_exit = True
        elif self._signals == 2:
            self._loop.call_soon_threadsafe(self._serving.abort_all)
        else:
            self._serving.admission.draining = True
            self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._drain = asyncio.ensure_future(self._drained())

    async def _drained(self) -> None:
        serving = self._serving
        if serving.num_active:
            log.info("draining: %d requests in flight; a second signal ends them", serving.num_active)
        if not await serving.wait_idle(serving.options.drain_timeout):
            log.warning("the drain's deadline has passed: %d requests are ended", serving.num_active)
            serving.abort_all()
            await serving.wait_idle(1.0)
        if self._page is not None:
            await self._page.stop()
        self.should_exit = True


def _connection_limits(options: ServeOptions) -> ConnectionLimits:
    return ConnectionLimits(
        header_timeout=options.header_timeout,
        max_header_bytes=options.max_header_bytes,
        max_connections=options.max_connections,
    )


def listen(options: ServeOptions) -> socket.socket:
    """The listening socket. Raises ConfigError when the address cannot be had."""
    try:
        if options.uds is not None:
            options.uds.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(options.uds))
        else:
            family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((options.host, options.port))
    except OSError as error:
        where = options.uds or f"{options.host}:{options.port}"
        raise ConfigError(
            f"cannot listen on {where}: {error.strerror or error}; choose another --port"
        ) from error
    listener.set_inheritable(True)
    return listener


def url_of(listener: socket.socket, options: ServeOptions) -> str:
    """Where clients find the server."""
    if options.uds is not None:
        return f"unix:{options.uds}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def process_age() -> float:
    """Seconds since this process was started, to a hundredth (Linux: /proc/self/stat)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def raise_file_limit(wanted: int) -> None:
    """Allow as many open files as connections need, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < wanted:
        log.warning("open files are limited to %d (ulimit -n), so at most that many connections", limit)
