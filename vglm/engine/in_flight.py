"""Spans that running sequences are computing, and the sequences that wait for them."""

from __future__ import annotations

from collections.abc import Iterable

from vglm.engine.request import Sequence


class SpansInFlight:
    """Who computes which span key, and who is parked until it is in the cache.

    A key has one owner, a running sequence. Whoever stops running gives its keys up and wakes those parked on
    them, so nobody waits for a span that nobody computes.
    """

    def __init__(self) -> None:
        self._owner: dict[bytes, Sequence] = {}
        self._parked: dict[bytes, list[Sequence]] = {}
        self._waits_for: dict[Sequence, bytes] = {}

    @property
    def num_parked(self) -> int:
        """Sequences that wait for a span."""
        return len(self._waits_for)

    def claim(self, keys: Iterable[bytes], owner: Sequence) -> None:
        """Note that `owner` computes these keys, except those that another one computes already."""
        for key in keys:
            self._owner.setdefault(key, owner)

    def last_key(self, keys: Iterable[bytes]) -> bytes | None:
        """The last key of the leading run of keys that are being computed."""
        found = None
        for key in keys:
            if key not in self._owner:
                break
            found = key
        return found

    def park(self, sequence: Sequence, key: bytes) -> None:
        """Let a sequence wait for a key in flight."""
        self._parked.setdefault(key, []).append(sequence)
        self._waits_for[sequence] = key

    def unpark(self, sequence: Sequence) -> bool:
        """Stop a sequence's waiting; False when it was not parked."""
        key = self._waits_for.pop(sequence, None)
        if key is None:
            return False
        parked = self._parked[key]
        parked.remove(sequence)
        if not parked:
            del self._parked[key]
        return True

    def parked(self) -> list[tuple[Sequence, Sequence]]:
        """(parked sequence, the one that it waits for), in the order in which they were parked."""
        return [(sequence, self._owner[key]) for sequence, key in self._waits_for.items()]

    def landed(self, keys: Iterable[bytes]) -> list[Sequence]:
        """The keys are in the cache now, whoever computed them; returns those that waited for one of them."""
        return self._wake([key for key in keys if key in self._owner])

    def give_up(self, keys: Iterable[bytes], owner: Sequence) -> list[Sequence]:
        """`owner` does not compute these keys any more; returns those that waited for one of its own."""
        return self._wake([key for key in keys if self._owner.get(key) is owner])

    def _wake(self, keys: list[bytes]) -> list[Sequence]:
        woken: list[Sequence] = []
        for key in keys:
            del self._owner[key]
            woken += self._parked.pop(key, ())
        for sequence in woken:
            del self._waits_for[sequence]
        return woken

    def check_integrity(self, running: list[Sequence]) -> None:
        """Assert that every key has a running owner and that what a sequence waits for is being computed."""
        for key, owner in self._owner.items():
            assert owner in running, "a span in flight has no running owner"
            assert key in owner.keys[owner.num_span_pages :], "a span in flight is not its owner's"
        assert self._parked.keys() <= self._owner.keys(), "a sequence waits for a span that nobody computes"
        waits_for = {sequence: key for key, parked in self._parked.items() for sequence in parked}
        assert waits_for == self._waits_for, "parked sequences are miscounted"
