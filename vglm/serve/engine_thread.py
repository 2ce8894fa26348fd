"""The thread that owns the engine: commands in between steps, news out after them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

from vglm.engine.core import EngineCore
from vglm.engine.metrics import EngineStats
from vglm.engine.request import Request
from vglm.errors import VGLMError
from vglm.serve.streams import AbortedError, Stream

log = logging.getLogger("vglm.engine")

SNAPSHOT_TRIES = 20
IDLE_AFTER = 1.0  # seconds without a request before the engine tidies up
T = TypeVar("T")


class EngineDeadError(VGLMError):
    """The engine thread has ended; nothing can be generated until the server is started again."""


class EngineThread:
    """Runs an engine's steps in a thread of its own and serves one event loop.

    The loop hands over commands through a queue; they run between two steps. After a step the thread wakes the loop at
    most once, with every stream that has news; while the loop is busy, later news joins what is pending.
    """

    def __init__(self, engine: EngineCore) -> None:
        self.engine = engine
        self.error: str | None = None  # why the thread has ended, when it was not asked to
        self.num_integrity_errors = 0  # how often the idle engine found its accounting broken
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._streams: dict[str, Stream] = {}  # of the unfinished requests; the engine thread's
        self._news: deque[Stream] = deque()
        self._wake_pending = False
        self._stopping = False
        self._closed = False  # no command is taken any more
        self._gate = threading.Lock()  # around what must not come between the last command and the end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="vglm-engine", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether requests are being worked on."""
        return self._thread.is_alive() and not self._stopping

    def start(self) -> None:
        """Start the thread; called in the event loop that it is to serve."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End what is left and the thread."""
        self._stopping = True
        with self._gate:
            self._commands.put(lambda: None)
        await asyncio.to_thread(self._thread.join)

    # ---- called in the event loop -------------------------------------------------------------------------

    def submit(self, stream: Stream) -> None:
        """Hand over the stream's requests. Raises EngineDeadError when nobody would work on them."""
        self._hand_over(lambda: self._admit(stream))

    def abort(self, stream: Stream, error: AbortedError) -> None:
        """End the stream's requests before the next step; its reader gets the error. Nothing when they have ended."""
        if stream.aborted is None and not stream.finished:
            stream.aborted = error
            stream.alert()
            if not self._closed:
                self._commands.put(lambda: self._abort(stream))

    async def call(self, function: Callable[[EngineCore], T]) -> T:
        """The result of a function that runs between two steps."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def resolve(result: T | None, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]  # one of the two is given

        def command() -> None:
            try:
                result = function(self.engine)
            except Exception as error:
                loop.call_soon_threadsafe(resolve, None, error)
            else:
                loop.call_soon_threadsafe(resolve, result, None)

        self._hand_over(command)
        return await future

    def _hand_over(self, command: Callable[[], None]) -> None:
        with self._gate:
            if self._closed:
                raise EngineDeadError(f"the engine has stopped ({self.error or 'shutting down'})")
            self._commands.put(command)

    def stats(self) -> EngineStats:
        """The engine's state now, read while it runs: a dictionary that changes meanwhile has to be read again."""
        for _ in range(SNAPSHOT_TRIES - 1):
            with suppress(RuntimeError, LookupError):
                return self.engine.stats()
        return self.engine.stats()

    def _wake(self) -> None:
        self._wake_pending = False  # before the news is taken: what comes later wakes again
        while self._news:
            self._news.popleft().alert()

    # ---- the engine thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._run_commands()
                self._publish(self.engine.step())
        except BaseException as error:
            self.error = f"{type(error).__name__}: {error}"
            log.critical("the engine thread has ended", exc_info=error)
        finally:
            self._end_all()

    def _run_commands(self) -> None:
        """Run what has been handed over; wait for something when there is nothing to compute."""
        try:
            if not self.engine.has_unfinished:
                self._next_command()()
            while True:
                self._commands.get_nowait()()
        except Empty:
            return

    def _next_command(self) -> Callable[[], None]:
        try:
            return self._commands.get(timeout=IDLE_AFTER)
        except Empty:
            while self._tidy() and self._commands.empty():
                continue
            return self._commands.get()

    def _tidy(self) -> bool:
        """Do a piece of the engine's idle work; whether there is more. An engine that is found broken starts afresh."""
        try:
            return self.engine.idle()
        except AssertionError as error:
            self.num_integrity_errors += 1
            log.critical("the engine's accounting is broken, its cache is thrown away: %s", error)
            self.engine.reset()
            return False

    def _admit(self, stream: Stream) -> None:
        """Start a stream's requests, unless their client has gone already."""
        if stream.aborted is not None:
            return
        for request in stream.requests:
            try:
                self.engine.admit(request)
            except Exception as error:
                request.error = str(error)
                self._abort(stream)
                return
            self._streams[request.request_id] = stream

    def _abort(self, stream: Stream) -> None:
        for request in stream.requests:
            if self._streams.get(request.request_id) is stream:
                self.engine.abort(request.request_id)
                del self._streams[request.request_id]
        self._tell([stream])

    def _publish(self, updated: list[Request]) -> None:
        news = []
        for request in updated:
            stream = self._streams.get(request.request_id)
            if stream is None:
                continue
            finished = request.finished
            if finished:
                del self._streams[request.request_id]
            if finished or stream.incremental:
                news.append(stream)
        if news:
            self._tell(news)

    def _tell(self, news: list[Stream]) -> None:
        self._news.extend(news)
        if not self._wake_pending and self._loop is not None:
            self._wake_pending = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop has been closed: nobody is left to tell
                log.debug("news of %d streams came after the event loop's end", len(news))

    def _end_all(self) -> None:
        """Nothing is worked on any more: whoever waits must learn it."""
        self._stopping = True
        with self._gate:
            self._closed = True
        while not self._commands.empty():
            self._commands.get()()
        reason = f"the engine has stopped ({self.error or 'the server is shutting down'})"
        for request in list(self.engine.requests.values()):
            self.engine.fail_request(request, reason)
        streams = {id(stream): stream for stream in self._streams.values()}
        self._streams.clear()
        self._tell(list(streams.values()))
