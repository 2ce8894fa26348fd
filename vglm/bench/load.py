"""Sends a load: closed loop (so many requests at once) or open loop (requests arrive when they arrive)."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from vglm.bench.answers import Completion, RequestFailure, StreamedCompletion, Wanted
from vglm.bench.client import Client, Refused
from vglm.bench.synthetic import Ask, Workload

_RETRY_AFTER = 1.0  # seconds, when a 429 does not say
_LEAST_RETRY_AFTER = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a load is sent.

    `count` requests; with `arrivals` (seconds, ascending) each at its time, and otherwise the next one as soon as one of
    `concurrency` ends. With arrivals, `concurrency` bounds how many are sent at once (None: no bound). `timeout`: seconds
    of one request with its retries (None: no limit). `retry_429`: send again what was refused for the time being.
    """

    count: int
    concurrency: int | None = None
    arrivals: Sequence[float] | None = None
    timeout: float | None = None
    retry_429: bool = False


@dataclass(slots=True)
class Record:
    """What became of one request. Times are seconds since the run's begin, nan where nothing happened.

    `due`: when it was to be sent; `first`, `last`: messages with output; `gaps`: seconds between these;
    `reason`, `detail`: why it failed. Tokens are the server's own count.
    """

    index: int
    priority: str | None
    due: float
    sent: float = float("nan")
    first: float = float("nan")
    last: float = float("nan")
    end: float = float("nan")
    prompt_tokens: int = 0
    output_tokens: int = 0
    retries: int = 0
    gaps: array[float] = field(default_factory=lambda: array("f"))
    reason: str | None = None
    detail: str = ""
    ok: bool = False


@dataclass(slots=True)
class Run:
    """Requests that ended, in order of their ends, and the run as a whole.

    `unfinished`: requests that a stop cut short. `dead`: why nothing more was sent, when the server went away.
    `processor_seconds`: what the load generator itself took.
    """

    records: list[Record]
    planned: int
    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_concurrency: int = 0
    unfinished: int = 0
    dead: str | None = None
    interrupted: bool = False


class Load:
    """Sends one load through a client."""

    def __init__(self, client: Client, path: str, workload: Workload, plan: Plan) -> None:
        """`path` of the endpoint."""
        self._client = client
        self._path = path
        self._workload = workload
        self._plan = plan
        self._on_end: Callable[[Record], None] = lambda _: None
        self._run = Run([], plan.count)
        self._stopped = asyncio.Event()
        self._begin = 0.0
        self._next = 0
        self._in_flight = 0

    def stop(self) -> None:
        """End now; what is in flight is given up."""
        self._run.interrupted = True
        self._stopped.set()

    async def run(self, on_end: Callable[[Record], None] = lambda _: None) -> Run:
        """Send everything; returns what was measured, also after `stop` and when the server goes away.

        `on_end` is called with every request that ends.
        """
        self._on_end = on_end
        processor = time.process_time()
        self._begin = time.perf_counter()
        work = asyncio.ensure_future(self._closed() if self._plan.arrivals is None else self._open())
        stopped = asyncio.ensure_future(self._stopped.wait())
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        self._run.seconds = self._now()
        self._run.processor_seconds = time.process_time() - processor
        if not work.done():
            work.cancel()
            await asyncio.wait((work,))
        if not work.cancelled():
            work.result()
        return self._run

    async def first(self) -> Completion:
        """One request of the load's kind that is not measured. Raises RequestFailure, TimeoutError."""
        async with asyncio.timeout(self._plan.timeout):
            return await self._answer(self._workload.ask(-1), Record(-1, None, 0.0))

    def _now(self) -> float:
        return time.perf_counter() - self._begin

    async def _closed(self) -> None:
        plan = self._plan
        async with asyncio.TaskGroup() as group:
            for _ in range(min(plan.concurrency or plan.count, plan.count)):
                group.create_task(self._client_loop())

    async def _client_loop(self) -> None:
        while self._next < self._plan.count and self._run.dead is None:
            index = self._next
            self._next += 1
            await self._one(index, self._now())

    async def _open(self) -> None:
        plan = self._plan
        assert plan.arrivals is not None
        slots = nullcontext() if plan.concurrency is None else asyncio.Semaphore(plan.concurrency)
        async with asyncio.TaskGroup() as group:
            for index, due in enumerate(plan.arrivals):
                wait = due - self._now()
                if wait > 0:
                    await asyncio.sleep(wait)
                elif not index % 64:
                    await asyncio.sleep(0)  # behind time: what is in flight goes on nevertheless
                if self._run.dead is not None:
                    break
                group.create_task(self._in_slot(slots, index, due))

    async def _in_slot(self, slots: nullcontext[None] | asyncio.Semaphore, index: int, due: float) -> None:
        async with slots:
            if self._run.dead is None:
                await self._one(index, due)

    async def _one(self, index: int, due: float) -> None:
        """One request, whatever becomes of it."""
        ask = self._workload.ask(index)
        record = Record(index, ask.priority, due, self._now())
        self._in_flight += 1
        self._run.peak_concurrency = max(self._run.peak_concurrency, self._in_flight)
        try:
            async with asyncio.timeout(self._plan.timeout):
                answer = await self._answer(ask, record)
            self._note(record, answer)
        except TimeoutError:
            record.reason, record.detail = "timeout", f"{self._plan.timeout:g} s"
        except Refused as failure:
            record.reason, record.detail = failure.reason, failure.detail
            self._run.dead = self._run.dead or str(failure)
        except RequestFailure as failure:
            record.reason, record.detail = failure.reason, failure.detail
        except asyncio.CancelledError:
            self._run.unfinished += 1
            raise
        finally:
            self._in_flight -= 1
        record.end = self._now()
        self._run.records.append(record)
        self._on_end(record)

    async def _answer(self, ask: Ask, record: Record) -> Completion:
        workload = self._workload
        wanted = Wanted(ask.output_tokens, workload.ignore_eos, workload.token_ids)
        request = self._client.request("POST", self._path, ask.body)
        while True:
            answer = StreamedCompletion(wanted) if workload.stream else Completion(wanted)
            await self._client.exchange(request, answer)
            if answer.status != 429 or not self._plan.retry_429:
                answer.check()
                return answer
            record.retries += 1
            await asyncio.sleep(retry_after(answer.headers.get("retry-after")))

    def _note(self, record: Record, answer: Completion) -> None:
        record.ok = True
        record.prompt_tokens = answer.prompt_tokens
        record.output_tokens = answer.output_tokens
        if isinstance(answer, StreamedCompletion) and answer.first is not None:
            record.first = answer.first - self._begin
            record.last = answer.last - self._begin
            record.gaps = answer.gaps


def retry_after(header: str | None) -> float:
    """Seconds to wait, from a Retry-After header: a number of seconds or a date; one second when it says neither."""
    try:
        seconds = float(header or "")
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header or "") - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return _RETRY_AFTER
    return max(seconds, _LEAST_RETRY_AFTER) if seconds < float("inf") else _RETRY_AFTER
