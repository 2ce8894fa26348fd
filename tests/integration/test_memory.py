"""What the KV cache takes from the system, and gives back."""

from __future__ import annotations

from pathlib import Path

from vglm import LLM, SamplingParams

GREEDY = SamplingParams(max_tokens=6, temperature=0)


def test_compaction_gives_memory_back_and_changes_no_answer(tiny: Path, home: Path) -> None:
    llm = LLM(tiny, max_model_len=256, kv_cache_memory="64M")
    wide = [[1 + (i * 7 + j) % 200 for j in range(100)] for i in range(32)]
    llm.generate(wide, SamplingParams(max_tokens=40, temperature=0), use_tqdm=False)
    before = llm.generate(wide[5], GREEDY, use_tqdm=False)[0]
    committed = llm.stats().pool.committed
    released = llm.compact()
    pool = llm.stats().pool
    assert released > 0
    assert pool.committed == pool.used < committed
    after = llm.generate(wide[5], GREEDY, use_tqdm=False)[0]
    assert after.outputs[0].token_ids == before.outputs[0].token_ids
    assert after.num_cached_tokens == 96  # the pages were moved, not lost
    llm.engine.check_integrity()
