"""Half a minute of the mixed load of soak.py: every kind of client, faults on, nothing lost, nothing left behind."""

from __future__ import annotations

from tests.serve.soak import KINDS, soak

SECONDS = 20.0
CLIENTS = 8
MOST_GROWTH = 16  # MB: of the last quarter over the first half, in which the caches fill


def test_a_mixed_load_loses_nothing_and_leaves_nothing_behind() -> None:
    load = soak(SECONDS, CLIENTS)
    assert load.verdict(MOST_GROWTH, most_files=4 * CLIENTS) == []
    outcomes = load.tally.outcomes
    for kind in KINDS:
        assert any(outcome.startswith(f"{kind}: ") for outcome in outcomes), f"no client did {kind}"
    assert outcomes["wait: right"] > 0
    assert outcomes["stream: right"] > 0
    assert outcomes["malformed: 400"] > 0
