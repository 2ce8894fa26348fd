"""`vglm train adapter` and `vglm distill`: a graph language model from a base model, graphs and questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vglm.graph.graph import Graph
    from vglm.train.program import Plan

DISTILL_EPILOG = (
    "Examples:\n\n"
    "vglm distill my-teacher my-graph.json --out my-model\n\n"
    "vglm distill teacher hpo --data DATA --out open-autoglm-v1 && vglm export ./open-autoglm-v1 --out int8"
)
ADAPTER_EPILOG = (
    "Examples:\n\n"
    "vglm train adapter my-graph.json --out my-model\n\n"
    "vglm train adapter hpo --data DATA --out teacher   (the lessons of open-autoglm-v1)\n\n"
    "vglm train adapter hpo --data DATA --from teacher --share suggestion=0.6 --steps 200 --out more"
)
Graphs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[GRAPH]...", help="Graph files, folders of triples, names in the store, or hpo."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The model's directory; the training resumes there.")]
Data = Annotated[
    Path | None, typer.Option(help="Folder with question sets and graphs, as docs/training.md lays it out.")
]
Base = Annotated[str, typer.Option(help="The base model: a Llama-like instruct model.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps; 3 to 6 seconds each on two cores.")]
Rate = Annotated[float, typer.Option("--learning-rate", min=1e-7, max=1.0, help="Highest learning rate.")]
Rank = Annotated[int, typer.Option(min=1, max=256, help="Rank of the adapter.")]
Seed = Annotated[int, typer.Option(help="Of everything that is random.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processors to use; default: all.")]
Shares = Annotated[
    list[str] | None,
    typer.Option(
        "--share",
        metavar="LESSON=SHARE",
        help="Share of a lesson among the batches, relative to the others; may be repeated. Lessons: reading, world, "
        "suggestion, stance, connectivity, cycle, shape, general.",
    ),
]
Begin = Annotated[
    Path | None, typer.Option("--from", help="A model's directory to go on from, instead of its base.")
]
Compiled = Annotated[
    bool, typer.Option("--compile/--no-compile", help="Fuse operations: twice as fast, needs a C++ compiler.")
]


def adapter(
    graphs: Graphs = None,
    *,
    out: Out,
    data: Data = None,
    base: Base = "smollm2-135m-instruct",
    steps: Steps = 900,
    learning_rate: Rate = 4e-4,
    rank: Rank = 16,
    share: Shares = None,
    begin: Begin = None,
    seed: Seed = 0,
    threads: Threads = None,
    compiled: Compiled = True,
) -> None:
    """Train a language model to read graphs: a low-rank adapter for a base model, on the engine's own prompts and masks.

    Lessons are made from the graphs themselves, so no questions need be written; where a graph has diseases with
    phenotypes, explanations of suggestions are lessons too. Ctrl-C stops after a step; the same command resumes. The result
    is a directory that `vglm generate`, `vglm serve` and LLM() open. Needs vglm\\[train].
    """
    from vglm.train.program import train_model

    options = _options(steps, learning_rate, rank, compiled)
    plan = _plan(graphs or [], out, data, base, seed, threads, options)
    print(train_model(replace(plan, shares=_shares(share or []), begin=begin)))


def distill(
    teacher: Annotated[Path, typer.Argument(help="A model's directory that `vglm train adapter` wrote.")],
    graphs: Graphs = None,
    *,
    out: Out,
    data: Data = None,
    base: Base = "smollm2-135m-instruct",
    steps: Steps = 400,
    learning_rate: Rate = 2e-4,
    rank: Rank = 16,
    share: Shares = None,
    seed: Seed = 0,
    threads: Threads = None,
    compiled: Compiled = True,
) -> None:
    """Distil a model, second of three steps: train (a teacher), distil (a student), export (quantised weights).

    The teacher reads a graph as one text and sees all of it; the student reads spans, each by itself, as they are cached, and
    learns to predict what the teacher predicts. It begins as the teacher. Needs vglm\\[train].
    """
    from vglm.train.program import distill_model

    options = _options(steps, learning_rate, rank, compiled)
    plan = _plan(graphs or [], out, data, base, seed, threads, options)
    print(distill_model(replace(plan, shares=_shares(share or [])), teacher))


def _options(steps: int, learning_rate: float, rank: int, compiled: bool) -> dict[str, float | int | bool]:
    return {
        "steps": steps,
        "learning_rate": learning_rate,
        "rank": rank,
        "alpha": 2.0 * rank,
        "compiled": compiled,
    }


def _shares(given: Sequence[str]) -> dict[str, float]:
    """Shares by lesson, of arguments like `stance=0.6`. Raises ConfigError."""
    from vglm.errors import ConfigError

    shares = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            shares[name] = float(number)
        except ValueError:
            shares[name] = math.nan
        if not 0 <= shares[name] < math.inf:
            raise ConfigError(f"--share {text}: give a lesson and a number from 0 on, as in stance=0.6")
    return shares


def _plan(
    graphs: Sequence[str],
    out: Path,
    data: Path | None,
    base: str,
    seed: int,
    threads: int | None,
    options: dict[str, float | int | bool],
) -> Plan:
    from vglm.errors import ConfigError
    from vglm.train.adapter import AdapterOptions
    from vglm.train.program import Plan
    from vglm.train.sources import training_graphs

    if data is not None and not data.is_dir():
        raise ConfigError(f"--data {data}: no such folder")
    found = [named_graph(name) for name in graphs]
    if data is not None:
        found += training_graphs(data)
    return Plan(
        out,
        found,
        data,
        base,
        seed=seed,
        threads=threads,
        options=AdapterOptions(**options),  # type: ignore[arg-type]  # by name
    )


def named_graph(name: str) -> Graph:
    """A graph that an argument names: `hpo`, a file, a folder of triples (its training part), or a graph in the store.

    Raises GraphError when there is none, and for one without edges, of which nothing can be learnt.
    """
    from vglm.errors import GraphError

    graph = _read(name)
    if not graph.num_edges:
        raise GraphError(f"{name}: has no edges, so there is nothing to learn from it")
    return graph


def _read(name: str) -> Graph:
    from vglm.errors import GraphError, UnknownGraphError
    from vglm.graph.graph import Graph
    from vglm.graph.hpo import load_hpo
    from vglm.graph.store import GraphStore
    from vglm.model.pull import home, pull_hpo

    path = Path(name)
    if path.is_dir():
        return Graph.load(path, split="train")
    if path.exists():
        return Graph.load(path)
    if name == "hpo":
        return load_hpo(pull_hpo(), home() / "graphs").graph
    if len(path.parts) > 1 or not name:  # no name in the store
        raise GraphError(f"{name or repr(name)}: no such file or folder")
    try:
        with GraphStore() as store:
            return store.read(name).graph
    except UnknownGraphError as error:
        raise GraphError(f"{name}: no such file or folder, and in the store {error}") from error
