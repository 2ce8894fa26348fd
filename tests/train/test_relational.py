"""Training of the relational encoder: what it learns, what it hides, variations of graphs, gradients, and resuming."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vglm.encoder.relational import RelationalEncoder  # noqa: E402
from vglm.encoder.relational_structure import RelationalStructure  # noqa: E402
from vglm.errors import ConfigError  # noqa: E402
from vglm.train import relational_graphs as graphs  # noqa: E402
from vglm.train.relational import RelationalSettings, train_relational  # noqa: E402
from vglm.train.relational_graphs import TrainingGraph  # noqa: E402
from vglm.train.relational_model import Aggregate  # noqa: E402

SMALL = RelationalSettings(width=16, relation_layers=2, entity_layers=2, steps=12, queries=4)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small products gain nothing from a second thread, which would wait for a processor that others use."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_graph(seed=0, nodes=40, relations=3, edges=150):
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.integers(0, top, edges) for top in (nodes, relations, nodes)], axis=1)
    return TrainingGraph(nodes, relations, np.unique(rows, axis=0))


def mirrored_graph(seed, nodes=60, edges=90, also=2):
    """Relation 1 is relation 0 backwards; `also` relations more are random."""
    rng = np.random.default_rng(seed)
    ends = np.unique(rng.integers(0, nodes, (edges, 2)), axis=0)
    forward = np.insert(ends, 1, 0, axis=1)
    backward = np.insert(ends[:, ::-1], 1, 1, axis=1)
    other = np.insert(rng.integers(0, nodes, (edges, 2)), 1, rng.integers(2, 2 + also, edges), axis=1)
    return TrainingGraph(nodes, 2 + also, np.unique(np.concatenate([forward, backward, other]), axis=0))


def test_gradients_of_the_native_kernel():
    graph = random_graph()
    structure = graph.structure
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, graph.num_nodes, 5, generator=generator, requires_grad=True)
    weights = torch.randn(2, 2 * graph.num_relations, 5, generator=generator, requires_grad=True)
    source, relation, target = (
        torch.from_numpy(array).long() for array in (structure.source, structure.relation, structure.target)
    )
    naive = torch.zeros_like(states).index_add(1, target, states[:, source] * weights[:, relation])
    found = Aggregate.apply(states, weights, structure)
    torch.testing.assert_close(found, naive)
    factor = torch.randn(naive.shape, generator=generator)
    expected = torch.autograd.grad((naive * factor).sum(), [states, weights])
    for mine, other in zip(
        torch.autograd.grad((found * factor).sum(), [states, weights]), expected, strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_a_batch_hides_what_it_asks_and_knows_the_other_answers():
    graph = random_graph()
    asked, structure, others = graph.batch(np.random.default_rng(0), 16)
    known = {tuple(query) for query in graph.queries.tolist()}
    inverse = structure.inverse(asked[:, 1].astype(np.int32)).tolist()
    edges = set(
        zip(structure.source.tolist(), structure.relation.tolist(), structure.target.tolist(), strict=True)
    )
    hidden = {tuple(query) for query in asked.tolist()}
    hidden |= {(answer, back, head) for (head, _, answer), back in zip(asked.tolist(), inverse, strict=True)}
    assert edges == known - hidden
    for row, (head, relation, answer) in enumerate(asked.tolist()):
        right = {(head, relation, node) for node in np.flatnonzero(others[row]).tolist()}
        assert right == {query for query in known if query[:2] == (head, relation)} - {
            (head, relation, answer)
        }


@pytest.mark.parametrize("seed", range(12))
def test_variations_are_graphs(seed):
    rng = np.random.default_rng(seed)
    found = graphs.varied(random_graph(seed, nodes=300, relations=5, edges=900), rng, (20, 60))
    rows = found.triples
    assert len(np.unique(rows, axis=0)) == len(rows) > 0
    assert rows.min() >= 0
    assert rows[:, [0, 2]].max() < found.num_nodes <= 60
    assert np.unique(rows[:, 1]).tolist() == list(range(found.num_relations))


def test_a_part_has_all_edges_among_its_nodes():
    graph = random_graph()
    assert len(graphs.part_of(graph, np.random.default_rng(0), graph.num_nodes * 2).triples) <= len(
        graph.triples
    )
    part = graphs.part_of(graph, np.random.default_rng(0), 10)
    assert part.num_nodes == 10
    assert 9 <= len(part.triples) < len(graph.triples)


def test_changes_of_relations_keep_the_pairs():
    graph, rng = random_graph(), np.random.default_rng(0)

    def pairs(of):
        return {frozenset(pair) for pair in of.triples[:, [0, 2]].tolist()}

    for change in (graphs.merged, graphs.split, graphs.symmetric):
        assert pairs(change(graph, rng)) == pairs(graph)
    before = {tuple(row) for row in graph.triples.tolist()}
    assert before < {tuple(row) for row in graphs.ruled(graph, rng).triples.tolist()}
    assert graphs.merged(graph, rng).num_relations <= graph.num_relations
    assert graphs.split(graph, rng).num_relations >= graph.num_relations
    assert len(graphs.symmetric(graph, rng).triples) >= len(graph.triples)
    smaller = graphs.contracted(graph, rng, 8)
    assert smaller.num_nodes == 8
    assert (smaller.triples[:, 0] != smaller.triples[:, 2]).all()


def test_a_rule_makes_the_edges_that_follow():
    chain = {(node, 0, node + 1) for node in range(5)}
    found = set()
    for seed in range(8):
        graph = TrainingGraph(6, 1, np.array(sorted(chain)))
        made = {tuple(row) for row in graphs.ruled(graph, np.random.default_rng(seed)).triples.tolist()}
        assert chain <= made
        found |= made - chain
    assert {(0, 0, 2), (1, 0, 3)} <= found


def test_what_is_learnt_holds_on_another_graph(tmp_path):
    """That one relation is another one backwards is seen in a graph of other nodes, whose relations are numbered otherwise."""
    settings = RelationalSettings(
        width=16, relation_layers=2, entity_layers=2, steps=120, vary=0.0, rate=1e-2
    )
    model = train_relational([mirrored_graph(0)], settings, 0, tmp_path, show=False)
    other = mirrored_graph(1, also=3)
    order = np.array([4, 2, 0, 1, 3])
    rows = np.stack([other.triples[:, 0], order[other.triples[:, 1]], other.triples[:, 2]], axis=1)
    hidden = rows[rows[:, 1] == 4][:30]
    kept = rows[~(rows[:, None] == hidden).all(axis=2).any(axis=1)]
    prepared = model.encoder().prepare(
        RelationalStructure.of_triples(other.num_nodes, 5, *kept.astype(np.int32).T)
    )
    best = [int(prepared.scores(head, 4).argmax()) for head in hidden[:, 0].tolist()]
    right = [
        answer in hidden[hidden[:, 0] == head, 2] for head, answer in zip(hidden[:, 0], best, strict=True)
    ]
    assert np.mean(right) > 0.6  # by chance 1 in 60


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, monkeypatch):
    graph = random_graph(edges=60)
    whole = train_relational([graph], SMALL, 3, tmp_path / "whole", show=False)

    class Killed(Exception):
        pass

    from vglm.train import relational

    original = relational._loss

    def until(model, variations, settings, step):
        if step == 7:
            raise Killed
        return original(model, variations, settings, step)

    monkeypatch.setattr(relational, "_loss", until)
    monkeypatch.setattr(relational.TrainingRun, "should_save", lambda run: True)
    with pytest.raises(Killed):
        train_relational([graph], SMALL, 3, tmp_path / "killed", show=False)
    monkeypatch.setattr(relational, "_loss", original)
    resumed = train_relational([graph], SMALL, 3, tmp_path / "killed", show=False)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_folder_of_another_graph_is_refused(tmp_path):
    train_relational([random_graph(0)], SMALL, 0, tmp_path, show=False)
    with pytest.raises(ConfigError, match="other settings: graphs was"):
        train_relational([random_graph(1)], SMALL, 0, tmp_path, show=False)


def test_too_few_triples(tmp_path):
    with pytest.raises(ConfigError, match="3 triples"):
        train_relational([random_graph(edges=3)], SMALL, 0, tmp_path)


def test_a_graph_of_tiny_parts(tmp_path):
    pairs = TrainingGraph(48, 1, np.array([[2 * i, 0, 2 * i + 1] for i in range(24)]))
    settings = replace(SMALL, vary=1.0, smallest=30, largest=40)
    with pytest.raises(ConfigError, match="parts too small"):
        train_relational([pairs], settings, 0, tmp_path, show=False)


def test_a_saved_model_is_an_encoder(tmp_path):
    graph = random_graph()
    model = train_relational([graph], SMALL, 0, tmp_path / "run", show=False)
    model.save(tmp_path / "encoder.safetensors", trained_on="a test")
    loaded = RelationalEncoder.load(tmp_path / "encoder.safetensors").prepare(graph.structure)
    np.testing.assert_array_equal(loaded.scores(1, 2), model.encoder().prepare(graph.structure).scores(1, 2))
