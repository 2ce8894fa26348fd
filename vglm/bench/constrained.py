"""What grounded decoding costs and saves: tokens sampled under a mask against free ones, and walks whose forced tokens are
appended.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vglm import _native
from vglm.bench.report import Report, Table
from vglm.bench.synthetic_graph import synthetic_graph
from vglm.bench.workload import random_prompts
from vglm.console import progress_bar
from vglm.decode.grounded import GroundedDecoder, compile_grounding
from vglm.decode.grounded.decoder import GroundedText
from vglm.decode.sampling_params import SamplingParams
from vglm.engine.constraint import ConstraintFactory
from vglm.engine.request import Request
from vglm.graph.build import GraphBuilder
from vglm.graph.graph import Graph
from vglm.llm import LLM

_IDS = itertools.count()
_KINDS: dict[str, Any] = {
    "answer": {"count": 3},
    "walk": {"kind": "walk", "min_hops": 3},
    "mentions": "mentions",
    "json": {"schema": {"type": "array", "items": {"x-graph": "edge"}, "minItems": 2, "maxItems": 2}},
}
_WALK = {"kind": "walk", "min_hops": 3, "max_hops": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Constrained:
    """`nodes` and `edges` of the made-up graph; `tokens` generated for each request of the comparison with free decoding;
    `batches` of requests at once; `repeats` rounds, of which the median counts; `sizes`: names of graphs to compile for.
    """

    nodes: int = 20_000
    edges: int = 100_000
    tokens: int = 48
    batches: tuple[int, ...] = (1, 8, 32)
    repeats: int = 5
    sizes: tuple[int, ...] = (10, 1_000, 100_000)


class Sampled(GroundedText):
    """The same constraint when nothing is appended: forced tokens are sampled under their masks, one by one."""

    def _forced(self) -> list[int]:
        self._matcher.forced()
        self.finished = self._matcher.finished
        return []


@dataclass(frozen=True, slots=True)
class _Unforced:
    """Makes constraints that force nothing."""

    decoder: GroundedDecoder

    def start(self) -> Sampled:
        made = self.decoder.start()
        assert isinstance(made, GroundedText)
        return Sampled(*made.parts)


def run(model: str, work: Constrained, options: dict[str, Any]) -> Report:
    """Measure all of it. Raises ModelError and ConfigError as LLM does."""
    llm = LLM(model, **options)
    graph = synthetic_graph(work.nodes, work.edges)
    with progress_bar("constrained", 3 + len(work.batches) + len(work.sizes)) as bar:
        masks = _masks(llm, graph)
        bar.advance(what="cost per token")
        cost, cost_rows = _cost_table(), []
        for batch in work.batches:
            cost_rows.append(_cost(llm, graph, work, batch))
            bar.advance(what=f"cost per token, {batch} at once")
        cost.rows = cost_rows
        walks = _walks(llm, graph, work)
        bar.advance(what="compiling")
        compiling = _compile_table()
        for size in work.sizes:
            compiling.rows.append(_compiling(llm, size))
            bar.advance(what=f"compiling {size:,} names")
    settings = {
        "model": model,
        "dtype": llm.options.weight_dtype,
        "threads": llm.options.threads,
        "graph": f"{graph.num_nodes:,} nodes, {graph.num_edges:,} edges",
        "tokens": work.tokens,
        "repeats": work.repeats,
    }
    return Report("constrained", settings, [masks, cost, walks, compiling])


def _compile(llm: LLM, grounding: Any, graph: Graph) -> GroundedDecoder:
    return compile_grounding(grounding, graph, llm.tokenizer, llm.config.vocab_size, llm.config.eos_token_ids)


# ---- masks alone


def _masks(llm: LLM, graph: Graph) -> Table:
    """Microseconds of a mask and of taking a token over, along random texts."""
    table = Table(
        "Masks, microseconds",
        [
            ("kind", "kind", ""),
            ("mask", "a mask", ".1f"),
            ("mask_p99", "p99", ".1f"),
            ("token", "taking a token over", ".1f"),
            ("sampled", "sampled", ",d"),
            ("forced", "forced", ",d"),
        ],
        notes=["Along texts that choose from their masks at random; without the model."],
    )
    for kind, grounding in _KINDS.items():
        decoder = _compile(llm, grounding, graph)
        table.rows.append({"kind": kind, **_random_texts(llm, decoder, 40 if kind == "mentions" else 200)})
    return table


def _random_texts(llm: LLM, decoder: GroundedDecoder, count: int) -> dict[str, Any]:
    row = np.zeros(-(-llm.config.vocab_size // 32), np.uint32)
    masks, taken, forced = [], [], 0
    for seed in range(count):
        text, rng = decoder.start(), random.Random(seed)
        forced += len(text.begin())
        for _ in range(100):
            if text.finished:
                break
            begin = time.perf_counter()
            text.fill_mask(row)
            masks.append(time.perf_counter() - begin)
            allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
            token = int(rng.choice(allowed))
            if token in llm.config.eos_token_ids:
                break
            begin = time.perf_counter()
            forced += len(text.accept(token))
            taken.append(time.perf_counter() - begin)
    return {
        "mask": statistics.fmean(masks) * 1e6,
        "mask_p99": float(np.percentile(masks, 99)) * 1e6,
        "token": statistics.fmean(taken) * 1e6,
        "sampled": len(masks),
        "forced": forced,
    }


# ---- against free decoding


def _cost_table() -> Table:
    return Table(
        "Milliseconds of a step: free text, and text whose mentions are entities",
        [
            ("batch", "requests at once", ",d"),
            ("free", "free", ".3f"),
            ("constrained", "constrained", ".3f"),
            ("cost", "cost per sampled token, %", "+.1f"),
        ],
        notes=["Every token is sampled in both. Rounds alternate; their medians."],
    )


def _cost(llm: LLM, graph: Graph, work: Constrained, batch: int) -> dict[str, Any]:
    decoder = _compile(llm, "mentions", graph)
    prompts = random_prompts(llm, batch, 32, seed=batch)
    params = SamplingParams(max_tokens=work.tokens, min_tokens=work.tokens, temperature=1.0, seed=1)
    seconds: dict[str, list[float]] = {"free": [], "constrained": []}
    for repeat in range(work.repeats + 1):
        for name, constraint in (("free", None), ("constrained", decoder)):
            steps = _decode_steps(llm, prompts, params, constraint)
            if repeat:  # the first round warms up
                seconds[name] += steps
    free, constrained = (statistics.median(seconds[name]) * 1e3 for name in ("free", "constrained"))
    return {"batch": batch, "free": free, "constrained": constrained, "cost": 100 * (constrained / free - 1)}


def _decode_steps(
    llm: LLM, prompts: Sequence[list[int]], params: SamplingParams, constraint: ConstraintFactory | None
) -> list[float]:
    """Seconds of each step after the prompts."""
    _add(llm, prompts, params, constraint)
    steps = []
    while llm.engine.has_unfinished:
        begin = time.perf_counter()
        llm.engine.step()
        steps.append(time.perf_counter() - begin)
    return steps[1:]


def _add(
    llm: LLM, prompts: Sequence[list[int]], params: SamplingParams, constraint: ConstraintFactory | None
) -> list[Request]:
    add = llm.engine.add_request
    return [add(f"constrained-{next(_IDS)}", prompt, params, constraint=constraint) for prompt in prompts]


# ---- what forced tokens save


def _walks(llm: LLM, graph: Graph, work: Constrained) -> Table:
    table = Table(
        "Walks of three edges",
        [
            ("batch", "walks at once", ",d"),
            ("tokens", "tokens of a walk", ".1f"),
            ("sampled", "of them sampled", ".1f"),
            ("free", "free, tokens/s", ",.0f"),
            ("unforced", "all sampled, tokens/s", ",.0f"),
            ("forced", "forced appended, tokens/s", ",.0f"),
            ("speedup", "speed-up", ".2f"),
            ("over_free", "over free text", ".2f"),
        ],
        notes=["All sampled: the same walks, token by token under masks. Free: as many tokens of free text."],
    )
    decoder = _compile(llm, _WALK, graph)
    for batch in sorted({1, work.batches[-1]}):
        table.rows.append(_walk_speed(llm, decoder, work, batch))
    return table


def _walk_speed(llm: LLM, decoder: GroundedDecoder, work: Constrained, batch: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"free": [], "unforced": [], "forced": []}
    tokens = sampled = walks = 0
    for repeat in range(work.repeats + 1):
        prompts = random_prompts(llm, batch, 32, seed=100 + repeat)
        params = SamplingParams(max_tokens=400, temperature=1.0, seed=repeat)
        length = SamplingParams(max_tokens=work.tokens, min_tokens=work.tokens, temperature=1.0, seed=repeat)
        each: tuple[tuple[str, SamplingParams, ConstraintFactory | None], ...] = (
            ("free", length, None),
            ("unforced", params, _Unforced(decoder)),
            ("forced", params, decoder),
        )
        for name, wanted, constraint in each:
            begin, before = time.perf_counter(), llm.engine.metrics.num_steps
            requests = _add(llm, prompts, wanted, constraint)
            while llm.engine.has_unfinished:
                llm.engine.step()
            seconds = time.perf_counter() - begin
            generated = sum(len(s.output_token_ids) for r in requests for s in r.sequences)
            if repeat:
                rates[name].append(generated / seconds)
            if name == "forced" and batch == 1:
                sampled += llm.engine.metrics.num_steps - before
            if name == "forced":
                tokens, walks = tokens + generated, walks + batch
    free, unforced, forced = (statistics.median(rates[name]) for name in rates)
    return {
        "batch": batch,
        "tokens": tokens / walks,
        "sampled": sampled / walks if sampled else None,
        "free": free,
        "unforced": unforced,
        "forced": forced,
        "speedup": forced / unforced,
        "over_free": forced / free,
    }


# ---- compiling


def _compile_table() -> Table:
    return Table(
        "Compiling, milliseconds",
        [
            ("names", "names", ",d"),
            ("first", "first", ".2f"),
            ("edited", "after an edit", ".2f"),
            ("sorted", "names sorted again", ",d"),
            ("again", "again", ".4f"),
            ("memory", "index, MB", ".1f"),
        ],
        notes=[
            "An answer; the vocabulary is known. After an edit: another graph, one of whose names differs."
        ],
    )


def _compiling(llm: LLM, size: int) -> dict[str, Any]:
    names = synthetic_graph(size, 1, seed=size)
    _compile(llm, "answer", _named(["warm", "up"]))
    first, edited = (
        _named([f"{name} {i}" for i, name in enumerate(_names(names))], edit) for edit in (False, True)
    )
    times, decoder = [], None
    for graph in (first, edited, edited):
        begin = time.perf_counter()
        decoder = _compile(llm, "answer", graph)
        times.append((time.perf_counter() - begin) * 1e3)
    assert decoder is not None
    index: _native.StringIndex = decoder.names
    return {
        "names": size,
        "first": times[0],
        "edited": times[1],
        "sorted": index.sorted_afresh,
        "again": times[2],
        "memory": index.nbytes / 1e6,
    }


def _names(graph: Graph) -> list[str]:
    return list(graph.columns.names)


def _named(names: list[str], edit: bool = False) -> Graph:
    builder = GraphBuilder()
    for number, name in enumerate(names):
        builder.add_node(f"N{number:07}", "an edited name" if edit and number == len(names) // 2 else name)
    return builder.build()
