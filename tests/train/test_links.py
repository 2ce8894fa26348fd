"""Training of link models on small graphs: it learns, resumes, repeats, and refuses what it cannot learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vglm.encoder.link_model import LinkModel, rank_candidates  # noqa: E402
from vglm.errors import ConfigError, GraphError, ModelError  # noqa: E402
from vglm.graph.graph import Graph  # noqa: E402
from vglm.train.links import LinkOptions, Progress, train_links  # noqa: E402
from vglm.train.links_complex import ComplexOptions, Factors  # noqa: E402
from vglm.train.links_data import KnownAnswers, Triples, both_directions, filtered_ranks  # noqa: E402
from vglm.train.links_mix import fit_mix  # noqa: E402
from vglm.train.text_links import BiEncoder, TextOptions  # noqa: E402

SMALL = ComplexOptions(rank=16, epochs=10, batch=32)


def family() -> list[tuple[str, str, str]]:
    """Twelve rings of six: next, its inverse, and two steps on; each follows from the others."""
    triples = []
    for ring in range(12):
        for i in range(6):
            here, after, later = (f"n{ring}.{(i + step) % 6}" for step in (0, 1, 2))
            triples += [(here, "next", after), (after, "previous", here), (here, "skip", later)]
    return triples


def split() -> Triples:
    triples = family()
    held = [triple for i, triple in enumerate(triples) if i % 9 == 4]
    return Triples.from_names(
        [triple for triple in triples if triple not in held], held[::2], true=held[1::2]
    )


def test_it_learns_and_repeats() -> None:
    data, seen = split(), []
    options = LinkOptions(complex=SMALL, validate_every=5)
    model = train_links(data, options, seen.append)
    assert [progress.epoch for progress in seen] == list(range(1, 11))
    assert isinstance(seen[0], Progress)
    assert seen[-1].loss < seen[0].loss
    questions = both_directions(data.true, data.num_relations)
    known = KnownAnswers(both_directions(np.concatenate([data.train, data.valid]), 3), 3)
    assert (1 / filtered_ranks(model.score, questions, known)).mean() > 0.5  # by chance: 0.07
    again = train_links(data, options)
    np.testing.assert_array_equal(model.score_tails([0], [0]), again.score_tails([0], [0]))


def test_it_resumes_after_a_kill(tmp_path: Path) -> None:
    options = LinkOptions(complex=SMALL, validate_every=3)
    whole = train_links(split(), options)

    def killed(progress: Progress) -> None:
        if progress.epoch == 7:
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vglm.train.run.TrainingRun.should_save", lambda run: True)
        with pytest.raises(RuntimeError, match="killed"):
            train_links(split(), options, killed, folder=tmp_path)
    epochs: list[int] = []
    resumed = train_links(split(), options, lambda progress: epochs.append(progress.epoch), folder=tmp_path)
    assert epochs == [7, 8, 9, 10]
    np.testing.assert_array_equal(resumed.score_heads([3], [1]), whole.score_heads([3], [1]))
    with pytest.raises(ConfigError, match="other settings"):
        train_links(split(), LinkOptions(complex=ComplexOptions(rank=17, epochs=10)), folder=tmp_path)
    same = split()
    train = same.train.copy()
    train[[0, -1], 2] = train[[-1, 0], 2]
    assert not np.array_equal(train, same.train)
    with pytest.raises(ConfigError, match="other settings: data was"):
        train_links(replace(same, train=train), options, folder=tmp_path)


def test_a_graph_with_texts(tmp_path: Path) -> None:
    """Structure, texts and evidence together, on a graph, from training to a ranking."""
    nodes = [{"id": name, "name": name, "text": f"{name} ring"} for name in {t[0] for t in family()}]
    edges = [{"source": s, "relation": r, "target": t} for s, r, t in family()]
    graph = Graph.from_dict({"nodes": nodes, "edges": edges[:-1]})
    random = np.random.default_rng(0)

    def encoder(texts: object) -> np.ndarray:
        vectors = random.normal(size=(graph.num_nodes, 8)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    options = LinkOptions(complex=SMALL, text=TextOptions(epochs=2, inner=16, batch=64, negatives=16))
    model = train_links(graph, options, encoder=encoder)
    assert [part.kind for part in model.parts] == ["complex", "text", "evidence"]
    model.save(tmp_path / "links.safetensors")
    ranked = rank_candidates(
        LinkModel.load(tmp_path / "links.safetensors"), graph, "n11.5", "skip", None, k=3
    )
    assert edges[-1]["target"] in {entity.id for entity in ranked}


def test_training_parts_equal_their_inference_twins() -> None:
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(9, 8), dim=1).numpy()
    given, relations = torch.tensor([0, 5]), torch.tensor([3, 1])
    text = BiEncoder(vectors, 2, TextOptions(inner=16, dropout=0.5)).eval()
    with torch.no_grad():
        scores = text.log_scale.exp() * text.queries(given, relations) @ text.keys(torch.arange(9)).T
    np.testing.assert_allclose(text.part().scores(given.numpy(), relations.numpy())[0], scores, atol=2e-5)
    for kind in ("complex", "distmult"):
        factors = Factors(9, 2, ComplexOptions(rank=4, kind=kind))
        for table in (factors.entities, factors.relations):
            torch.nn.init.normal_(table.weight)
        left, middle, every = (
            factors.entities.weight[given],
            factors.relations.weight[relations],
            factors.entities.weight,
        )
        if kind == "complex":
            left, middle, every = (torch.complex(*t.chunk(2, 1)) for t in (left, middle, every))
        expected = ((left * middle) @ every.conj().T).real.detach()
        np.testing.assert_allclose(
            factors.part().scores(given.numpy(), relations.numpy())[0], expected, atol=1e-5
        )


def test_random_negatives_learn_too() -> None:
    data = split()
    sampled = ComplexOptions(rank=16, epochs=8, batch=32, negatives=40)
    seen: list[Progress] = []
    train_links(data, LinkOptions(complex=sampled), seen.append)
    assert seen[-1].mrr > 0.3


def test_ranks_against_the_naive_twin() -> None:
    random = np.random.default_rng(0)
    questions = np.stack([random.integers(0, high, 60) for high in (12, 4, 12)], axis=1)
    known = KnownAnswers(questions, 2)
    table = random.integers(0, 4, (12, 4, 12)).astype(np.float32)  # many ties
    ranks = filtered_ranks(lambda given, relations: table[given, relations], questions, known, batch=7)
    for rank, (given, relation, wanted) in zip(ranks, questions.tolist(), strict=True):
        answers = {a for g, r, a in questions.tolist() if (g, r) == (given, relation)} - {wanted}
        others = [table[given, relation, c] for c in range(12) if c != wanted and c not in answers]
        own = table[given, relation, wanted]
        places = 1 + sum(other > own for other in others), 1 + sum(other >= own for other in others)
        assert rank == sum(places) / 2
    rows, answers = known.pairs(questions[:5, 0], questions[:5, 1])
    assert [sorted(answers[rows == i]) for i in range(5)] == [
        sorted(a for g, r, a in questions.tolist() if [g, r] == questions[i, :2].tolist()) for i in range(5)
    ]


def test_a_constant_score_is_chance_and_a_broken_one_an_error() -> None:
    questions = np.array([[0, 0, 3], [1, 1, 2]])
    known = KnownAnswers(questions[:0], 1)
    constant = filtered_ranks(lambda given, _: np.zeros((len(given), 9), np.float32), questions, known)
    assert constant.tolist() == [5, 5]
    with pytest.raises(ModelError, match="diverged"):
        filtered_ranks(lambda given, _: np.full((len(given), 9), np.nan, np.float32), questions, known)


def test_the_mix_trusts_the_channel_that_knows() -> None:
    random = np.random.default_rng(0)
    table = random.normal(size=(2, 30, 2, 30)).astype(np.float32)
    given, relations = np.arange(30).repeat(2), np.tile([0, 1], 30)
    wanted = np.array([table[r, g, r].argmax() for g, r in zip(given, relations, strict=True)])
    questions = np.stack([given, relations, wanted], axis=1)
    known = KnownAnswers(questions, 1)
    weights = fit_mix(lambda g, r: table[:, g, r], questions, known, 1, shrinkage=1e-4)
    assert weights.shape == (2, 2)
    assert weights[0, 0] > 2 * abs(weights[0, 1])
    assert weights[1, 1] > 2 * abs(weights[1, 0])


def test_held_out_edges_leave_something_to_learn_from() -> None:
    nodes = [{"id": name, "name": name} for name in {t[0] for t in family()}]
    graph = Graph.from_dict(
        {"nodes": nodes, "edges": [{"source": s, "relation": r, "target": t} for s, r, t in family()]}
    )
    data = Triples.from_graph(graph, holdout=0.2)
    assert len(data.valid) == len(family()) // 5
    assert len(data.train) + len(data.valid) == len(family())
    assert set(data.valid[:, [0, 2]].ravel()) <= set(data.train[:, [0, 2]].ravel())
    assert not len(Triples.from_graph(graph, holdout=0).valid)


def test_what_cannot_be_learnt_from_is_refused() -> None:
    with pytest.raises(GraphError, match="no edges"):
        train_links(Graph.from_dict({"nodes": [{"id": "a", "name": "a"}], "edges": []}))
    with pytest.raises(GraphError, match="no triples"):
        Triples.from_names([])
    with pytest.raises(GraphError, match="no training triple"):
        Triples.from_names([("a", "r", "b")], [("a", "s", "b")])
    with pytest.raises(GraphError, match="has no text"):
        Triples.from_names([("a", "r", "b")], texts={"a": "x"})
    with pytest.raises(GraphError, match="no entity or relation"):
        Triples.from_names([("a", "r", "b")]).numbers([("a", "r", "c")])
    with pytest.raises(ConfigError, match="lower the rate"):
        train_links(split(), LinkOptions(complex=ComplexOptions(rank=4, epochs=4, rate=float("inf"))))
