"""The same model from a directory and from a GGUF file; every kind of question to every architecture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.gguf_files import ARCHITECTURES, convert_fixture, write_random_llama
from tests.integration.helpers import FIXTURES, TOKENS_OF_TINY, assert_idle, exact, mixed_requests
from tests.native.forward_helpers import log_softmax, packed
from tests.reference import Reference
from vglm import LLM, SamplingParams
from vglm.model.checkpoint import open_checkpoint

WITH_TOKENIZER = ("llama", "qwen3", "glm4")
CONVERTIBLE = [
    path.parent.name
    for path in sorted(FIXTURES.glob("*/expected.npz"))
    if json.loads((path.parent / "config.json").read_text())["architectures"][0] in ARCHITECTURES
]


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_packed_weights_of_both_sources_are_the_same_bytes(tmp_path: Path, name: str) -> None:
    directory = packed(open_checkpoint(FIXTURES / name), "bf16").arrays
    file = packed(open_checkpoint(convert_fixture(FIXTURES / name, tmp_path / "m.gguf")), "bf16").arrays
    assert directory.keys() == file.keys()
    assert all(np.array_equal(directory[key], file[key]) for key in directory)


@pytest.mark.parametrize("name", WITH_TOKENIZER)
def test_tokens_of_both_sources_are_the_same(tmp_path: Path, home: Path, name: str) -> None:
    prompts, params = mixed_requests(9, TOKENS_OF_TINY, 80)
    options = {"dtype": "bf16", "max_model_len": 256, "threads": 2}
    outputs = [
        LLM(model, **options).generate(prompts, params, use_tqdm=False)
        for model in (FIXTURES / name, convert_fixture(FIXTURES / name, tmp_path / "m.gguf"))
    ]
    for a, b in zip(*outputs, strict=True):
        assert [c.token_ids for c in a.outputs] == [c.token_ids for c in b.outputs]


@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
)
def test_every_gguf_format_runs_in_every_dtype(tmp_path: Path, home: Path, kind: str) -> None:
    """Log-probabilities are the reference's of the file's own values, as near as a dtype comes."""
    hidden = 256 if kind.endswith("K") else 64
    file = write_random_llama(tmp_path / "m.gguf", kind, hidden)
    checkpoint = open_checkpoint(file)
    tokens = [5, 200, 31, 77, 8, 120, 64, 9]
    logits = Reference(checkpoint.config, checkpoint.tensor).logits(tokens)
    expected = log_softmax(logits)[range(2, 7), tokens[3:]]
    for dtype, allowed in (("bf16", 0.06), ("int8", 0.25), ("int4", 0.25)):
        if dtype == "int4" and kind not in ("Q4_0", "Q4_1", "Q4_K"):
            allowed = 1.5  # quantised to 4 bits here
        llm = LLM(file, dtype=dtype, max_model_len=64, threads=1)
        (score,) = llm.score([tokens[:3]], [tokens[3:]], use_tqdm=False)
        assert np.abs(np.array(score.token_logprobs) - expected).max() < allowed * max(1.0, logits.std()), (
            dtype
        )


@pytest.mark.parametrize("name", WITH_TOKENIZER)
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_scores_and_embeddings_are_the_reference_s(home: Path, name: str, dtype: str) -> None:
    checkpoint = open_checkpoint(FIXTURES / name)
    reference = Reference(checkpoint.config, checkpoint.tensor)
    tokens = np.random.default_rng(3).integers(3, 261, 50).tolist()
    llm = LLM(FIXTURES / name, dtype=dtype, max_model_len=64)
    (score,) = llm.score([tokens[:20]], [tokens[20:]], use_tqdm=False)
    wanted = log_softmax(reference.logits(tokens))
    assert np.abs(np.array(score.token_logprobs) - wanted[range(19, 49), tokens[20:]]).mean() < 0.1
    (embedding,) = llm.encode([tokens], use_tqdm=False)
    states = reference.hidden_states(tokens).mean(axis=0)
    assert np.abs(embedding.embedding - states).max() < 0.15 * np.abs(states).max()
    greedy = llm.generate(
        [tokens], SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0), use_tqdm=False
    )
    assert greedy[0].prompt_logprobs is not None
    given = [
        entry[t].logprob for entry, t in zip(greedy[0].prompt_logprobs[1:], tokens[1:], strict=True) if entry
    ]
    assert np.abs(np.array(given) - wanted[range(49), tokens[1:]]).mean() < 0.1
    assert_idle(llm)


def test_stream_generate_and_score_agree(tmp_path: Path, home: Path) -> None:
    """One answer, seen in three ways: the text of the increments, the tokens, and their log-probabilities."""
    llm = LLM(FIXTURES / "llama", max_model_len=128)
    params = SamplingParams(max_tokens=30, temperature=0.8, seed=4, logprobs=0, ignore_eos=True)
    output = llm.generate("some text", params, use_tqdm=False)[0]
    chunks = list(llm.stream("some text", params))
    assert "".join(chunk.text for chunk in chunks) == output.text
    assert [t for chunk in chunks for t in chunk.token_ids] == output.outputs[0].token_ids
    assert chunks[-1].finish_reason == "length"
    (score,) = llm.score("some text", [output.outputs[0].token_ids], use_tqdm=False)
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    given = [entry[t].logprob for entry, t in zip(logprobs, output.outputs[0].token_ids, strict=True)]
    assert score.token_logprobs == given  # to the bit: one row at a time there, one prefill here


def test_embeddings_through_the_public_interface(home: Path) -> None:
    llm = LLM(FIXTURES / "llama", dtype="bf16", max_model_len=64)
    table = open_checkpoint(FIXTURES / "llama").tensor("embed_tokens")
    rounded = (table.view(np.uint32) + 0x8000 & 0xFFFF0000).view(
        np.float32
    )  # as packed (no ties in these values)
    params = SamplingParams(max_tokens=8, temperature=0, logprobs=2)
    plain = llm.generate([[5, 60, 7, 9]], params, use_tqdm=False)[0]
    given = {"prompt_token_ids": [5, 0, 7, 0], "prompt_embeds": {1: rounded[60], 3: rounded[9]}}
    same = llm.generate(given, params, use_tqdm=False)[0]
    assert exact(same)[1] == exact(plain)[1]
    other = {"prompt_token_ids": [5, 0, 7, 0], "prompt_embeds": {1: rounded[60], 3: rounded[10]}}
    assert exact(llm.generate(other, params, use_tqdm=False)[0])[1] != exact(plain)[1]
