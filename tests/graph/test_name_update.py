"""A name index that follows an edit is the index of the edited graph, array by array."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph.strategies import graphs, texts
from vglm.graph import linking, name_changes
from vglm.graph.graph import Graph
from vglm.graph.linking import link, linker
from vglm.graph.name_changes import NameChanges, NameColumns
from vglm.graph.name_index import NameIndex
from vglm.graph.name_update import updated_index

Data = dict[str, Any]
LETTERS = str.maketrans("0123456789", "qwertyuiop")  # words with digits are never misspelt ones


def same(one: NameIndex, other: NameIndex) -> bool:
    (meta, arrays), (others_meta, others) = one.to_arrays(), other.to_arrays()
    assert meta == others_meta
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        assert array.dtype == others[name].dtype, name
        assert np.array_equal(array, others[name]), name
    return True


def changes(old: Graph, new: Graph) -> NameChanges | None:
    return name_changes.name_changes(NameColumns.of(old.columns), NameColumns.of(new.columns))


def follow(old: Graph, new: Graph) -> NameIndex:
    found = changes(old, new)
    assert found is not None
    return updated_index(NameIndex.build(old), NameColumns.of(new.columns), found)


names = st.sampled_from(["Marfan syndrome", "Marfan", "syndrome", "∑", "la " * 40, "ä b", "T-cell"]) | texts
edits = st.lists(
    st.tuples(
        st.sampled_from(["rename", "alias", "delete", "insert"]),
        st.integers(0, 5),
        names,
        st.lists(names, max_size=2),
    ),
    max_size=4,
)


def edited(data: Data, todo: list[tuple[str, int, str, list[str]]]) -> Data:
    data = {"nodes": copy.deepcopy(data["nodes"]), "edges": []}
    for what, place, name, aliases in todo:
        nodes = data["nodes"]
        if what == "insert":
            nodes.append({"id": f"{name}{len(nodes)}{place}", "name": name, "aliases": aliases})
        elif nodes and what == "delete":
            nodes.pop(place % len(nodes))
        elif nodes:
            nodes[place % len(nodes)][what.replace("rename", "name").replace("alias", "aliases")] = (
                name if what == "rename" else aliases
            )
    data["nodes"] = list({node["id"]: node for node in data["nodes"]}.values())
    return data


@given(graphs(names), edits)
@settings(deadline=None, max_examples=500)
def test_any_edit(graph: Graph, todo: list[tuple[str, int, str, list[str]]]) -> None:
    new = Graph.from_dict(edited(graph.to_dict(), todo))
    assert same(follow(graph, new), NameIndex.build(new))
    assert same(follow(new, graph), NameIndex.build(graph))


def large(count: int) -> Data:
    rng = random.Random(5)
    vocabulary = [f"{chr(97 + i % 26)}word{i}".translate(LETTERS) for i in range(3_000)]
    nodes = [
        {
            "id": f"n{i:05}",
            "name": " ".join(rng.choices(vocabulary, k=3)),
            "aliases": rng.choices(vocabulary, k=i % 3),
        }
        for i in range(count)
    ]
    return {"nodes": nodes, "edges": []}


def test_edits_of_a_larger_graph() -> None:
    data = large(5_000)
    old = Graph.from_dict(data)
    rng = random.Random(6)
    nodes = data["nodes"]
    for _ in range(20):
        nodes[rng.randrange(len(nodes))]["name"] = (
            f"another name {rng.randrange(100)} aword{rng.randrange(9)}"
        )
        nodes.pop(rng.randrange(len(nodes)))
        nodes.append({"id": f"m{rng.randrange(10**6)}", "name": f"new {rng.random()}"})
    new = Graph.from_dict(data)
    found = changes(old, new)
    assert found is not None
    assert len(found.gone) in range(36, 41)  # a renamed node may have gone later
    assert len(found.come) in range(36, 41)
    assert same(follow(old, new), NameIndex.build(new))


def test_a_vocabulary_that_doubles() -> None:
    """The number of lists of features follows the number of words."""
    data = large(2_000)
    old = Graph.from_dict(data)
    data["nodes"][7]["aliases"] = [f"strange{i}word".translate(LETTERS) for i in range(6_000)]
    new = Graph.from_dict(data)
    index = follow(old, new)
    assert len(index.feature_starts) > len(NameIndex.build(old).feature_starts)
    assert same(index, NameIndex.build(new))
    assert same(follow(new, old), NameIndex.build(old))


def test_too_many_changes() -> None:
    data = large(500)
    old = Graph.from_dict(data)
    for node in data["nodes"]:
        node["name"] += " x"
    assert changes(old, Graph.from_dict(data)) is None
    assert changes(old, Graph.from_dict(large(3))) is None
    nothing = changes(old, Graph.from_dict(large(500)))
    assert nothing is not None
    assert len(nothing.gone) == len(nothing.come) == 0


def test_the_linker_follows_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[int] = []
    build = NameIndex.build
    monkeypatch.setattr(NameIndex, "build", lambda graph: builds.append(1) or build(graph))
    data = large(1_000)
    versions = [Graph.from_dict(data)]
    linker(versions[0])
    for number in range(5):
        data["nodes"][100 * number]["name"] = f"Renamed{number}"
        versions.append(Graph.from_dict(data))
        assert link(versions[-1], f"renamed{number}?")[0].best.id == f"n{100 * number:05}"
        assert link(versions[-2], f"renamed{number}?", fuzzy=False) == []
    assert len(builds) == 1
    monkeypatch.setattr(linking, "_VERSIONS", 0)
    data["nodes"][3]["name"] = "Renamed again"
    linker(Graph.from_dict(data))
    assert len(builds) == 2


def test_changes_are_found_exactly() -> None:
    """Strings that could be cut in another way are told apart."""
    old = Graph.from_dict({"nodes": [{"id": "a", "name": "bc"}, {"id": "ab", "name": "c"}], "edges": []})
    new = Graph.from_dict({"nodes": [{"id": "a", "name": "b"}, {"id": "ab", "name": "cc"}], "edges": []})
    found = changes(old, new)
    assert found is not None
    assert found.gone.tolist() == found.come.tolist() == [0, 1]
    assert found.numbers.tolist() == [-1, -1]
