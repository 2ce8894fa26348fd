"""The contract of evaluation harnesses: lm-eval's local-completions, held without it.

Its requests are built here as it builds them and its answers read as it reads them (lm-eval 0.4), so that a change which
would bend its figures fails here: the log-likelihoods must be the offline ones, bit for bit.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import Any

import httpx
import pytest

from vglm import LLM, SamplingParams

TASK = [  # context, continuations
    ("The capital of France is", [" Paris", " Rome", " a city that lies on the Seine"]),
    ("Two plus two equals", [" five", " four", " seven hundred"]),
    ("The sun rises in the", [" west", " north", " east"]),
    ("def f(x):\n    return", [" x", " None\n", " f(x) + naïve \U0001f600"]),
]
Pair = tuple[list[int], list[int]]  # tokens of a context and of a continuation


class RemoteTokenizer:
    """The tokenizer as the harness uses one from afar: `tokenizer_backend="auto"` finds these three paths."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.info = http.get("/tokenizer_info").raise_for_status().json()
        assert "eos_token" in self.info

    def encode(self, text: str) -> list[int]:
        answer = self._http.post("/tokenize", json={"prompt": text, "add_special_tokens": False})
        tokens: list[int] = answer.raise_for_status().json()["tokens"]
        return tokens

    def decode(self, tokens: list[int]) -> str:
        text: str = (
            self._http.post("/detokenize", json={"tokens": tokens}).raise_for_status().json()["prompt"]
        )
        return text


@pytest.fixture(scope="module")
def tokenizer(http: httpx.Client) -> RemoteTokenizer:
    return RemoteTokenizer(http)


def encode_pair(tokenizer: RemoteTokenizer, context: str, continuation: str) -> Pair:
    """A continuation's tokens are what the whole has beyond the context's."""
    whole, before = tokenizer.encode(context + continuation), tokenizer.encode(context)
    return before, whole[len(before) :]


def pairs_of(tokenizer: RemoteTokenizer) -> list[Pair]:
    return [encode_pair(tokenizer, context, one) for context, many in TASK for one in many]


def loglikelihoods(
    http: httpx.Client, model: str, prompts: Any, ctxlens: list[int]
) -> list[tuple[float, bool]]:
    """(log-likelihood, is greedy) of what follows each context, in one request."""
    body = {
        "model": model, "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True,
    }  # fmt: skip
    answer = http.post("/v1/completions", json=body)
    choices = sorted(answer.raise_for_status().json()["choices"], key=itemgetter("index"))
    assert len(choices) == len(ctxlens)
    out = []
    for choice, ctxlen in zip(choices, ctxlens, strict=True):
        told = choice["logprobs"]["token_logprobs"][ctxlen:-1]
        tops = choice["logprobs"]["top_logprobs"][ctxlen:-1]
        greedy = all(one == max(top.values()) for one, top in zip(told, tops, strict=True))
        out.append((sum(told), greedy))
    return out


def offline(llm: LLM, pairs: list[Pair]) -> list[tuple[float, bool]]:
    outputs = llm.score([before for before, _ in pairs], [after for _, after in pairs], use_tqdm=False)
    return [(output.logprob, output.is_greedy) for output in outputs]


def batches(items: list[Any], size: int) -> list[list[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


@pytest.mark.parametrize("size", [1, 4, 12])
def test_loglikelihoods_of_token_lists_are_the_offline_ones(
    http: httpx.Client, llm: LLM, model: str, tokenizer: RemoteTokenizer, size: int
) -> None:
    pairs = sorted(pairs_of(tokenizer), key=lambda pair: -len(pair[0] + pair[1]))
    told = []
    for batch in batches(pairs, size):
        prompts = [before + after for before, after in batch]
        told += loglikelihoods(http, model, prompts, [len(before) for before, _ in batch])
    assert told == offline(llm, pairs)
    assert {greedy for _, greedy in told} == {True, False}, "the task has both kinds"


def test_loglikelihoods_of_concurrent_requests(
    http: httpx.Client, llm: LLM, model: str, tokenizer: RemoteTokenizer
) -> None:
    pairs = pairs_of(tokenizer)
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(
            lambda batch: loglikelihoods(http, model, [b + a for b, a in batch], [len(b) for b, _ in batch]),
            batches(pairs, 2),
        )
        assert [one for part in parts for one in part] == offline(llm, pairs)


def test_loglikelihoods_of_text(http: httpx.Client, llm: LLM, model: str, tokenizer: RemoteTokenizer) -> None:
    """With `tokenized_requests=False`: decoded again before they are sent, one as a string and many as a list."""
    pairs = pairs_of(tokenizer)
    texts = [tokenizer.decode(before + after) for before, after in pairs]
    expected = offline(llm, pairs)
    assert loglikelihoods(http, model, texts, [len(before) for before, _ in pairs]) == expected
    assert loglikelihoods(http, model, texts[0], [len(pairs[0][0])]) == expected[:1]


def test_rolling_loglikelihoods_begin_with_the_prefix_token(
    http: httpx.Client, llm: LLM, model: str, tokenizer: RemoteTokenizer
) -> None:
    (prefix,) = tokenizer.encode(tokenizer.info["bos_token"] or tokenizer.info["eos_token"])
    pairs = [([prefix], tokenizer.encode(context)) for context, _ in TASK]
    told = loglikelihoods(http, model, [before + after for before, after in pairs], [1] * len(pairs))
    assert told == offline(llm, pairs)


def test_a_context_is_cut_so_that_one_token_can_be_generated(
    http: httpx.Client, llm: LLM, model: str, tokenizer: RemoteTokenizer
) -> None:
    longest = tokenizer.info["model_max_length"] - 1
    words = tokenizer.encode("one two three four five ") * longest
    before, after = words[: longest - 3], words[longest - 3 : longest]
    assert loglikelihoods(http, model, [before + after], [len(before)]) == offline(llm, [(before, after)])


@pytest.mark.parametrize("as_tokens", [True, False])
def test_generations_end_before_their_stop_strings(
    http: httpx.Client, llm: LLM, model: str, tokenizer: RemoteTokenizer, as_tokens: bool
) -> None:
    contexts = [context for context, _ in TASK]
    stop = ["\n", ".", tokenizer.info["eos_token"]]
    body = {
        "prompt": [tokenizer.encode(context) for context in contexts] if as_tokens else contexts,
        "model": model, "max_tokens": 16, "temperature": 0, "stop": stop, "seed": 1234,
    }  # fmt: skip
    choices = http.post("/v1/completions", json=body).raise_for_status().json()["choices"]
    texts: list[str | None] = [None] * len(choices)
    for choice in choices:
        texts[choice["index"]] = choice["text"]
    params = SamplingParams(max_tokens=16, temperature=0, stop=stop)
    assert texts == [output.text for output in llm.generate(contexts, params, use_tqdm=False)]
