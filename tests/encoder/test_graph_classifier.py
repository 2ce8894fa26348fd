"""The graph classifier: learns, explains, is saved, refuses; its kernel against a naive twin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.encoder.test_graph_features import random_graph
from vglm.encoder.graph_classifier import GraphClassifier
from vglm.encoder.graph_features import Counts, count
from vglm.encoder.graph_kernel import INTERSECTIONS, LAPLACE_WEIGHTS, Kernel
from vglm.errors import GraphError, ModelError, RequestError
from vglm.graph.graph import Graph
from vglm.train.graph_classes import (
    ClassifierOptions,
    best_sharpness,
    fit,
    ridge_regression,
    train_classifier,
)


def molecule(seed: int, *, nitro: bool) -> Graph:
    """A random tree of carbon with a group at one node: N with two O, or N with an O and a C."""
    random = np.random.default_rng(seed)
    size = int(random.integers(6, 12))
    nodes = [{"id": f"c{i}", "type": "C"} for i in range(size)]
    edges = [
        {"source": f"c{i}", "relation": "single", "target": f"c{random.integers(i)}"} for i in range(1, size)
    ]
    nodes += [{"id": "n", "type": "N"}, {"id": "o", "type": "O"}, {"id": "x", "type": "O" if nitro else "C"}]
    edges += [{"source": "n", "relation": "single", "target": f"c{random.integers(size)}"}]
    edges += [{"source": "n", "relation": "double", "target": other} for other in ("o", "x")]
    return Graph.from_dict({"nodes": nodes, "edges": edges})


@pytest.fixture(scope="module")
def molecules() -> tuple[list[Graph], list[str]]:
    nitro = [seed % 3 != 0 for seed in range(60)]
    graphs = [molecule(seed, nitro=flag) for seed, flag in enumerate(nitro)]
    return graphs, ["active" if flag else "not" for flag in nitro]


@pytest.fixture(scope="module")
def classifier(molecules: tuple[list[Graph], list[str]]) -> GraphClassifier:
    return train_classifier(*molecules)


def naive_similarity(kernel: Kernel, references: list[Counts], graph: Counts, place: int) -> float:
    """Dictionaries and loops."""

    def log(value: float) -> float:
        return math.copysign(math.log1p(abs(value)), value)

    other = references[place]
    distance = 0.0
    for family, weight in LAPLACE_WEIGHTS.items():
        spreads = {}
        for name in kernel.names[family]:
            values = [log(each[family].get(name, 0.0)) for each in references]
            if sum(1 for each in references if each[family].get(name, 0.0)) >= 5 and np.std(values) > 1e-6:
                spreads[name] = float(np.std(values))
        for name, spread in spreads.items():
            apart = abs(log(graph[family].get(name, 0.0)) - log(other[family].get(name, 0.0)))
            distance += weight * apart / spread / len(spreads)
    overlaps = []
    for group in INTERSECTIONS:
        shared = sum(
            min(graph[family].get(name, 0.0), other[family].get(name, 0.0))
            for family in group
            for name in kernel.names[family]
        )
        sizes = [sum(sum(each[family].values()) for family in group) for each in (graph, other)]
        overlaps.append(shared / math.sqrt(sizes[0] * sizes[1]) if min(sizes) else 0.0)
    return math.exp(-distance) * sum(overlaps) / len(overlaps)


def test_kernel_is_that_of_the_naive_twin() -> None:
    counts = [count(random_graph(seed)[0]) for seed in range(14)]
    kernel = Kernel.of(counts[:10])
    for graph in (counts[0], counts[12]):
        expected = [naive_similarity(kernel, counts[:10], graph, place) for place in range(10)]
        np.testing.assert_allclose(kernel.similarity(graph), expected, rtol=2e-5)
    matrix = kernel.matrix()
    np.testing.assert_allclose(
        matrix, [kernel.similarity(each) for each in counts[:10]], rtol=1e-5, atol=1e-9
    )
    assert np.linalg.eigvalsh(matrix).min() > -1e-6


def test_leave_one_out_in_closed_form_is_leaving_one_out() -> None:
    random = np.random.default_rng(0)
    points = random.normal(size=(12, 3))
    matrix, targets = points @ points.T + np.eye(12) * 0.1, random.normal(size=(12, 2))
    ridge, coefficients, held_out = ridge_regression(matrix, targets, [0.5])
    assert ridge == 0.5
    np.testing.assert_allclose(coefficients, np.linalg.solve(matrix + 0.5 * np.eye(12), targets))
    for out in range(12):
        rest = np.delete(np.arange(12), out)
        solved = np.linalg.solve(matrix[np.ix_(rest, rest)] + 0.5 * np.eye(11), targets[rest])
        np.testing.assert_allclose(held_out[out], matrix[out, rest] @ solved, rtol=1e-9)
    errors = {
        r: np.square(ridge_regression(matrix, targets, [r])[2] - targets).mean() for r in (0.1, 1.0, 10.0)
    }
    assert ridge_regression(matrix, targets, [0.1, 1.0, 10.0])[0] == min(errors, key=lambda r: errors[r])


def test_sharpness_is_low_for_scores_that_are_often_wrong() -> None:
    targets = np.eye(2)[[0, 1] * 20]
    scores = targets - 0.5
    # p = sigmoid(f) for all; the smoothed share of right ones is 41 of 42: f = log(41)
    assert best_sharpness(scores, targets) == pytest.approx(math.log(41), rel=0.05)
    scores[:8] *= -1
    assert best_sharpness(scores, targets) == pytest.approx(math.log(0.786 / 0.214), rel=0.05)


def test_a_planted_group_is_learnt_and_shown(classifier: GraphClassifier) -> None:
    flags = [seed % 2 == 0 for seed in range(20)]
    unseen = [molecule(1000 + seed, nitro=flag) for seed, flag in enumerate(flags)]
    probabilities = classifier.predict_proba(unseen)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (20, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    right = sum(
        label == ("active" if flag else "not")
        for label, flag in zip(classifier.predict(unseen), flags, strict=True)
    )
    assert right >= 18
    evidence = classifier.explain(unseen[0], k=6, label="active")
    assert evidence[0].weight > 0
    assert [item.weight for item in evidence] == sorted((item.weight for item in evidence), reverse=True)
    shown = {node for item in evidence for nodes in item.nodes for node in nodes}
    assert {"n", "o", "x"} <= shown
    for item in evidence:
        assert len(item.nodes) == item.count
        for place in item.edges:
            edge = unseen[0].edge_at(place)
            assert {edge.source, edge.target} <= {node for nodes in item.nodes for node in nodes}


def test_weights_are_what_taking_a_feature_away_changes(
    classifier: GraphClassifier, molecules: tuple[list[Graph], list[str]]
) -> None:
    graph = molecules[0][1]
    counts = count(graph)

    def log_odds(changed: Mapping[str, Mapping[str, float]]) -> float:
        similarity = classifier.kernel.similarity({family: dict(names) for family, names in changed.items()})
        scores = classifier.sharpness * (similarity @ classifier.coefficients) + np.log(classifier.prior)
        return float(scores[1] - scores[0])

    evidence = classifier.explain(graph, k=1000, label="not")
    assert len(evidence) > 20
    for item in evidence[::7]:
        without = {family: dict(names) for family, names in counts.items()}
        del without[item.family][item.name]
        assert item.weight == pytest.approx(log_odds(counts) - log_odds(without), abs=1e-4), item


def test_unseen_types_and_relations_leave_the_prior(classifier: GraphClassifier) -> None:
    strange = Graph.from_dict(
        {
            "nodes": [{"id": "a", "type": "Xe"}, {"id": "b", "type": "Kr"}],
            "edges": [{"source": "a", "relation": "odd", "target": "b"}],
        }
    )
    assert classifier.predict_proba([strange])[0, 0] == pytest.approx(2 / 3, abs=1e-3)
    assert classifier.explain(strange, k=3, label="active") == []
    assert classifier.predict_proba([]).shape == (0, 2)


def test_saved_and_read_it_says_the_same(
    classifier: GraphClassifier, molecules: tuple[list[Graph], list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "classes.safetensors"
    classifier.save(path)
    again = GraphClassifier.load(path)
    np.testing.assert_array_equal(again.predict_proba(molecules[0]), classifier.predict_proba(molecules[0]))
    assert again.explain(molecules[0][0], 4) == classifier.explain(molecules[0][0], 4)
    assert again.about["graphs"] == "60"
    assert again.classes == ("active", "not")


def test_other_files_are_refused(classifier: GraphClassifier, tmp_path: Path) -> None:
    path = tmp_path / "classes.safetensors"
    with pytest.raises(ModelError, match="no such file"):
        GraphClassifier.load(path)
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ModelError, match="not a graph classifier"):
        GraphClassifier.load(path)
    classifier.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ModelError, match="damaged"):
        GraphClassifier.load(path)
    path.write_bytes(whole)
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    for name, bad in {
        "columns": tensors["columns"] + 100_000,
        "rows": tensors["rows"] - 100,
        "prior": np.zeros(3),
        "sizes": np.zeros((3, 4)),
        "coefficients": np.zeros(4),
    }.items():
        save_file({**tensors, name: bad}, path, metadata=metadata)
        with pytest.raises(ModelError, match="damaged"):
            GraphClassifier.load(path)
    many = {"coefficients": np.zeros((8_001, 2)), "sizes": np.zeros((3, 8_001))}
    save_file({**tensors, **many}, path, metadata=metadata)
    with pytest.raises(ModelError, match=r"8,001 training graphs of .* features are too many"):
        GraphClassifier.load(path)


def test_bad_questions_are_refused(
    classifier: GraphClassifier, molecules: tuple[list[Graph], list[str]]
) -> None:
    empty = Graph.from_dict({"nodes": [], "edges": []})
    with pytest.raises(GraphError, match=r"graphs\[1\]: .* has 0"):
        classifier.predict_proba([molecules[0][0], empty])
    with pytest.raises(RequestError, match="no class 'other'; the classes are active, not"):
        classifier.explain(molecules[0][0], 3, "other")
    with pytest.raises(RequestError, match="at least 1"):
        classifier.explain(molecules[0][0], 0)


def test_three_classes_and_direction() -> None:
    graphs, labels = [], []
    for seed in range(45):
        size, kind = 5 + seed % 4, ("out", "in", "ring")[seed % 3]
        ends = [("h", f"x{i}") if kind == "out" else (f"x{i}", "h") for i in range(size)]
        if kind == "ring":
            ends = [(f"x{i}", f"x{(i + 1) % size}") for i in range(size)]
        graphs.append(Graph.from_triples([(a, "r", b) for a, b in ends]))
        labels.append(kind)
    directed = train_classifier(graphs[:30], labels[:30], ClassifierOptions(directed=True))
    assert directed.predict(graphs[30:]) == labels[30:]
    undirected = replace(directed, directed=False)
    assert undirected.predict(graphs[30:]) != labels[30:]


def test_training_refuses_what_cannot_be_learnt() -> None:
    graphs = [random_graph(seed)[0] for seed in range(4)]
    with pytest.raises(GraphError, match="4 graphs and 3 labels"):
        train_classifier(graphs, ["a", "b", "a"])
    with pytest.raises(GraphError, match="at least two classes"):
        train_classifier(graphs, ["a"] * 4)
    with pytest.raises(GraphError, match="'b' has one graph"):
        train_classifier(graphs, ["a", "a", "a", "b"])
    counts = [count(graph) for graph in graphs]
    assert fit(counts, ["a", "b", "a", "b"]).classes == ("a", "b")
