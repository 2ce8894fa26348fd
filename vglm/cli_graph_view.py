"""`vglm graph` commands that show what is stored: tables for people, JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from vglm.cli_graph_files import as_version
from vglm.console import console, plain_table, size
from vglm.errors import GraphError
from vglm.graph.formats.node_link import edge_item, node_item
from vglm.graph.graph import Direction, Graph
from vglm.graph.limits import shown
from vglm.graph.stats import GraphStats, graph_stats
from vglm.graph.store import GraphStore, Stored
from vglm.graph.store_file import default_store_path
from vglm.graph.text import one_line

_LONG = 300  # characters of a text that a terminal shows
_ROWS = 20  # of the types and relations that a terminal shows


def plain(text: str, most: int = _LONG) -> Text:
    """Text from a graph for a terminal: one line, control characters escaped, no markup, not too long."""
    line = one_line(text[: most + 1])
    return Text(line if len(line) <= most else line[: most - 3] + "...")


def print_json(document: Any) -> None:
    """One document, readable."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_list(store: Path | None, as_json: bool) -> None:
    """Every graph; an empty list if there is no store yet."""
    path = store or default_store_path()
    graphs = []
    if path.exists():
        with GraphStore(path, create=False) as opened:
            graphs = opened.graphs()
    if as_json:
        print_json([asdict(about) for about in graphs])
        return
    if not graphs:
        console().print(Text(f"no graphs in {path}; `vglm graph import` adds one"))
        return
    table = plain_table("name", "version", "nodes", "edges", "on disk", "changed", numbers_from=1)
    for about in graphs:
        counts = (f"{about.version:,}", f"{about.nodes:,}", f"{about.edges:,}", size(about.bytes))
        table.add_row(plain(about.name), *counts, _time(about.updated))
    console().print(table)


def print_graph(store: Path | None, name: str, version: str | None, as_json: bool) -> None:
    """What a graph is, in short."""
    with GraphStore(store, create=False) as opened:
        stored = opened.read(name, as_version(version))
        labels = [s.label for s in opened.snapshots(name) if s.version == stored.version]
    first = [node_item(stored.graph.node_at(index)) for index in range(min(stored.graph.num_nodes, 5))]
    about = graph_stats(stored.graph)
    if as_json:
        document = {"name": stored.name, "version": stored.version, "snapshots": labels}
        counts = {"nodes": about.nodes, "edges": about.edges}
        print_json(document | counts | {"types": about.types, "relations": about.relations, "first": first})
        return
    out = console()
    out.print(Text(_headline(stored) + (f"; snapshots: {', '.join(labels)}" if labels else "")))
    _print_counts(about)
    table = plain_table("first nodes", "name", "type", "text")
    for item in first:
        cells = (item["id"], item["name"], item.get("type", ""), item.get("text", ""))
        table.add_row(*(plain(cell, 100) for cell in cells))
    out.print(table)


def print_node(
    store: Path | None, name: str, node: str, edges: int, version: str | None, as_json: bool
) -> None:
    """A node's record, and at most `edges` of its edges each way."""
    with GraphStore(store, create=False) as opened:
        stored = opened.read(name, as_version(version))
    graph = stored.graph
    index = find_node(graph, node)
    item = node_item(graph.node_at(index))
    directions: tuple[Direction, Direction] = ("out", "in")
    found = {way: graph.edge_indices(index, way) for way in directions}
    shown_edges = {way: [graph.edge_at(int(i)) for i in found[way][:edges]] for way in directions}
    counts = {way: len(found[way]) for way in directions}
    if as_json:
        listed = {way: [edge_item(edge) for edge in shown_edges[way]] for way in directions}
        print_json(
            {"graph": stored.name, "version": stored.version, "node": item, "degree": counts, **listed}
        )
        return
    out = console()
    facts = plain_table("", "", header=False)
    for key in ("id", "name", "type", "text"):
        if item.get(key):
            facts.add_row(key, plain(item[key], 2_000))
    if "aliases" in item:
        facts.add_row("also called", plain(", ".join(item["aliases"]), 1_000))
    for key, value in sorted(item.get("attributes", {}).items()):
        facts.add_row(plain(key, 60), plain(value if isinstance(value, str) else json.dumps(value)))
    out.print(facts)
    for way, arrow in zip(directions, ("to", "from"), strict=True):
        if not counts[way]:
            continue
        some = f"{counts[way]:,}" if counts[way] <= edges else f"{edges:,} of {counts[way]:,}"
        table = plain_table(f"edges {arrow} ({some})", "name", "relation", "attributes")
        for edge in shown_edges[way]:
            other = edge.target if way == "out" else edge.source
            attributes = json.dumps(edge.attributes, ensure_ascii=False) if edge.attributes else ""
            cells = (other, graph.name_of(other), edge.relation, attributes)
            table.add_row(*(plain(cell, 120) for cell in cells))
        out.print(table)


def find_node(graph: Graph, node: str) -> int:
    """The index of a node by id, or by a name that is its alone, in any case. Raises GraphError otherwise."""
    index = graph.columns.ids.find(node)
    if index >= 0:
        return index
    wanted = node.casefold()
    same = [index for index, name in enumerate(graph.columns.names) if name.casefold() == wanted]
    if not same:
        raise GraphError(f"no node has the id or the name {shown(node)}; `vglm graph query` searches")
    if len(same) > 1:
        ids = ", ".join(shown(graph.id_of(index)) for index in same[:5])
        raise GraphError(f"{len(same):,} nodes have the name {shown(node)}: {ids}; give an id")
    return same[0]


def print_stats(store: Path | None, name: str, version: str | None, as_json: bool) -> None:
    """The numbers of a graph, and what it takes in the store."""
    with GraphStore(store, create=False) as opened:
        stored = opened.read(name, as_version(version))
        disk = opened.info(name).bytes
        kept = len(opened.versions(name))
    about = graph_stats(stored.graph)
    if as_json:
        place = {"name": stored.name, "version": stored.version, "versions": kept, "disk_bytes": disk}
        print_json(place | about.as_dict())
        return
    out = console()
    out.print(Text(_headline(stored)))
    facts = plain_table("", "", header=False)
    hub = f", {one_line(about.hub[:60])}" if about.hub is not None else ""
    for key, value in (
        ("edges at a node", f"{about.mean_degree:.1f} on average, at most {about.max_degree:,}{hub}"),
        ("nodes without edges", f"{about.isolated:,}"),
        ("edges to themselves", f"{about.loops:,}"),
        ("in memory", size(about.memory_bytes)),
        ("on disk", f"{size(disk)} in {kept:,} version{'s' if kept > 1 else ''}"),
    ):
        facts.add_row(key, Text(value))
    out.print(facts)
    _print_counts(about)


def print_versions(store: Path | None, name: str, limit: int, keep: int | None, as_json: bool) -> None:
    """The newest versions, after dropping old ones if that is asked for."""
    with GraphStore(store, create=False) as opened:
        dropped = opened.prune(name, keep) if keep is not None else 0
        found = opened.versions(name, limit)
        labels: dict[int, list[str]] = {}
        for snapshot in opened.snapshots(name):
            labels.setdefault(snapshot.version, []).append(snapshot.label)
    if as_json:
        rows = [asdict(version) | {"snapshots": labels.get(version.number, [])} for version in found]
        print_json({"dropped": dropped, "versions": rows} if keep is not None else rows)
        return
    if dropped:
        console().print(f"{dropped:,} version{'s' if dropped > 1 else ''} dropped")
    table = plain_table("version", "by", "when", "nodes", "edges", "snapshots")
    for version in found:
        counts = (f"{version.nodes:,}", f"{version.edges:,}", ", ".join(labels.get(version.number, [])))
        table.add_row(f"{version.number:,}", version.kind, _time(version.created), *map(Text, counts))
    console().print(table)


def print_snapshots(store: Path | None, name: str, as_json: bool) -> None:
    """The snapshots of a graph."""
    with GraphStore(store, create=False) as opened:
        found = opened.snapshots(name)
    if as_json:
        print_json([asdict(snapshot) for snapshot in found])
        return
    table = plain_table("snapshot", "version", "when")
    for snapshot in found:
        table.add_row(plain(snapshot.label), f"{snapshot.version:,}", _time(snapshot.created))
    console().print(table if found else "no snapshots")


def take_snapshot(
    store: Path | None, name: str, label: str, version: str | None, delete: bool, as_json: bool
) -> None:
    """Sets or deletes a label."""
    with GraphStore(store, create=False) as opened:
        if delete:
            opened.delete_snapshot(name, label)
            return
        number = opened.snapshot(name, label, as_version(version))
    if as_json:
        print_json({"name": name, "label": label, "version": number})
    else:
        print(f"{label}: version {number} of {name}")


def _headline(stored: Stored) -> str:
    graph = stored.graph
    return f"{stored.name}, version {stored.version}: {graph.num_nodes:,} nodes, {graph.num_edges:,} edges"


def _print_counts(about: GraphStats) -> None:
    for what, of, counts in (("type", "nodes", about.types), ("relation", "edges", about.relations)):
        table = plain_table(what, of, numbers_from=1)
        for name, count in list(counts.items())[:_ROWS]:
            table.add_row(plain(name or "(none)", 100), f"{count:,}")
        if len(counts) > _ROWS:
            table.add_row(f"and {len(counts) - _ROWS:,} more", "")
        if counts:
            console().print(table)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
