"""Link models: scores against naive twins, files, graphs that fit and graphs that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vglm.encoder.link_evidence import CHANNELS, Evidence
from vglm.encoder.link_model import LinkModel, rank_candidates
from vglm.encoder.link_parts import ComplexPart, TextPart
from vglm.errors import GraphError, ModelError, RequestError
from vglm.graph.graph import Graph

N, R, RANK, TEXT, KEY, INNER = 7, 2, 3, 5, 4, 6
NAMES = [f"e{i}" for i in range(N)]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def complex_part(seed: int = 0) -> ComplexPart:
    random = np.random.default_rng(seed)
    shapes = (N, 2 * RANK), (2 * R, 2 * RANK)
    return ComplexPart(*(random.normal(size=shape).astype(np.float32) for shape in shapes))


def text_part() -> TextPart:
    random = np.random.default_rng(1)

    def some(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    texts = unit(some(N, TEXT)).astype(np.float16).astype(np.float32)
    keys = unit(some(N, KEY)).astype(np.float16).astype(np.float32)
    weights = (some(2 * R, 2), some(2 * R, TEXT), some(TEXT, KEY), some(TEXT + 2, INNER), some(INNER))
    return TextPart(texts, keys, *weights, some(INNER, KEY), some(KEY), np.array([3], np.float32))


def evidence() -> Evidence:
    texts = [
        "oak tree: a tree with acorns",
        "tree: a plant",
        "plant: a living thing",
        "trees",
        "acorn: fruit of the oak tree",
    ]
    texts += ["thing: that which is", "planting: the act of putting a plant in soil"]
    triples = np.array([[0, 0, 1], [1, 0, 2], [4, 1, 0], [2, 0, 5], [6, 1, 2], [3, 0, 1]])
    questions = np.concatenate([triples, np.stack([triples[:, 2], triples[:, 1] + R, triples[:, 0]], 1)])
    vectors = unit(np.random.default_rng(2).normal(size=(N, TEXT))).astype(np.float16).astype(np.float32)
    return Evidence(vectors, texts, questions, R)


def model() -> LinkModel:
    parts = [complex_part(), text_part(), evidence()]
    channels = sum(part.num_channels for part in parts)
    weights = np.random.default_rng(3).uniform(0.1, 1, (2 * R, channels)).astype(np.float32)
    return LinkModel(NAMES, ["r0", "r1"], parts, weights)


def graph(names: list[str] = NAMES) -> Graph:
    edges = [(names[0], "r0", names[1]), (names[0], "r0", names[2]), (names[3], "r1", names[0])]
    return Graph.from_dict(
        {
            "nodes": [{"id": name, "name": name} for name in names],
            "edges": [{"source": s, "relation": r, "target": t} for s, r, t in edges],
        }
    )


def test_complex_scores_equal_complex_numbers() -> None:
    part = complex_part()
    entities, relations = (t[:, :RANK] + 1j * t[:, RANK:] for t in (part.entities, part.relations))
    scores = part.scores(np.array([2, 5]), np.array([1, 3]))
    assert scores.shape == (1, 2, N)
    for row, (given, relation) in enumerate([(2, 1), (5, 3)]):
        for candidate in range(N):
            exact = (entities[given] * relations[relation] * np.conj(entities[candidate])).sum().real
            assert scores[0, row, candidate] == pytest.approx(exact, abs=1e-5)


def test_text_scores_are_scaled_cosines() -> None:
    part = text_part()
    scores = part.scores(np.array([0, 6]), np.array([2, 0]))[0]
    assert np.abs(scores).max() <= 3.01
    query = part.queries(np.array([6]), np.array([0]))[0]
    np.testing.assert_allclose(np.linalg.norm(query), 3, rtol=1e-5)
    np.testing.assert_allclose(scores[1], [query @ key for key in part.keys], atol=1e-5)


def test_evidence_equals_its_definition() -> None:
    found = evidence()
    given, relations = np.array([0, 1, 6]), np.array([0, R, 1])
    scores = dict(zip(CHANNELS, found.scores(given, relations), strict=True))
    known = {tuple(row) for row in found.questions.tolist()}
    neighbours = {(a, b) for a, _, b in known}
    for row, (entity, relation) in enumerate(zip(given.tolist(), relations.tolist(), strict=True)):
        for c in range(N):
            answered = [a for e, r, a in known if (e, r) == (entity, relation)]
            givers = [e for e, r, a in known if (r, a) == (relation, c)]
            cosine = found.vectors @ found.vectors.T
            votes = np.log(np.exp(20 * cosine[entity, givers]).sum()) / 20 if givers else 0
            bridges = sum((entity, m) in neighbours and (m, c) in neighbours for m in range(N))
            expected = {
                "similar": cosine[entity, c],
                "voted": votes,
                "answered": max(0, *(cosine[c, a] for a in answered)) if answered else 0,
                "frequent": np.log1p(len(givers)),
                "inverse": (entity, (relation + R) % (2 * R), c) in known,
                "adjacent": (entity, c) in neighbours,
                "bridged": np.log1p(bridges),
            }
            for name, value in expected.items():
                assert scores[name][row, c] == pytest.approx(float(value), abs=1e-5), (name, row, c)


def test_names_in_texts_count_more_when_they_come_first() -> None:
    oak, tree, plant, trees, acorn, _, planting = range(N)
    rows = evidence().scores(np.arange(N), np.zeros(N, np.int64))
    scores = dict(zip(CHANNELS, rows, strict=True))
    assert scores["named"][oak, tree] > 0 == scores["named"][oak, plant]
    assert scores["named"][acorn, oak] > 0
    assert scores["named"][tree, plant] > scores["named"][planting, plant] > 0
    np.testing.assert_array_equal(scores["naming"].T, scores["named"])
    assert scores["ending"][oak, tree] == scores["ending"][tree, oak] == 1
    assert scores["stem"][tree, trees] == pytest.approx(0.8)
    assert scores["stem"][plant, planting] == pytest.approx(5 / 8)
    assert scores["stem"][tree, tree] == 0


def test_scores_are_weighted_sums_in_both_directions() -> None:
    whole = model()
    relations = np.array([1, 0])
    for scores, shift in (
        (whole.score_tails([4, 2], relations), 0),
        (whole.score_heads([4, 2], relations), R),
    ):
        parts = [part.scores(np.array([4, 2]), relations + shift) for part in whole.parts]
        expected = (np.concatenate(parts) * whole.weights[relations + shift].T[:, :, None]).sum(0)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_a_stored_model_scores_the_same(tmp_path: Path) -> None:
    whole = model()
    whole.save(tmp_path / "links.safetensors")
    again = LinkModel.load(tmp_path / "links.safetensors")
    assert (again.entities, again.relations) == (whole.entities, whole.relations)
    np.testing.assert_array_equal(again.score_heads([1, 3], [0, 1]), whole.score_heads([1, 3], [0, 1]))


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "links.safetensors"
    with pytest.raises(ModelError, match="cannot be read"):
        LinkModel.load(path)
    save_file({"x": np.zeros(3, np.float32)}, path)
    with pytest.raises(ModelError, match="not a link model"):
        LinkModel.load(path)
    model().save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError, match="cannot be read"):
        LinkModel.load(path)
    with pytest.raises(ModelError, match="weights of shape"):
        LinkModel(NAMES, ["r0", "r1"], [complex_part()], np.ones((2, 1), np.float32))
    with pytest.raises(ModelError, match="3 entities"):
        LinkModel(NAMES[:3], ["r0", "r1"], [complex_part()], np.ones((4, 1), np.float32))


@pytest.mark.parametrize(
    ("heads", "relations"), [([N], [0]), ([-1], [0]), ([0], [R]), ([0, 1], [0]), ([0.5], [0]), (0, 0)]
)
def test_numbers_that_do_not_fit_are_refused(heads: object, relations: object) -> None:
    with pytest.raises(RequestError):
        model().score_tails(heads, relations)  # type: ignore[arg-type]


def test_ranking_leaves_out_what_is_known_and_what_is_gone() -> None:
    whole, whole_graph = model(), graph()
    ranked = rank_candidates(whole, whole_graph, "e0", "r0", None, k=N)
    assert {entity.id for entity in ranked} == set(NAMES) - {"e1", "e2"}
    probabilities = [entity.probability for entity in ranked]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    scores = whole.score_tails([0], [0])[0]
    assert ranked[0].id == NAMES[max((i for i in range(N) if i not in (1, 2)), key=scores.__getitem__)]
    heads = rank_candidates(whole, whole_graph, None, "r1", "e0", k=2)
    assert len(heads) == 2
    assert "e3" not in {entity.id for entity in heads}
    smaller = whole_graph.subgraph(NAMES[:5])
    assert {entity.id for entity in rank_candidates(whole, smaller, "e0", "r0", None)} == {"e0", "e3", "e4"}


def test_questions_and_graphs_that_do_not_fit_are_refused() -> None:
    whole, own = model(), graph()
    with pytest.raises(RequestError, match="either a head or a tail"):
        rank_candidates(whole, own, "e0", "r0", "e1")
    with pytest.raises(RequestError, match="k: expected"):
        rank_candidates(whole, own, "e0", "r0", None, k=0)
    with pytest.raises(GraphError, match="not trained on the relation"):
        rank_candidates(whole, own, "e0", "r9", None)
    with pytest.raises(GraphError, match="no node"):
        rank_candidates(whole, own, "x", "r0", None)
    other = graph(["e0", *(f"x{i}" for i in range(6))])
    with pytest.raises(GraphError, match="another graph"):
        rank_candidates(whole, other, "e0", "r0", None)
    with pytest.raises(GraphError, match="not trained on the entity"):
        rank_candidates(whole, other, "x1", "r0", None)
