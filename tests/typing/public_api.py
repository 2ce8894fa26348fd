"""How a caller uses vGLM; pyright checks that the public types say what the documentation says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_type

import numpy as np
import numpy.typing as npt

from vglm import (
    LLM,
    CompletionOutput,
    EmbeddingOutput,
    Logprob,
    ModelError,
    RequestOutput,
    SamplingParams,
    ScoreOutput,
    StructuredOutputs,
    VGLMError,
)


def outputs(llm: LLM) -> list[str]:
    """generate and chat give RequestOutput, with text and completions."""
    results = llm.generate(["a", "b"], SamplingParams(max_tokens=4, temperature=0, stop=["\n"], logprobs=2))
    assert_type(results, list[RequestOutput])
    first = results[0]
    assert_type(first.text, str)
    assert_type(first.outputs, list[CompletionOutput])
    assert_type(first.outputs[0].token_ids, list[int])
    assert_type(first.outputs[0].logprobs, list[dict[int, Logprob]] | None)
    llm.generate([[1, 2, 3], [4]], [SamplingParams(), SamplingParams(n=2)])
    llm.generate({"prompt": "x", "prompt_embeds": {0: np.zeros(8, np.float32)}})
    llm.generate("x", SamplingParams(structured_outputs=StructuredOutputs(json={"type": "object"})))
    messages = [{"role": "user", "content": "hello"}]
    assert_type(llm.chat(messages), list[RequestOutput])
    return [output.text for output in results]


def streamed(llm: LLM) -> Iterator[str]:
    """stream yields chunks with text."""
    for chunk in llm.stream("a", SamplingParams(max_tokens=None)):
        yield chunk.text


def numbers(llm: LLM) -> tuple[npt.NDArray[np.float32], list[float]]:
    """encode gives vectors, score gives log-probabilities."""
    vectors = llm.encode(["a"])
    assert_type(vectors, list[EmbeddingOutput])
    scores = llm.score("a", ["b", "c"])
    assert_type(scores, list[ScoreOutput])
    return vectors[0].embedding, scores[0].token_logprobs


def load(path: str) -> LLM | None:
    """Errors are one family."""
    try:
        return LLM(path, dtype="bf16", max_num_seqs=8, kv_cache_memory="512M", threads=2)
    except ModelError:
        return None
    except VGLMError as error:
        raise SystemExit(str(error)) from error
