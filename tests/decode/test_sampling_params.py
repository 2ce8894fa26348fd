"""Sampling parameters: what is taken, what is refused and in which words."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from vglm.decode.sampling_params import SamplingParams
from vglm.errors import RequestError


def test_defaults_are_vllms() -> None:
    params = SamplingParams()
    assert (params.n, params.max_tokens, params.min_tokens) == (1, 16, 0)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.0, 0.0, 0.0)
    assert params.seed is params.logprobs is params.prompt_logprobs is params.logit_bias is None
    assert params.stop_strings == ()
    assert params.stop_ids == frozenset()
    assert params.detokenize
    assert params.skip_special_tokens
    assert not params.ignore_eos
    assert not params.include_stop_str_in_output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 1.0),
        ("n", True),
        ("n", "2"),
        ("n", None),
        ("max_tokens", 0),
        ("max_tokens", False),
        ("max_tokens", 2**31),
        ("min_tokens", -1),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", None),
        ("temperature", 10**400),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("logit_bias", [1, 2]),
        ("logit_bias", {"1": 2.0}),
        ("logit_bias", {-1: 2.0}),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {1: math.nan}),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", ["a", 1]),
        ("stop", b"a"),
        ("stop", 1),
        ("stop_token_ids", 5),
        ("stop_token_ids", "12"),
        ("stop_token_ids", [1.5]),
        ("stop_token_ids", [-1]),
        ("seed", 1.5),
        ("seed", True),
        ("seed", 2**64),
        ("logprobs", -2),
        ("logprobs", 1.0),
        ("prompt_logprobs", True),
        ("detokenize", 1),
        ("ignore_eos", "yes"),
        ("skip_special_tokens", None),
        ("include_stop_str_in_output", 0),
    ],
)
def test_unusable_values_are_refused_with_a_sentence(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert name in message
    assert "must be" in message
    assert message.endswith(".")
    assert len(message) < 250


def test_numbers_too_large_to_print_are_refused_too() -> None:
    with pytest.raises(RequestError, match="top_k is too large to print, but must be"):
        SamplingParams(top_k=10**5000)


def test_combinations_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(RequestError, match="min_tokens is 5, but must be at most max_tokens, which is 4"):
        SamplingParams(min_tokens=5, max_tokens=4)
    with pytest.raises(RequestError, match=r"stop is .* detokenize is False"):
        SamplingParams(stop="a", detokenize=False)
    assert SamplingParams(min_tokens=5, max_tokens=None).max_tokens is None


def test_values_are_normalised() -> None:
    params = SamplingParams(
        n=np.int64(2),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_p=1,
        top_k=-1,
        stop="end",
        stop_token_ids=[4, 4, 5],
        logit_bias={np.int32(3): 1},  # type: ignore[dict-item]
        seed=-1,
    )
    assert type(params.n) is int
    assert type(params.temperature) is float
    assert type(params.top_p) is float
    assert params.top_k == 0
    assert params.stop_strings == ("end",)
    assert params.stop_ids == {4, 5}
    assert params.logit_bias == {3: 1.0}
    assert params.seed is None
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
    assert SamplingParams(logit_bias={}).logit_bias is None


def test_cheap_questions() -> None:
    assert SamplingParams(temperature=0).greedy
    assert SamplingParams(temperature=1e-6).greedy
    assert not SamplingParams(temperature=0.01).greedy
    assert not SamplingParams().needs_penalties
    for name, value in (("repetition_penalty", 1.1), ("presence_penalty", 0.1), ("frequency_penalty", -0.1)):
        assert SamplingParams(**{name: value}).needs_penalties
    assert not SamplingParams(repetition_penalty=2).needs_output_penalties


def test_logprob_counts_are_bounded_by_the_vocabulary() -> None:
    params = SamplingParams(logprobs=-1, prompt_logprobs=500)
    assert params.num_logprobs(100) == 100
    assert params.num_prompt_logprobs(100) == 100
    assert SamplingParams(logprobs=0).num_logprobs(100) == 0
    assert SamplingParams().num_logprobs(100) is None


def test_each_completion_has_its_own_seed() -> None:
    params = SamplingParams(n=3, seed=2**64 - 1)
    assert [params.seed_for(i, drawn=9) for i in range(3)] == [2**64 - 1, 0, 1]
    assert SamplingParams(seed=-5).seed_for(0, drawn=9) == 2**64 - 5
    assert SamplingParams().seed_for(2, drawn=9) == 11


def test_token_ids_are_checked_against_the_vocabulary() -> None:
    SamplingParams(stop_token_ids=[99], logit_bias={99: 1}).check_vocabulary(100)
    with pytest.raises(RequestError, match="stop_token_ids is 100, but must be token ids below 100"):
        SamplingParams(stop_token_ids=[100]).check_vocabulary(100)
    with pytest.raises(RequestError, match="logit_bias is 100"):
        SamplingParams(logit_bias={100: 1}).check_vocabulary(100)


def test_parameters_are_values() -> None:
    params = SamplingParams(stop=["a"], logit_bias={1: 2})
    assert params == SamplingParams(stop="a", logit_bias={1: 2.0})
    assert hash(params) == hash(SamplingParams(stop="a", logit_bias={1: 2.0}))
    assert pickle.loads(pickle.dumps(params)) == params
    with pytest.raises(FrozenInstanceError):
        params.n = 2  # type: ignore[misc]
