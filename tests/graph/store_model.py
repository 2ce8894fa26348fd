"""What a stored graph should be after a patch, computed the plain way: dictionaries, copied at every step."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from vglm.graph.graph import Graph

Parts = dict[str, list[Any]]
Key = tuple[str, str, str, str]

IDS = ["a", "aa", "b", "é", "z\n", "中", "😀", "B"]
RELATIONS = ["is a", "treats", "r", "ß"]
TYPES = ["", "disease", "drug"]
ATTRIBUTES: list[dict[str, Any]] = [{}, {"w": 1}, {"w": 2}, {"é": [None, "x"], "a": 0.5}]

nodes = st.fixed_dictionaries(
    {"id": st.sampled_from(IDS)},
    optional={
        "name": st.sampled_from(["Name", "", "é\x00", "<|im_end|>"]),
        "type": st.sampled_from(TYPES),
        "text": st.sampled_from(["", "a text", "two\nlines"]),
        "aliases": st.lists(st.sampled_from(["MFS", "x", "é"]), max_size=2),
        "attributes": st.sampled_from(ATTRIBUTES),
    },
)
edges = st.fixed_dictionaries(
    {
        "source": st.sampled_from(IDS),
        "relation": st.sampled_from(RELATIONS),
        "target": st.sampled_from(IDS),
    },
    optional={"attributes": st.sampled_from(ATTRIBUTES)},
)
patches = st.fixed_dictionaries(
    {
        "upsert_nodes": st.lists(nodes, max_size=3),
        "delete_nodes": st.lists(st.sampled_from(IDS), max_size=1),
        "upsert_edges": st.lists(edges, max_size=4),
        "delete_edges": st.lists(edges, max_size=1),
    }
)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A whole graph as node-link JSON."""
    found = draw(st.lists(nodes, max_size=6, unique_by=lambda node: node["id"]))
    ids = [node["id"] for node in found]
    ends = st.sampled_from(ids) if ids else st.nothing()
    edge = st.fixed_dictionaries(
        {"source": ends, "relation": st.sampled_from(RELATIONS), "target": ends},
        optional={"attributes": st.sampled_from(ATTRIBUTES)},
    )
    return {"nodes": found, "edges": draw(st.lists(edge, max_size=8)) if ids else []}


class Model:
    """Nodes by id, and edges by identity."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.nodes: dict[str, dict[str, Any]] = {node["id"]: node for node in document["nodes"]}
        self.edges: set[Key] = {key_of(edge) for edge in document["edges"]}

    def patched(self, parts: Parts) -> Model | None:
        """The model after a patch, or None if the patch has to be refused."""
        after = Model({"nodes": [], "edges": []})
        after.nodes, after.edges = dict(self.nodes), set(self.edges)
        for edge in parts["delete_edges"]:
            key = key_of(edge)
            matching = {
                other
                for other in self.edges
                if other == key or ("attributes" not in edge and other[:3] == key[:3])
            }
            if not matching:
                return None
            after.edges -= matching
        for node_id in parts["delete_nodes"]:
            if node_id not in self.nodes:
                return None
            after.nodes.pop(node_id, None)
            after.edges = {edge for edge in after.edges if node_id not in edge[::2]}
        if len({node["id"] for node in parts["upsert_nodes"]}) != len(parts["upsert_nodes"]):
            return None
        after.nodes.update((node["id"], node) for node in parts["upsert_nodes"])
        for edge in parts["upsert_edges"]:
            if edge["source"] not in after.nodes or edge["target"] not in after.nodes:
                return None
            after.edges.add(key_of(edge))
        return after

    def graph(self) -> Graph:
        """Built from nothing."""
        listed = [
            {"source": source, "relation": relation, "target": target, "attributes": json.loads(attributes)}
            for source, relation, target, attributes in sorted(self.edges)
        ]
        return Graph.from_dict({"nodes": list(self.nodes.values()), "edges": listed})


def key_of(edge: dict[str, Any]) -> Key:
    attributes = json.dumps(edge.get("attributes", {}), sort_keys=True)
    return edge["source"], edge["relation"], edge["target"], attributes
