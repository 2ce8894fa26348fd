"""What `span_cache_dir` is worth after a restart: the time to the first token over a graph of spans, each run in a process of
its own.

    python bench/span_restart.py [--model NAME] [--spans 300] [--tokens 48] [--kv-cache-dtype int8|bf16] [--json FILE]

Rows: "nothing cached", the first run with a directory, which fills it; "spans on disk", the next one; "without a directory";
and for both of the latter "again", a second question over the same graph, whose spans are in memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def measure(model: str, directory: str, num_spans: int, tokens: int, kv: str) -> dict[str, Any]:
    """Load the model and ask twice about a graph: a prefix and `num_spans` spans that see it."""
    from vglm import LLM, SamplingParams
    from vglm.engine.request import SpanSpec

    started = time.perf_counter()
    llm = LLM(model, kv_cache_dtype=kv, span_cache_dir=directory or None, kv_cache_memory="2G")
    loaded = time.perf_counter() - started
    rng = np.random.default_rng(0)
    vocab = llm.config.vocab_size

    def draw(count: int) -> Any:
        return rng.integers(100, vocab, count).astype(np.int32)

    prefix = SpanSpec(draw(64), 0)
    specs = [prefix, *(SpanSpec(draw(tokens), 64, (0,)) for _ in range(num_spans))]
    question = draw(24).tolist()
    params = SamplingParams(max_tokens=8, temperature=0, logprobs=0)
    engine = llm.engine
    result: dict[str, Any] = {"load": loaded, "ttft": []}
    for number in range(2):
        request = engine.add_request(
            f"q{number}", question, params, span_specs=specs, first_position=64 + tokens
        )
        while engine.has_unfinished:
            engine.step()
        assert request.error is None, request.error
        result["ttft"].append(request.first_token_time - request.arrival_time)
    result["answer"] = [entry.logprob.hex() for entry in request.sequences[0].logprobs]
    disk = engine.cache.stats.disk
    if disk is not None:
        assert engine.cache.store is not None
        engine.cache.store.flush()
        result |= {
            "hits": disk.hits,
            "written": disk.written,
            "dropped": disk.dropped,
            "disk_bytes": disk.num_bytes,
        }
    return result


def in_a_process(*arguments: str) -> dict[str, Any]:
    """`measure` in a new process."""
    output = subprocess.run(
        [sys.executable, __file__, "--child", *arguments], check=True, capture_output=True, text=True
    ).stdout
    result: dict[str, Any] = json.loads(output)
    return result


def main() -> None:
    """Run the three processes and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--spans", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shape = str(options.spans), str(options.tokens), options.kv_cache_dtype
    with tempfile.TemporaryDirectory() as directory:
        runs = {
            "nothing cached": in_a_process(options.model, directory, *shape),
            "spans on disk": in_a_process(options.model, directory, *shape),
            "without a directory": in_a_process(options.model, "", *shape),
        }
    answers = {tuple(run["answer"]) for run in runs.values()}
    assert len(answers) == 1, "the answers differ"
    for name, run in runs.items():
        first, again = (1000 * seconds for seconds in run["ttft"])
        print(f"{name:20}  load {run['load']:5.2f} s   TTFT {first:8.1f} ms   again {again:6.1f} ms", end="")
        print(f"   from disk {run['hits']}, written {run['written']}" if "hits" in run else "")
    gain = runs["without a directory"]["ttft"][0] / runs["spans on disk"]["ttft"][0]
    size = runs["spans on disk"]["disk_bytes"] / (1 << 20)
    print(f"{gain:.1f} times faster to the first token; {size:.0f} MiB on disk; the same bits")
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        model, directory, spans, tokens, kv = sys.argv[2:]
        print(json.dumps(measure(model, directory, int(spans), int(tokens), kv)))
    else:
        main()
