from __future__ import annotations

import numpy as np
import pytest

from tests.encoder.disease_graphs import random_hpo
from vglm.encoder import disease_vectors
from vglm.encoder.disease_vectors import DiseaseVectors, nearest
from vglm.graph.ranking_index import RankingIndex


def messages(index: RankingIndex) -> np.ndarray:
    """The matrix that the encoder factorises, float64[D, N], plainly."""
    matrix = np.zeros((len(index.diseases), len(index.holder_starts) - 1))
    for node in range(matrix.shape[1]):
        held = index.holders(node)
        matrix[index.holder_rows[held], node] = (
            index.holder_frequencies[held] * index.information_content[node]
        )
    return matrix / (np.linalg.norm(matrix, axis=1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_vectors_are_those_of_the_singular_value_decomposition(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disease_vectors, "ROUNDS", 30)
    monkeypatch.setattr(disease_vectors, "WIDTH", 8)
    monkeypatch.setattr(disease_vectors, "_CHUNK", 50)  # several chunks
    index = RankingIndex.build(random_hpo(seed))
    vectors = DiseaseVectors.build(index)
    left, values, _ = np.linalg.svd(messages(index), full_matrices=False)
    expected = left[:, :8] * values[:8] ** 0.5
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors.diseases @ vectors.diseases.T, expected @ expected.T, atol=0.02)


def test_a_disease_given_by_its_terms_has_its_vector() -> None:
    index = RankingIndex.build(random_hpo(0))
    vectors = DiseaseVectors.build(index)
    for row, weights in enumerate(messages(index)):
        terms = np.flatnonzero(weights)
        encoded = vectors.encode(terms, weights[terms])
        np.testing.assert_allclose(encoded, vectors.diseases[row], atol=1e-4)


def test_equal_graphs_have_equal_vectors() -> None:
    index = RankingIndex.build(random_hpo(1))
    first, second = DiseaseVectors.build(index), DiseaseVectors.build(index)
    assert (first.diseases == second.diseases).all()
    assert (first.neighbours == second.neighbours).all()


def test_neighbours_are_the_nearest_others() -> None:
    random = np.random.default_rng(0)
    diseases = random.standard_normal((50, 4)).astype(np.float32)
    diseases /= np.linalg.norm(diseases, axis=1, keepdims=True)
    found, weights = nearest(diseases, diseases, np.arange(50))
    for row in range(50):
        others = np.delete(np.arange(50), row)
        closest = others[np.argsort(-(diseases[others] @ diseases[row]))][: found.shape[1]]
        assert set(found[row].tolist()) == set(closest.tolist())
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


def test_two_diseases_are_enough() -> None:
    vectors = DiseaseVectors.build(RankingIndex.build(random_hpo(2, terms=5, diseases=2)))
    assert vectors.neighbours.tolist() == [[1], [0]]
