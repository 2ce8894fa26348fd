"""What the training commands check before they begin, and print when they are done."""

from __future__ import annotations

import sys
from pathlib import Path

from vglm.console import size
from vglm.errors import ConfigError


def prepare(out: Path, folder: Path | None, threads: int | None) -> Path:
    """The folder of a training. Raises ConfigError now when the result could not be written after hours of work."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    prepare_file(out)
    place = folder or out.with_suffix(".training")
    if place.exists() and not place.is_dir():
        raise ConfigError(f"{place}: is a file; give another --folder")
    return place


def prepare_file(out: Path) -> None:
    """Raises ConfigError when `out` cannot be written."""
    from vglm.bench.report import check_writable

    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: the name must end in .safetensors")
    check_writable(out, "--out")


def finish(out: Path, folder: Path) -> None:
    """Draw the loss curves, say what memory it took, and print the result's path."""
    from vglm.train.curve import draw_all
    from vglm.train.run import peak_memory

    try:
        for path in draw_all(folder):
            print(f"loss curve: {path}", file=sys.stderr)
    except ConfigError as error:  # the model is worth more than its picture
        print(f"no loss curve: {error}", file=sys.stderr)
    print(f"{size(out.stat().st_size)}, peak memory {size(peak_memory())}", file=sys.stderr)
    print(out)


def train_and_judge(dataset: Path, out: Path, directed: bool, seeds: int) -> None:
    """Train a graph classifier, cross-validate if `seeds`, write it and say how good it is."""
    from vglm.evaluate.graph_classes import cross_validate
    from vglm.evaluate.report import show
    from vglm.graph.graph import Graph
    from vglm.train.graph_classes import ClassifierOptions, count_all, fit

    graphs, labels = Graph.load_set(dataset)
    progress = sys.stderr.isatty()
    counts = count_all(graphs, directed=directed, show=progress)
    model = fit(counts, labels, ClassifierOptions(directed=directed))
    model.save(out)
    if seeds:
        show(cross_validate(dataset.name, counts, labels, seeds=seeds, show=progress))
    classes = ", ".join(f"{name} ({labels.count(name):,})" for name in model.classes)
    print(f"{len(graphs):,} graphs, classes {classes}", file=sys.stderr)
    print(f"leave-one-out accuracy {model.about['leave-one-out accuracy']}", file=sys.stderr)
    print(f"{size(out.stat().st_size)}", file=sys.stderr)
    print(out)


def train_diseases(patients: Path, out: Path, release: Path | None) -> None:
    """Cross-validate the disease ranker, show the figures, and write the one that has seen all cases."""
    from vglm.evaluate.disease_ranking import cross_validate, figures
    from vglm.evaluate.report import show
    from vglm.graph.hpo import load_hpo
    from vglm.model.pull import home, pull_hpo
    from vglm.train.disease_cases import read_cases
    from vglm.train.run import peak_memory

    folder = release or pull_hpo(progress=False)
    hpo = load_hpo(folder, home() / "graphs")
    cases, left_out = read_cases(patients, hpo)
    print(f"{len(cases):,} cases", file=sys.stderr)
    for why, count in left_out.items():
        if count:
            print(f"{count:,} left out: {why}", file=sys.stderr)
    validated = cross_validate(hpo, cases, folder / "genes_to_phenotype.txt", cache_dir=home() / "graphs")
    show(figures(validated))
    validated.train().save(out)
    print(f"{size(out.stat().st_size)}, peak memory {size(peak_memory())}", file=sys.stderr)
    print(out)
