"""The same request gives the same tokens and log-probabilities, to the last bit, whatever runs beside it.

By design: a row's arithmetic does not depend on the rows computed with it, attention is merged per chunk of
256 slots in the order of the page table, and a request's random numbers depend on its seed and step alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.helpers import (
    DTYPES,
    TOKENS_OF_TINY,
    assert_idle,
    exact,
    mixed_requests,
    tiny_model,
)
from vglm import LLM, SamplingParams
from vglm.engine.executor import block_bytes
from vglm.model.pull import resolve_model

REQUESTS = 33
LENGTH = 512
#: options that must not change an output; with the first, one request at a time gives what is expected
SETTINGS: list[dict[str, Any]] = [
    {"threads": 1, "enable_prefix_caching": False},
    {"threads": 2},
    {"threads": 1, "enable_prefix_caching": False, "max_num_batched_tokens": 16, "max_num_seqs": 16},
    {"threads": 3, "max_num_batched_tokens": 17, "max_num_seqs": 5},
    {"threads": 2, "max_num_batched_tokens": 64},
    {"threads": 3, "max_num_batched_tokens": 512, "block_size": 64},
    {"threads": 2, "max_num_batched_tokens": 128, "blocks": LENGTH // 16 + 3},
]


def load(model: Path, dtype: str, kv: str, blocks: int | None = None, **options: Any) -> LLM:
    """An LLM; `blocks`: how many the KV cache has."""
    options = {"max_model_len": LENGTH, "max_num_seqs": 64, **options}
    if blocks is not None:
        probe = LLM(model, dtype=dtype, kv_cache_dtype=kv, max_model_len=LENGTH, max_num_seqs=1)
        options["kv_cache_memory"] = blocks * block_bytes(probe._packed, options.get("block_size", 16), kv)
    return LLM(model, dtype=dtype, kv_cache_dtype=kv, **options)


def check(
    model: Path, dtype: str, kv: str, requests: tuple[list[Any], list[SamplingParams]], some: list[int]
) -> None:
    prompts, params = requests
    one = load(model, dtype, kv, **SETTINGS[0])
    alone = [exact(one.generate([p], q, use_tqdm=False)[0]) for p, q in zip(prompts, params, strict=True)]
    assert_idle(one)
    for index in some:
        llm = load(model, dtype, kv, **SETTINGS[index])
        for round_number in range(2):  # the second finds its prefixes in the cache
            outputs = llm.generate(prompts, params, use_tqdm=False)
            for i, output in enumerate(outputs):
                assert exact(output) == alone[i], f"request {i}, {SETTINGS[index]}, round {round_number}"
        assert_idle(llm)
        stats = llm.stats()
        assert (stats.num_preemptions > 0 and stats.cache.evicted > 0) == ("blocks" in SETTINGS[index])
        if llm.options.enable_prefix_caching:
            assert stats.cache.hits > 0


@pytest.mark.parametrize(("dtype", "kv"), DTYPES)
def test_tiny(tiny: Path, home: Path, dtype: str, kv: str) -> None:
    check(
        tiny, dtype, kv, mixed_requests(REQUESTS, TOKENS_OF_TINY, outputs=70), list(range(1, len(SETTINGS)))
    )


@pytest.mark.parametrize("name", ["qwen3", "glm4"])
def test_other_architectures(tmp_path: Path, home: Path, name: str) -> None:
    check(
        tiny_model(tmp_path, name),
        "int8",
        "int8",
        mixed_requests(REQUESTS, TOKENS_OF_TINY, outputs=70),
        [3, 6],
    )


@pytest.mark.parametrize(("dtype", "kv"), [("bf16", "bf16"), ("int8", "int8"), ("int4", "int8")])
@pytest.mark.parametrize("isa", ["avx2", "portable", "amx_simulated"])
def test_every_instruction_set(
    tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch, isa: str, dtype: str, kv: str
) -> None:
    monkeypatch.setenv("VGLM_ISA", isa)
    count = 9 if isa == "amx_simulated" else REQUESTS
    check(tiny, dtype, kv, mixed_requests(count, TOKENS_OF_TINY, 150), [3])


@pytest.mark.parametrize(("dtype", "kv"), [("bf16", "bf16"), ("int8", "int8"), ("int4", "int8")])
def test_smollm2(dtype: str, kv: str) -> None:
    model = resolve_model("smollm2-135m-instruct")
    prompts, params = mixed_requests(7, 49152, 120)
    check(model, dtype, kv, (prompts, params), [3])


def test_text_of_smollm2_in_any_company() -> None:
    """A long greedy answer, by itself and between others that come and go."""
    llm = LLM("smollm2-135m-instruct", max_model_len=LENGTH, max_num_seqs=8, max_num_batched_tokens=48)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    params = SamplingParams(max_tokens=24, temperature=0, logprobs=0)
    alone = llm.chat(question, params, use_tqdm=False)[0]
    assert "Paris" in alone.text
    others = [[{"role": "user", "content": f"Count to {i}."}] for i in range(10)]
    many = [SamplingParams(max_tokens=1 + 2 * i, temperature=1, seed=i) for i in range(10)]
    again = llm.chat([*others[:5], question, *others[5:]], [*many[:5], params, *many[5:]], use_tqdm=False)[5]
    assert exact(again) == exact(alone)
    assert_idle(llm)


def test_requests_without_a_seed_draw_from_the_engine_s(tiny: Path, home: Path) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0)

    def run(seed: int) -> list[list[int]]:
        llm = LLM(tiny, max_model_len=64, threads=1, seed=seed)
        return [o.outputs[0].token_ids for o in llm.generate([[5, 6, 7]] * 4, params, use_tqdm=False)]

    first = run(1)
    assert run(1) == first
    assert run(2) != first
    assert len({tuple(tokens) for tokens in first}) > 1
