"""Signals: a server ends when it is told to, after what is in flight, and can be started again at once."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import httpx
import pytest

from tests.serve.server_process import MODEL, ServerProcess, wait_until

LONG = {"prompt": "Once", "max_tokens": 600, "temperature": 0, "ignore_eos": True, "stream": True}


class Reader(threading.Thread):
    """Reads one streamed completion to its end, whatever that is."""

    def __init__(self, url: str, **fields: Any) -> None:
        super().__init__()
        self.url, self.body = url, {**LONG, **fields}
        self.begun = threading.Event()
        self.events: list[Any] = []
        self.done = False
        self.broken: httpx.HTTPError | None = None
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", f"{self.url}/v1/completions", json=self.body, timeout=120) as answer:
                for line in answer.iter_lines():
                    if line == "data: [DONE]":
                        self.done = True
                    elif line.startswith("data: "):
                        self.events.append(json.loads(line[6:]))
                        self.begun.set()
        except httpx.HTTPError as error:
            self.broken = error
        finally:
            self.begun.set()

    @property
    def text(self) -> str:
        return "".join(e["choices"][0]["text"] for e in self.events if e.get("choices"))


def test_sigterm_lets_what_is_in_flight_finish_and_refuses_what_is_new() -> None:
    with ServerProcess() as server:
        whole = Reader(server.url)
        whole.join()
        reader = Reader(server.url)
        reader.begun.wait(60)
        server.process.send_signal(signal.SIGTERM)
        refused = None

        def is_refused() -> bool:
            nonlocal refused
            refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": 1})
            return refused.status_code == 503

        wait_until(is_refused)
        assert refused is not None
        assert refused.json()["error"]["message"].startswith("the server is shutting down")
        assert int(refused.headers["retry-after"]) > 0
        reader.join()
        assert reader.done
        assert reader.text == whole.text
        assert server.process.wait(60) == 0


def test_the_drain_has_a_deadline() -> None:
    with ServerProcess("--drain-timeout", "0.2") as server:
        reader = Reader(server.url, max_tokens=8000)
        reader.begun.wait(60)
        assert server.terminate() == 0
        reader.join()
        assert "shutting down" in reader.events[-1]["error"]["message"]


def test_a_second_signal_ends_at_once() -> None:
    with ServerProcess() as server:
        reader = Reader(server.url, max_tokens=8000)
        reader.begun.wait(60)
        server.process.send_signal(signal.SIGINT)
        wait_until(
            lambda: httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"}).status_code == 503
        )
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 130
        reader.join()
        assert "shutting down" in reader.events[-1]["error"]["message"]
        assert "Traceback" not in server.errors()


@pytest.mark.parametrize(("sig", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_an_idle_server_ends_with_its_status_and_without_a_traceback(
    sig: signal.Signals, status: int
) -> None:
    with ServerProcess() as server:
        assert server.terminate(sig) == status
        assert "Traceback" not in server.errors()
        assert "leaked" not in server.errors()


def test_after_kill_9_the_same_port_serves_again() -> None:
    with ServerProcess() as first:
        reader = Reader(first.url, max_tokens=8000)
        reader.begun.wait(60)
        first.process.kill()
        first.process.wait(60)
        reader.join()
        assert not reader.done
        port = first.port
    with ServerProcess("--port", str(port)) as second:
        assert second.port == port
        answer = httpx.post(f"{second.url}/v1/completions", json={"prompt": "The capital of France is"})
        assert answer.status_code == 200


def test_a_taken_port_is_one_line_of_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "vglm", "serve", MODEL, "--port", str(port)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr


def test_a_unix_socket_serves(tmp_path: Any) -> None:
    path = tmp_path / "vglm.sock"
    command = [sys.executable, "-m", "vglm", "serve", MODEL, "--uds", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert str(path) in process.stdout.readline()
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=60) as client:
            answer = client.post("http://vglm/v1/completions", json={"prompt": "Hello", "max_tokens": 1})
        assert answer.status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
