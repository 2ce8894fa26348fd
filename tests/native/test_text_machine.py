"""The native text machine against hostile arguments: an error or a result, never a crash or an endless loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vglm import _native
from vglm.graph.strings import StringTable

ALWAYS = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
WORDS = [
    "",
    "a",
    "ab",
    "abc",
    "b",
    "é",
    "a",
    "ab",
    "\x00",
    "\x00\x00",
    "abcdefgh",
    "abcdefghi",
    "abcdefgh\x00",
]


def strings(texts: list[str]) -> tuple[Any, Any]:
    table = StringTable.of(texts)
    return table.data, table.offsets


def trie() -> _native.TokenTrie:
    tokens = [bytes([b]) for b in range(256)] + [b"ab", b"a -", b"bc", b""]
    offsets = np.cumsum([0, *map(len, tokens)]).astype(np.int64)
    ids = np.arange(len(tokens), dtype=np.int32)
    return _native.TokenTrie(
        np.frombuffer(b"".join(tokens), np.uint8), offsets, ids, np.array([260], np.int32), 261
    )


def edges(inverse: bool = True) -> _native.Adjacency:
    """0 -> 1 -> 2 -> 0 by relation 0, and 0 -> 2 by relation 1."""
    source, relation, target = (
        np.array(values, np.int32) for values in ([0, 0, 1, 2], [0, 1, 0, 0], [1, 2, 2, 0])
    )
    out_start, in_start = np.array([0, 2, 3, 4], np.int64), np.array([0, 1, 2, 4], np.int64)
    in_edge = np.array([3, 0, 2, 1], np.int32)
    return _native.Adjacency(
        out_start, source, target, relation, 2, in_start if inverse else None, in_edge if inverse else None
    )


NODES = _native.StringIndex(*strings(["a", "ab", "ab"]))
RELATIONS = _native.StringIndex(*strings(["b", "é"]))
OTHERS = _native.StringIndex(*strings(WORDS))
TRIE, EDGES = trie(), edges()
LISTS = (_native.NameList(NODES), _native.NameList(OTHERS), _native.NameList(NODES, np.zeros(0, np.int32)))
WALKS = (
    _native.WalkSpec(EDGES, NODES, RELATIONS, 0, 3, True),
    _native.WalkSpec(
        EDGES, NODES, RELATIONS, 2, 2, False, np.array([1, 0], np.uint8), np.array([1, 0, 0], np.uint8)
    ),
)
CLASSES = np.zeros((2, 256), np.uint8)
CLASSES[0, ord("a") : ord("e")] = 1

numbers = st.integers(-2, 16) | st.sampled_from([97, 98, 255, 256, 2**31 - 1, -(2**31)])
rows = st.tuples(st.integers(-1, 16), numbers, numbers, numbers, numbers)


@ALWAYS
@given(program=st.lists(rows, max_size=14), data=st.data())
def test_random_programs(program: list[tuple[int, ...]], data: st.DataObject) -> None:
    table = np.array([*program, (0, 0, 0, 0, 0)], np.int32).reshape(-1, 5)
    try:
        machine = _native.TextMachine(TRIE, table, LISTS, CLASSES, EDGES, WALKS)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        run(machine, data)
    assert not message or message.startswith("TextMachine: ")


INSTRUCTIONS = st.one_of(
    st.tuples(st.just(1), st.sampled_from([97, 98, 0xC3]), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just(2), st.integers(0, 8), st.integers(0, 8), st.just(0), st.just(0)),
    st.tuples(st.just(4), st.just(0), st.integers(0, 2), st.sampled_from([0, 1, 4]), st.just(0)),
    st.tuples(st.just(4), st.integers(1, 3), st.integers(0, 1), st.integers(0, 3), st.just(0)),
    st.tuples(
        st.just(5), st.integers(0, 1), st.integers(0, 2), st.sampled_from([-1, 2, 3]), st.integers(0, 2)
    ),
    st.tuples(st.integers(6, 14), st.integers(0, 1), st.integers(0, 1), st.just(0), st.just(0)),
)


@ALWAYS
@given(program=st.lists(INSTRUCTIONS, min_size=3, max_size=9), data=st.data())
def test_random_programs_that_are_nearly_right(program: list[tuple[int, ...]], data: st.DataObject) -> None:
    test_random_programs.hypothesis.inner_test(program, data)  # type: ignore[attr-defined]


def run(machine: _native.TextMachine, data: st.DataObject) -> None:
    """A mask allows what can be taken, unless the program has dead ends, which those of groundings do not have."""
    matcher = _native.TextMatcher(machine)
    for _ in range(6):
        matcher.take(np.frombuffer(matcher.forced()[:50], np.uint8).astype(np.int32))
        if matcher.finished:
            return
        masks = np.zeros((1, 9), np.uint32)
        _native.TextMatcher.fill_masks([matcher], masks)
        allowed = np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little"))
        with pytest.raises(ValueError, match="not allowed"):
            matcher.accept(-5)
        if not len(allowed):
            return
        try:
            matcher.accept(int(data.draw(st.sampled_from(allowed.tolist()))))
        except ValueError:
            return
    assert machine.read(b"ab ab\xff")[0] <= 6


def test_cycles_that_read_nothing_are_refused() -> None:
    for program in (
        [(3, 0, 0, 0, 0)],
        [(2, 1, 0, 0, 0), (0, 0, 0, 0, 0)],
        [(5, 0, 0, -1, 0), (3, 0, 0, 0, 0)],
    ):
        with pytest.raises(ValueError, match="cycle"):
            _native.TextMachine(TRIE, np.array(program, np.int32), LISTS, CLASSES, EDGES, WALKS)
    chain = [(2, i + 1, i + 1, 0, 0) for i in range(5_000)] + [(0, 0, 0, 0, 0)]
    with pytest.raises(ValueError, match="too many instructions"):
        _native.TextMachine(TRIE, np.array(chain, np.int32), LISTS, CLASSES, EDGES, WALKS)
    short = [(2, i + 1, i + 1, 0, 0) for i in range(1_500)] + [(0, 0, 0, 0, 0)]  # 2 ** 1500 ways to its end
    matcher = _native.TextMatcher(
        _native.TextMachine(TRIE, np.array(short, np.int32), LISTS, CLASSES, EDGES, WALKS)
    )
    assert matcher.forced() == b""
    assert matcher.finished


def longs(*values: int) -> Any:
    return np.array(values, np.int64)


def ints(*values: int) -> Any:
    return np.array(values, np.int32)


DATA = np.frombuffer(b"abcdef", np.uint8)
BAD: list[Callable[[], object]] = [
    lambda: _native.StringIndex(DATA, longs(0, 3)),
    lambda: _native.StringIndex(DATA, longs()),
    lambda: _native.StringIndex(DATA, longs(0, 7)),
    lambda: _native.StringIndex(DATA, longs(0, 5, 2, 6)),
    lambda: _native.StringIndex(DATA, longs(-1, 6)),
    lambda: _native.StringIndex(DATA, longs(0, 6), np.zeros(2, np.uint8)),
    lambda: NODES.updated(*strings(["x"]), *strings(["a"]), *strings(["x"])),
    lambda: NODES.updated(*strings(["c", "b", "a"]), *strings(["a"]), *strings(["x"])),
    lambda: NODES.updated(*strings(["a", "b", "c"]), *strings(["a", "b"]), *strings(["y", "x"])),
    lambda: NODES.updated(*strings(["a", "b", "c"]), *strings(["a", "b"]), *strings(["y"])),
    lambda: _native.NameList(NODES, ints(3)),
    lambda: _native.NameList(NODES, ints(-1)),
    lambda: _native.NameList(NODES, ints(1, 0)),
    lambda: _native.NameList(NODES, ints(1, 1)),
    lambda: _native.TokenTrie(DATA, longs(0, 6), ints(0, 1), ints(), 5),
    lambda: _native.TokenTrie(DATA, longs(0, 6), ints(5), ints(), 5),
    lambda: _native.TokenTrie(DATA, longs(0, 6), ints(1), ints(-1), 5),
    lambda: _native.TokenTrie(DATA, longs(0, 6), ints(1), ints(2), 0),
    lambda: _native.Adjacency(longs(0, 1), ints(1), ints(0), ints(0), 1),
    lambda: _native.Adjacency(longs(0, 1), ints(0), ints(0), ints(1), 1),
    lambda: _native.Adjacency(longs(0, 2), ints(0), ints(0), ints(0), 1),
    lambda: _native.Adjacency(longs(), ints(), ints(), ints(), 1),
    lambda: _native.Adjacency(longs(0, 1, 0, 1), ints(0), ints(0), ints(0), 1),
    lambda: _native.Adjacency(longs(0, 1), ints(0), ints(0), ints(0), 1, longs(0, 1), None),
    lambda: _native.Adjacency(longs(0, 1), ints(0), ints(0), ints(0), 1, longs(0, 1), ints(1)),
    lambda: _native.WalkSpec(EDGES, NODES, RELATIONS, 2, 1),
    lambda: _native.WalkSpec(EDGES, NODES, RELATIONS, -1, 1),
    lambda: _native.WalkSpec(EDGES, NODES, RELATIONS, 0, 31),
    lambda: _native.WalkSpec(edges(inverse=False), NODES, RELATIONS, 0, 1, True),
    lambda: _native.WalkSpec(EDGES, RELATIONS, RELATIONS, 0, 1),
    lambda: _native.WalkSpec(EDGES, NODES, NODES, 0, 1),
    lambda: _native.WalkSpec(EDGES, NODES, RELATIONS, 0, 1, False, np.zeros(3, np.uint8)),
    lambda: _native.WalkSpec(EDGES, NODES, RELATIONS, 0, 1, False, None, np.zeros(2, np.uint8)),
    lambda: WALKS[0].starts(EDGES, ints(3)),
    lambda: _native.TextMachine(TRIE, np.zeros((0, 5), np.int32), LISTS, CLASSES, EDGES, WALKS),
    lambda: _native.TextMachine(TRIE, np.zeros((1, 4), np.int32), LISTS, CLASSES, EDGES, WALKS),
    lambda: _native.TextMachine(
        TRIE, np.zeros((1, 5), np.int32), LISTS, np.zeros((1, 8), np.uint8), EDGES, WALKS
    ),
    lambda: _native.TextMachine(
        TRIE, np.zeros((1, 5), np.int32), LISTS, CLASSES, edges(inverse=False), WALKS
    ),
    lambda: _native.contains_any(DATA, np.zeros(255, np.uint8)),
    lambda: _native.TextMatcher.fill_masks([], np.zeros((1, 9), np.uint32)),
]


@pytest.mark.parametrize("bad", range(len(BAD)))
def test_arguments_that_do_not_fit_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        BAD[bad]()


@pytest.mark.parametrize("group", [-1, 2, 2**31 - 1, -(2**31)])
def test_groups_that_there_are_not(group: int) -> None:
    for ask in (NODES.items, NODES.text):
        with pytest.raises(IndexError):
            ask(group)


@ALWAYS
@given(
    texts=st.lists(st.sampled_from(WORDS) | st.text(max_size=12), max_size=30),
    left_out=st.lists(st.booleans(), min_size=30),
    changes=st.dictionaries(st.integers(0, 29), st.sampled_from(WORDS), max_size=4),
    gone=st.sets(st.integers(0, 29), max_size=4),
)
def test_an_index_sorts_as_python_does(
    texts: list[str], left_out: list[bool], changes: dict[int, str], gone: set[int]
) -> None:
    flags = np.array(left_out[: len(texts)], np.uint8)
    first = _native.StringIndex(*strings(texts), flags)
    check(first, texts, left_out)
    keys = [f"{i:02}" for i in range(len(texts))]
    kept = [i for i in range(len(texts)) if i not in gone]
    edited = [changes.get(i, texts[i]) for i in kept] + ["new", "a"]
    new_keys = [keys[i] for i in kept] + ["x", "y"]
    flags = np.zeros(len(edited), np.uint8)
    again = first.updated(*strings(keys), *strings(edited), *strings(new_keys), flags)
    check(again, edited, [False] * len(edited))


def check(index: _native.StringIndex, texts: list[str], left_out: list[bool]) -> None:
    named: dict[bytes, list[int]] = {}
    for item, text in enumerate(texts):
        if text and not left_out[item]:
            named.setdefault(text.encode(), []).append(item)
    assert [index.text(group) for group in range(index.num_groups)] == sorted(named)
    for group, text in enumerate(sorted(named)):
        assert index.items(group).tolist() == named[text]
        assert index.find(text) == group
        assert all(index.group_of(item) == group for item in named[text])
    assert index.find(b"not there") == -1
