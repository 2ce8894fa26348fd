"""Tokens per second with many requests at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vglm.bench.report import Report, Table
from vglm.bench.workload import Step, fixed_length, random_prompts, run_steps, text_prompts
from vglm.console import progress_bar
from vglm.llm import LLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """`num_prompts` of `input_len` tokens (cut from the file `text`), `output_len` tokens out of each."""

    num_prompts: int = 64
    input_len: int = 256
    output_len: int = 64
    text: Path | None = None


def run(model: str, work: Throughput, options: dict[str, Any]) -> Report:
    """Measure prefill, decode and both together."""
    llm = LLM(model, **options, enable_prefix_caching=False)
    if work.text is None:
        prompts = random_prompts(llm, work.num_prompts, work.input_len)
    else:
        prompts = text_prompts(llm, work.text, work.num_prompts, work.input_len)
    run_steps(llm.engine, prompts[:1], fixed_length(2))  # touches weights and pages for the first time
    total = work.num_prompts * (2 * work.input_len + work.output_len)
    with progress_bar("throughput", total) as bar:

        def advance(step: Step) -> None:
            bar.advance(step.prompt_tokens + step.generation_tokens)

        _, prefill = run_steps(llm.engine, prompts, fixed_length(1), advance)
        _, both = run_steps(llm.engine, prompts, fixed_length(work.output_len), advance)
    decode = [step for step in both if not step.prompt_tokens]
    table = Table(
        f"{work.num_prompts} requests of {work.input_len} + {work.output_len} tokens",
        [
            ("phase", "phase", ""),
            ("tokens", "tokens", ",.0f"),
            ("seconds", "seconds", ".3f"),
            ("tokens_per_second", "tokens/s", ",.0f"),
            ("steps", "steps", ",.0f"),
            ("outside_model", "outside the model", ".1%"),
        ],
        [
            _row("prefill", prefill, sum(s.prompt_tokens for s in prefill)),
            _row("decode", decode, sum(s.generation_tokens for s in decode)),
            _row("both", both, sum(s.prompt_tokens + s.generation_tokens for s in both)),
        ],
        [f"requests/s, prompt and output: {work.num_prompts / sum(s.seconds for s in both):.2f}"],
    )
    settings = {
        "model": model,
        "dtype": llm.options.weight_dtype,
        "KV": llm.options.kv_dtype,
        "threads": llm.options.threads,
        "prompts": str(work.text) if work.text else "random tokens",
    }
    return Report("throughput", settings, [table])


def _row(phase: str, steps: list[Step], tokens: int) -> dict[str, Any]:
    seconds = sum(step.seconds for step in steps)
    inside = sum(step.execute_seconds for step in steps)
    return {
        "phase": phase,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else None,
        "steps": len(steps),
        "outside_model": 1 - inside / seconds if seconds else None,
    }
