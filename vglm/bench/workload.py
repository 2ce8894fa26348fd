"""Prompts for benchmarks, and driving the engine step by step with a clock."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.core import EngineCore
from vglm.engine.request import Request
from vglm.errors import ConfigError
from vglm.llm import LLM

_IDS = itertools.count()
_DEFINITION = re.compile(r'^def: "((?:[^"\\]|\\.)*)"', re.MULTILINE)


def random_prompts(llm: LLM, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Token ids without meaning: the work does not depend on what the tokens say."""
    rng = np.random.default_rng(seed)
    ids: list[list[int]] = rng.integers(0, llm.config.vocab_size, (count, length)).tolist()
    return ids


def text_prompts(llm: LLM, file: Path, count: int, length: int) -> list[list[int]]:
    """Consecutive pieces of `length` tokens of a text file. Raises ConfigError when the text is too short."""
    tokens = read_tokens(llm, file)
    if len(tokens) < count * length:
        raise ConfigError(
            f"{file} has {len(tokens)} tokens; {count} prompts of {length} need {count * length}"
        )
    return [tokens[i * length : (i + 1) * length] for i in range(count)]


def read_tokens(llm: LLM, file: Path) -> list[int]:
    """The tokens of a text file."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text (byte {error.start})") from error
    return llm.tokenizer.encode(text, add_special=False)


def ontology_text() -> str:
    """The definitions of the Human Phenotype Ontology's terms: 17,000 sentences written by people."""
    from vglm.model.pull import pull_hpo

    obo = (pull_hpo() / "hp.obo").read_text(encoding="utf-8")
    return "\n".join(match.replace('\\"', '"') for match in _DEFINITION.findall(obo))


@dataclass(slots=True)
class Step:
    """One step of the engine: seconds in all and in the executor; tokens of prompts and of outputs."""

    seconds: float
    execute_seconds: float
    prompt_tokens: int
    generation_tokens: int


def run_steps(
    engine: EngineCore,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    on_step: Callable[[Step], None] = lambda _: None,
) -> tuple[list[Request], list[Step]]:
    """Run prompts to their end in one engine, all added at once; what every step did, in order."""
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    requests, steps = [], []
    metrics = engine.metrics
    try:
        for prompt, own in zip(prompts, each, strict=True):
            requests.append(engine.add_request(f"bench-{next(_IDS)}", prompt, own))
        while engine.has_unfinished:
            before = (metrics.execute_time, metrics.prompt_tokens, metrics.generation_tokens)
            begin = time.perf_counter()
            engine.step()
            seconds = time.perf_counter() - begin
            after = (metrics.execute_time, metrics.prompt_tokens, metrics.generation_tokens)
            execute, prompt_tokens, generated = (b - a for a, b in zip(before, after, strict=True))
            steps.append(Step(seconds, float(execute), int(prompt_tokens), int(generated)))
            on_step(steps[-1])
    finally:
        for request in requests:
            engine.abort(request.request_id)
    return requests, steps


def fixed_length(tokens: int) -> SamplingParams:
    """Exactly `tokens` greedy tokens."""
    return SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile (0..100), linear between values."""
    return float(np.percentile(np.asarray(values), q))
