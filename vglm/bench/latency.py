"""How long a caller waits: time to the first token, between tokens, and what Python adds to a step."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

from vglm.bench.report import Report, Table
from vglm.bench.workload import fixed_length, percentile, random_prompts, run_steps
from vglm.console import progress_bar
from vglm.engine.core import EngineCore
from vglm.llm import LLM

_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """`repeats` rounds of `batch` requests that arrive together: `input_len` tokens in, `output_len` out."""

    input_len: int = 128
    output_len: int = 32
    repeats: int = 10
    batch: int = 8


def run(model: str, work: Latency, options: dict[str, Any]) -> Report:
    """Measure latencies at batch 1 and `work.batch`, and the overhead per step at batch 1 and 64."""
    llm = LLM(model, **options, enable_prefix_caching=False)
    run_steps(llm.engine, random_prompts(llm, 1, work.input_len), fixed_length(2))
    batches = sorted({1, work.batch})
    latency = Table(
        f"{work.input_len} + {work.output_len} tokens, milliseconds",
        [("batch", "batch", ",d"), ("figure", "figure", "")]
        + [(f"p{p}", f"p{p}", ".2f") for p in _PERCENTILES]
        + [("mean", "mean", ".2f"), ("count", "measured", ",d")],
        notes=["TTFT: arrival to first token. ITL: between two tokens. TPOT: a request's mean ITL."],
    )
    with progress_bar("latency", len(batches) * work.repeats + 2) as bar:
        for batch in batches:
            seconds: dict[str, list[float]] = {"TTFT": [], "ITL": [], "TPOT": []}
            for repeat in range(work.repeats):
                prompts = random_prompts(llm, batch, work.input_len, seed=repeat + 1)
                _measure(llm.engine, prompts, work.output_len, seconds)
                bar.advance(what=f"latency, batch {batch}")
            latency.rows += [_row(batch, name, values) for name, values in seconds.items() if values]
        overhead = Table(
            "Python outside the model, milliseconds per decode step",
            [
                ("batch", "batch", ",d"),
                ("mean", "mean", ".3f"),
                ("p99", "p99", ".3f"),
                ("steps", "steps", ",d"),
            ],
        )
        for batch in (1, min(64, llm.options.max_num_seqs)):
            overhead.rows.append(_overhead(llm, batch))
            bar.advance(what="overhead")
    settings = {
        "model": model,
        "dtype": llm.options.weight_dtype,
        "KV": llm.options.kv_dtype,
        "threads": llm.options.threads,
        "repeats": work.repeats,
    }
    return Report("latency", settings, [latency, overhead])


def _measure(
    engine: EngineCore, prompts: list[list[int]], output_len: int, seconds: dict[str, list[float]]
) -> None:
    """Run one round and add what it took, token by token."""
    times: list[list[float]] = [[] for _ in prompts]

    def stamp(request: int) -> Any:
        return lambda index, token: times[request].append(time.perf_counter())

    begin = time.perf_counter()
    for i, prompt in enumerate(prompts):
        engine.add_request(f"latency-{begin}-{i}", prompt, fixed_length(output_len), on_token=stamp(i))
    try:
        while engine.has_unfinished:
            engine.step()
    finally:
        engine.abort_all()
    for stamps in times:
        between = [b - a for a, b in itertools.pairwise(stamps)]
        seconds["TTFT"].append(stamps[0] - begin)
        seconds["ITL"] += between
        if between:
            seconds["TPOT"].append(sum(between) / len(between))


def _row(batch: int, name: str, values: list[float]) -> dict[str, Any]:
    shown = {f"p{p}": percentile(values, p) * 1e3 for p in _PERCENTILES}
    return {
        "batch": batch,
        "figure": name,
        **shown,
        "mean": sum(values) / len(values) * 1e3,
        "count": len(values),
    }


def _overhead(llm: LLM, batch: int) -> dict[str, Any]:
    prompts = random_prompts(llm, batch, 16, seed=batch)
    _, steps = run_steps(llm.engine, prompts, fixed_length(32))
    outside = [1e3 * (s.seconds - s.execute_seconds) for s in steps if not s.prompt_tokens]
    return {
        "batch": batch,
        "mean": sum(outside) / len(outside),
        "p99": percentile(outside, 99),
        "steps": len(outside),
    }
