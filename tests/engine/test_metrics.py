"""What the engine counts: every request once, in the right bucket, whatever becomes of it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from engine_helpers import drain, generate, greedy, make_engine, prompt

from vglm.engine.metrics import SECONDS, STEP_TOKENS, TOKENS, Histogram
from vglm.engine.request import RequestKind


@pytest.mark.parametrize("bounds", [SECONDS, TOKENS, STEP_TOKENS, (1.0,)])
def test_histogram_buckets(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
    values = np.random.default_rng(0).lognormal(1, 4, 1000)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    edges = [-np.inf, *bounds, np.inf]
    expected = [int(((values > low) & (values <= high)).sum()) for low, high in pairwise(edges)]
    assert histogram.counts == expected
    assert histogram.count == 1000
    assert histogram.mean == pytest.approx(values.mean())
    for q in (0.0, 0.5, 0.9, 1.0):
        exact = np.quantile(values, q, method="inverted_cdf")
        assert histogram.quantile(q) == min((b for b in bounds if b >= exact), default=np.inf)


def test_every_bound_that_vllm_dashboards_offer_as_a_target() -> None:
    time_to_first_token = (
        0.001,
        0.005,
        0.01,
        0.02,
        0.04,
        0.06,
        0.08,
        0.1,
        0.25,
        0.5,
        0.75,
        1,
        2.5,
        5,
        7.5,
        10,
        20,
    )
    per_output_token = (
        0.01,
        0.025,
        0.05,
        0.075,
        0.1,
        0.15,
        0.2,
        0.3,
        0.4,
        0.5,
        0.75,
        1,
        2.5,
        5,
        7.5,
        10,
        20,
        40,
        80,
    )
    request_latency = (
        0.3,
        0.5,
        0.8,
        1,
        1.5,
        2,
        2.5,
        5,
        10,
        15,
        20,
        30,
        40,
        50,
        60,
        120,
        240,
        480,
        960,
        1920,
        7680,
    )
    assert {*time_to_first_token, *per_output_token, *request_latency} <= set(SECONDS)


def test_each_finished_request_is_counted_once() -> None:
    engine = make_engine(max_num_batched_tokens=16)
    generate(engine, [prompt(9), prompt(20, 1)], [greedy(5), greedy(3, n=2)])
    generate(engine, [prompt(9)], greedy(1))
    engine.add_request("embed", prompt(7, 2), greedy(1), kind=RequestKind.ENCODE)
    drain(engine)
    m = engine.metrics
    assert m.request_prompt_tokens.total == 9 + 20 + 9 + 7
    assert m.request_generation_tokens.total == m.generation_tokens == 5 + 6 + 1
    assert m.request_max_generation_tokens.total == 5 + 3 + 1
    assert m.request_params_max_tokens.total == 5 + 3 + 1
    assert m.request_params_n.total == 1 + 2 + 1
    assert m.request_params_n.count == m.request_generation_tokens.count == 3
    assert m.prompt_tokens_cached == 8
    assert m.prompt_tokens + m.prompt_tokens_cached == m.request_prompt_tokens.total
    assert m.request_time_per_output_token.count == 2  # one token has no time per further token
    assert m.iteration_tokens.count == m.num_steps
    # Prompts, and every token that was fed back: all but the last one of each sequence.
    assert m.iteration_tokens.total == m.prompt_tokens + m.generation_tokens - 4
    for histogram in (m.request_prefill_time, m.request_decode_time, m.request_inference_time):
        assert histogram.count == 4
    assert m.request_prefill_time.total + m.request_decode_time.total == pytest.approx(
        m.request_inference_time.total
    )
    waited = m.request_queue_time.total + m.request_inference_time.total
    assert waited == pytest.approx(m.e2e_request_latency.total)


def test_a_request_that_ends_in_the_queue_has_no_inference_time() -> None:
    engine = make_engine(max_num_seqs=1, max_num_batched_tokens=16)
    engine.add_request("first", prompt(5), greedy(4))
    engine.add_request("second", prompt(6, 1), greedy(4))
    engine.step()
    engine.abort("second")
    drain(engine)
    m = engine.metrics
    assert m.requests_finished == {"abort": 1, "length": 1}
    assert m.request_inference_time.count == m.request_decode_time.count == 1
    assert m.request_prompt_tokens.total == 11
    assert m.request_generation_tokens.total == 4
    assert m.e2e_request_latency.count == 2
