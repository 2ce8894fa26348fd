"""A long mixed load with faults on: `python -m tests.serve.soak --minutes 60`.

Clients stream, wait, hang up, read at a trickle, reset their connections, send what is malformed, ask for what does not
fit, and arrive in bursts that overflow the queue. Every answer that completes is compared with what the same request gave
on the idle server. At the end: no request was lost, memory and files did not grow, the engine's accounting is intact.
test_soak.py runs half a minute of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.serve.server_process import ServerProcess

TIMEOUT = 300.0  # seconds after which an answer is lost
SERVER = (
    *("--max-queue", "64", "--max-num-seqs", "16", "--header-timeout", "5"),
    *("--kv-cache-memory", "64M", "--max-model-len", "2048"),  # little room: sequences are preempted
)
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}}, "required": ["name"]}
MALFORMED: list[dict[str, Any]] = [
    {"prompt": []},
    {"prompt": "x", "temperature": -1},
    {"prompt": [1 << 30]},
    {"prompt": "x", "max_tokens": 1 << 40},
    {"prompt": [5] * 9000},  # longer than the context
    {"prompt": "x", "logit_bias": {"a": 1}},
    {"prompt": "x", "structured_outputs": {"regex": "("}},
]


def requests(seed: int = 7) -> list[dict[str, Any]]:
    """The valid requests of the load: all repeatable, so that each has one right answer."""
    draw = random.Random(seed)
    stem = "Marfan syndrome is a disorder of connective tissue. "
    out: list[dict[str, Any]] = []
    for i in range(24):
        body: dict[str, Any] = {
            "prompt": stem * draw.choice((1, 1, 4, 20)) + f"Question {i}:",
            "max_tokens": draw.choice((1, 8, 24, 64)),
            "temperature": draw.choice((0, 0, 0.9)),
            "seed": i,
            "priority": draw.choice((-1, 0, 1)),
        }
        body.update(draw.choice(({}, {}, {"n": 2}, {"stop": ["a ", "\n"]}, {"logprobs": 2}, {"top_p": 0.8})))
        if i % 6 == 5:
            body["structured_outputs"] = {"json": SCHEMA}
        out.append(body)
    return out


@dataclass
class Tally:
    """What has happened."""

    begun: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    resident: list[tuple[float, int, int]] = field(default_factory=list)  # minutes, MB, open files

    def problem(self, what: str) -> None:
        self.problems.append(what)
        print(f"PROBLEM {what}", file=sys.stderr, flush=True)


class Soak:
    """The clients of one server."""

    def __init__(self, server: ServerProcess, seed: int) -> None:
        self.server = server
        self.draw = random.Random(seed)
        self.tally = Tally()
        self.bodies = requests()
        self.expected: list[str] = []
        # Idle connections are given up before the server does (5 s), or the two would meet now and then.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
        self.http = httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT, limits=limits)

    async def learn(self) -> None:
        """The right answers, from the idle server."""
        for body in self.bodies:
            answer = await self.http.post("/v1/completions", json=body)
            answer.raise_for_status()
            self.expected.append(texts(answer.json()))
        await self._fill_the_cache()

    async def _fill_the_cache(self) -> None:
        """Have all of the KV cache committed, or its filling would look like growth."""
        for i in range(8):
            body = {
                "prompt": [self.draw.randrange(1000, 20_000) for _ in range(1500)],
                "max_tokens": 1,
                "seed": i,
            }
            (await self.http.post("/v1/completions", json=body)).raise_for_status()

    async def run(self, seconds: float, clients: int) -> None:
        """Keep `clients` clients busy; the first of them begin with one of each kind."""
        end = time.monotonic() + seconds
        watch = asyncio.ensure_future(self._watch(seconds))

        async def client(number: int) -> None:
            await self._one(KINDS[number % len(KINDS)])
            while time.monotonic() < end:
                await self._one(self.draw.choices(KINDS, WEIGHTS)[0])

        await asyncio.gather(*map(client, range(clients)))
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch  # raises what has ended it before

    async def _one(self, kind: str) -> None:
        self.tally.begun += 1
        try:
            outcome = await getattr(self, kind)()
        except (httpx.HTTPError, OSError) as error:
            self.tally.problem(f"{kind}: {type(error).__name__}: {error}")
            outcome = "broken"
        self.tally.outcomes[f"{kind}: {outcome}"] += 1

    async def _watch(self, seconds: float) -> None:
        begun = time.monotonic()
        while True:
            minutes = (time.monotonic() - begun) / 60
            megabytes = self.server.resident_bytes() >> 20
            self.tally.resident.append((minutes, megabytes, self.server.open_files()))
            print(
                f"{minutes:6.1f} min  {megabytes} MB  {sum(self.tally.outcomes.values())} requests",
                flush=True,
            )
            await asyncio.sleep(min(30.0, seconds / 20))

    # ---- kinds of clients ---------------------------------------------------------------------------------

    async def wait(self) -> str:
        """Waits for a whole answer."""
        i = self.draw.randrange(len(self.bodies))
        answer = await self.http.post("/v1/completions", json=self.bodies[i])
        if answer.status_code == 429:
            await asyncio.sleep(self.draw.random())
            return "429"
        if answer.status_code != 200:
            self.tally.problem(f"request {i}: {answer.status_code} {answer.text[:200]}")
            return str(answer.status_code)
        return self._compare(i, texts(answer.json()))

    async def stream(self) -> str:
        """Reads a whole stream."""
        i = self.draw.randrange(len(self.bodies))
        parts: dict[int, str] = {}
        done = False
        async with self.http.stream(
            "POST", "/v1/completions", json={**self.bodies[i], "stream": True}
        ) as answer:
            if answer.status_code != 200:
                return self._refused(answer.status_code)
            async for line in answer.aiter_lines():
                done = done or line == "data: [DONE]"
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    self.tally.problem(f"stream {i}: {event['error']['message']}")
                    return "error"
                for choice in event["choices"]:
                    parts[choice["index"]] = parts.get(choice["index"], "") + choice["text"]
        if not done:
            self.tally.problem(f"stream {i} ended early")
            return "lost"
        return self._compare(i, json.dumps([parts[k] for k in sorted(parts)]))

    def _refused(self, status: int) -> str:
        if status != 429:
            self.tally.problem(f"a valid request got {status}")
        return str(status)

    def _compare(self, i: int, got: str) -> str:
        if got != self.expected[i]:
            self.tally.problem(f"request {i}: {got[:120]!r} instead of {self.expected[i][:120]!r}")
            return "wrong"
        return "right"

    async def hang_up(self) -> str:
        """Leaves in the middle of a stream."""
        body = {"prompt": "Once upon a time", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                return self._refused(answer.status_code)
            count = self.draw.randrange(6)
            async for _ in answer.aiter_lines():
                count -= 1
                if count < 0:
                    break
        return "left"

    async def reset(self) -> str:
        """Sends a request and resets the connection."""
        with client_socket() as sock:
            await self._send(sock, {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True})
            await asyncio.sleep(self.draw.random() * 0.2)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "reset"

    async def trickle(self) -> str:
        """Reads a stream a byte at a time, for a while."""
        with client_socket(receive_buffer=2048) as sock:
            await self._send(sock, {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True})
            for _ in range(20):
                await asyncio.get_running_loop().sock_recv(sock, 1)
                await asyncio.sleep(0.1)
        return "read a little"

    async def silent(self) -> str:
        """Opens a connection and sends nothing, or half a head."""
        with client_socket() as sock:
            await self._connect(sock)
            if self.draw.random() < 0.5:
                await asyncio.get_running_loop().sock_sendall(sock, HEAD[:40])
            await asyncio.sleep(self.draw.random() * 3)
        return "gone"

    async def malformed(self) -> str:
        """Sends what must be refused."""
        answer = await self.http.post("/v1/completions", json=self.draw.choice(MALFORMED))
        if answer.status_code not in (400, 429):
            self.tally.problem(f"a malformed request got {answer.status_code}: {answer.text[:200]}")
        return str(answer.status_code)

    async def burst(self) -> str:
        """Many at once: some may be refused, none may be lost."""
        outcomes = await asyncio.gather(*(self.wait() for _ in range(60)))
        return "all answered" if set(outcomes) <= {"right", "429"} else "not all answered"

    async def _connect(self, sock: socket.socket) -> None:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.server.port))

    async def _send(self, sock: socket.socket, body: dict[str, Any]) -> None:
        await self._connect(sock)
        content = json.dumps(body).encode()
        await asyncio.get_running_loop().sock_sendall(sock, HEAD % len(content) + content)

    # ---- the end ------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """The idle server has given everything back and checked its own accounting."""
        deadline = time.monotonic() + 60
        while (load := (await self.http.get("/load")).json())["server_load"] and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        if load["server_load"]:
            self.tally.problem(
                f"{load['server_load']} requests are still there a minute after the last client left"
            )
        await asyncio.sleep(3.0)  # the engine checks its accounting a second after its last request
        health = await self.http.get("/health")
        if health.status_code != 200:
            self.tally.problem(f"unhealthy at the end: {health.text[:300]}")
        metrics = (await self.http.get("/metrics")).text
        for name in (
            "kv_cache_usage_perc",
            "num_requests_running",
            "num_requests_waiting",
            "integrity_errors_total",
        ):
            value = sum(
                float(line.rsplit(" ", 1)[1])
                for line in metrics.splitlines()
                if line.startswith(f"vglm:{name}{{")
            )
            if f"vglm:{name}{{" not in metrics or value:
                self.tally.problem(f"{name} is {value} at the end")
        await self.http.aclose()

    def growth(self) -> tuple[int, int]:
        """MB and open files by which the last quarter's peak exceeds the peak of the first half."""
        samples = self.tally.resident
        half, last = samples[: len(samples) // 2], samples[-max(1, len(samples) // 4) :]
        memory = max(m for _, m, _ in last) - max(m for _, m, _ in half)
        files = max(f for _, _, f in last) - max(f for _, _, f in half)
        return memory, files

    def verdict(self, most_megabytes: int, most_files: int) -> list[str]:
        """Everything that was wrong; growth beyond these is, too."""
        tally, (megabytes, files) = self.tally, self.growth()
        wrong = list(tally.problems)
        if tally.begun != sum(tally.outcomes.values()):
            wrong.append(f"{tally.begun} requests were begun, {sum(tally.outcomes.values())} ended")
        if megabytes > most_megabytes:
            wrong.append(f"memory has grown by {megabytes} MB")
        if files > most_files:
            wrong.append(f"{files} more files are open")
        return wrong


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
KINDS_AND_WEIGHTS = {
    "wait": 10.0,
    "stream": 10.0,
    "hang_up": 4.0,
    "reset": 3.0,
    "trickle": 1.0,
    "silent": 2.0,
    "malformed": 4.0,
    "burst": 0.3,
}
KINDS, WEIGHTS = list(KINDS_AND_WEIGHTS), list(KINDS_AND_WEIGHTS.values())


@contextlib.contextmanager
def client_socket(receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """A socket for asyncio's sock_ methods, which is closed whatever happens."""
    with socket.socket() as sock:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        yield sock


def texts(answer: dict[str, Any]) -> str:
    """The texts of a completion's choices."""
    return json.dumps([choice["text"] for choice in answer["choices"]])


def soak(seconds: float, clients: int = 24, seed: int = 0) -> Soak:
    """Start a server, run the load, and let it settle."""

    async def run(server: ServerProcess) -> Soak:
        load = Soak(server, seed)
        await load.learn()
        await load.run(seconds, clients)
        await load.settle()
        return load

    with ServerProcess(*SERVER) as server:
        load = asyncio.run(run(server))
        if not server.alive:
            load.tally.problem("the server has ended")
        if "Traceback" in server.errors():
            load.tally.problem("the server's log has a traceback: " + server.errors()[-2000:])
    return load


def main() -> int:
    """Print what happened; status 1 when anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-growth", type=int, default=16, help="MB")
    options = parser.parse_args()
    load = soak(options.minutes * 60, options.clients, options.seed)
    for outcome, count in sorted(load.tally.outcomes.items()):
        print(f"{count:8}  {outcome}")
    wrong = load.verdict(options.most_growth, options.clients * 4)
    print("growth: {} MB, {} open files".format(*load.growth()))
    print("\n".join(wrong) or "nothing was wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
