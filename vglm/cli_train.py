"""`vglm train`: link prediction, the graph encoder, a graph classifier, an adapter; each on the user's own graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vglm.cli_train_model import ADAPTER_EPILOG, adapter

train = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Train on your own graphs. Killed or stopped with Ctrl-C, the same command resumes.",
)

GraphName = Annotated[
    str,
    typer.Argument(metavar="GRAPH", help="A graph file, a folder of triples, a name in the store, or hpo."),
]
Folder = Annotated[
    Path | None,
    typer.Option(help="Checkpoints, log and loss curve; default: beside the result, ending in .training."),
]
Seed = Annotated[int, typer.Option(help="Of everything that is random.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processors to use; default: all.")]


@train.command(
    epilog="Examples:\n\nvglm train links movies.json\n\n"
    "vglm train links data/wn18rr --texts --out wn18rr.safetensors\n\n"
    "The result ranks what may stand at the open end of a triple of this graph: LinkModel in docs/training.md."
)
def links(
    graph: GraphName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("links.safetensors"),
    texts: Annotated[
        bool,
        typer.Option("--texts", help="Read names and texts, too: a sentence encoder, fetched on first use."),
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the edges; default: by the size.")
    ] = None,
    folder: Folder = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Learn to complete a graph: its structure (ComplEx), and its texts if wanted, mixed on held-out edges.

    A twentieth of the edges is held out to choose the best epoch. Needs vglm\\[train].
    """
    from dataclasses import replace

    from vglm.cli_train_model import named_graph
    from vglm.cli_train_report import finish, prepare
    from vglm.train.links import LinkOptions, train_links

    place = prepare(out, folder, threads)
    data = named_graph(graph)
    options = LinkOptions.suited_to(data.num_nodes, seed)
    if epochs is not None:
        options = replace(
            options,
            complex=replace(options.complex, epochs=epochs),
            text=replace(options.text, epochs=epochs),
        )
    encoder = None
    if texts:
        from vglm.encoder.sentence import SentenceEncoder
        from vglm.model.pull import pull

        encoder = SentenceEncoder.load(pull("all-minilm-l6-v2")).encode
    model = train_links(data, options, encoder=encoder, folder=place)
    model.save(out)
    finish(out, place)


@train.command(
    epilog="Examples:\n\nvglm train encoder movies.json\n\n"
    "vglm train encoder movies.json drugs.tsv hpo --steps 2000 --out encoder.safetensors\n\n"
    "The more different the graphs, the better it does on others."
)
def encoder(
    graphs: Annotated[
        list[str],
        typer.Argument(
            metavar="GRAPH...", help="Graph files, folders of triples, names in the store, or hpo."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path(
        "encoder.safetensors"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 1000,
    folder: Folder = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Pretrain the graph encoder, self-supervised: it hides edges and learns to find them by message passing.

    It learns no names, so that it completes graphs, entities and relations that it has never seen. Needs vglm\\[train].
    """
    from vglm.cli_train_model import named_graph
    from vglm.cli_train_report import finish, prepare
    from vglm.train.relational import RelationalSettings, train_relational
    from vglm.train.relational_graphs import TrainingGraph

    place = prepare(out, folder, threads)
    data = [TrainingGraph.of_graph(named_graph(name)) for name in graphs]
    model = train_relational(data, RelationalSettings(steps=steps), seed, place)
    model.save(out, graphs=", ".join(graphs), seed=str(seed))
    finish(out, place)


@train.command(
    epilog="Examples:\n\nvglm train classifier MUTAG\n\n"
    "vglm train classifier MUTAG --cross-validate 5 --out mutag.safetensors\n\n"
    "The result names a graph's class, with the parts that speak for it: GraphClassifier in docs/training.md."
)
def classifier(
    dataset: Annotated[
        Path, typer.Argument(help="A folder in the TU format: graphs, and the class of each.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path(
        "classifier.safetensors"
    ),
    directed: Annotated[bool, typer.Option("--directed", help="The direction of edges counts.")] = False,
    cross_validate: Annotated[
        int, typer.Option(min=0, metavar="SEEDS", help="Also 10-fold cross-validation, drawn so many times.")
    ] = 0,
) -> None:
    """Learn to classify whole graphs by their substructures. Deterministic; needs no PyTorch."""
    from vglm.cli_train_report import prepare_file, train_and_judge

    prepare_file(out)
    train_and_judge(dataset, out, directed, cross_validate)


@train.command(
    epilog="Examples:\n\nvglm train diseases DATA/phenopackets/patients.jsonl.gz --out disease-ranker.safetensors\n\n"
    "A patient is a line of JSON: hpo and hpo_excluded ([id, ...] each), pmid, disease ([id, name]), variants."
)
def diseases(
    patients: Annotated[Path, typer.Argument(help="Published cases, a JSON object a line, .gz or not.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path(
        "disease-ranker.safetensors"
    ),
    hpo: Annotated[
        Path | None, typer.Option(help="Folder of an ontology release; default: fetched on first use.")
    ] = None,
) -> None:
    """Learn to rank the diseases of the Human Phenotype Ontology for a patient's findings.

    Cross-validated by disease first, which also calibrates the probabilities; 2 GB of memory. Needs vglm\\[train].
    """
    from vglm.cli_train_report import prepare_file, train_diseases

    prepare_file(out)
    train_diseases(patients, out, hpo)


train.command(epilog=ADAPTER_EPILOG)(adapter)
