"""`vglm eval`: the benchmarks of open-autoglm-v1, each with its baselines in the same run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vglm import cli_options as opt

TASKS = {
    "disease_ranking": "a disease from findings, unseen in training, among all diseases of the HPO",
    "completion": "link prediction: UMLS, Kinships, WN18RR",
    "zero_shot": "link prediction on graphs that the encoder was never trained on",
    "graph_classes": "graph classification: MUTAG, PROTEINS",
    "reasoning": "questions over graphs: ExplaGraphs, NLGraph; span mode against sequential mode",
    "reading": "short questions about graphs that no training has seen, some of which they do not answer",
    "explanation": "explanations of medical suggestions: what they name and cite exists",
    "language": "perplexity on general text, against the base model",
}
ONLY = {
    "dtype": ("reasoning", "reading", "explanation", "language"),
    "text": ("language",),
    "samples": ("explanation",),
}
EPILOG = (
    "Examples:\n\nvglm eval --data DATA\n\n"
    "vglm eval graph_classes --data DATA --seeds 5 --json classes.json\n\n"
    "vglm eval reasoning language --data DATA --model ./my-model\n\n"
    "vglm eval reasoning explanation language --data DATA --dtype int8,bf16\n\n"
    "docs/training.md says how DATA is laid out. Tasks: "
    + "; ".join(f"{name} ({about})" for name, about in TASKS.items())
)


def evaluate(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TASK]...", help="Which; default: all whose data are there."),
    ] = None,
    *,
    data: Annotated[Path, typer.Option(help="Folder of the data sets, as docs/training.md lays it out.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="The graph language model.")
    ] = "open-autoglm-v1",
    base: Annotated[
        str, typer.Option(help="The base model that it is compared with.")
    ] = "smollm2-135m-instruct",
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="How often a training is repeated; default: each task's own number."),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            help="Weights: bf16, int8 or int4, several with commas: a row for each, and what each costs against bf16 case by "
            "case. For reasoning, reading, explanation and language; default: the model's own."
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="For language: a text of your own (UTF-8, 2,048 tokens or more); may be repeated."),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="For explanation: also write 50 explanations there as Markdown, to be read."
        ),
    ] = None,
    json_: opt.Json = None,
) -> None:
    """Evaluate a model and its baselines: tables with 95 % intervals, and JSON.

    What is trained for a task is trained here, on training parts alone. Training tasks need vglm\\[train].
    """
    from vglm.bench.report import check_writable
    from vglm.errors import ConfigError
    from vglm.evaluate.dtypes import parse_dtypes

    for name in tasks or []:
        if name not in TASKS:
            raise ConfigError(f"no task {name!r}; there are {', '.join(TASKS)}")
    if not data.is_dir():
        raise ConfigError(f"--data {data}: no such folder; docs/training.md says what it holds")
    for option, value in {"dtype": dtype, "text": text, "samples": samples}.items():
        if value and tasks and not set(tasks) & set(ONLY[option]):
            raise ConfigError(f"--{option} is for {', '.join(ONLY[option])}, and none of them is evaluated")
    check_writable(json_)
    check_writable(samples, "--samples")
    given: dict[str, Any] = {"model": model, "base": base, "seeds": seeds, "texts": text, "samples": samples}
    given["dtypes"] = parse_dtypes(dtype) if dtype else None
    _run(list(tasks or []), data, given, json_)


def _run(tasks: list[str], data: Path, given: dict[str, Any], json_: Path | None) -> None:
    """Run the tasks one after the other. The JSON is written after each, so that a kill loses one task alone.

    Without named tasks, one that cannot run (its data or PyTorch are not there) is left out with a note.
    """
    from vglm.errors import ConfigError, VGLMError
    from vglm.evaluate.report import show, write_json

    to_stdout = json_ == Path("-")
    figures: list[Any] = []
    for name in tasks or TASKS:
        print(f"== {name}: {TASKS[name]}", file=sys.stderr)
        try:
            found = run_task(name, data, given)
        except (VGLMError, OSError, ModuleNotFoundError) as error:
            if tasks and isinstance(error, FileNotFoundError):
                raise ConfigError(f"{name}: {_reason(error)}; docs/training.md says what it reads") from error
            if tasks:
                raise
            print(f"left out: {_reason(error)}", file=sys.stderr)
            continue
        figures += found
        if not to_stdout:
            show(found)
        if json_ is not None and not to_stdout:
            write_json(figures, json_, given)
    if to_stdout:
        write_json(figures, Path("-"), given)


def _reason(error: Exception) -> str:
    """Why a task cannot run, in one line."""
    if isinstance(error, ModuleNotFoundError):
        return f"needs {error.name}: pip install 'vglm[train]'"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def run_task(name: str, data: Path, given: dict[str, Any]) -> list[Any]:
    """The figures of one task, with those of the `given` options that its `run` takes and that are not None."""
    import inspect
    from importlib import import_module

    run = import_module(f"vglm.evaluate.{name}").run
    taken = inspect.signature(run).parameters
    options = opt.given(**{key: value for key, value in given.items() if key in taken})
    if "show" in taken:
        options["show"] = sys.stderr.isatty()
    found: list[Any] = run(data, **options)
    return found
