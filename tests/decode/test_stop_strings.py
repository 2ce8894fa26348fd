"""Stop strings in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vglm.decode.stop_strings import StopScanner

LETTERS = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4).map(tuple)


def pieces_of(text: str, cuts: Sequence[int]) -> list[str]:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def first_stop(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """End of the stop string that is complete first, and of those that end there the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


def could_become_a_stop(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of the text that begins a stop string without being all of it."""
    lengths = (k for stop in stops for k in range(len(stop)) if text.endswith(stop[:k]))
    return max(lengths, default=0)


@given(LETTERS, STOPS, st.lists(st.integers(0, 30), max_size=8), st.booleans())
@settings(max_examples=500)
def test_finds_the_first_and_holds_back_no_more_than_needed(
    text: str, stops: tuple[str, ...], cuts: list[int], include: bool
) -> None:
    scanner = StopScanner(stops, include)
    expected = first_stop(text, stops)
    seen = released = ""
    for piece in pieces_of(text, cuts):
        seen += piece
        increment, stop = scanner.feed(piece)
        released += increment
        if stop is not None:
            assert expected is not None
            assert stop == expected[1]
            assert released == text[: expected[0] - (0 if include else len(stop))]
            return
        assert released == seen[: len(seen) - could_become_a_stop(seen, stops)]
    assert expected is None
    assert released + scanner.finish() == text


@given(LETTERS, st.text("ab", min_size=1, max_size=4), st.lists(st.integers(0, 30), max_size=8))
def test_one_stop_string_is_found_where_find_finds_it(text: str, stop: str, cuts: list[int]) -> None:
    scanner = StopScanner((stop,), include_stop=False)
    released = ""
    for piece in pieces_of(text, cuts):
        increment, found = scanner.feed(piece)
        released += increment
        if found:
            assert len(released) == text.find(stop)
            return
    assert text.find(stop) == -1


@given(LETTERS, LETTERS, STOPS)
@settings(max_examples=300)
def test_a_stop_string_that_may_not_stop_is_passed_over(
    early: str, late: str, stops: tuple[str, ...]
) -> None:
    scanner = StopScanner(stops, include_stop=True)
    released, nothing = scanner.feed(early, may_stop=False)
    assert nothing is None
    increment, stop = scanner.feed(late)
    text = early + late
    ends = [end for end in range(len(early) + 1, len(text) + 1) if text[:end].endswith(stops)]
    if ends:
        assert released + increment == text[: ends[0]]
        assert stop is not None
        assert text[: ends[0]].endswith(stop)
    else:
        assert stop is None
        assert released + increment + scanner.finish() == text


@pytest.mark.parametrize("include", [False, True])
def test_text_is_released_once_it_cannot_become_a_stop_string(include: bool) -> None:
    scanner = StopScanner(("###", "\nUser:"), include)
    assert scanner.feed("Answer #") == ("Answer ", None)
    assert scanner.feed("1\n") == ("#1", None)
    assert scanner.feed("Use") == ("", None)
    assert scanner.feed("d\nUser") == ("\nUsed", None)
    assert scanner.feed(": and so on") == ("\nUser:" if include else "", "\nUser:")


def test_long_stop_strings_cost_no_more() -> None:
    stop = "a" * 20_000 + "b"  # quadratic matching would need 10^9 comparisons here
    scanner = StopScanner((stop,), include_stop=False)
    released = "".join(scanner.feed("aaaa")[0] for _ in range(10_000))
    assert len(released) == 20_000
    assert scanner.feed("b") == ("", stop)
