"""Candidates per second: scored over their trie, against one request for each."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from vglm.bench.report import Report, Table
from vglm.bench.workload import random_prompts
from vglm.console import progress_bar
from vglm.errors import ConfigError, ModelError
from vglm.llm import LLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Lists of `sizes` names after a prompt of `prompt_len` tokens; of each, `alone` are scored one by one as well.

    `synthetic`: names made of random syllables instead of the diseases of the Human Phenotype Ontology.
    """

    sizes: tuple[int, ...] = (100, 1000, 5000)
    prompt_len: int = 500
    alone: int = 100
    repeats: int = 3
    synthetic: bool = False


def run(model: str, work: Candidates, options: dict[str, Any]) -> Report:
    """Measure both ways, each list `repeats` times, of which the fastest counts; the prompt is cached in both.

    Raises ConfigError when there are fewer names than asked for.
    """
    llm = LLM(model, **options)
    names, source = _names(max(work.sizes), work.synthetic)
    prompt = random_prompts(llm, 1, work.prompt_len)[0]
    llm.score_candidates(prompt, names[:1], end=False)  # touches weights and pages for the first time
    rows = []
    with progress_bar("candidates", len(work.sizes) * (work.repeats + 1)) as bar:
        for size in work.sizes:
            chosen = names[:size]
            tree = _fastest(llm, prompt, chosen, work.repeats, bar.advance)
            rows.append(tree | _one_by_one(llm, prompt, chosen[: work.alone], tree.pop("scores")))
            rows[-1]["speedup"] = rows[-1]["alone"] and rows[-1]["per_second"] / rows[-1]["alone"]
            bar.advance(1)
    table = Table(
        f"{source} after a prompt of {work.prompt_len} tokens",
        [
            ("candidates", "candidates", ",.0f"),
            ("tokens", "tokens", ",.0f"),
            ("rows", "rows computed", ",.0f"),
            ("seconds", "seconds", ".3f"),
            ("per_second", "candidates/s", ",.0f"),
            ("outside_model", "outside the model", ".1%"),
            ("alone", "one by one, candidates/s", ",.0f"),
            ("speedup", "speed-up", ".1f"),
            ("difference", "largest difference", ".1e"),
        ],
        rows,
        [f"one by one: {work.alone} of each list at most; difference of log-probabilities from them"],
    )
    settings = {
        "model": model,
        "dtype": llm.options.weight_dtype,
        "KV": llm.options.kv_dtype,
        "threads": llm.options.threads,
    }
    return Report("candidates", settings, [table])


def _fastest(llm: LLM, prompt: list[int], names: list[str], repeats: int, advance: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(repeats):
        metrics = llm.engine.metrics
        before = metrics.execute_time, metrics.prompt_tokens
        begin = time.perf_counter()
        scores = llm.score_candidates(prompt, names, end=False)
        seconds = time.perf_counter() - begin
        if not found or seconds < found["seconds"]:
            found = {
                "candidates": len(names),
                "tokens": sum(len(score.token_logprobs) for score in scores),
                "rows": metrics.prompt_tokens - before[1],
                "seconds": seconds,
                "per_second": len(names) / seconds,
                "outside_model": 1 - (metrics.execute_time - before[0]) / seconds,
                "scores": [score.logprob for score in scores],
            }
        advance(1)
    return found


def _one_by_one(llm: LLM, prompt: list[int], names: list[str], wanted: list[float]) -> dict[str, Any]:
    if not names:
        return {"alone": None, "difference": None}
    begin = time.perf_counter()
    outputs = [llm.score([prompt], [name], use_tqdm=False)[0] for name in names]
    seconds = time.perf_counter() - begin
    differences = [abs(output.logprob - score) for output, score in zip(outputs, wanted, strict=False)]
    return {"alone": len(names) / seconds, "difference": max(differences)}


def _names(count: int, synthetic: bool) -> tuple[list[str], str]:
    """Names to score, spread over all there are, and what they are."""
    names = [] if synthetic else _diseases()
    source = "diseases of the Human Phenotype Ontology"
    if not names:
        names, source = _made_up(count), "synthetic names"
    if len(names) < count:
        raise ConfigError(f"there are {len(names)} names, fewer than {count}; use --synthetic")
    order = np.random.default_rng(0).permutation(len(names))[:count]
    return [names[i] for i in order], source


def _diseases() -> list[str]:
    """Names of diseases with a space in front, as they would continue a text; none where they cannot be fetched."""
    from vglm.graph.hpo import load_hpo
    from vglm.model.pull import pull_hpo

    try:
        graph = load_hpo(pull_hpo()).graph
    except ModelError:
        return []
    return sorted({" " + graph.columns.names[i] for i in graph.nodes_of_type("disease")})


def _made_up(count: int) -> list[str]:
    """Names of two to four words that share stems as those of diseases do."""
    rng = np.random.default_rng(0)
    syllables = [a + b for a in "bcdfglmnprst" for b in ("a", "e", "i", "o", "en", "is")]
    words = ["".join(rng.choice(syllables, rng.integers(2, 5))) for _ in range(400)]
    found: set[str] = set()
    while len(found) < count:
        found.add(" " + " ".join(rng.choice(words, rng.integers(2, 5))))
    return sorted(found)
