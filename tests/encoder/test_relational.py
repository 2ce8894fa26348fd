"""The relational encoder without torch: against the trained network, on graphs of any names, and from hostile files."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import pytest
from safetensors.numpy import save_file

from vglm import _native
from vglm.encoder.relational import RelationalEncoder
from vglm.encoder.relational_structure import MAX_RELATIONS, NUM_INTERACTIONS, RelationalStructure
from vglm.encoder.relational_weights import FORMAT, RelationalShape, tensor_shapes
from vglm.errors import GraphError, ModelError
from vglm.graph.build import GraphBuilder

SHAPE = RelationalShape(width=16, relation_layers=2, entity_layers=3)


def triples(rng, nodes=30, relations=4, edges=90):
    return np.stack([rng.integers(0, top, edges) for top in (nodes, relations, nodes)], axis=1).astype(
        np.int32
    )


def structure_of(rows, nodes=30, relations=4):
    return RelationalStructure.of_triples(nodes, relations, *rows.T)


def graph_of(rows, node="n{:03d}", relation="r{:02d}", nodes=30):
    builder = GraphBuilder()
    for number in range(nodes):
        builder.add_node(node.format(number))
    for source, code, target in rows.tolist():
        builder.add_edge(node.format(source), relation.format(code), node.format(target))
    return builder.build()


def tensors():
    rng = np.random.default_rng(0)
    sizes = tensor_shapes(SHAPE)
    return {name: np.float32(0.3) * rng.standard_normal(size, np.float32) for name, size in sizes.items()}


def write(path, content=None, **metadata):
    sizes = asdict(SHAPE)
    content = tensors() if content is None else content
    save_file(content, path, {"format": FORMAT, "shape": json.dumps(sizes), **metadata})
    return path


@pytest.fixture
def encoder(tmp_path):
    return RelationalEncoder.load(write(tmp_path / "encoder.safetensors"))


def test_edges_are_listed_both_ways_and_once():
    rows = np.array([[0, 0, 1], [0, 0, 1], [2, 1, 0]], np.int32)
    structure = structure_of(rows, nodes=3, relations=2)
    edges = set(
        zip(structure.source.tolist(), structure.relation.tolist(), structure.target.tolist(), strict=True)
    )
    assert edges == {(0, 0, 1), (1, 2, 0), (2, 1, 0), (0, 3, 2)}
    assert len(structure.source) == 4
    assert structure.degree.tolist() == [2, 1, 1]
    kept = structure.without(structure.relation == 3)
    assert (kept.target.tolist(), kept.source.tolist(), kept.relation.tolist()) == (
        [0, 0, 1],
        [1, 2, 0],
        [2, 1, 0],
    )


def naive_interactions(structure):
    """Interactions with sets, as the docstring says them."""
    double = 2 * structure.num_relations
    edges = list(
        zip(structure.source.tolist(), structure.relation.tolist(), structure.target.tolist(), strict=True)
    )
    heads = [{s for s, r, _ in edges if r == i} for i in range(double)]
    tails = [{t for _, r, t in edges if r == i} for i in range(double)]
    pairs = [{(s, t) for s, r, t in edges if r == i} for i in range(double)]
    kinds = [(heads, heads), (heads, tails), (tails, heads), (tails, tails)]
    out = np.zeros((NUM_INTERACTIONS, double, double), np.float32)
    for i in range(double):
        for j in range(double):
            for k, (of_i, of_j) in enumerate(kinds):
                both = len(of_i[i] & of_j[j])
                out[k, i, j] = both / max(len(of_i[i]), 1)
                out[4 + k, i, j] = both / max(len(of_j[j]), 1)
            both = len(pairs[i] & pairs[j])
            out[8, i, j], out[9, i, j] = both / max(len(pairs[i]), 1), both / max(len(pairs[j]), 1)
    return out


@pytest.mark.parametrize("relations", [1, 4, 7])
def test_interactions_are_shares_of_sets(relations, monkeypatch):
    monkeypatch.setattr("vglm.encoder.relational_structure._CHUNK", 50)
    rows = triples(np.random.default_rng(relations), nodes=12, relations=relations, edges=40)
    structure = structure_of(rows, nodes=12, relations=relations)
    np.testing.assert_allclose(structure.interactions, naive_interactions(structure), atol=1e-6)


def test_names_do_not_matter(encoder):
    rows = triples(np.random.default_rng(1))
    graph, other = graph_of(rows), graph_of(rows, node="disease:{:05d}", relation="has_{:03d}")
    mine = encoder.scores(graph, "n004", "r01")
    assert mine.shape == (30,)
    assert mine.dtype == np.float32
    np.testing.assert_array_equal(mine, encoder.scores(other, "disease:00004", "has_001"))


def test_a_permutation_of_the_nodes_permutes_the_scores(encoder):
    rng = np.random.default_rng(2)
    rows, order = triples(rng), rng.permutation(30).astype(np.int32)
    moved = np.stack([order[rows[:, 0]], rows[:, 1], order[rows[:, 2]]], axis=1)
    mine = encoder.prepare(structure_of(rows)).scores(5, 2)
    other = encoder.prepare(structure_of(moved)).scores(int(order[5]), 2)
    np.testing.assert_allclose(other[order], mine, rtol=1e-4, atol=1e-4)


def test_inverse_asks_for_sources(encoder):
    rows = triples(np.random.default_rng(3))
    turned = rows[:, [2, 1, 0]]
    backwards = encoder.scores(graph_of(rows), "n007", "r02", inverse=True)
    np.testing.assert_allclose(
        backwards, encoder.scores(graph_of(turned), "n007", "r02"), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("isa", [*_native.available_isas(), "amx_simulated"])
def test_every_instruction_set_gives_the_scores_of_torch(isa):
    torch = pytest.importorskip("torch")
    from vglm.train.relational_model import RelationalModel

    model = RelationalModel(SHAPE)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors().items()})
    structure = structure_of(triples(np.random.default_rng(4)))
    queries = np.array([(0, 0), (3, 7), (29, 4)])
    with torch.no_grad():
        expected = model(structure, *torch.from_numpy(queries).T).numpy()
    prepared = RelationalEncoder(model.encoder().weights, isa).prepare(structure)
    found = np.stack([prepared.scores(head, relation) for head, relation in queries.tolist()])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_threads_share_an_encoder(encoder):
    graph = graph_of(triples(np.random.default_rng(5)))
    queries = [(f"n{node:03d}", f"r{code:02d}", node % 2 == 0) for node in range(30) for code in range(4)]
    one_by_one = [encoder.scores(graph, *query) for query in queries]
    fresh = RelationalEncoder(encoder.weights)
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda query: fresh.scores(graph, *query), queries))
    for mine, other in zip(one_by_one, at_once, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_questions_about_what_is_not_there(encoder):
    graph = graph_of(triples(np.random.default_rng(6)))
    with pytest.raises(GraphError, match="no node with the id"):
        encoder.scores(graph, "nobody", "r00")
    with pytest.raises(GraphError, match="no edge of the graph has the relation"):
        encoder.scores(graph, "n000", "likes")
    many = MAX_RELATIONS + 1
    codes = np.arange(many, dtype=np.int32)
    with pytest.raises(GraphError, match="the encoder takes 512"):
        RelationalStructure.of_triples(2, many, 0 * codes, codes, 0 * codes + 1)


def damaged(**changes):
    content = tensors()
    for name, tensor in changes.items():
        content.pop(name.replace("__", "."))
        if tensor is not None:
            content[name.replace("__", ".")] = tensor
    return content


@pytest.mark.parametrize(
    ("content", "metadata", "words"),
    [
        (None, {"format": "other"}, "not a relational encoder"),
        (None, {"shape": "{}"}, "do not say the encoder's shape"),
        (None, {"shape": "[" * 100_000}, "do not say the encoder's shape"),
        (
            None,
            {"shape": '{"width": 1e9, "relation_layers": 1, "entity_layers": 1}'},
            "whole number from 1 to 256",
        ),
        (None, {"shape": '{"width": 16, "relation_layers": 2, "entity_layers": true}'}, "whole number"),
        (None, {"shape": '{"width": 24, "relation_layers": 2, "entity_layers": 3}'}, "multiple of 16"),
        (damaged(score__bias=None), {}, "missing or unknown: 'score.bias'"),
        (damaged(score__bias=np.zeros(2, np.float32)), {}, r"must be F32 \[1\]"),
        (damaged(score__bias=np.zeros(1, np.float64)), {}, "found F64"),
        (damaged(score__bias=np.full(1, np.nan, np.float32)), {}, "no numbers"),
    ],
)
def test_hostile_files(tmp_path, content, metadata, words):
    with pytest.raises(ModelError, match=words):
        RelationalEncoder.load(write(tmp_path / "encoder.safetensors", content, **metadata))


def test_files_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="cannot be read"):
        RelationalEncoder.load(tmp_path / "missing.safetensors")
    (tmp_path / "short").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match="cannot be read"):
        RelationalEncoder.load(tmp_path / "short")
    with pytest.raises(ModelError, match="cannot be read"):
        RelationalEncoder.load(tmp_path)
    monkeypatch.setattr("vglm.encoder.relational_weights._MAX_BYTES", 10)
    with pytest.raises(ModelError, match="larger than"):
        RelationalEncoder.load(write(tmp_path / "large"))
