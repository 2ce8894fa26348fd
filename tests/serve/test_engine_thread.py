"""The engine thread and its streams, over the tiny model: order, completeness, merging, aborts, and its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from engine_helpers import generate, greedy, make_engine, model_of, prompt

from vglm.decode.detokenizer import Detokenizer
from vglm.decode.sampling_params import SamplingParams
from vglm.engine.core import EngineCore
from vglm.engine.metrics import EngineStats
from vglm.errors import VGLMError
from vglm.serve import engine_thread
from vglm.serve.engine_thread import EngineDeadError, EngineThread
from vglm.serve.streams import ClientGoneError, Increment, Stream, TextHook

HANG = 60.0  # seconds after which a test that waits has hung


class Letters:
    """Token t is one letter: a vocabulary whose text is easy to check."""

    special_ids: frozenset[int] = frozenset()

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([33 + token_id % 90])

    def decode(self, ids: Any, skip_special: bool = True) -> str:
        return b"".join(map(self.token_bytes, ids)).decode()


def make_stream(
    engine: EngineCore,
    prompts: list[list[int]],
    params: SamplingParams,
    *,
    name: str = "r",
    incremental: bool = True,
    most: int | None = None,
) -> Stream:
    requests, detokenizers = [], []
    for i, tokens in enumerate(prompts):
        own = [Detokenizer(Letters(), tokens, params) for _ in range(params.n)]
        hook = TextHook(own) if params.stop_strings else None
        requests.append(engine.prepare_request(f"{name}-{i}", tokens, params, on_token=hook))
        detokenizers.append(own)
    return Stream(requests, detokenizers, incremental=incremental, most=most)


@asynccontextmanager
async def running(engine: EngineCore) -> AsyncIterator[EngineThread]:
    thread = EngineThread(engine)
    thread.start()
    try:
        yield thread
    finally:
        await thread.stop()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), HANG))  # type: ignore[arg-type]


async def read(stream: Stream) -> dict[int, list[Increment]]:
    by_choice: dict[int, list[Increment]] = {}
    async for news in stream.increments():
        for increment in news:
            by_choice.setdefault(increment.index, []).append(increment)
    return by_choice


def joined(increments: list[Increment]) -> tuple[str, list[int]]:
    return "".join(i.text for i in increments), [t for i in increments for t in i.token_ids]


@pytest.mark.parametrize("most", [None, 1])
def test_many_streams_get_every_token_in_order(most: int | None) -> None:
    prompts = [prompt(3 + i % 7, seed=i) for i in range(40)]
    expected = [r.sequences[0].output_token_ids for r in generate(make_engine(), prompts, greedy(12))]
    engine = make_engine()

    async def test() -> None:
        async with running(engine) as thread:
            streams = [
                make_stream(engine, [p], greedy(12), name=str(i), most=most) for i, p in enumerate(prompts)
            ]
            for stream in streams:
                thread.submit(stream)
            results = await asyncio.gather(*map(read, streams))
        for result, tokens in zip(results, expected, strict=True):
            text, ids = joined(result[0])
            assert ids == tokens
            assert text == Letters().decode(tokens)
            assert [i.finish_reason for i in result[0]][:-1] == [None] * (len(result[0]) - 1)
            assert result[0][-1].finish_reason == "length"
            if most:
                assert all(len(i.token_ids) <= most for i in result[0])

    run(test)
    engine.check_integrity()


def test_choices_of_several_prompts_and_completions_are_numbered_in_turn() -> None:
    prompts = [prompt(5, seed=i) for i in range(3)]
    params = SamplingParams(n=2, max_tokens=6, seed=3)
    expected = [s.output_token_ids for r in generate(make_engine(), prompts, params) for s in r.sequences]
    engine = make_engine()

    async def test() -> None:
        async with running(engine) as thread:
            stream = make_stream(engine, prompts, params, incremental=False)
            thread.submit(stream)
            increments = await stream.complete()
        assert [i.index for i in increments] == list(range(6))
        assert [i.token_ids for i in increments] == expected
        assert stream.num_output_tokens == sum(map(len, expected))

    run(test)


def test_a_reader_that_does_not_read_costs_nothing_and_gets_all_at_once() -> None:
    engine = make_engine()

    async def test() -> None:
        async with running(engine) as thread:
            slow, quick = (make_stream(engine, [prompt(4)], greedy(30), name=name) for name in "ab")
            thread.submit(slow)
            thread.submit(quick)
            await read(quick)
            while not slow.finished:
                await asyncio.sleep(0)
            result = await read(slow)
        assert len(result[0]) == 1
        assert len(result[0][0].token_ids) == 30

    run(test)


def test_a_stop_string_ends_the_request_at_once_and_is_not_in_the_text() -> None:
    free = generate(make_engine(), [prompt(4)], greedy(24))[0].sequences[0].output_token_ids
    text = Letters().decode(free)
    stop = text[7:9]
    engine = make_engine()

    async def test() -> None:
        async with running(engine) as thread:
            stream = make_stream(engine, [prompt(4)], greedy(24, stop=stop))
            thread.submit(stream)
            result = (await read(stream))[0]
        found = text.index(stop)
        assert joined(result)[0] == text[:found]
        assert result[-1].finish_reason == "stop"
        assert result[-1].stop_reason == stop
        assert stream.num_output_tokens == found + len(stop)

    run(test)


def test_an_abort_frees_the_blocks_before_the_next_step_and_touches_nobody_else() -> None:
    engine = make_engine(num_blocks=64)
    expected = generate(make_engine(), [prompt(6, seed=1)], greedy(40))[0].sequences[0].output_token_ids

    async def test() -> None:
        async with running(engine) as thread:
            gone = make_stream(engine, [prompt(6)], greedy(200), name="gone")
            stays = make_stream(engine, [prompt(6, seed=1)], greedy(40), name="stays")
            thread.submit(gone)
            thread.submit(stays)
            reader = asyncio.ensure_future(read(stays))
            await gone.wait()
            thread.abort(gone, ClientGoneError())
            # A command after the abort runs before any further step.
            held = await thread.call(lambda e: [r.request_id for r in e.requests.values()])
            assert "gone-0" not in held
            assert joined((await reader)[0])[1] == expected
            with pytest.raises(ClientGoneError):
                await read(gone)

    run(test)
    engine.check_integrity()


def test_an_abort_before_the_engine_has_begun_the_request() -> None:
    engine = make_engine()

    async def test() -> None:
        async with running(engine) as thread:
            stream = make_stream(engine, [prompt(6)], greedy(5))
            release = threading.Event()
            blocked = asyncio.ensure_future(thread.call(lambda _: release.wait(HANG)))
            await asyncio.sleep(0)
            thread.submit(stream)
            thread.abort(stream, ClientGoneError())
            release.set()
            await blocked
            with pytest.raises(ClientGoneError):
                await read(stream)
            assert await thread.call(lambda e: len(e.requests)) == 0

    run(test)


def test_a_failing_forward_pass_fails_its_requests_and_no_later_one() -> None:
    engine = make_engine()
    model = model_of(engine)
    execute = model.execute
    failures = iter([ValueError("bad luck")])

    def sometimes(batch: Any) -> Any:
        for error in failures:
            raise error
        return execute(batch)

    model.execute = sometimes  # type: ignore[method-assign]  # an injected fault

    async def test() -> None:
        async with running(engine) as thread:
            first = make_stream(engine, [prompt(4)], greedy(4), name="first")
            thread.submit(first)
            with pytest.raises(VGLMError, match="bad luck"):
                await read(first)
            second = make_stream(engine, [prompt(4)], greedy(4), name="second")
            thread.submit(second)
            assert len(joined((await read(second))[0])[1]) == 4
            assert thread.alive

    run(test)
    engine.check_integrity()


def test_the_thread_s_death_ends_every_stream_with_an_error() -> None:
    engine = make_engine()

    class Fatal(BaseException):
        """Not an Exception: nothing in the engine may catch it."""

    async def test() -> None:
        thread = EngineThread(engine)
        thread.start()
        model_of(engine).execute = die  # type: ignore[method-assign]  # an injected fault
        stream = make_stream(engine, [prompt(4)], greedy(4))
        thread.submit(stream)
        with pytest.raises(VGLMError, match="Fatal: core melted"):
            await read(stream)
        assert not thread.alive
        with pytest.raises(EngineDeadError, match="core melted"):
            thread.submit(make_stream(engine, [prompt(4)], greedy(4), name="late"))
        with pytest.raises(EngineDeadError):
            await thread.call(lambda _: None)

    def die(_: Any) -> Any:
        raise Fatal("core melted")

    run(test)


def test_stopping_tells_those_who_wait() -> None:
    engine = make_engine()

    async def test() -> None:
        thread = EngineThread(engine)
        thread.start()
        stream = make_stream(engine, [prompt(4)], greedy(200))
        thread.submit(stream)
        await stream.wait()
        await thread.stop()
        with pytest.raises(VGLMError, match="shutting down"):
            await read(stream)
        assert not engine.has_unfinished

    run(test)


def test_an_idle_engine_that_finds_its_accounting_broken_starts_afresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_thread, "IDLE_AFTER", 0.01)
    engine = make_engine()

    async def test() -> None:
        async with running(engine) as thread:
            expected = None
            for round_ in range(2):
                stream = make_stream(engine, [prompt(9)], greedy(4), name=str(round_))
                thread.submit(stream)
                tokens = (await stream.complete())[0].token_ids
                assert tokens == (expected or tokens)
                expected = tokens
                if round_ == 0:
                    await thread.call(lambda e: e.pool.allocate(1))  # a block that nobody owns
                    while not thread.num_integrity_errors:
                        await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert thread.num_integrity_errors == 1

    run(test)
    engine.check_integrity()


def test_a_duplicate_id_fails_alone() -> None:
    engine = make_engine()

    async def test() -> None:
        async with running(engine) as thread:
            first = make_stream(engine, [prompt(4)], greedy(30))
            again = make_stream(engine, [prompt(5)], greedy(3))
            thread.submit(first)
            thread.submit(again)
            with pytest.raises(VGLMError, match="already in use"):
                await again.complete()
            assert thread.alive

    run(test)


def test_a_call_returns_what_its_function_does_and_raises_what_it_raises() -> None:
    engine = make_engine()

    async def test() -> None:
        async with running(engine) as thread:
            assert await thread.call(lambda e: e.config.max_num_seqs) == 8
            with pytest.raises(ZeroDivisionError):
                await thread.call(lambda _: 1 // 0)
            assert thread.alive

    run(test)


def test_a_snapshot_that_fails_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's thread may change a dictionary under whoever reads it."""
    engine = make_engine()
    failures = [KeyError("gone"), RuntimeError("dictionary changed size during iteration")]
    stats = engine.stats

    def fails_at_first() -> EngineStats:
        if failures:
            raise failures.pop()
        return stats()

    monkeypatch.setattr(engine, "stats", fails_at_first)
    assert EngineThread(engine).stats() == stats()
    assert not failures
