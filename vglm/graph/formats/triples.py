"""Triples: TSV and CSV files, folders of knowledge-graph completion sets, and iterables.

    d1 <tab> has phenotype <tab> p7

A file may start with a header; then columns are found by name, and columns that are no part of a triple become
attributes of the edge. Names and texts of nodes come from side files.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from vglm.errors import GraphError
from vglm.graph.build import DEFAULT_RELATION, GraphBuilder
from vglm.graph.formats.source import Source, open_source
from vglm.graph.formats.tables import (
    Batch,
    add_node_table,
    read_pairs,
    read_table,
    separator_of,
    with_header,
)
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits, checked_id, checked_text, shown

HEADERS = {
    "source": ("source", "head", "subject", "from", "src"),
    "relation": ("relation", "predicate", "rel", "metaedge", "label", "type"),
    "target": ("target", "tail", "object", "to", "dst"),
}
_COLUMNS = ("source", "relation", "target")
_BATCH = 1 << 16


def graph_from_triples(triples: Iterable[Sequence[str]], limits: Limits) -> Graph:
    """See `Graph.from_triples`."""
    builder = GraphBuilder(limits)
    rest = iter(triples)
    first = 0
    while batch := list(islice(rest, _BATCH)):
        for position, triple in enumerate(batch, first):
            if isinstance(triple, str) or not isinstance(triple, Sequence) or len(triple) != 3:
                raise GraphError(
                    f"triples[{position}]: expected (source, relation, target), found {shown(triple)}"
                )
        sources, relations, targets = zip(*batch, strict=True)
        if not all(set(map(type, column)) == {str} for column in (sources, relations, targets)):
            sources, relations, targets = zip(*_as_text(batch, first, limits), strict=True)
        builder.add_triples(
            sources,
            relations,
            targets,
            lambda i, first=first: f"triples[{first + i}]",  # type: ignore[misc]
        )
        first += len(batch)
    return builder.build("triples", bare_ends=True)


def graph_to_triples(graph: Graph) -> list[tuple[str, str, str]]:
    """See `Graph.to_triples`."""
    columns = graph.columns
    ids = list(columns.ids)
    ends = zip(columns.sources.tolist(), columns.relations.tolist(), columns.targets.tolist(), strict=True)
    return [(ids[s], columns.relation_names[r], ids[t]) for s, r, t in dict.fromkeys(ends)]


def read_triples(
    source: Source,
    limits: Limits,
    separator: str = "\t",
    *,
    nodes: str | Path | None = None,
    texts: str | Path | None = None,
    relations: str | Path | None = None,
    columns: Sequence[str] | None = None,
    header: bool | None = None,
    split_names: str | None = None,
) -> Graph:
    """Reads a table of triples.

    `nodes` is a table of nodes (a header with id, name, type, text and attributes, or rows of id, name, text),
    `texts` one of id and text, `relations` one of relation and the name to give it. `columns` names the columns
    of a file without a header in their order; `header` says whether there is one (None: if the first row looks
    so). A comma as `separator` means CSV with quotes. `split_names=", "` takes a node's text from behind the
    first comma of its name.
    """
    names, batches = with_header(read_table(source, separator), HEADERS, header, ("source", "target"))
    layout = _layout(list(columns) if columns is not None else names or list(_COLUMNS), source.name)
    renamed = {} if relations is None else read_pairs(Path(relations), limits)
    builder = GraphBuilder(limits)
    if nodes is not None:
        node_texts = {} if texts is None else read_pairs(Path(texts), limits)
        with open_source(Path(nodes), limits.bytes) as table:
            add_node_table(builder, table, separator_of(Path(nodes)), node_texts, split_names)
    elif texts is not None:
        raise GraphError("texts: give the names too, as `nodes`")
    for batch in batches:
        _add_batch(builder, batch, layout, renamed, source.name)
    return builder.build(bare_ends=True)


def read_completion_set(folder: Path, limits: Limits, *, split: str = "train") -> Graph:
    """Reads a folder of a knowledge-graph completion set: `train.tsv` or `train.txt` (or another `split`), and
    where they are there `entity2text.txt`, `entity2textlong.txt` and `relation2text.txt`.

    Only the edges of one split are read: those of the others are what a model has to find. Where there is no
    file of long texts, a node's text is what follows the first comma of its name (as WN18RR's glosses do).
    """
    found = [path for name in ("tsv", "txt") if (path := folder / f"{split}.{name}").is_file()]
    if not found:
        raise GraphError(f"{folder}: has neither {split}.tsv nor {split}.txt")
    side: dict[str, Any] = {
        option: path
        for option, name in (
            ("nodes", "entity2text.txt"),
            ("texts", "entity2textlong.txt"),
            ("relations", "relation2text.txt"),
        )
        if (path := folder / name).is_file()
    }
    split_names = ", " if "nodes" in side and "texts" not in side else None
    with open_source(found[0], limits.bytes) as source:
        return read_triples(source, limits, split_names=split_names, **side)


def write_triples(graph: Graph, separator: str = "\t") -> bytes:
    """A header and a line per edge. Raises GraphError for ids and relations that TSV cannot hold, those with tabs or
    line breaks in them; CSV quotes them."""
    triples = graph_to_triples(graph)
    if separator == ",":
        text = io.StringIO(newline="")
        csv.writer(text).writerows([_COLUMNS, *triples])
        return text.getvalue().encode()
    lines = list(map("\t".join, [_COLUMNS, *triples]))
    for line in lines:
        if line.count("\t") != 2 or "\n" in line or "\r" in line:
            raise GraphError(f"TSV cannot hold a tab or a line break: {shown(line)}; save as .csv or .json")
    return "".join(f"{line}\n" for line in lines).encode()


def _as_text(batch: list[Sequence[str]], first: int, limits: Limits) -> Iterator[tuple[str, str, str]]:
    """Triples with numbers for ids, which are written in decimal; raises GraphError for other values."""
    for position, (source, relation, target) in enumerate(batch, first):
        where = f"triples[{position}]"
        yield (
            checked_id(source, f"{where}.source", limits.id),
            checked_text(relation, f"{where}.relation", limits.relation, empty=False),
            checked_id(target, f"{where}.target", limits.id),
        )


def _layout(columns: list[str], source: str) -> list[str]:
    """The columns' names if a triple can be made of them."""
    for required in ("source", "target"):
        if columns.count(required) != 1:
            raise GraphError(
                f"{source}: expected one column {required!r}, found {', '.join(map(shown, columns))}"
            )
    if len(set(columns)) != len(columns):
        raise GraphError(f"{source}: two columns have the same name")
    return columns


def _add_batch(
    builder: GraphBuilder, batch: Batch, layout: list[str], renamed: Mapping[str, str], source: str
) -> None:
    if len(batch.columns) != len(layout):
        raise GraphError(
            f"{source}, line {batch.lines[0]}: expected {len(layout)} columns, found {len(batch.columns)}"
        )
    columns = dict(zip(layout, batch.columns, strict=True))
    sources, targets = columns.pop("source"), columns.pop("target")
    relations = columns.pop("relation", (DEFAULT_RELATION,) * len(sources))
    if renamed:
        relations = tuple(map(renamed.get, relations, relations))
    if not columns:
        builder.add_triples(sources, relations, targets, lambda i: f"{source}, line {batch.lines[i]}")
        return
    for row in zip(batch.lines, sources, relations, targets, *columns.values(), strict=True):
        line, start, relation, end, *values = row
        attributes = {name: value for name, value in zip(columns, values, strict=True) if value}
        builder.add_edge(start, relation, end, attributes, f"{source}, line {line}")
