"""Stop strings found in text that arrives in pieces, whatever the pieces are.

An Aho-Corasick automaton over the stop strings: its state is the longest end of the text that could still
become one of them, so it says both when one is complete and how much text must be held back. Each character
costs O(1) amortised, however many stop strings there are and however long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import lru_cache


class StopAutomaton:
    """The stop strings compiled; immutable, shared by the requests that have the same ones."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.children: list[dict[str, int]] = [{}]
        self.failure = [0]  # the state of the longest proper suffix that begins a stop string
        self.found: list[str | None] = [None]  # the longest stop string that ends here
        self.held = [0]  # how many characters the text to come could turn into a stop string
        for stop in stops:
            self._insert(stop)
        self._link()

    def _insert(self, stop: str) -> None:
        state = 0
        for character in stop:
            if character not in self.children[state]:
                self.children[state][character] = len(self.children)
                self.children.append({})
                self.failure.append(0)
                self.found.append(None)
                self.held.append(self.held[state] + 1)
            state = self.children[state][character]
        self.found[state] = stop

    def _link(self) -> None:
        queue = deque(self.children[0].values())  # breadth first: failures lead to states done before
        while queue:
            state = queue.popleft()
            failure = self.failure[state]
            if self.found[state] is None:
                self.found[state] = self.found[failure]
            if not self.children[state]:
                self.held[state] = self.held[failure]
            for character, child in self.children[state].items():
                self.failure[child] = self.next(failure, character)
                queue.append(child)

    def next(self, state: int, character: str) -> int:
        """The state after one more character."""
        while state and character not in self.children[state]:
            state = self.failure[state]
        return self.children[state].get(character, 0)


@lru_cache(maxsize=64)
def compile_stop_strings(stops: tuple[str, ...]) -> StopAutomaton:
    """The automaton of these stop strings."""
    return StopAutomaton(stops)


class StopScanner:
    """Passes one text through, in pieces, up to the first stop string.

    The first is the one that is complete first; of those that end together, the longest. So the result does
    not depend on how the text was cut.
    """

    def __init__(self, stops: tuple[str, ...], include_stop: bool) -> None:
        self._automaton = compile_stop_strings(stops)
        self._include_stop = include_stop
        self._state = 0
        self._held = ""

    def feed(self, text: str, may_stop: bool = True) -> tuple[str, str | None]:
        """The text that can be released now, and the stop string if one is complete.

        With `may_stop` false a stop string that ends within `text` is passed over.
        """
        automaton = self._automaton
        state = self._state
        if not state and automaton.children[0].keys().isdisjoint(text):
            return text, None
        start = len(self._held)
        text = self._held + text
        for end in range(start, len(text)):
            state = automaton.next(state, text[end])
            stop = automaton.found[state]
            if stop is not None and may_stop:
                self._held = ""
                return text[: end + 1 if self._include_stop else end + 1 - len(stop)], stop
        self._state = state
        release = len(text) - automaton.held[state]
        self._held = text[release:]
        return text[:release], None

    def finish(self) -> str:
        """The text still held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held
