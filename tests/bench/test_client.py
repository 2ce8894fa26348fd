"""The load generator's client against a real server, good and bad: whatever is missing is a failure with a reason."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from tests.bench import peer
from tests.bench.peer import Action, Close, Received, Reset, chunk, event, events, head, plain, stream, usage
from vglm.bench.client import Address, Client
from vglm.bench.load import Load, Plan, Run, retry_after
from vglm.bench.synthetic import Ranges, Workload
from vglm.errors import ConfigError

TOKENS = 4
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
_loop = asyncio.new_event_loop


@pytest.fixture(params=LOOPS, autouse=True)
def loop_kind(request: pytest.FixtureRequest) -> None:
    """Every test runs on both event loops: their transports differ in what they report."""
    global _loop
    _loop = LOOPS[request.param]


def wait_for(work: Coroutine[Any, Any, Run]) -> Run:
    with asyncio.Runner(loop_factory=_loop) as runner:
        return runner.run(work)


def run(
    url: str, plan: Plan, *, chat: bool = False, tokens: tuple[int, int] = (TOKENS, TOKENS), **fields: Any
) -> Run:
    """A load on the peer."""

    async def go() -> Run:
        client = Client(Address.parse(url))
        workload = Workload(model="m", chat=chat, lengths=Ranges((3, 3), tokens), **fields)
        path = "/v1/chat/completions" if chat else "/v1/completions"
        try:
            return await Load(client, path, workload, plan).run()
        finally:
            client.close()

    return wait_for(go())


def reason(behave: Callable[[int, Received], list[Action]], **fields: Any) -> str:
    """Why one request fails."""
    with peer.running(behave) as running:
        (record,) = run(running.url, Plan(count=1, timeout=20), **fields).records
    assert not record.ok
    assert record.reason is not None
    return f"{record.reason}: {record.detail}"


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
def test_a_good_server_succeeds(chat: bool, streamed: bool) -> None:
    with peer.running() as running:
        done = run(running.url, Plan(count=20, concurrency=4), chat=chat, tokens=(1, 9), stream=streamed)
    assert [r.detail for r in done.records if not r.ok] == []
    assert len(done.records) == 20
    asked = sorted(request.body["max_tokens"] for request in running.requests)
    assert sorted(r.output_tokens for r in done.records) == asked
    assert {r.prompt_tokens for r in done.records} == {3}
    assert all(len(r.gaps) == (r.output_tokens - 1 if streamed else 0) for r in done.records)
    assert running.connections == 4  # each is used again
    assert (done.peak_concurrency, running.most_open) == (4, 4)


def test_bytes_may_come_split_anywhere() -> None:
    rng = random.Random(1)

    def behave(_: int, request: Received) -> list[Action]:
        wire = b"".join(a for a in stream([b": ping\n\n", *events(request)]) if isinstance(a, bytes))
        places = sorted(rng.sample(range(1, len(wire)), 12))
        actions: list[Action] = []
        for a, b in zip([0, *places], [*places, len(wire)], strict=True):
            actions += [wire[a:b], 0.001]  # the pause keeps the pieces apart
        return actions

    with peer.running(behave) as running:
        done = run(running.url, Plan(count=24, concurrency=8))
    assert [r.detail for r in done.records if not r.ok] == []


def test_many_events_in_one_piece() -> None:
    with peer.running(lambda _, request: [head() + chunk(b"".join(events(request))) + chunk(b"")]) as running:
        (record,) = run(running.url, Plan(count=1)).records
    assert record.ok
    assert record.output_tokens == TOKENS


def test_a_stream_that_ends_with_the_connection() -> None:
    """HTTP/1.0 servers do not know chunks."""

    def behave(_: int, request: Received) -> list[Action]:
        return [
            b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n",
            b"".join(events(request)),
            Close(),
        ]

    with peer.running(behave) as running:
        done = run(running.url, Plan(count=3, concurrency=1))
    assert [r.ok for r in done.records] == [True] * 3
    assert running.connections == 3


def without(which: int) -> Callable[[int, Received], list[Action]]:
    def behave(_: int, request: Received) -> list[Action]:
        found = events(request)
        del found[which]
        return stream(found)

    return behave


def replaced(which: int, by: bytes) -> Callable[[int, Received], list[Action]]:
    def behave(_: int, request: Received) -> list[Action]:
        found = events(request)
        found[which] = by
        return stream(found)

    return behave


def choice(text: str, **more: Any) -> bytes:
    return event(peer.choice(text, chat=False, **more))


WRONG: dict[str, tuple[Callable[[int, Received], list[Action]], str]] = {
    "no [DONE]": (without(-1), r"no \[DONE\]"),
    "no usage": (without(-2), "no usage"),
    "no finish reason": (replaced(-3, choice("x")), "no finish_reason"),
    "a token less": (
        lambda _, r: stream(events(r, r.body["max_tokens"] - 1)),
        "tokens missing: 3 of 4, length",
    ),
    "a token more": (lambda _, r: stream(events(r, r.body["max_tokens"] + 1)), "too many tokens: 5 of 4"),
    "stopped": (replaced(-3, choice("x", finish="stop")), "wrong finish_reason: stop"),
    "another choice": (replaced(0, choice("x", index=1)), "wrong choice: .*'index': 1"),
    "text after the end": (replaced(0, choice("x", finish="length")), "output after the finish_reason"),
    "events after the end": (replaced(0, event("[DONE]")), r"events after \[DONE\]"),
    "an error event": (
        replaced(2, event({"error": {"message": "engine died", "type": "x"}})),
        "error: engine died",
    ),
    "damaged JSON": (replaced(1, b'data: {"choices\n\n'), "malformed event"),
    "deep JSON": (replaced(1, b"data: " + b"[" * 100_000 + b"\n\n"), "malformed event"),
    "no JSON object": (replaced(1, b"data: 17\n\n"), "no completion: 17"),
    "choices of nothing": (replaced(1, event({"choices": [None]})), "wrong choice: None"),
    "odd usage": (replaced(-2, event({"choices": [], "usage": {"prompt_tokens": "x"}})), "malformed usage"),
    "infinite usage": (
        replaced(-2, b'data: {"choices": [], "usage": {"prompt_tokens": 1e999, "completion_tokens": 4}}\n\n'),
        "malformed",
    ),
    "cut-off event": (
        lambda _, r: [head(), chunk(b"".join(events(r)[:-1]) + b"data: [DO"), chunk(b"")],
        "the last event is cut off",
    ),
    "an answer without events": (lambda _, r: [plain(200, b'{"id": 1}')], 'no event stream: {"id": 1}'),
    "a web page": (lambda _, r: [plain(200, b"<html>hi", "text/html")], "no event stream: <html>hi"),
    "garbage": (lambda _, r: [b"\x00\xff" * 50], "malformed HTTP: no HTTP response"),
    "garbage within": (lambda _, r: [head(), b"zzz\r\n"], "malformed HTTP: no chunk size"),
    "closed at once": (lambda _, r: [Close()], "connection closed before the answer: after 0 bytes"),
    "closed within": (
        lambda _, r: [*stream(events(r))[:3], Close()],
        "connection closed within the answer: after [0-9]+ bytes",
    ),
    "reset": (lambda _, r: [*stream(events(r))[:3], 0.05, Reset()], "connection reset within the answer"),
    "no last chunk": (lambda _, r: [*stream(events(r))[:-1], Close()], "connection closed within the answer"),
    "500": (
        lambda _, r: [plain(500, b'{"error": {"message": "out of\\nmemory", "code": 500}}')],
        "HTTP 500: out of memory",
    ),
    "422": (
        lambda _, r: [plain(422, b'{"detail": "max_tokens is too large"}')],
        "HTTP 422: max_tokens is too large",
    ),
    "502": (
        lambda _, r: [plain(502, b"<html>\n Bad Gateway</html>", "text/html")],
        "HTTP 502: <html> Bad Gateway",
    ),
    "429": (lambda _, r: [plain(429, b"busy", "text/plain")], "HTTP 429: busy"),
}


@pytest.mark.parametrize(("behave", "says"), WRONG.values(), ids=WRONG)
def test_whatever_is_wrong_has_a_reason(behave: Callable[[int, Received], list[Action]], says: str) -> None:
    assert re.match(says, reason(behave))


def test_a_silent_server_times_out() -> None:
    with peer.running(lambda _, r: [head(), 30.0]) as running:
        (record,) = run(running.url, Plan(count=1, timeout=0.2)).records
    assert (record.reason, record.detail) == ("timeout", "0.2 s")


def test_token_ids_are_counted() -> None:
    def behave(_: int, request: Received) -> list[Action]:
        return stream([e.replace(b'"token_ids": [1]', b'"token_ids": []') for e in events(request)])

    with peer.running() as running:
        (record,) = run(running.url, Plan(count=1), token_ids=True).records
    assert record.ok
    assert running.requests[0].body["return_token_ids"] is True
    assert reason(behave, token_ids=True) == "tokens not delivered: 3 ids came, 4 were counted"


def test_fewer_tokens_are_fine_when_the_model_may_stop() -> None:
    with peer.running(lambda _, r: stream(events(r, 2))) as running:
        (record,) = run(running.url, Plan(count=1), ignore_eos=False).records
    assert record.ok
    assert "ignore_eos" not in running.requests[0].body
    assert reason(lambda _, r: stream(events(r, 9)), ignore_eos=False) == "too many tokens: 9 of 4"


WHOLE = {"index": 0, "text": "x", "finish_reason": "length"}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"choices": [WHOLE]}, "no usage: "),
        (
            {"choices": [WHOLE, WHOLE], "usage": usage(1, TOKENS)},
            "wrong number of choices: 2 instead of 1",
        ),
        ({"choices": [WHOLE | {"finish_reason": None}], "usage": usage(1, TOKENS)}, "no finish_reason: "),
        ({"choices": [WHOLE], "usage": usage(1, 1)}, "tokens missing: 1 of 4, length"),
        ({"error": "broken"}, "error: broken"),
        ([1], "no completion: [1]"),
    ],
)
def test_what_is_wrong_in_a_whole_answer(document: Any, says: str) -> None:
    assert reason(lambda _, r: [plain(200, json.dumps(document).encode())], stream=False) == says


def test_a_whole_answer_that_is_no_json() -> None:
    assert reason(lambda _, r: [plain(200, b"hello")], stream=False) == "no JSON: hello"


def test_timing_is_what_the_server_did() -> None:
    """Pauses of the server bound the times from below; nothing bounds them from above on a busy machine.

    A first message that is read late leaves less until the last one, so that difference may be a little smaller.
    """
    with peer.running(lambda _, r: [0.1, *stream(events(r), pause=0.02)]) as running:
        (record,) = run(running.url, Plan(count=1), tokens=(6, 6)).records
    assert record.first - record.sent >= 0.1
    assert record.last - record.sent >= 0.19
    assert record.last > record.first
    assert len(record.gaps) == 5
    assert sum(record.gaps) == pytest.approx(record.last - record.first, abs=1e-4)
    assert record.end >= record.last


def test_output_without_text_has_a_time_too() -> None:
    """Tokens that are no text, such as special ones."""
    with peer.running(
        lambda _, r: stream(
            [e.replace(b'" t', b'"').replace(b'"0"', b'""').replace(b'"1"', b'""') for e in events(r)]
        )
    ) as running:
        (record,) = run(running.url, Plan(count=1), tokens=(2, 2)).records
    assert record.ok
    assert record.sent <= record.first == record.last <= record.end
    assert len(record.gaps) == 0


def test_an_idle_connection_that_closes_is_not_used_again() -> None:
    with peer.running(lambda _, r: [*stream(events(r)), 0.05, Close()]) as running:
        done = run(running.url, Plan(count=3, arrivals=[0.0, 0.3, 0.6]))
    assert [r.ok for r in done.records] == [True] * 3
    assert running.connections == 3


def test_retries_after_429() -> None:
    def behave(number: int, request: Received) -> list[Action]:
        return [plain(429, b"{}", extra="Retry-After: 0.2\r\n")] if number < 2 else stream(events(request))

    with peer.running(behave) as running:
        (record,) = run(running.url, Plan(count=1, retry_429=True)).records
    assert record.ok
    assert record.retries == 2
    assert record.end - record.sent >= 0.4


def test_retries_end_with_the_timeout() -> None:
    with peer.running(lambda _, r: [plain(429, b"{}", extra="Retry-After: 0.1\r\n")]) as running:
        (record,) = run(running.url, Plan(count=1, retry_429=True, timeout=0.5)).records
    assert record.reason == "timeout"
    assert 1 <= record.retries <= 5


def test_retry_after_in_all_forms() -> None:
    assert retry_after("3") == 3
    assert retry_after("0") > 0
    assert retry_after("-7") > 0
    assert [retry_after(text) for text in (None, "", "soon", "nan", "inf")] == [1.0] * 5
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 90 < retry_after(later) <= 100
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") < 1


def test_a_server_that_dies_ends_the_run() -> None:
    """Its listener goes away in the middle: what is in flight fails, and nothing more is sent."""
    with peer.running(lambda _, r: stream(events(r), pause=0.05)) as running:

        async def go() -> Run:
            client = Client(Address.parse(running.url))
            workload = Workload(model="m", lengths=Ranges((3, 3), (TOKENS, TOKENS)))
            load = Load(client, "/v1/completions", workload, Plan(count=1000, concurrency=3))
            task = asyncio.create_task(load.run())
            await asyncio.sleep(0.5)
            await asyncio.to_thread(running.kill)
            return await asyncio.wait_for(task, 20)

        done = wait_for(go())
    assert done.dead is not None
    assert done.dead.startswith("connection refused")
    assert any(r.ok for r in done.records)
    assert {r.reason for r in done.records if not r.ok} <= {
        "connection refused",
        "connection closed within the answer",
        "connection closed before the answer",
        "connection reset within the answer",
        "connection reset before the answer",
    }
    assert len(done.records) < 100
    assert done.unfinished == 0


def test_stopping_gives_up_what_is_in_flight() -> None:
    with peer.running(lambda n, r: stream(events(r)) if n < 4 else [head(), 60.0]) as running:

        async def go() -> Run:
            client = Client(Address.parse(running.url))
            workload = Workload(model="m", lengths=Ranges((3, 3), (TOKENS, TOKENS)))
            load = Load(client, "/v1/completions", workload, Plan(count=10, concurrency=2))
            task = asyncio.create_task(load.run())
            while len(running.requests) < 6:
                await asyncio.sleep(0.01)
            load.stop()
            return await asyncio.wait_for(task, 20)

        done = wait_for(go())
    assert (len(done.records), done.unfinished, done.interrupted) == (4, 2, True)


def test_open_loop_sends_at_its_times_whatever_the_server_does() -> None:
    with peer.running(lambda _, r: [0.4, *stream(events(r))]) as running:
        done = run(running.url, Plan(count=5, arrivals=[0.0, 0.05, 0.1, 0.15, 0.2]))
    assert [r.due for r in sorted(done.records, key=lambda r: r.index)] == [0.0, 0.05, 0.1, 0.15, 0.2]
    assert all(r.ok and r.sent >= r.due - 0.002 for r in done.records)  # the loop counts milliseconds
    assert done.peak_concurrency == 5  # nobody waited for the one before


def test_open_loop_with_a_bound() -> None:
    with peer.running(lambda _, r: [0.1, *stream(events(r))]) as running:
        done = run(running.url, Plan(count=6, arrivals=[0.0] * 6, concurrency=2))
    assert (done.peak_concurrency, running.most_open) == (2, 2)
    assert max(r.sent - r.due for r in done.records) >= 0.2


def test_thousands_of_connections_at_once() -> None:
    """All of them are open at the same time: nobody is answered before the last one has asked."""
    count = 2000
    everybody = asyncio.Event()
    with peer.running() as running:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = await peer._read(reader)
            assert request is not None
            running.requests.append(request)
            if len(running.requests) == count:
                everybody.set()
            await everybody.wait()
            await peer._act(writer, stream(events(request)))
            writer.close()

        running.serve = serve  # type: ignore[method-assign]
        done = run(running.url, Plan(count=count, concurrency=count, timeout=120))
    assert [r.detail for r in done.records if not r.ok] == []
    assert done.peak_concurrency == count


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", Address("127.0.0.1", 8000, False, "")),
        ("http://host/v1/", Address("host", 80, False, "")),
        ("https://host/openai/v1", Address("host", 443, True, "/openai")),
        ("http://[::1]:9/a", Address("::1", 9, False, "/a")),
    ],
)
def test_addresses(url: str, expected: Address) -> None:
    assert Address.parse(url) == expected
    assert expected.netloc in url or ":80" in expected.netloc or ":443" in expected.netloc


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://h:x",
        "http://h:99999",
        "http://h?q=1",
        "http://user@h",
        "http://h/a b",
        "http://h/\n",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--base-url"):
        Address.parse(url)


def test_tls_to_a_server_without_it_is_an_error_of_the_request() -> None:
    with peer.running() as running:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(plain(400, b"{}"))
            await writer.drain()
            writer.close()

        running.serve = serve  # type: ignore[method-assign]
        (record,) = run(running.url.replace("http:", "https:"), Plan(count=1, timeout=20)).records
    assert record.reason == "cannot connect"
    assert "SSL" in record.detail or "TLS" in record.detail


def test_a_port_that_nobody_listens_on() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done = run(f"http://127.0.0.1:{free.getsockname()[1]}", Plan(count=100, concurrency=1))
    assert done.dead is not None
    assert [r.reason for r in done.records] == ["connection refused"]
