"""`vglm bench stream`: the real server's delivery of tokens, counted and timed at the client."""

from __future__ import annotations

import asyncio
from array import array
from pathlib import Path

import numpy as np
import pytest

from vglm.bench import stream
from vglm.bench.answers import Wanted
from vglm.bench.stream import StreamWork
from vglm.errors import ConfigError, VGLMError


def test_every_row_has_figures_that_can_be_true(model: str) -> None:
    report = stream.run(model, StreamWork(streams=(8,), tokens=600, paces=(2000.0,), repeats=1))
    rows = report.tables[0].rows
    assert [row["messages"] for row in rows] == ["one per token", "coalesced"] * 3
    assert [row["paced"] for row in rows] == [False, False, True, True, True, True]
    for row in rows:
        assert 0 < row["p50"] <= row["p99"]
        assert row["server_us"] > 0
        assert row["events_per_second"] <= 1.01 * row["tokens_per_second"]
        assert row["tokens_per_second"] <= 1.01 * row["made_per_second"]
    assert all(row["made_per_second"] < 2400 for row in rows[2:4])
    assert all(row["ratio"] > 0 for row in rows[1::2])


@pytest.mark.parametrize("coalesce", [False, True])
def test_each_token_comes_once_and_in_order(model: str, coalesce: bool) -> None:
    with stream._server(model, 6, 40, coalesce, None) as url:
        delivery = asyncio.run(stream.deliver(url, 6, 40))
    full, counts = np.unique(delivery.steps, return_counts=True)
    assert set(counts.tolist()) == {6}  # each step in which all streams ran made one token of each
    assert full.tolist() == list(range(full[0], full[-1] + 1))
    assert delivery.latencies().min() > 0
    messages, tokens = len(delivery.message_times), len(delivery.steps)
    assert messages <= tokens if coalesce else messages == tokens


def test_tokens_out_of_order_are_noticed() -> None:
    answer = stream._TimedCompletion(Wanted(3))
    answer.tokens = array("i", [1001, 1003, 1002])
    with pytest.raises(VGLMError, match="token 2 is of step 2, the one before of 3"):
        stream._steps(answer, 9)
    answer.tokens = array("i", [1001, 1003])
    assert stream._steps(answer, 4).tolist() == [1, 3]
    with pytest.raises(VGLMError, match="there were 3 steps"):
        stream._steps(answer, 3)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(VGLMError, match=r"did not start: .*no-model.gguf"),
        stream._server(str(tmp_path / "no-model.gguf"), 1, 9, True, None),
    ):
        pass


def test_work_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="--tokens 3"):
        StreamWork(tokens=3)
    with pytest.raises(ConfigError, match="--pace 0"):
        StreamWork(paces=(0.0,))
