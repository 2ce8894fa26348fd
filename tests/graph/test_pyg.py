"""Data and HeteroData of PyTorch Geometric, through stand-ins with its attributes: torch is no dependency."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits


class Tensor:
    """What of a tensor on a device matters: it is no array before it is detached and brought to the CPU."""

    def __init__(self, values: Any, ready: int = 0) -> None:
        self._values, self._ready = np.asarray(values), ready

    def detach(self) -> Tensor:
        return Tensor(self._values, 1)

    def cpu(self) -> Tensor:
        assert self._ready == 1
        return Tensor(self._values, 2)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        assert self._ready == 2, "a tensor that requires grad, on a device, is no array"
        return self._values


class HeteroData(dict[Any, Any]):
    """Stores by node type and by edge type, as torch_geometric.data.HeteroData has them."""

    @property
    def node_types(self) -> list[str]:
        return [key for key in self if isinstance(key, str)]

    @property
    def edge_types(self) -> list[tuple[str, str, str]]:
        return [key for key in self if isinstance(key, tuple)]


def data(**fields: Any) -> Any:
    return SimpleNamespace(**fields)


def scholars() -> HeteroData:
    return HeteroData(
        {
            "author": data(num_nodes=2),
            "paper": data(x=Tensor(np.zeros((3, 4))), year=np.array([1999, 2001, 2020])),
            ("author", "writes", "paper"): data(
                edge_index=Tensor([[0, 1, 1], [0, 0, 2]]), edge_attr=np.array([1, 2, 3])
            ),
            ("paper", "cites", "paper"): data(edge_index=np.array([[2], [0]])),
        }
    )


@pytest.mark.parametrize("make", [np.asarray, Tensor])
def test_homogeneous(make: Any) -> None:
    graph = Graph.from_pyg(
        data(
            edge_index=make([[0, 1, 2], [1, 2, 2]]),
            x=make(np.zeros((4, 3))),
            y=make([1, 0, 1, 0]),
            node_type=make([0, 1, 1, 0]),
            edge_type=make([1, 0, 1]),
            edge_attr=make([[0.5], [1.0], [2.0]]),
        ),
        names=["A", "B", "C", "D"],
        types=["drug", "disease"],
        relations=["causes", "treats"],
        attributes=("y", "edge_attr"),
    )
    assert [(n.id, n.name, n.type, n.attributes) for n in graph.nodes()] == [
        ("0", "A", "drug", {"y": 1}),
        ("1", "B", "disease", {"y": 0}),
        ("2", "C", "disease", {"y": 1}),
        ("3", "D", "drug", {"y": 0}),
    ]
    assert graph.to_triples() == [("0", "treats", "1"), ("1", "causes", "2"), ("2", "treats", "2")]
    assert [edge.attributes["edge_attr"] for edge in graph.edges()] == [[0.5], [1.0], [2.0]]


def test_what_is_not_given_is_inferred() -> None:
    assert Graph.from_pyg(data(edge_index=np.array([[0, 4], [1, 0]]))).num_nodes == 5
    assert Graph.from_pyg(data(edge_index=np.zeros((2, 0)), num_nodes=3)).num_nodes == 3
    graph = Graph.from_pyg(data(edge_index=np.array([[0], [1]]), edge_type=np.array([7])), ids=["a", "b"])
    assert graph.to_triples() == [("a", "7", "b")]


def test_heterogeneous() -> None:
    graph = Graph.from_pyg(
        scholars(),
        names={"author": ["Ada", "Alan"]},
        ids={"paper": ["p0", "p1", "p2"]},
        attributes=("year", "edge_attr"),
    )
    assert {node.id: (node.name, node.type) for node in graph.nodes()} == {
        "author:0": ("Ada", "author"),
        "author:1": ("Alan", "author"),
        "p0": ("p0", "paper"),
        "p1": ("p1", "paper"),
        "p2": ("p2", "paper"),
    }
    assert graph.node("p1").attributes == {"year": 2001}
    assert [(e.source, e.relation, e.target, e.attributes) for e in graph.edges()] == [
        ("author:0", "writes", "p0", {"edge_attr": 1}),
        ("author:1", "writes", "p0", {"edge_attr": 2}),
        ("author:1", "writes", "p2", {"edge_attr": 3}),
        ("p2", "cites", "p0", {}),
    ]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 2)), max_size=20),
)
def test_edges_are_those_of_the_arrays(count: int, rows: list[tuple[int, int, int]]) -> None:
    rows = [row for row in rows if max(row[:2]) < count]
    index = np.array([[row[0] for row in rows], [row[1] for row in rows]], np.int64)
    codes = np.array([row[2] for row in rows], np.int64)
    graph = Graph.from_pyg(data(edge_index=index, num_nodes=count, edge_type=codes))
    assert graph.num_nodes == count
    assert graph.to_triples() == sorted({(str(s), str(r), str(t)) for s, t, r in rows})


PAIR = np.array([[0], [1]])


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"nodes": []}, {}, "expected Data or HeteroData of torch_geometric, found a dict"),
        (data(edge_index=None), {}, "edge_index: is missing"),
        (data(edge_index=np.zeros((3, 2), int)), {}, r"expected the shape \(2, edges\), found \(3, 2\)"),
        (data(edge_index=np.array([0, 1])), {}, r"expected the shape \(2, edges\)"),
        (data(edge_index=np.array([[0.5], [1]])), {}, "expected integers, found float64"),
        (data(edge_index=[["a"], ["b"]]), {}, "expected integers"),
        (data(edge_index=[[0, 1], [1]]), {}, "edge_index: is no array"),
        (
            data(edge_index=np.array([[0, 1], [1, 9]]), num_nodes=3),
            {},
            r"edge_index\[1, 1\]: 9 is none of 3 nodes",
        ),
        (data(edge_index=np.array([[0, -1], [1, 1]])), {}, r"edge_index\[0, 1\]: -1 is none of 2 nodes"),
        (data(edge_index=np.array([[0], [2**62]])), {}, "nodes, the limit is 5,000,000"),
        (data(edge_index=PAIR, num_nodes=10**12), {}, "nodes, the limit is"),
        (data(edge_index=PAIR), {"names": ["a"]}, "names: expected a list of 2 strings"),
        (data(edge_index=PAIR), {"names": [1, 2]}, r"nodes\[0\]\.name: expected a string, found 1"),
        (data(edge_index=PAIR), {"ids": ["a", "a"]}, r"nodes\[1\]\.id: the id 'a' is used twice"),
        (data(edge_index=PAIR), {"relations": ["r"]}, "relations: the data has no edge_type"),
        (
            data(edge_index=PAIR, edge_type=np.array([3])),
            {"relations": ["r"]},
            r"edge_type\[0\]: 3 has no name",
        ),
        (data(edge_index=PAIR, edge_type=np.array([3, 4])), {}, "edge_type: expected 1 integers"),
        (
            data(edge_index=PAIR, y=np.zeros(5)),
            {"attributes": "y"},
            r"y: expected 2 rows, found the shape \(5,\)",
        ),
        (
            data(edge_index=PAIR, y=np.full(2, np.nan)),
            {"attributes": "y"},
            r"nodes\[0\]\.attributes: .* JSON",
        ),
        (scholars(), {"names": ["x"]}, "names: expected a list for each node type"),
        (scholars(), {"types": ["x"]}, "a HeteroData has its own"),
        (HeteroData({("a", "r", "b"): data(edge_index=PAIR)}), {}, "no node type is called 'a'"),
        (
            HeteroData({("a", "r"): data(edge_index=PAIR)}),
            {},
            r"edge_types: expected \(source, relation, target\)",
        ),
    ],
)
def test_errors_name_the_field(given: Any, options: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Graph.from_pyg(given, **options)


def test_limits_and_imports() -> None:
    with pytest.raises(GraphError, match="more than 5 edges"):
        Graph.from_pyg(data(edge_index=np.zeros((2, 6), int)), limits=Limits(edges=5))
    code = "import sys; import vglm.graph.formats.pyg; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)  # in a process of its own: other tests train
