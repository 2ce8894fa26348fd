"""What outputs say about themselves."""

from __future__ import annotations

import numpy as np
import pytest

from vglm.decode.outputs import CompletionOutput, EmbeddingOutput, RequestMetrics, RequestOutput, ScoreOutput


def test_text_is_that_of_the_first_completion() -> None:
    output = RequestOutput("r", "Hello", [1, 2])
    assert output.text == ""
    output.outputs = [CompletionOutput(0, "one", [3]), CompletionOutput(1, "two", [4])]
    assert output.text == "one"


def test_a_completion_is_finished_when_it_has_a_reason() -> None:
    completion = CompletionOutput(0, "", [])
    assert not completion.finished
    completion.finish_reason = "length"
    assert completion.finished


def test_metrics_are_differences_of_times() -> None:
    metrics = RequestMetrics(arrival_time=10.0)
    assert metrics.ttft is metrics.tpot is metrics.time_in_queue is metrics.e2e_latency is None
    metrics.first_scheduled_time, metrics.first_token_time = 10.5, 11.0
    metrics.last_token_time, metrics.finished_time, metrics.num_generation_tokens = 13.0, 13.5, 5
    assert metrics.time_in_queue == 0.5
    assert metrics.ttft == 1.0
    assert metrics.tpot == 0.5
    assert metrics.e2e_latency == 3.5
    metrics.num_generation_tokens = 1
    assert metrics.tpot is None


def test_scores_add_up() -> None:
    score = ScoreOutput("r", [1], [2, 3], [-1.0, -3.0], [1, 2])
    assert score.logprob == -4.0
    assert score.mean_logprob == -2.0
    assert not score.is_greedy
    score.token_ranks = [1, 1]
    assert score.is_greedy
    with pytest.raises(ZeroDivisionError):
        _ = ScoreOutput("r", [1], [], [], []).mean_logprob


def test_representations_are_short() -> None:
    completion = CompletionOutput(0, "x" * 5000, list(range(5000)), finish_reason="stop", stop_reason="###")
    output = RequestOutput("r", "p" * 5000, list(range(5000)), [completion], True, num_cached_tokens=16)
    shown = repr(output)
    assert len(shown) < 500
    for part in (
        "prompt_tokens=5000",
        "cached=16",
        "tokens=5000",
        "finish_reason='stop'",
        "stop_reason='###'",
    ):
        assert part in shown
    assert "hidden_size=576" in repr(EmbeddingOutput("r", [1], np.zeros(576, np.float32)))
    assert "logprob=-1.5000" in repr(ScoreOutput("r", [1], [2], [-1.5], [1]))
