"""Relational message passing against its naive twin, over odd shapes, and arrays that do not fit together."""

from __future__ import annotations

import numpy as np
import pytest

from vglm import _native
from vglm._native import Propagation

ISAS = [*_native.available_isas(), "amx_simulated"]
SHAPES = [  # nodes, edges, relations, batch, width
    (1, 0, 1, 1, 32),
    (7, 20, 3, 2, 5),
    (9, 50, 4, 3, 65),
    (40, 300, 1, 1, 1),
    (33, 64, 70, 2, 48),
]


def edges_of(rng, nodes, edges, relations):
    """Random edges: their targets in order, and the arguments of Propagation."""
    target = np.sort(rng.integers(0, nodes, edges))
    start = np.searchsorted(target, np.arange(nodes + 1)).astype(np.int64)
    source = rng.integers(0, nodes, edges).astype(np.int32)
    relation = rng.integers(0, relations, edges).astype(np.int32)
    return target, (start, source, relation, relations)


def values(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("nodes", "edges", "relations", "batch", "width"), SHAPES)
def test_aggregate_adds_the_messages(nodes, edges, relations, batch, width):
    rng = np.random.default_rng(nodes)
    target, arguments = edges_of(rng, nodes, edges, relations)
    _, source, relation, _ = arguments
    states, weights = values(rng, batch, nodes, width), values(rng, batch, relations, width)
    out = values(rng, batch, nodes, width)
    expected = out.copy()
    np.add.at(expected, (slice(None), target), states[:, source] * weights[:, relation])
    Propagation(*arguments).aggregate(states, weights, out)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("nodes", "edges", "relations", "batch", "width"), SHAPES)
def test_weight_gradient_adds_products_by_relation(nodes, edges, relations, batch, width):
    rng = np.random.default_rng(nodes)
    target, arguments = edges_of(rng, nodes, edges, relations)
    _, source, relation, _ = arguments
    states, gradient = values(rng, batch, nodes, width), values(rng, batch, nodes, width)
    out = values(rng, batch, relations, width)
    expected = out.copy()
    np.add.at(expected, (slice(None), relation), states[:, source] * gradient[:, target])
    Propagation(*arguments).weight_gradient(states, gradient, out)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("start", "source", "relation", "relations", "words"),
    [
        ([], [], [], 1, "too few"),
        ([0, 1], [0], [0], -1, "too few"),
        ([0, 2], [0], [0], 1, "starts do not fit"),
        ([1, 1], [0], [0], 1, "starts do not fit"),
        ([0, 2, 1], [0], [0], 1, "starts must not fall"),
        ([0, 1], [0], [], 1, "differ in length"),
        ([0, 1], [1], [0], 1, "a source is out of range"),
        ([0, 1], [-1], [0], 1, "a source is out of range"),
        ([0, 1], [0], [1], 1, "a relation is out of range"),
    ],
)
def test_edges_that_do_not_fit(start, source, relation, relations, words):
    arrays = np.array(start, np.int64), np.array(source, np.int32), np.array(relation, np.int32)
    with pytest.raises(ValueError, match=words):
        Propagation(*arrays, relations)


@pytest.mark.parametrize(
    ("states", "weights", "out", "name"),
    [
        ((1, 3, 4), (1, 2, 4), (1, 2, 4), "states"),
        ((1, 2, 4), (1, 3, 4), (1, 2, 4), "weights"),
        ((1, 2, 4), (2, 2, 4), (1, 2, 4), "weights"),
        ((1, 2, 4), (1, 2, 4), (1, 2, 5), "out"),
    ],
)
def test_batches_that_do_not_fit(states, weights, out, name):
    edges = Propagation(np.array([0, 1, 2]), np.array([1, 0], np.int32), np.array([0, 1], np.int32), 2)
    with pytest.raises(ValueError, match=f"{name} has another shape"):
        edges.aggregate(np.ones(states, np.float32), np.ones(weights, np.float32), np.ones(out, np.float32))


def test_out_of_another_type_is_refused_rather_than_lost():
    edges = Propagation(np.array([0, 1]), np.zeros(1, np.int32), np.zeros(1, np.int32), 1)
    ones = np.ones((1, 1, 4), np.float32)
    with pytest.raises(TypeError):
        edges.aggregate(ones, ones, np.ones((1, 1, 4)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "width"), [(0, 16), (1, 16), (4, 32), (7, 48), (30, 256)])
def test_mix_messages_is_a_norm_of_three_products(isa, rows, width):
    rng = np.random.default_rng(rows)
    states, received = values(rng, rows, width), values(rng, rows, width)
    mean = rng.uniform(0.01, 1, rows).astype(np.float32)
    mix, bias, gain, shift = (
        values(rng, *shape) for shape in ((3 * width, width), (width,), (width,), (width,))
    )
    mix -= mix.mean(axis=1, keepdims=True)
    bias -= bias.mean()
    by_mean, by_root = received * mean[:, None], received * np.sqrt(mean)[:, None]
    mixed = np.concatenate([states, by_mean, by_root], axis=1) @ mix + bias
    mixed /= np.sqrt(np.square(mixed).mean(axis=1, keepdims=True) + np.float32(1e-5))
    expected = states + np.maximum(mixed * gain + shift, 0)
    _native.mix_messages(isa, states, received, mean, mix, bias, gain, shift, 1e-5)
    np.testing.assert_allclose(states, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "width", "hidden"), [(0, 16, 16), (1, 16, 32), (6, 32, 64), (9, 256, 512)])
def test_score_states_is_a_network_of_one_hidden_layer(isa, rows, width, hidden):
    rng = np.random.default_rng(rows)
    states, weight, bias, out = (
        values(rng, *shape) for shape in ((rows, width), (width, hidden), (hidden,), (hidden,))
    )
    scores = np.empty(rows, np.float32)
    _native.score_states(isa, states, weight, bias, out, 0.5, scores)
    expected = np.maximum(states @ weight + bias, 0) @ out + 0.5
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=2e-3)


def test_dense_steps_refuse_what_does_not_fit():
    states, mean, vector = np.ones((2, 16), np.float32), np.ones(2, np.float32), np.ones(16, np.float32)
    mix, few = np.ones((48, 16), np.float32), np.ones((2, 8), np.float32)
    with pytest.raises(ValueError, match="multiples of 16"):
        _native.mix_messages("portable", few, few, mean, mix, vector, vector, vector, 1e-5)
    with pytest.raises(ValueError, match="mix must be"):
        _native.mix_messages("portable", states, states, mean, states, vector, vector, vector, 1e-5)
    with pytest.raises(ValueError, match="not available"):
        _native.mix_messages("none", states, states, mean, mix, vector, vector, vector, 1e-5)
    with pytest.raises(ValueError, match="a score for each state"):
        _native.score_states("portable", states, mix[:16], vector, vector, 0.0, np.ones(3, np.float32))
