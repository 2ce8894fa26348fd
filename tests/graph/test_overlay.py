"""A graph after patches equals the same graph built from nothing: same arrays, whatever came in which order."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graph.store_model import Model, Parts, documents, patches
from vglm.errors import GraphError
from vglm.graph.changes import Change, Patch
from vglm.graph.graph import Columns, Graph
from vglm.graph.limits import DEFAULT_LIMITS, Limits
from vglm.graph.overlay import Overlay
from vglm.graph.strings import StringTable


def assert_same_columns(graph: Graph, expected: Graph) -> None:
    for column in fields(Columns):
        value, wanted = getattr(graph.columns, column.name), getattr(expected.columns, column.name)
        if isinstance(value, StringTable):
            assert list(value) == list(wanted), column.name
        else:
            assert type(value) is type(wanted)
            assert list(value) == list(wanted), column.name
            assert isinstance(value, tuple) or value.dtype == wanted.dtype == np.int32, column.name
    assert graph == expected


def change_of(overlay: Overlay, parts: Parts, limits: Limits = DEFAULT_LIMITS) -> Change:
    return overlay.resolve(Patch.of(**parts, limits=limits), limits)


@given(documents(), st.lists(patches, max_size=6), st.sets(st.integers(0, 5)))
def test_patches_of_a_graph_give_the_graph_built_from_nothing(
    document: dict[str, Any], sequence: list[Parts], materialise: set[int]
) -> None:
    model = Model(document)
    overlay = Overlay(Graph.from_dict(document))
    for step, parts in enumerate(sequence):
        after = model.patched(parts)
        if after is None:
            with pytest.raises(GraphError):
                change_of(overlay, parts)
        else:
            change = change_of(overlay, parts)
            assert Change.decode(change.encode()) == change
            assert bool(change) or after.graph() == model.graph()
            overlay.apply(change)
            model = after
        expected = model.graph()
        assert (overlay.num_nodes, overlay.num_edges) == (expected.num_nodes, expected.num_edges)
        if step in materialise:
            overlay = Overlay(overlay.graph())
    assert_same_columns(overlay.graph(), model.graph())


@given(documents(), patches)
def test_an_overlay_knows_what_is_there(document: dict[str, Any], parts: Parts) -> None:
    model, overlay = Model(document), Overlay(Graph.from_dict(document))
    after = model.patched(parts)
    if after is not None:
        overlay.apply(change_of(overlay, parts))
        model = after
    expected = model.graph()
    for node in expected.nodes():
        row = overlay.row(node.id)
        assert row is not None
        assert row[:4] == (node.id, node.name, node.type, node.text)
    present = {(edge.source, edge.relation, edge.target) for edge in expected.edges()}
    for triple in present:
        assert len(overlay.parallel_edges(*triple)) == sum(
            (edge.source, edge.relation, edge.target) == triple for edge in expected.edges()
        )
        assert all(overlay.has_edge(key) for key in overlay.parallel_edges(*triple))
    assert overlay.parallel_edges("a", "no such relation", "b") == []
    assert not overlay.has_node("no such node")


def test_a_patch_of_a_million_degree_node_counts_its_edges() -> None:
    leaves = 100_000
    triples = [("hub", "r", f"n{i}") for i in range(leaves)] + [
        ("n1", "r", "hub"),
        ("n1", "r", "n2"),
        ("hub", "r", "hub"),
    ]
    overlay = Overlay(Graph.from_triples(triples))
    nothing: Parts = {"upsert_nodes": [], "delete_nodes": [], "upsert_edges": [], "delete_edges": []}
    overlay.apply(change_of(overlay, nothing | {"delete_nodes": ["hub"]}))
    assert (overlay.num_nodes, overlay.num_edges) == (leaves, 1)
    again = nothing | {
        "upsert_nodes": [{"id": "hub"}],
        "upsert_edges": [("hub", "r", "n7"), ("hub", "s", "n8")],
    }
    overlay.apply(change_of(overlay, again))
    assert overlay.num_edges == 3
    assert overlay.graph() == Graph.from_dict(
        {
            "nodes": [{"id": "hub"}, *({"id": f"n{i}"} for i in range(leaves))],
            "edges": [
                {"source": source, "relation": relation, "target": target}
                for source, relation, target in (("n1", "r", "n2"), ("hub", "r", "n7"), ("hub", "s", "n8"))
            ],
        }
    )


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (
            {"upsert_edges": [{"source": "a", "relation": "r", "target": "x"}]},
            r"upsert_edges\[0\].target.*'x'.*'a' -",
        ),
        ({"upsert_edges": [("a", "r", "b"), ("y", "r", "b")]}, r"upsert_edges\[1\].source.*'y'"),
        ({"delete_nodes": ["a"], "upsert_edges": [("a", "r", "b")]}, "the patch deletes it"),
        ({"delete_nodes": ["b", "q"]}, r"delete_nodes\[1\].*'q'"),
        ({"delete_edges": [("a", "r", "a")]}, r"delete_edges\[0\].*'a' -\['r'\]-> 'a'"),
        ({"delete_edges": [{"source": "a", "relation": "r", "target": "b", "w": 5}]}, "attributes"),
        ({"upsert_nodes": [{"id": "c"}, {"id": "c"}]}, "used twice"),
        ({"upsert_nodes": [{"name": "c"}]}, r"upsert_nodes\[0\].id: is missing"),
        ({"upsert_nodes": [{"id": ""}]}, "is empty"),
        ({"upsert_nodes": [{"id": "c", "text": 5}]}, r"upsert_nodes\[0\].text"),
        ({"upsert_nodes": [{"id": "\ud800"}]}, "Unicode"),
        ({"upsert_nodes": [{"id": "c", "x": float("nan")}]}, "JSON"),
        ({"upsert_nodes": "abc"}, "expected a list"),
        ({"upsert_nodes": {"id": "c"}}, "expected a list"),
        ({"upsert_nodes": [{"id": f"n{i}"} for i in range(4)]}, "more than 5 nodes"),
        ({"upsert_edges": [("a", f"r{i}", "b") for i in range(5)]}, "more than 5 edges"),
        ({"upsert_edges": [("a", "r")]}, "2 values"),
        ({"upsert_edges": [{"source": "a", "relation": ""}]}, "target: is missing"),
        ({"delete_nodes": [None]}, r"delete_nodes\[0\]"),
    ],
)
def test_what_cannot_be_is_refused_by_name(parts: Parts, says: str) -> None:
    overlay = Overlay(Graph.from_triples([("a", "r", "b")]))
    nothing: Parts = {"upsert_nodes": [], "delete_nodes": [], "upsert_edges": [], "delete_edges": []}
    with pytest.raises(GraphError, match=says):
        change_of(overlay, nothing | parts, Limits(nodes=5, edges=5))
    assert overlay.graph() is overlay.base


@pytest.mark.parametrize("data", [b"", b"[]", b"[[],[],[]]", b'[[["a"]],[],[],[]]', b"[[],[1],[],[]]", b"{}"])
def test_a_change_that_was_not_written_by_encode(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        Change.decode(data)


def test_a_change_that_contradicts_the_graph_is_refused() -> None:
    """As a store's file from a stranger might: an edge without its node must not become an index."""
    overlay = Overlay(Graph.from_triples([("a", "r", "b")]))
    overlay.apply(Change(upsert_edges=(("a", "r", "nowhere", ""),)))
    with pytest.raises(GraphError, match="'nowhere'"):
        overlay.graph()
