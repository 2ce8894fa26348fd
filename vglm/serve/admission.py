"""Admission: how many requests may be unfinished, in all and under one API key, and when a refused one may come back."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from vglm.serve.errors import ApiError

LONGEST_RETRY = 60  # seconds
UNKNOWN_RETRY = 5  # seconds, while nothing has finished yet
DRAIN_RETRY = 10  # seconds: until another server answers under this address
WINDOW = 64  # finished requests that the rate is taken from


class Ticket:
    """The right to be served; gives its place back when it is left or released."""

    __slots__ = ("_admission", "began", "key", "weight")

    def __init__(self, admission: Admission, key: str | None, weight: int, began: float) -> None:
        self._admission: Admission | None = admission
        self.key = key
        self.weight = weight
        self.began = began

    def release(self) -> None:
        """Give the place back; once is enough, more does no harm."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission._release(self)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Admission:
    """A bounded queue in front of the engine. Used in one event loop, so that nothing comes between check and count.

    A refused request is told when to come back: places become free as often as requests have been finishing lately, and
    each refused one is promised the next. So a crowd that is refused together does not come back together.
    """

    def __init__(
        self,
        max_running: int,
        max_queue: int,
        per_key_limit: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_running`: sequences that the engine runs at once; `max_queue`: how many more may wait for it.
        `per_key_limit`: unfinished requests of one API key, for keys that have no limit of their own.
        """
        self.max_running = max_running
        self.max_queue = max_queue
        self.per_key_limit = per_key_limit
        self.draining = False
        self.active = 0  # sequences that were admitted and have not ended
        self.refused: dict[str, int] = {"queue_full": 0, "key_limit": 0, "draining": 0}
        self._clock = clock
        self._by_key: dict[str, int] = {}
        self._finished: deque[float] = deque(maxlen=WINDOW)  # when the last ones did, or the first came
        self._duration = 0.0  # seconds of a request, lately
        self._promised = 0.0  # the time of the last place that a refused request was promised

    @property
    def waiting(self) -> int:
        """Sequences beyond those that the engine can run at once."""
        return max(0, self.active - self.max_running)

    def admit(self, key: str | None = None, *, weight: int = 1, key_limit: int | None = None) -> Ticket:
        """A place for a request of `weight` sequences; `key` is the name of its API key, `key_limit` that key's own limit.

        One that comes while there is room is taken even if it needs more than is left: a batch of many prompts can wait for
        no better moment. Raises ApiError: 429 when the queue or the key's share is full, 503 while draining, both with
        Retry-After.
        """
        if self.draining:
            raise self._refuse("draining", 503, "the server is shutting down; try another one", DRAIN_RETRY)
        limit = self.per_key_limit if key_limit is None else key_limit
        of_key = self._by_key.get(key, 0) if key is not None else 0
        if key is not None and limit is not None and of_key >= limit:
            message = f"{of_key} requests of the API key {key!r} are unfinished, which is its limit; wait for one of them"
            raise self._refuse("key_limit", 429, message, self._retry(self._duration / limit))
        if self.active >= self.max_running + self.max_queue:
            message = f"{self.waiting} requests wait already, as many as the server allows; try again later"
            raise self._refuse("queue_full", 429, message, self._retry(self._next_place()))
        now = self._clock()
        if not self.active:
            self._finished.clear()  # the rate is that of busy times
            self._finished.append(now)
        self.active += weight
        if key is not None:
            self._by_key[key] = of_key + 1
        return Ticket(self, key, weight, now)

    def _refuse(self, reason: str, status: int, message: str, retry: int) -> ApiError:
        self.refused[reason] += 1
        code = "service_unavailable" if status == 503 else "rate_limit_exceeded"
        return ApiError(status, message, code=code, headers={"retry-after": str(retry)})

    def _release(self, ticket: Ticket) -> None:
        now = self._clock()
        self.active -= ticket.weight
        self._finished.append(now)
        self._duration += 0.1 * (now - ticket.began - self._duration)
        if ticket.key is not None:
            left = self._by_key[ticket.key] - 1
            if left:
                self._by_key[ticket.key] = left
            else:
                del self._by_key[ticket.key]

    def _next_place(self) -> float:
        """Seconds until a place that nobody has been promised yet."""
        if len(self._finished) < 2:
            return UNKNOWN_RETRY
        now = self._clock()
        interval = (now - self._finished[0]) / (len(self._finished) - 1)  # gets longer while nothing finishes
        self._promised = min(max(self._promised, now) + interval, now + LONGEST_RETRY)
        return self._promised - now

    @staticmethod
    def _retry(seconds: float) -> int:
        return min(LONGEST_RETRY, max(1, math.ceil(seconds)))
