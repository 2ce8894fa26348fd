"""Spans that survive a restart of the engine: the same bits, whatever has happened to the disk meanwhile."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from engine_helpers import drain, generate, greedy, make_engine, model_of, prompt, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import Array, TinyStorage

from vglm.engine.core import EngineCore
from vglm.engine.request import Request, RequestKind, SpanSpec
from vglm.engine.span_cache import Span
from vglm.engine.span_store import SpanStore, StoreStats

BLOCK = 4
IDENTITY = {"model": "tiny"}
LIMIT = 4 << 20


def start(directory: Path, num_blocks: int = 256, limit: int = LIMIT, **identity: str) -> EngineCore:
    """A fresh engine whose spans survive in the directory; its memory is NaN."""
    engine = make_engine(num_blocks, BLOCK, max_num_batched_tokens=256)
    storage = engine.pool.storage
    assert isinstance(storage, TinyStorage)
    engine.cache.attach(SpanStore(directory, IDENTITY | identity, storage, limit))
    return engine


def store_of(engine: EngineCore) -> SpanStore:
    assert engine.cache.store is not None
    return engine.cache.store


def disk(engine: EngineCore) -> StoreStats:
    return store_of(engine).stats


def stop(engine: EngineCore) -> None:
    assert store_of(engine).flush()
    store_of(engine).close()


def run(engine: EngineCore) -> None:
    while engine.has_unfinished:
        engine.step()


def span_of(engine: EngineCore, name: str, tokens: list[int], parents: tuple[Span, ...] = ()) -> Span:
    """A span, held by the caller."""
    first = max((parent.first_position + parent.num_tokens for parent in parents), default=0)
    request = engine.add_request(
        name, tokens, greedy(1), kind=RequestKind.SPAN, context=parents, first_position=first
    )
    run(engine)
    assert request.span is not None, request.error
    return request.span


def graph_of(engine: EngineCore) -> dict[str, Span]:
    """A prefix, two nodes after it, and an edge that sees all three, of lengths that fill no block."""
    prefix = span_of(engine, "prefix", prompt(9, 1))
    nodes = [span_of(engine, f"node{i}", prompt(5 + 6 * i, 2 + i), (prefix,)) for i in range(2)]
    edge = span_of(engine, "edge", prompt(7, 9), (prefix, *nodes))
    return {"prefix": prefix, "node0": nodes[0], "node1": nodes[1], "edge": edge}


def ask(engine: EngineCore, graph: dict[str, Span]) -> Request:
    """A question that sees the whole graph; gives the graph up."""
    context = tuple(graph.values())
    request = engine.add_request(
        "question", prompt(6, 20), greedy(12, logprobs=3), context=context, first_position=60
    )
    run(engine)
    for span in context:
        engine.cache.release(span)
    engine.check_integrity()
    return request


def answer(request: Request) -> object:
    """Everything of a request's output, floats as their bits."""
    assert request.error is None
    (sequence,) = request.sequences
    return [
        (e.token_id, e.logprob.hex(), e.top_ids, [x.hex() for x in e.top_logprobs]) for e in sequence.logprobs
    ]


def kv_of(engine: EngineCore, span: Span) -> Array:
    """K and V of a span's tokens."""
    storage = engine.pool.storage
    assert isinstance(storage, TinyStorage)
    return np.concatenate([storage.kv[:, :, block, :valid] for block, valid in span.blocks], axis=2)


def test_a_graph_survives_a_restart_bit_for_bit(tmp_path: Path) -> None:
    first = start(tmp_path)
    graph = graph_of(first)
    kv = {name: kv_of(first, span) for name, span in graph.items()}
    expected = answer(ask(first, graph))
    stop(first)
    assert disk(first).written == 4
    assert disk(first).dropped == disk(first).errors == disk(first).hits == 0

    second = start(tmp_path)
    again = graph_of(second)
    assert model_of(second).tokens_computed == 0
    assert disk(second).hits == 4
    assert disk(second).hit_tokens == 9 + 5 + 11 + 7
    assert disk(second).num_spans == 4
    for name, span in again.items():
        assert span.key == graph[name].key
        assert [valid for _, valid in span.blocks] == [valid for _, valid in graph[name].blocks]
        assert span.first_position == graph[name].first_position
        assert {parent.key for parent in span.parents} == {parent.key for parent in graph[name].parents}
        assert (kv_of(second, span) == kv[name]).all()
    assert answer(ask(second, again)) == expected
    stop(second)
    assert disk(second).written == 0, "what is on disk is not written again"


def records(changed: int | None = None) -> list[SpanSpec]:
    """A prefix, twelve nodes that see it, and an edge from each node to the next; node `changed` is another one."""
    lengths = [9, *(3 + i for i in range(12))]
    tokens = [np.array(prompt(n, 100 + i), np.int32) for i, n in enumerate(lengths)]
    if changed is not None:
        tokens[1 + changed] = np.array(prompt(lengths[1 + changed], 999), np.int32)
    nodes = [SpanSpec(own, 9 if i else 0, (0,) if i else ()) for i, own in enumerate(tokens)]
    edges = [
        SpanSpec(np.array(prompt(6, 200 + i), np.int32), 24, (0, 1 + i, 1 + (i + 1) % 12)) for i in range(12)
    ]
    return nodes + edges


def ask_records(engine: EngineCore, specs: list[SpanSpec]) -> Request:
    request = engine.add_request(
        "records", prompt(6, 20), greedy(12, logprobs=3), span_specs=specs, first_position=40
    )
    drain(engine)
    return request


def test_a_request_that_names_its_spans_gets_them_from_disk(tmp_path: Path) -> None:
    first = start(tmp_path)
    expected = ask_records(first, records())
    assert expected.num_cached_context_tokens == 0
    stop(first)
    second = start(tmp_path)
    again = ask_records(second, records())
    assert again.num_cached_context_tokens == again.num_context_tokens == expected.num_context_tokens
    assert answer(again) == answer(expected)
    assert disk(second).hits == 25
    assert model_of(second).tokens_computed == 6 + 12 - 1, "the question and the answer"


@pytest.mark.parametrize("node", [0, 7])
def test_an_edit_after_a_restart_computes_what_depends_on_it(tmp_path: Path, node: int) -> None:
    first = start(tmp_path)
    ask_records(first, records())
    stop(first)
    edited = records(changed=node)
    second = start(tmp_path)
    request = ask_records(second, edited)
    assert disk(second).hits == 25 - 3, "all but the node and its two edges"
    assert answer(request) == answer(ask_records(make_engine(256, BLOCK, max_num_batched_tokens=256), edited))
    stop(second)
    assert disk(second).written == 3


def test_fetch_needs_the_parents_in_memory(tmp_path: Path) -> None:
    first = start(tmp_path)
    keys = {name: span.key for name, span in graph_of(first).items()}
    stop(first)
    second = start(tmp_path)
    cache = second.cache
    assert cache.fetch(keys["edge"]) is None
    assert cache.get(keys["prefix"]) is None, "what is on disk is not in memory"
    assert len(cache) == 0
    spans = [cache.fetch(keys[name]) for name in ("prefix", "node0", "node1", "edge")]
    assert all(span is not None and span.refs == 0 for span in spans)
    cache.check_integrity({})
    assert cache.evict() is spans[3], "children go before their parents"


def test_a_prompt_s_blocks_are_kept_when_they_are_used_again(tmp_path: Path) -> None:
    first = start(tmp_path)
    (request,) = generate(first, [prompt(30)], greedy())
    expected = tokens_of([request])
    stop(first)
    assert disk(first).written == 0, "nobody has asked for them again"

    second = start(tmp_path)
    generate(second, [prompt(30)], greedy())
    (request,) = generate(second, [prompt(30)], greedy())
    assert request.num_cached_tokens == 28
    stop(second)
    assert disk(second).written == 7

    third = start(tmp_path)
    (request,) = generate(third, [prompt(30)], greedy())
    assert request.num_cached_tokens == 28
    assert disk(third).hits == 7
    assert tokens_of([request]) == expected
    assert third.cache.stats.hits == 28


def test_another_model_finds_nothing(tmp_path: Path) -> None:
    first = start(tmp_path)
    graph_of(first)
    stop(first)
    other = start(tmp_path, model="another")
    graph_of(other)
    assert disk(other).hits == 0
    stop(other)
    same = start(tmp_path)
    graph_of(same)
    assert disk(same).hits == 4


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    """A directory with a graph's spans, and the answer over them."""
    directory = tmp_path_factory.mktemp("known")
    engine = start(directory)
    expected = answer(ask(engine, graph_of(engine)))
    stop(engine)
    return directory, expected


@settings(max_examples=60, deadline=None)
@given(
    suffix=st.sampled_from([".pages", ".index"]),
    where=st.floats(0, 1, exclude_max=True),
    bits=st.integers(0, 255),
)
def test_damage_is_never_served(
    known: tuple[Path, object],
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    where: float,
    bits: int,
) -> None:
    """A byte is changed, or (with no bits to change) the file cut there; the answer is what it was."""
    directory, expected = known
    copy = tmp_path_factory.mktemp("copy")
    (folder,) = [path for path in directory.iterdir() if path.is_dir()]
    (copy / folder.name).mkdir()
    for file in folder.iterdir():
        data = bytearray(file.read_bytes())
        if file.suffix == suffix:
            at = int(where * len(data))
            if bits:
                data[at] ^= bits
            else:
                del data[at:]
        (copy / folder.name / file.name).write_bytes(data)
    engine = start(copy)
    assert answer(ask(engine, graph_of(engine))) == expected
    lost = 4 - disk(engine).hits
    assert disk(engine).errors <= 1
    stop(engine)
    assert disk(engine).written == lost, "what was lost is computed and written again"
    again = start(copy)
    assert answer(ask(again, graph_of(again))) == expected
    assert disk(again).hits == 4
    assert disk(again).errors == 0
    stop(again)


def test_a_damaged_span_is_told_once(
    known: tuple[Path, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = start(tmp_path)
    graph_of(engine)
    stop(engine)
    (file,) = tmp_path.glob("*/*.pages")
    file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    again = start(tmp_path)
    assert answer(ask(again, graph_of(again))) == known[1]
    assert disk(again).errors == 4
    assert caplog.text.count("damaged span") == 1


@settings(max_examples=25, deadline=None)
@given(
    limit=st.sampled_from([LIMIT, 8 * 12_000]),
    history=st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=25
    ),
)
def test_a_small_pool_with_a_store_answers_as_a_large_one_without(
    tmp_path_factory: pytest.TempPathFactory, limit: int, history: list[tuple[int, int, int]]
) -> None:
    """Spans are evicted and come back from disk all the time, restarts in between."""
    directory = tmp_path_factory.mktemp("small")
    prompts = [prompt(length, family) for family, length, _ in history]
    plain = make_engine(256, BLOCK)
    expected = tokens_of(generate(plain, prompts, greedy(5)))
    engine = start(directory, 14, limit)
    for index, (_, _, then) in enumerate(history):
        requests = generate(engine, prompts[max(0, index - 1) : index + 1], greedy(5))
        assert tokens_of(requests) == expected[max(0, index - 1) : index + 1]
        if then == 0:
            stop(engine)
            engine = start(directory, 14, limit)
        elif then == 1:
            engine.cache.clear()
        elif then == 2:
            engine.compact()
    assert disk(engine).errors == 0
    stop(engine)


def test_coming_back_takes_idle_spans_blocks_and_no_others(tmp_path: Path) -> None:
    first = start(tmp_path)
    keys = [span.key for span in graph_of(first).values()]
    stop(first)
    second = start(tmp_path, num_blocks=16)  # the graph takes 3 + 2 + 3 + 2 blocks
    held = span_of(second, "held", prompt(24, 50))
    idle = span_of(second, "idle", prompt(16, 51))
    second.cache.release(idle)
    spans = [second.cache.fetch(key) for key in keys]
    assert [span is not None for span in spans] == [True, True, True, True]
    assert second.cache.get(idle.key) is None
    assert second.cache.get(held.key) is held
    second.check_integrity([held])
    second.cache.clear()
    more = span_of(second, "more", prompt(28, 52))  # 3 blocks are left
    assert second.cache.fetch(keys[0]) is not None
    assert second.cache.fetch(keys[1]) is None, "no room, and its parent must stay"
    assert second.cache.get(keys[0]) is not None
    second.check_integrity([held, more])


def test_a_long_chain_comes_back_at_once(tmp_path: Path) -> None:
    first = start(tmp_path, num_blocks=600)
    for _ in range(2):
        generate(first, [prompt(2000)], greedy(1))
    stop(first)
    second = start(tmp_path, num_blocks=600)
    (request,) = generate(second, [prompt(2000)], greedy(1))
    assert request.num_cached_tokens == 1996
    assert disk(second).hits == 499


def test_a_full_queue_drops_and_the_next_use_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start(tmp_path)
    monkeypatch.setattr("vglm.engine.span_store.QUEUE_BYTES", 0)
    for span in graph_of(engine).values():
        engine.cache.release(span)
    assert (disk(engine).written, disk(engine).dropped) == (0, 4)
    monkeypatch.undo()
    for span in list(engine.cache):
        assert engine.cache.fetch(span.key) is span
    stop(engine)
    assert disk(engine).written == 4


def test_a_second_engine_reads_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = start(tmp_path)
    expected = answer(ask(first, graph_of(first)))
    assert store_of(first).flush()
    with caplog.at_level(logging.WARNING):
        second = start(tmp_path)
    assert "another process writes the spans" in caplog.text
    assert not store_of(second).writable
    assert answer(ask(second, graph_of(second))) == expected
    assert disk(second).hits == 4
    span_of(second, "more", prompt(11, 77))
    stop(second)
    assert disk(second).written == disk(second).dropped == 0


def test_an_engine_that_nobody_has_any_more_gives_its_directory_free(tmp_path: Path) -> None:
    engine = start(tmp_path)
    graph_of(engine)
    store = weakref.ref(store_of(engine))
    del engine
    gc.collect()
    assert store() is None
    again = start(tmp_path)
    assert store_of(again).writable
    graph_of(again)
    assert disk(again).hits == 4, "what was in the queue has been written"


def test_a_closed_store_is_no_hindrance(tmp_path: Path) -> None:
    engine = start(tmp_path)
    graph = graph_of(engine)
    store_of(engine).close()
    store_of(engine).close()
    ask(engine, graph)
    engine.cache.clear()
    ask(engine, graph_of(engine))
    assert disk(engine).hits == 0


def test_a_reset_engine_finds_its_spans_again(tmp_path: Path) -> None:
    engine = start(tmp_path)
    graph_of(engine)
    engine.reset()
    assert len(engine.cache) == 0
    assert store_of(engine).flush()
    computed = model_of(engine).tokens_computed
    graph_of(engine)
    assert disk(engine).hits == 4
    assert model_of(engine).tokens_computed == computed


FULL = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (7000, 7000))
sys.path.insert(0, sys.argv[2])
import test_span_store as t
engine = t.start(Path(sys.argv[1]))
graph = t.graph_of(engine)
assert t.store_of(engine).flush()
print(t.answer(t.ask(engine, graph)))
print(t.disk(engine).written, t.disk(engine).dropped, t.disk(engine).errors)
t.stop(engine)
"""


def test_a_full_disk_costs_a_warning(known: tuple[Path, object], tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert process.returncode == 0, process.stderr
    result, counts = process.stdout.splitlines()
    assert result == str(known[1])
    written, dropped, errors = map(int, counts.split())
    assert (written, dropped, errors) == (1, 3, 1), "after a failure it waits before it tries again"
    assert process.stderr.count("spans cannot be written (File too large)") == 1
    engine = start(tmp_path)
    assert answer(ask(engine, graph_of(engine))) == known[1]
    assert disk(engine).hits == written
    assert disk(engine).errors == 0
    stop(engine)


def test_writing_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_disk: list[bool]
) -> None:
    engine = start(tmp_path)
    broken_disk[0] = True
    prefix = span_of(engine, "prefix", prompt(9, 1))
    assert store_of(engine).flush()
    assert disk(engine).errors == 1
    broken_disk[0] = False
    engine.cache.fetch(prefix.key)
    assert store_of(engine).flush()
    assert disk(engine).written == 0, "too early"
    monkeypatch.setattr(store_of(engine)._writer, "_paused_until", 0.0)
    engine.cache.fetch(prefix.key)
    stop(engine)
    assert disk(engine).written == 1
    again = start(tmp_path)
    assert again.cache.fetch(prefix.key) is not None


@pytest.fixture
def broken_disk(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A disk that takes half of what it is given and then fails, while the first item is true."""
    from vglm.engine import span_segments

    real = span_segments._write_at
    broken = [False]

    def write_at(file: object, data: bytes | memoryview, offset: int) -> None:
        if broken[0]:
            real(file, memoryview(data)[: len(data) // 2], offset)
            raise OSError(28, "No space left on device")
        real(file, data, offset)

    monkeypatch.setattr(span_segments, "_write_at", write_at)
    return broken
