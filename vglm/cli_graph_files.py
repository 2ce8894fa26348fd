"""`vglm graph` commands that change the store or write files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from vglm.console import progress_bar
from vglm.errors import ConflictError, GraphError, RequestError, UnknownGraphError
from vglm.graph.graph import Graph
from vglm.graph.store import GraphStore
from vglm.graph.store_names import checked_name

_MEGA = 1e6


def import_graph(
    store: Path | None,
    name: str,
    file: Path,
    format: str | None,
    options: list[str],
    replace: bool,
    as_json: bool,
) -> None:
    """Reads a graph and stores it; a name that is bad or taken is refused before the file is read."""
    name = checked_name(name)
    if not _is_known(file):
        os.stat(file)  # a file that is not there is no reason to make a store
    with GraphStore(store) as opened:
        taken = name in opened
        if taken and not replace:
            raise ConflictError(
                f"there is a graph named {name!r} already; --replace makes this its next version"
            )
        graph = _read(file, format, dict(_option(text) for text in options))
        with _megabytes("storing", graph.nbytes) as written:
            if taken:
                version = opened.replace(name, graph, written=written)
            else:
                version = opened.create(name, graph, written=written)
    _done(as_json, name, version, graph.num_nodes, graph.num_edges, "stored")


def export_graph(store: Path | None, name: str, file: Path, format: str | None, version: str | None) -> None:
    """Writes a version to a file, or to standard output."""
    with GraphStore(store, create=False) as opened:
        stored = opened.read(name, as_version(version))
    if str(file) != "-":
        stored.graph.save(file, format)
        return
    from vglm.graph.formats.files import written

    if format is None:
        raise RequestError(
            "standard output has no extension: give --format, such as json or turtle", "format"
        )
    sys.stdout.buffer.write(written(stored.graph, format))


def patch_graph(store: Path | None, name: str, file: Path, expected: int | None, as_json: bool) -> None:
    """Applies a patch from a JSON file or standard input."""
    from vglm.graph.changes import patch_parts
    from vglm.graph.formats.node_link import parse_json

    with GraphStore(store, create=False) as opened:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        where = "standard input" if str(file) == "-" else str(file)
        parts = patch_parts(parse_json(data, where))
        version = opened.patch(name, expected_version=expected, **parts)
        about = opened.info(name)
    _done(as_json, about.name, version, about.nodes, about.edges, "is now")


def delete_graph(store: Path | None, name: str, sure: bool) -> None:
    """Deletes a graph, after a question on a terminal."""
    with GraphStore(store, create=False) as opened:
        about = opened.info(name)
        if not sure:
            if not sys.stdin.isatty():
                raise RequestError(
                    f"{about.name!r} is not deleted without --yes where nobody can be asked", "yes"
                )
            what = f"Delete {about.name!r} ({about.nodes:,} nodes, {about.edges:,} edges, all versions)?"
            if not typer.confirm(what):
                return
        opened.delete(about.name)


def as_version(text: str | None) -> int | str | None:
    """A version as a command line gives it: a number, or a snapshot's label."""
    if text is None or not text.isdecimal():
        return text
    if len(text) > 18:
        raise UnknownGraphError(f"there is no version {text[:20]}...")
    return int(text)


def _read(file: Path, format: str | None, options: dict[str, Any]) -> Graph:
    if _is_known(file):
        from vglm.model.pull import pull_hpo

        file = pull_hpo()
    if file.is_dir() and (file / "hp.obo").is_file() and (file / "phenotype.hpoa").is_file():
        from vglm.graph.hpo import load_hpo
        from vglm.model.pull import home

        return load_hpo(file, home() / "graphs").graph
    total = file.stat().st_size if file.is_file() else 0
    with _megabytes("reading", total) as read:
        return Graph.load(file, format, progress=read, **options)


def _is_known(file: Path) -> bool:
    """True for the name of a graph that can be fetched."""
    return str(file) == "hpo" and not os.path.lexists(file)


def _option(text: str) -> tuple[str, Any]:
    """A reader's option: its value is JSON where it can be, else text."""
    key, sign, value = text.partition("=")
    if not sign or not key.isidentifier():
        raise RequestError(f"option: expected KEY=VALUE, found {text[:60]!r}", "option")
    if key in ("limits", "progress", "path"):
        raise GraphError(f"options: {key!r} is no option of a format")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


@contextmanager
def _megabytes(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that counts bytes and shows megabytes."""
    with progress_bar(f"{what}, MB", total / _MEGA) as bar:
        yield lambda count: bar.advance(count / _MEGA)


def _done(as_json: bool, name: str, version: int, nodes: int, edges: int, verb: str) -> None:
    if as_json:
        print(
            json.dumps({"name": name, "version": version, "nodes": nodes, "edges": edges}, ensure_ascii=False)
        )
    else:
        print(f"{name}: {verb} version {version} with {nodes:,} nodes and {edges:,} edges")
