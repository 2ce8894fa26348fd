"""100,000 tiny requests: does memory grow? Run by hand, about two minutes:

python -m tests.integration.leak [requests]

Prints the resident size as it goes; exits with 1 when the second half has added more than 4 MB.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.integration.helpers import TOKENS_OF_TINY, assert_idle, tiny_model
from tests.integration.test_robustness import resident
from vglm import LLM, SamplingParams

BATCH = 1000
ALLOWED = 4 << 20


def main(total: int) -> int:
    """Run `total` requests of every kind in batches; the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VGLM_HOME"] = folder
        llm = LLM(tiny_model(Path(folder)), max_model_len=128, kv_cache_memory="4M")
    rng = np.random.default_rng(0)
    begun, sizes = time.perf_counter(), []
    for batch in range(total // BATCH):
        prompts = [rng.integers(3, TOKENS_OF_TINY, 1 + k % 24).tolist() for k in range(BATCH)]
        params = [
            SamplingParams(
                max_tokens=1 + k % 3, n=1 + k % 2, logprobs=k % 3 or None, stop=["zq"] * (k % 5 == 0)
            )
            for k in range(BATCH)
        ]
        llm.generate(prompts, params, use_tqdm=False)
        if batch % 10 == 0:
            llm.encode(prompts[:50], use_tqdm=False)
            llm.score(prompts[:50], [[5, 6]] * 50, use_tqdm=False)
            for prompt in prompts[:20]:
                next(llm.stream(prompt, SamplingParams(max_tokens=50, ignore_eos=True)))
            gc.collect()
            sizes.append(resident())
            seconds = time.perf_counter() - begun
            print(
                f"{batch * BATCH + BATCH:7} requests  {seconds:6.1f} s  {sizes[-1] / 1e6:7.1f} MB", flush=True
            )
    assert_idle(llm)
    grown = sizes[-1] - sizes[len(sizes) // 2]
    print(f"the second half added {grown / 1e6:.1f} MB; {llm.stats().pool.used} blocks, all of idle spans")
    return int(grown > ALLOWED)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
