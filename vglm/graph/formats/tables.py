"""Tab- and comma-separated tables in batches of rows, and what their columns say about nodes."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vglm.errors import GraphError
from vglm.graph.build import GraphBuilder
from vglm.graph.formats.source import Source, open_source
from vglm.graph.limits import Limits, shown

_BATCH = 1 << 16
NODE_HEADERS = {
    "id": ("id", "node", "node_id", "entity", ":id"),
    "name": ("name", "label", "title"),
    "type": ("type", "kind", "category", ":label"),
    "text": ("text", "description", "definition", "gloss"),
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a table, as columns of equal length, and the number of the line where each row ends."""

    lines: Sequence[int]
    columns: list[Sequence[str]]

    def first_row(self) -> list[str]:
        """The first row; batches are never empty."""
        return [column[0] for column in self.columns]

    def without_first_row(self) -> Batch:
        """All rows but the first."""
        return Batch(self.lines[1:], [column[1:] for column in self.columns])


def read_table(source: Source, separator: str) -> Iterator[Batch]:
    """Batches of rows; empty lines are passed over. A comma means CSV with quotes, a tab plain fields.

    Raises GraphError naming the line that has not as many columns as the first.
    """
    width = 0
    for batch in _csv_batches(source) if separator == "," else _plain_batches(source, separator):
        width = width or len(batch.columns)
        if len(batch.columns) != width:
            raise _other_width(source, batch.lines[0], width, len(batch.columns))
        yield batch


def with_header(
    batches: Iterator[Batch],
    headers: Mapping[str, Sequence[str]],
    header: bool | None,
    required: Sequence[str],
) -> tuple[list[str] | None, Iterator[Batch]]:
    """The names of the columns if the table starts with a header, and the batches without it.

    Known columns get the keys of `headers`, others keep their own name. `header=None` takes the first row for a
    header if it names every column in `required`.
    """
    first = next(batches, None)
    if first is None:
        return None, iter(())
    names = _column_names(first.first_row(), headers)
    if header is None:
        header = set(required) <= set(names)
    if not header:
        return None, _chained(first, batches)
    return names, _chained(first.without_first_row(), batches)


def add_node_table(
    builder: GraphBuilder, source: Source, separator: str, texts: Mapping[str, str], split: str | None = None
) -> None:
    """Adds the nodes of a table: with a header its columns id, name, type, text, and the others as attributes;
    without one: id, name, text.

    `texts` has texts of nodes by id, for tables without. `split` separates name and text in one column.
    """
    names, batches = with_header(read_table(source, separator), NODE_HEADERS, None, ("id", "name"))
    columns = names or ["id", "name", "text"]
    _check_distinct(columns, source.name)
    for batch in batches:
        if len(batch.columns) > len(columns):
            raise _other_width(source, batch.lines[0], len(columns), len(batch.columns))
        for line, *row in zip(batch.lines, *batch.columns, strict=True):
            where = f"{source.name}, line {line}"
            fields = dict(zip(columns, row, strict=False))
            node_id = fields.pop("id")
            name, kind = fields.pop("name", "") or None, fields.pop("type", "")
            text = fields.pop("text", "") or texts.get(node_id, "")
            if split is not None and name is not None and not text:
                name, _, text = name.partition(split)
            attributes = {key: value for key, value in fields.items() if value}
            builder.add_node(node_id, name, kind, text, (), attributes, where)


def read_pairs(path: Path, limits: Limits) -> dict[str, str]:
    """A side file of two columns (a tab, or commas in a .csv): the first column -> the second."""
    pairs: dict[str, str] = {}
    with open_source(path, limits.bytes) as source:
        for batch in read_table(source, separator_of(path)):
            if len(batch.columns) != 2:
                raise _other_width(source, batch.lines[0], 2, len(batch.columns))
            for line, key, value in zip(batch.lines, *batch.columns, strict=True):
                if pairs.setdefault(key, value) != value:
                    raise GraphError(f"{source.name}, line {line}: {shown(key)} is given twice")
    return pairs


def separator_of(path: Path) -> str:
    """A comma for .csv and .csv.gz, else a tab."""
    return "," if ".csv" in path.suffixes[-2:] else "\t"


def _plain_batches(source: Source, separator: str) -> Iterator[Batch]:
    for first, block in source.blocks():
        lines = block.split("\n")
        numbers: Sequence[int] = range(first, first + len(lines))
        if "" in lines:
            numbers = [number for number, line in enumerate(lines, first) if line]
            lines = [line for line in lines if line]
        widths = [line.count(separator) + 1 for line in lines]
        _check_widths(source, numbers, widths)
        if lines:  # one split of all lines is several times faster than a list for each
            fields = separator.join(lines).split(separator)
            yield Batch(numbers, [fields[column :: widths[0]] for column in range(widths[0])])


def _csv_batches(source: Source) -> Iterator[Batch]:
    reader = csv.reader(source.raw_lines(), strict=True)
    while True:
        numbers: list[int] = []
        rows: list[list[str]] = []
        try:
            for row in islice(reader, _BATCH):
                if row:
                    numbers.append(reader.line_num)
                    rows.append(row)
        except csv.Error as error:
            raise GraphError(f"{source.name}, line {reader.line_num}: is not CSV: {error}") from error
        if not rows:
            return
        _check_widths(source, numbers, list(map(len, rows)))
        yield Batch(numbers, list(zip(*rows, strict=True)))


def _check_widths(source: Source, numbers: Sequence[int], widths: list[int]) -> None:
    if len(set(widths)) > 1:
        row = next(row for row, width in enumerate(widths) if width != widths[0])
        raise _other_width(source, numbers[row], widths[0], widths[row])


def _other_width(source: Source, line: int, expected: int, found: int) -> GraphError:
    return GraphError(f"{source.name}, line {line}: expected {expected} columns, found {found}")


def _column_names(row: Sequence[str], headers: Mapping[str, Sequence[str]]) -> list[str]:
    """The row as column names: of several columns that could be the same, the first takes the name."""
    words = [word.strip().casefold() for word in row]
    names = list(row)
    for name, synonyms in headers.items():
        position = next((words.index(word) for word in synonyms if word in words), None)
        if position is not None:
            names[position] = name
    return names


def _check_distinct(names: Sequence[str], source: str) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise GraphError(f"{source}, line 1: two columns are named {shown(twice)}")


def _chained(first: Batch, rest: Iterator[Batch]) -> Iterator[Batch]:
    if first.lines:
        yield first
    yield from rest
