"""Which format a graph file has, and how it is read and written: `Graph.load` and `Graph.save`."""

from __future__ import annotations

import gzip
import importlib
import inspect
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vglm.errors import GraphError
from vglm.graph.formats.source import Progress, Source, open_source
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits, shown


@dataclass(frozen=True, slots=True)
class Format:
    """A file format: its extensions and where its reader and writer are ("module:function"), with the arguments
    that they always get."""

    extensions: tuple[str, ...]
    reader: str
    writer: str = ""  # "" if it is read only
    arguments: tuple[str, ...] = ()


FORMATS = {
    "json": Format((".json",), "node_link:read_node_link", "node_link:write_node_link"),
    "tsv": Format((".tsv", ".tab", ".txt", ".sif"), "triples:read_triples", "triples:write_triples", ("\t",)),
    "csv": Format((".csv",), "triples:read_triples", "triples:write_triples", (",",)),
    "turtle": Format((".ttl",), "rdf:read_rdf", "rdf_writer:write_rdf", ("turtle",)),
    "ntriples": Format((".nt",), "rdf:read_rdf", "rdf_writer:write_rdf", ("ntriples",)),
    "jsonld": Format((".jsonld",), "rdf:read_rdf", "rdf_writer:write_rdf", ("jsonld",)),
    "graphml": Format((".graphml",), "graphml:read_graphml", "graphml_writer:write_graphml"),
    "obo": Format((".obo",), "obo:read_obo_graph"),
}


def load(
    path: str | Path,
    format: str | None,
    limits: Limits,
    progress: Progress | None,
    options: Mapping[str, Any],
) -> Graph:
    """See `Graph.load`. A folder is read as a knowledge-graph completion set."""
    path = Path(path)
    if os.path.isdir(path):
        return _load_folder(path, limits, options)
    name = _name_of(path, format)
    with open_source(path, limits.bytes, progress) as source:
        return read(source, name, limits, options)


def read(source: Source, format: str, limits: Limits, options: Mapping[str, Any]) -> Graph:
    """Reads one of FORMATS; raises GraphError, and for options that the format does not have."""
    chosen = FORMATS[format]
    reader = _function(chosen.reader)
    _check_options(reader, options)
    graph: Graph = reader(source, limits, *chosen.arguments, **options)
    return graph


def save(graph: Graph, path: str | Path, format: str | None) -> None:
    """See `Graph.save`."""
    path = Path(path)
    data = written(graph, _name_of(path, format))
    if path.suffix == ".gz":
        data = gzip.compress(data, compresslevel=6, mtime=0)
    try:
        _write(path, data)
    except (OSError, ValueError) as error:
        raise GraphError(f"{path}: cannot be written: {getattr(error, 'strerror', '') or error}") from error


def written(graph: Graph, format: str) -> bytes:
    """The graph in a format; raises GraphError for what the format cannot hold where that would not be seen."""
    chosen = FORMATS[_known(format)]
    if not chosen.writer:
        known = ", ".join(name for name, other in FORMATS.items() if other.writer)
        raise GraphError(f"format: {format} is read only; graphs are written as {known}")
    data: bytes = _function(chosen.writer)(graph, *chosen.arguments)
    return data


def _load_folder(folder: Path, limits: Limits, options: Mapping[str, Any]) -> Graph:
    from vglm.graph.formats.triples import read_completion_set

    if any(folder.glob("*_graph_indicator.txt")):
        raise GraphError(f"{folder}: is a set of graphs; read it with Graph.load_set")
    _check_options(read_completion_set, options)
    return read_completion_set(folder, limits, **options)


def _name_of(path: Path, format: str | None) -> str:
    if format is not None:
        return _known(format)
    suffixes = path.suffixes[:-1] if path.suffix == ".gz" else path.suffixes
    extension = suffixes[-1].lower() if suffixes else ""
    for name, known in FORMATS.items():
        if extension in known.extensions:
            return name
    known_ones = " ".join(extension for known in FORMATS.values() for extension in known.extensions)
    raise GraphError(
        f"{path}: the extension {shown(extension)} is not known ({known_ones}); "
        f"give a format: {', '.join(FORMATS)}"
    )


def _known(format: str) -> str:
    if format not in FORMATS:
        raise GraphError(f"format: {shown(format)} is not one of {', '.join(FORMATS)}")
    return format


def _function(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(f"vglm.graph.formats.{module}"), name)
    return function


def _check_options(read: Callable[..., Any], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(read).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise GraphError(f"options: this format has no option {shown(name)}; {has}")


def _write(path: Path, data: bytes) -> None:
    """Writes beside the file and renames; a device or a pipe is written to as it is."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = path.resolve()
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
