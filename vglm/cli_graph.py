"""`vglm graph`: named graphs in the store; import, look, ask, edit, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

graph = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Keep graphs under names: import, look, query, edit, export.",
)

Name = Annotated[str, typer.Argument(help="The graph's name in the store.")]
Store = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="FILE",
        help="The store's file; default: VGLM_GRAPH_STORE, or vglm/graphs.db in XDG_DATA_HOME (~/.local/share).",
    ),
]
AtVersion = Annotated[
    str | None,
    typer.Option("--version", metavar="VERSION", help="A number or a snapshot's label; default: the newest."),
]
Expected = Annotated[
    int | None,
    typer.Option("--expect-version", help="Refuse if the graph is not at this version."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Format = Annotated[str | None, typer.Option(help="The file's format; default: by its extension.")]


@graph.command(
    "import",
    epilog="Examples:\n\nvglm graph import movies movies.json\n\n"
    "vglm graph import wn18rr data/wn18rr (the folder of a completion set)\n\n"
    "vglm graph import drugs edges.tsv --option nodes=nodes.tsv --option header=false\n\n"
    "vglm graph import hpo hpo (the Human Phenotype Ontology with its diseases, fetched on first use)\n\n"
    "vglm graph import movies movies-2.json --replace (as a new version; the old one stays)",
)
def import_(
    name: Name,
    file: Annotated[Path, typer.Argument(help="A graph file, the folder of a completion set, or hpo.")],
    format: Format = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="For the format's reader; may be repeated."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Make it the next version of a graph that is there.")
    ] = False,
    store: Store = None,
    json_: Json = False,
) -> None:
    """Read a graph from a file and store it under a name."""
    from vglm.cli_graph_files import import_graph

    import_graph(store, name, file, format, option or [], replace, json_)


@graph.command(
    epilog="Examples:\n\nvglm graph export movies movies.ttl\n\n"
    "vglm graph export movies before.json.gz --version before-the-merge\n\n"
    "vglm graph export movies - --format json | jq '.nodes | length'"
)
def export(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The file to write; - is standard output.")],
    format: Format = None,
    version: AtVersion = None,
    store: Store = None,
) -> None:
    """Write a stored graph to a file, as a whole or not at all."""
    from vglm.cli_graph_files import export_graph

    export_graph(store, name, file, format, version)


@graph.command("list", epilog="Examples:\n\nvglm graph list\n\nvglm graph list --json | jq -r '.[].name'")
def list_(store: Store = None, json_: Json = False) -> None:
    """All graphs of the store."""
    from vglm.cli_graph_view import print_list

    print_list(store, json_)


@graph.command(
    epilog="Examples:\n\nvglm graph show hpo\n\nvglm graph show hpo HP:0001083\n\n"
    "vglm graph show hpo 'Marfan syndrome' --edges 50 --json"
)
def show(
    name: Name,
    node: Annotated[str | None, typer.Argument(help="A node, by its id or its whole name.")] = None,
    edges: Annotated[int, typer.Option(min=0, help="Most edges to show in each direction.")] = 20,
    version: AtVersion = None,
    store: Store = None,
    json_: Json = False,
) -> None:
    """A graph in short, or one of its nodes with its edges."""
    from vglm.cli_graph_view import print_graph, print_node

    if node is None:
        print_graph(store, name, version, json_)
    else:
        print_node(store, name, node, edges, version, json_)


@graph.command(epilog="Examples:\n\nvglm graph stats hpo\n\nvglm graph stats hpo --json | jq .relations")
def stats(name: Name, version: AtVersion = None, store: Store = None, json_: Json = False) -> None:
    """Nodes by type, edges by relation, degrees, memory and disk."""
    from vglm.cli_graph_view import print_stats

    print_stats(store, name, version, json_)


@graph.command(
    epilog="Examples:\n\nvglm graph query hpo 'Which disease explains tall stature and ectopia lentis?'\n\n"
    "vglm graph query hpo --entity HP:0001083 --hops 1 --budget 512 'What causes it?' --json\n\n"
    "vglm graph query hpo 'Marfan syndrome and arachnodactyly' --method paths --text"
)
def query(
    name: Name,
    question: Annotated[str, typer.Argument(help="The question, in plain words.")],
    hops: Annotated[int, typer.Option(help="Most edges from the entities of the question.")] = 2,
    budget: Annotated[int, typer.Option(help="Most tokens of the sub-graph's text.")] = 1024,
    method: Annotated[str, typer.Option(help="auto, ppr, khop, or paths.")] = "auto",
    entity: Annotated[
        list[str] | None,
        typer.Option("--entity", "-e", metavar="ID", help="Start from this node; may be repeated."),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Print the sub-graph as a model reads it, and nothing else.")
    ] = False,
    version: AtVersion = None,
    store: Store = None,
    json_: Json = False,
) -> None:
    """The part of a graph that a question is about. No model is needed."""
    from vglm.cli_graph_query import Question, answer

    answer(store, name, Question(question, hops, budget, method, tuple(entity or ()), version), text, json_)


@graph.command(
    epilog="Examples:\n\nvglm graph patch movies changes.json\n\n"
    'echo \'{"upsert_edges": [{"source": "a", "relation": "likes", "target": "b"}]}\' | vglm graph patch movies -\n\n'
    "The file is a JSON object with any of these lists: upsert_nodes and upsert_edges (as in node-link JSON),\n\n"
    "delete_nodes (ids) and delete_edges (an edge without attributes stands for all parallel ones)."
)
def patch(
    name: Name,
    file: Annotated[Path, typer.Argument(help="A JSON file; - is standard input.")],
    expect_version: Expected = None,
    store: Store = None,
    json_: Json = False,
) -> None:
    """Add, change and delete nodes and edges, all or nothing, as a new version."""
    from vglm.cli_graph_files import patch_graph

    patch_graph(store, name, file, expect_version, json_)


@graph.command(epilog="Examples:\n\nvglm graph delete movies\n\nvglm graph delete movies --yes")
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: Store = None,
) -> None:
    """Delete a graph with all its versions and snapshots."""
    from vglm.cli_graph_files import delete_graph

    delete_graph(store, name, yes)


@graph.command(
    epilog="Examples:\n\nvglm graph versions movies\n\nvglm graph versions movies --limit 5 --json\n\n"
    "vglm graph versions movies --keep 10 (drops older ones that are older than every snapshot)"
)
def versions(
    name: Name,
    limit: Annotated[int, typer.Option(min=1, help="Show so many, the newest first.")] = 20,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Drop all but the newest so many, and those from the oldest snapshot on."),
    ] = None,
    store: Store = None,
    json_: Json = False,
) -> None:
    """The versions of a graph."""
    from vglm.cli_graph_view import print_versions

    print_versions(store, name, limit, keep, json_)


@graph.command(
    epilog="Examples:\n\nvglm graph snapshot movies (lists them)\n\nvglm graph snapshot movies before-the-merge\n\n"
    "vglm graph snapshot movies release-1 --version 7\n\nvglm graph snapshot movies release-1 --delete"
)
def snapshot(
    name: Name,
    label: Annotated[str | None, typer.Argument(help="The snapshot's label; none lists all.")] = None,
    version: AtVersion = None,
    delete: Annotated[bool, typer.Option("--delete", help="Forget the label; the version stays.")] = False,
    store: Store = None,
    json_: Json = False,
) -> None:
    """Give a version a name, by which it is found and kept."""
    from vglm.cli_graph_view import print_snapshots, take_snapshot

    if label is None:
        print_snapshots(store, name, json_)
    else:
        take_snapshot(store, name, label, version, delete, json_)
