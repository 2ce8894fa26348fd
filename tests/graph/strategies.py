"""Random graphs for round trips: names in any script, control characters, attributes of every JSON type."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from vglm.graph.graph import Graph

texts = st.text(st.characters(codec="utf-8"), max_size=12)
xml_texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn"]) | st.sampled_from("\t\n\r"))
hard_ids = st.sampled_from(
    [
        "a",
        "HP:0000118",
        "http://example.org/a#b",
        "http://a/../b",
        "urn:vglm:node:a",
        "_:1",
        "a b",
        "%41",
        "é:",
    ]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def graphs(draw: st.DrawFn, strings: st.SearchStrategy[str] = texts) -> Graph:
    """A graph of a few nodes and edges; `strings` are what its ids, names and texts are made of."""
    ids = draw(st.lists(hard_ids | strings.filter(bool), min_size=1, max_size=6, unique=True))
    names = st.sampled_from(["comment", "label", "name", "type", "id", "relation", "text"]) | strings
    attributes = st.dictionaries(names, values, max_size=3)
    nodes = [
        {
            "id": node_id,
            "name": draw(strings),
            "type": draw(st.sampled_from(["", "disease", "a type"]) | strings),
            "text": draw(strings),
            "aliases": draw(st.lists(strings, max_size=3)),
            "attributes": draw(attributes),
        }
        for node_id in ids
    ]
    edge = st.fixed_dictionaries(
        {
            "source": st.sampled_from(ids),
            "relation": st.sampled_from(["is a", "treats"]) | strings.filter(bool),
            "target": st.sampled_from(ids),
            "attributes": attributes,
        }
    )
    return Graph.from_dict({"nodes": nodes, "edges": draw(st.lists(edge, max_size=8))})


def parallel_free(graph: Graph) -> dict[str, Any]:
    """What triples keep of a graph: its ids and edges."""
    return {
        "ids": sorted({end for s, _, t in graph.to_triples() for end in (s, t)}),
        "edges": graph.to_triples(),
    }
