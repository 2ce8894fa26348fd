"""`vglm bench stream`: what it costs to deliver tokens, merged into one message where several are ready or one by one.

The server is the real one, in a process of its own, with a forward pass that costs nothing: delivery is the bottleneck.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.bench.answers import RequestFailure, StreamedCompletion, Wanted
from vglm.bench.client import Address, Client
from vglm.bench.fast_json import dumps
from vglm.bench.report import Report, Table
from vglm.bench.serve import loop_factory
from vglm.console import progress_bar
from vglm.errors import ConfigError, VGLMError
from vglm.model.pull import resolve_model

_FIRST_TOKEN = 1000  # of vglm.bench.stream_server
_PROMPT = [1000, 1001, 1002, 1003]
_MOST_TOKENS = 8192
_PATIENCE = 30  # seconds for the server's end
_ADDRESS = re.compile(r" at (http://\S+) ")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamWork:
    """`tokens` of each of `streams` streams at once; of `repeats` runs the one with the least latency counts.

    First as fast as they come; then at each of `paces` (tokens/s of all streams together), and at `load` times of what one
    message per token reached.
    """

    streams: Sequence[int] = (64, 256)
    tokens: int = 512
    paces: Sequence[float] = ()
    load: float = 0.7
    repeats: int = 3

    def __post_init__(self) -> None:
        if not 8 <= self.tokens <= _MOST_TOKENS:
            raise ConfigError(f"--tokens {self.tokens}: choose 8 to {_MOST_TOKENS:,}")
        for pace in self.paces:
            if not 0 < pace < float("inf"):
                raise ConfigError(f"--pace {pace:g}: tokens per second must be positive")


@dataclass(slots=True)
class Delivery:
    """What came of the steps in which all streams ran.

    Per token: the step that made it and the time (seconds) of its message; per message: its time, where its last token is of
    such a step. `step_times` are of all steps. `server_seconds`, `client_seconds`: processor time.
    """

    steps: npt.NDArray[np.int64]
    token_times: npt.NDArray[np.float64]
    message_times: npt.NDArray[np.float64]
    step_times: npt.NDArray[np.float64]
    server_seconds: float
    client_seconds: float

    @property
    def span(self) -> tuple[float, float]:
        """The times of the first and last of these steps."""
        return float(self.step_times[self.steps.min()]), float(self.step_times[self.steps.max()])

    def per_second(self, times: npt.NDArray[np.float64]) -> float:
        """How many of `times` there are, per second from the first of the steps to the receipt of the last message."""
        return len(times) / float(self.message_times.max() - self.span[0])

    def latencies(self) -> npt.NDArray[np.float64]:
        """Milliseconds of each token from the step that made it to its message's receipt."""
        found: npt.NDArray[np.float64] = (self.token_times - self.step_times[self.steps]) * 1e3
        return found


class _TimedCompletion(StreamedCompletion):
    """Remembers every message: when it came, and the tokens that were in it."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted)
        self.times = array("d")
        self.sizes = array("i")
        self.tokens = array("i")
        self._now = 0.0

    def _event(self, payload: bytes, now: float) -> None:
        self._now = now
        super()._event(payload, now)

    def _take_choice(self, choice: Any) -> bool:
        found = super()._take_choice(choice)
        ids = choice.get("token_ids")
        if ids:
            self.times.append(self._now)
            self.sizes.append(len(ids))
            self.tokens.extend(ids)
        return found


def run(model: str, work: StreamWork) -> Report:
    """Measure. Raises VGLMError when the server does not start or a stream fails."""
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise ConfigError("this runs the server, whose packages are not installed: pip install 'vglm[serve]'")
    resolve_model(model)  # fetched here, where there is a progress bar
    rows: list[dict[str, Any]] = []
    with progress_bar("stream", len(work.streams) * 2 * (2 + len(work.paces)) * work.repeats) as bar:
        for streams in work.streams:
            single, merged = _pair(model, work, streams, None, bar.advance)
            rows += [single, merged]
            for pace in (*work.paces, work.load * single["tokens_per_second"]):
                rows += _pair(model, work, streams, pace, bar.advance)
    columns = [
        ("messages", "messages", ""),
        ("streams", "streams", ",d"),
        ("made_per_second", "tokens/s made", ",.0f"),
        ("tokens_per_second", "delivered", ",.0f"),
        ("ratio", "ratio", ".2f"),
        ("events_per_second", "events/s", ",.0f"),
        ("p50", "latency p50, ms", ",.2f"),
        ("p99", "p99, ms", ",.2f"),
        ("server_us", "server, us/token", ".1f"),
        ("client_us", "client, us/token", ".1f"),
    ]
    notes = [
        "delivered: until the last one has come, also when that is after the last step; us/token: processor time",
        "latency: from the end of the step that made a token to its receipt",
        f"first as fast as the engine makes tokens, then at a pace; of {work.repeats} runs each the one with the least latency",
    ]
    settings = {"model": model, "tokens per stream": work.tokens, "forward pass": "none"}
    return Report("stream", settings, [Table("delivery of tokens", columns, rows, notes)])


def _pair(
    model: str, work: StreamWork, streams: int, pace: float | None, advance: Callable[[], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One message per token, and coalesced; in turns, so that what else the machine does meets both."""
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for _ in range(work.repeats):
        for coalesce, rows in found.items():
            rows.append(_row(model, work, coalesce, streams, pace))
            advance()
    single, merged = (min(rows, key=lambda row: float(row["p50"])) for rows in found.values())
    merged["ratio"] = merged["tokens_per_second"] / single["tokens_per_second"]
    return single, merged


def _row(model: str, work: StreamWork, coalesce: bool, streams: int, pace: float | None) -> dict[str, Any]:
    with (
        _server(model, streams, work.tokens, coalesce, pace) as url,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        delivery = runner.run(deliver(url, streams, work.tokens))
    latencies = delivery.latencies()
    tokens = len(delivery.steps)
    first, last = delivery.span
    return {
        "messages": "coalesced" if coalesce else "one per token",
        "streams": streams,
        "paced": pace is not None,
        "made_per_second": tokens / (last - first),
        "tokens_per_second": delivery.per_second(delivery.token_times),
        "events_per_second": delivery.per_second(delivery.message_times),
        "p50": float(np.percentile(latencies, 50)),
        "p99": float(np.percentile(latencies, 99)),
        "server_us": 1e6 * delivery.server_seconds / tokens,
        "client_us": 1e6 * delivery.client_seconds / tokens,
    }


async def deliver(url: str, streams: int, tokens: int) -> Delivery:
    """Take `tokens` tokens of each of `streams` streams from a `stream_server`. Raises VGLMError unless all come in order."""
    client = Client(Address.parse(url))
    body = {
        "prompt": _PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True}, "return_token_ids": True,
    }  # fmt: skip
    request = client.request("POST", "/v1/completions", dumps(body))
    answers = [_TimedCompletion(Wanted(tokens, token_ids=True)) for _ in range(streams)]
    processor = time.process_time()
    try:
        await asyncio.gather(*(client.exchange(request, answer) for answer in answers))
        for answer in answers:
            answer.check()
    except RequestFailure as failure:
        raise VGLMError(f"a stream has failed: {failure}") from None
    processor = time.process_time() - processor
    state = await client.get("/bench/state")
    state.check_status()
    client.close()
    return _delivery(answers, state.document(), streams, processor)


def _delivery(answers: list[_TimedCompletion], state: Any, streams: int, processor: float) -> Delivery:
    step_times = np.array(state["times"])
    full = np.flatnonzero(np.array(state["rows"]) == streams)
    if not len(full):
        raise VGLMError("the streams never ran all at once; give them more tokens (--tokens)")
    steps = [_steps(answer, len(step_times)) for answer in answers]
    sizes = [np.asarray(answer.sizes) for answer in answers]
    last = np.concatenate([own[np.cumsum(n) - 1] for own, n in zip(steps, sizes, strict=True)])
    message_times = np.concatenate([np.asarray(answer.times) for answer in answers])
    token_times = np.repeat(message_times, np.concatenate(sizes))
    made = np.concatenate(steps)
    among = (made >= full[0]) & (made <= full[-1])
    return Delivery(
        made[among],
        token_times[among],
        message_times[(last >= full[0]) & (last <= full[-1])],
        step_times,
        state["processor_seconds"],
        processor,
    )


def _steps(answer: _TimedCompletion, num_steps: int) -> npt.NDArray[np.int64]:
    """The step that made each token of a stream. Raises VGLMError when they are not in order."""
    steps = np.asarray(answer.tokens, np.int64) - _FIRST_TOKEN
    wrong = np.flatnonzero(np.diff(steps) <= 0)
    if len(wrong):
        i = int(wrong[0])
        raise VGLMError(
            f"a stream is out of order: token {i + 1} is of step {steps[i + 1]}, the one before of {steps[i]}"
        )
    if len(steps) and not 0 <= steps[0] <= steps[-1] < num_steps:
        raise VGLMError(
            f"a stream has tokens of steps {steps[0]} to {steps[-1]}, but there were {num_steps} steps"
        )
    return steps


@contextmanager
def _server(model: str, streams: int, tokens: int, coalesce: bool, pace: float | None) -> Iterator[str]:
    """The address of a `stream_server`. Raises VGLMError when it does not start."""
    command = [
        sys.executable, "-m", "vglm.bench.stream_server", model, "--max-num-seqs", str(streams),
        "--max-model-len", str(tokens + 16 * len(_PROMPT)),
    ]  # fmt: skip
    if pace is not None:
        command += ["--steps-per-second", repr(pace / streams)]
    if not coalesce:
        command.append("--no-coalesce")
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        try:
            assert process.stdout is not None
            address = _ADDRESS.search(process.stdout.readline())
            if address is None:
                process.wait(_PATIENCE)
                errors.seek(0)
                last = (errors.read().strip().splitlines() or ["no reason given"])[-1]
                raise VGLMError(f"the server for the measurement did not start: {last}")
            yield address[1]
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
