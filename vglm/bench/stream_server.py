"""The real server around a model that costs nothing, for `vglm bench stream`; runs in a process of its own.

    python -m vglm.bench.stream_server MODEL --max-num-seqs N --max-model-len N [--steps-per-second R] [--no-coalesce]

The engine, the streams and the HTTP stack are those of `vglm serve`; only the forward pass is replaced, by one that
answers every row with the number of its step. So each token tells when it was made: GET /bench/state has the times.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, cast

import numpy as np
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vglm.engine.step import StepBatch, StepResult
from vglm.llm import LLM
from vglm.serve.options import ServeOptions
from vglm.serve.server import SWITCH_INTERVAL, Server, listen, url_of
from vglm.serve.serving import Serving

FIRST_TOKEN = 1000  # ids below are special ones or bytes in many vocabularies
_GATHERING = 0.05  # seconds of a step before all streams run


class FreeExecutor:
    """Answers every row with token FIRST_TOKEN + step, modulo the vocabulary, and remembers when.

    Until `streams` sequences run it is slow, so that none of them has come far before the last one begins. Then it is
    as fast as it can, or makes `steps_per_second`. It sleeps as a real forward pass computes, without the interpreter's lock.
    """

    def __init__(self, vocab_size: int, streams: int, steps_per_second: float | None) -> None:
        self.times: list[float] = []  # seconds, time.perf_counter: one clock for all processes of a machine
        self.rows: list[int] = []
        self.processor_seconds: float | None = None  # what the process had taken when all streams ran
        self._tokens = vocab_size - FIRST_TOKEN
        self._streams = streams
        self._interval = 1 / steps_per_second if steps_per_second else 0.0
        self._due = 0.0

    def execute(self, batch: StepBatch) -> StepResult:
        """One step."""
        rows = len(batch.sample_rows)
        if self.processor_seconds is not None:
            self._keep_pace()
        elif rows < self._streams:
            time.sleep(_GATHERING)
        else:
            self.processor_seconds = time.process_time()
        token = FIRST_TOKEN + len(self.times) % self._tokens
        self.rows.append(rows)
        self.times.append(time.perf_counter())
        return StepResult(np.full(rows, token, np.int32), np.zeros(rows, np.float32))

    def _keep_pace(self) -> None:
        if self._interval:
            now = time.perf_counter()
            self._due = max(self._due + self._interval, now - self._interval)  # a delay is not caught up
            if self._due > now:
                time.sleep(self._due - now)

    def state(self) -> dict[str, Any]:
        """What the client wants to know."""
        return {
            "times": self.times,
            "rows": self.rows,
            "processor_seconds": time.process_time() - (self.processor_seconds or 0.0),
        }


class StateRoute:
    """Answers GET /bench/state in front of the application."""

    def __init__(self, app: ASGIApp, executor: FreeExecutor) -> None:
        self._app = app
        self._executor = executor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == "/bench/state":
            await JSONResponse(self._executor.state())(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def main() -> None:
    """Serve until a signal; prints the address."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--max-num-seqs", type=int, required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--steps-per-second", type=float)
    parser.add_argument("--no-coalesce", dest="coalesce", action="store_false")
    arguments = parser.parse_args()
    options = ServeOptions(port=0, coalesce=arguments.coalesce, log_level="error")
    listener = listen(options)
    llm = LLM(
        arguments.model,
        max_num_seqs=arguments.max_num_seqs,
        max_model_len=arguments.max_model_len,
        enable_prefix_caching=False,
        threads=1,
    )
    executor = FreeExecutor(llm.config.vocab_size, arguments.max_num_seqs, arguments.steps_per_second)
    llm.engine.executor = executor
    server = Server(Serving(llm, options), url_of(listener, options))
    server.config.app = StateRoute(cast(ASGIApp, server.config.app), executor)
    sys.setswitchinterval(SWITCH_INTERVAL)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
