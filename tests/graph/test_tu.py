"""Sets of graphs in the TU format."""

from __future__ import annotations

from pathlib import Path

import networkx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vglm.errors import GraphError
from vglm.graph.graph import Graph

FILES = {
    "A": "1, 2\n2, 1\n3, 2\n4, 5\n5, 4\n",
    "graph_indicator": "1\n1\n1\n2\n2\n",
    "graph_labels": "1\n-1\n",
    "node_labels": "0\n0\n1\n0\n1\n",
    "edge_labels": "7\n7\n8\n7\n8\n",
}


def write(folder: Path, **files: str | None) -> Path:
    for name, text in {**FILES, **files}.items():
        path = folder / f"DS_{name}.txt"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
    return folder


def test_graphs_and_their_classes(tmp_path: Path) -> None:
    graphs, labels = Graph.load_set(
        write(tmp_path), node_labels={"0": "C", "1": "N"}, edge_labels={"7": "single"}
    )
    assert labels == ["1", "-1"]
    assert [[(node.id, node.type) for node in graph.nodes()] for graph in graphs] == [
        [("1", "C"), ("2", "C"), ("3", "N")],
        [("1", "C"), ("2", "N")],
    ]
    assert graphs[0].to_triples() == [("1", "single", "2"), ("3", "8", "2")]
    assert graphs[1].to_triples() == [("1", "single", "2"), ("2", "8", "1")]  # two labels: two edges
    plain, _ = Graph.load_set(write(tmp_path, node_labels=None, edge_labels=None))
    assert plain[1].to_triples() == [("1", "related to", "2")]
    with pytest.raises(GraphError, match=r"is a set of graphs; read it with Graph.load_set"):
        Graph.load(tmp_path)


def test_attributes_of_nodes(tmp_path: Path) -> None:
    lines = ["1, 2.5", "0.5, -1e3", "3, 4", "5, 6", "7, 8"]
    graphs, _ = Graph.load_set(write(tmp_path, node_attributes="\n".join(lines) + "\n"))
    assert [dict(node.attributes) for node in graphs[0].nodes()][:2] == [
        {"attribute 1": 1.0, "attribute 2": 2.5},
        {"attribute 1": 0.5, "attribute 2": -1000.0},
    ]
    assert graphs[1].node("2").attributes == {"attribute 1": 7.0, "attribute 2": 8.0}
    for place, bad, message in (
        (2, "3", "line 3: expected 2 finite numbers"),
        (0, "nan, 1", "line 1: expected finite numbers"),
        (4, "x, 1", "line 5: expected 2 finite numbers, found 'x, 1'"),
    ):
        wrong = "\n".join([*lines[:place], bad, *lines[place + 1 :]]) + "\n"
        with pytest.raises(GraphError, match=message):
            Graph.load_set(write(tmp_path, node_attributes=wrong))
    with pytest.raises(GraphError, match=r"node_attributes\.txt: expected 5 lines, found 4"):
        Graph.load_set(write(tmp_path, node_attributes="\n".join(lines[:4]) + "\n"))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 99)), min_size=1, max_size=5))
def test_random_graphs_are_read_as_they_were(tmp_path: Path, sizes: list[tuple[int, int]]) -> None:
    made = [networkx.gnp_random_graph(size, 0.5, seed=seed) for size, seed in sizes]
    edges, indicator, first = [], [], 1
    for number, graph in enumerate(made, 1):
        edges += [f"{first + a}, {first + b}\n" for s, t in graph.edges for a, b in ((s, t), (t, s))]
        indicator += [f"{number}\n"] * len(graph)
        first += len(graph)
    given_files = {
        "A": "".join(edges),
        "graph_indicator": "".join(indicator),
        "graph_labels": "0\n" * len(made),
    }
    graphs, _ = Graph.load_set(write(tmp_path, **given_files, node_labels=None, edge_labels=None))
    for graph, one in zip(graphs, made, strict=True):
        assert graph.num_nodes == len(one)
        assert graph.to_triples() == sorted((str(s + 1), "related to", str(t + 1)) for s, t in one.edges)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("A", "1, 2\n1, x\n", "DS_A.txt, line 2: expected 2 integers, found '1, x'"),
        ("A", "1, 2\n1\n", "DS_A.txt, line 2: expected 2 integers, found '1'"),
        ("A", "1, 9\n", "DS_A.txt, line 1: expected nodes 1 to 5"),
        ("A", "1, 2\n0, 2\n", "DS_A.txt, line 2: expected nodes 1 to 5"),
        ("A", "1, 2\n3, 4\n", "DS_A.txt, line 2: an edge between two graphs"),
        ("A", f"1, {'9' * 30}\n", "DS_A.txt, line 1: expected 2 integers"),
        ("A", None, r"DS_A.txt: cannot be read: No such file"),
        ("graph_indicator", "1\n1\n1\n2\n3\n", "line 5: expected the number of a graph, 1 to 2"),
        ("graph_indicator", None, r"expected one file ..._graph_indicator.txt, found 0"),
        ("node_labels", "0\n", r"DS_node_labels.txt: expected 5 lines, found 1"),
        ("edge_labels", "0\n", r"DS_edge_labels.txt: expected 5 lines, found 1"),
        ("graph_labels", "", "expected the number of a graph, 1 to 0"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Graph.load_set(write(tmp_path, **{name: text}))
