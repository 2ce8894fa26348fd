"""What the page reads from and writes to the graph store; everything here is called in a thread.

Names and texts of graphs are untrusted and may be long: they are cut here, and shown as text by whoever shows them.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vglm.errors import ConflictError, GraphError
from vglm.graph.graph import Edge, Graph, Node
from vglm.graph.linking import linker
from vglm.graph.retrieval import prepare
from vglm.graph.store import GraphStore

EXAMPLE = Path(__file__).with_name("example.json")
EXAMPLE_NAME = "connective-tissue"
EXAMPLE_QUESTION = "Which disease causes bifid uvula and arterial tortuosity?"
MAX_GRAPHS = 500  # in the list to choose from
MAX_EDGES = 100  # of a node, shown
MAX_FOUND = 8  # nodes that a search shows
GLIMPSE = 50  # nodes that are drawn before anything is asked
MAX_RELATIONS = 200  # to choose from
SCANNED_NODES = 20_000  # a search looks at every name of a graph of at most so many
LONGEST_NAME, LONGEST_TEXT = 120, 1200


@dataclass(frozen=True, slots=True)
class Link:
    """An edge of a node as its record shows it: what stands at the other end, and whether the edge leads there."""

    edge: Edge
    other: str
    outward: bool


@dataclass(frozen=True, slots=True)
class Record:
    """A node at a version of its graph."""

    graph: str
    version: int
    node: Node
    links: tuple[Link, ...]
    num_links: int
    relations: tuple[str, ...]


def cut(text: str, most: int = LONGEST_NAME) -> str:
    """A text on one line of at most `most` characters."""
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most and len(text) <= 4 * most else line[: most - 1].rstrip() + "…"


def add_example(store: GraphStore) -> str:
    """Store the example that comes with vGLM, if it is not there; returns its name."""
    graph = Graph.from_dict(json.loads(EXAMPLE.read_text(encoding="utf-8")))
    if EXAMPLE_NAME not in store:
        try:
            store.create(EXAMPLE_NAME, graph)
        except ConflictError:
            return EXAMPLE_NAME  # another tab was faster
    prepare(store.get(EXAMPLE_NAME))
    return EXAMPLE_NAME


def example_question(store: GraphStore, name: str) -> str:
    """A question that the graph can be asked: about the node with the most edges, of a graph that we do not know."""
    if name == EXAMPLE_NAME:
        return EXAMPLE_QUESTION
    graph = store.get(name)
    if not graph.num_edges:
        return f"What is {cut(graph.columns.names[0])}?" if graph.num_nodes else ""
    hub, _ = Counter(graph.columns.sources[:100_000].tolist()).most_common(1)[0]
    return f"What is known about {cut(graph.columns.names[hub])}?"


def glimpse(store: GraphStore, name: str) -> Graph:
    """The graph if it is small, else the node with the most edges and what is next to it."""
    graph = store.get(name)
    if graph.num_nodes <= GLIMPSE or not graph.num_edges:
        return graph.subgraph([graph.id_of(i) for i in range(min(GLIMPSE, graph.num_nodes))])
    hub, _ = Counter(graph.columns.sources[:100_000].tolist()).most_common(1)[0]
    edges = graph.edge_indices(hub, "both")[: GLIMPSE - 1]
    return graph.edge_subgraph(edges.tolist(), [graph.id_of(hub)])


def node_types(store: GraphStore, name: str) -> list[str]:
    """The types of a graph's nodes, without that of nodes that have none."""
    return [kind for kind in store.get(name).columns.type_names if kind][:MAX_RELATIONS]


def record(store: GraphStore, name: str, node_id: str) -> Record:
    """A node as it is now. Raises GraphError when there is none, any more."""
    stored = store.read(name)
    graph = stored.graph
    index = graph.index_of(node_id)
    edges = graph.edge_indices(index, "both")
    links = []
    for edge in (graph.edge_at(int(i)) for i in edges[:MAX_EDGES]):
        outward = edge.source == node_id
        links.append(Link(edge, cut(graph.name_of(edge.target if outward else edge.source)), outward))
    links.sort(key=lambda link: (not link.outward, link.edge.relation, link.other))
    relations = graph.columns.relation_names[:MAX_RELATIONS]
    return Record(name, stored.version, graph.node_at(index), tuple(links), len(edges), relations)


def find_nodes(store: GraphStore, name: str, text: str) -> list[Node]:
    """Nodes whose id is the text, whose name has it, or that it names, the shortest names first."""
    graph, text = store.get(name), text.strip()
    if not text:
        return []
    found = [text] if text in graph else []
    if graph.num_nodes <= SCANNED_NODES:
        wanted = text.casefold()
        near = [(len(n), i) for i, n in enumerate(graph.columns.names) if wanted in n.casefold()]
        found += [graph.columns.ids[i] for _, i in sorted(near)[:MAX_FOUND]]
    found += [entity.id for mention in linker(graph).link(text) for entity in mention.entities]
    return [graph.node(node) for node in list(dict.fromkeys(found))[:MAX_FOUND]]


def change_edge(
    store: GraphStore, name: str, version: int, *, delete: Edge | None = None, add: Edge | None = None
) -> int:
    """Delete an edge, add one, or put one in another's place; returns the new version.

    Raises ConflictError when the graph is no longer at `version`, and GraphError for what cannot be.
    """
    if add is not None and not add.relation.strip():
        raise GraphError("choose a relation, or write a new one")
    changed = store.patch(
        name,
        delete_edges=[] if delete is None else [delete],
        upsert_edges=[] if add is None else [add],
        expected_version=version,
    )
    prepare(store.get(name))
    return changed
