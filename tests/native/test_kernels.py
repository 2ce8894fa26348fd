"""Every kernel of every instruction set against its naive twin, over odd shapes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.native import reference
from vglm import _native
from vglm.model import layout

ISAS = [*_native.available_isas(), "amx_simulated"]
SHAPES = [
    (1, 64, 64),
    (2, 128, 64),
    (3, 64, 192),
    (5, 192, 128),
    (13, 64, 576),
    (16, 128, 64),
    (17, 64, 128),
    (33, 192, 320),
    (49, 64, 64),
]


@pytest.fixture(params=ISAS)
def isa(request):
    return request.param


def weight_of(kind, rng, n, k):
    """A packed matrix and the values that it stands for."""
    w = rng.standard_normal((n, k)).astype(np.float32)
    if kind == "bf16":
        return layout.pack_bf16(w), reference.round_bf16(w)
    if kind == "int8":
        q, scale = layout.quantise_int8(w)
        return layout.pack_int8(q, scale), q * scale[:, None]
    q, scale, minimum = layout.quantise_int4(w)
    return layout.pack_int4(q, scale, minimum), (q * scale[..., None] + minimum[..., None]).reshape(n, -1)[
        :, :k
    ]


def run(isa, packed, x, store="f32", bias=None, out=None):
    if out is None:
        out = np.zeros((len(x), packed.n // 2 if store == "swiglu" else packed.n), np.float32)
    _native.matmul(isa, packed.type, packed.n, packed.k, packed.data, packed.scale, bias, x, out, store)
    return out


@pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_matmul(isa, kind, m, n, k):
    rng = np.random.default_rng(m * n + k)
    packed, w = weight_of(kind, rng, n, k)
    x = rng.standard_normal((m, k)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    expected = reference.activations(kind, x).astype(np.float64) @ w.T.astype(np.float64) + bias
    tolerance = 2e-6 * k**0.5 * np.abs(expected).max() + 1e-5
    np.testing.assert_allclose(run(isa, packed, x, bias=bias), expected, atol=tolerance)
    residual = rng.standard_normal((m, n)).astype(np.float32)
    np.testing.assert_allclose(
        run(isa, packed, x, "add", bias, residual.copy()), residual + expected, atol=tolerance
    )
    gated = reference.swiglu(expected)
    np.testing.assert_allclose(
        run(isa, packed, x, "swiglu", bias), gated, rtol=2**-8, atol=tolerance * np.abs(gated).max()
    )


@pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
def test_a_row_is_the_same_bits_in_any_batch(isa, kind):
    rng = np.random.default_rng(5)
    packed, _ = weight_of(kind, rng, 192, 320)
    x = rng.standard_normal((70, 320)).astype(np.float32)
    whole = run(isa, packed, x)
    for size in (1, 2, 3, 4, 5, 7, 12, 16, 31, 33):
        assert np.array_equal(run(isa, packed, x[:size].copy()), whole[:size])


def test_int8_is_the_same_bits_on_every_instruction_set():
    rng = np.random.default_rng(6)
    packed, _ = weight_of("int8", rng, 128, 192)
    x = rng.standard_normal((37, 192)).astype(np.float32)
    first = run(ISAS[0], packed, x)
    for other in ISAS[1:]:
        assert np.array_equal(run(other, packed, x), first), other


def test_extreme_integers_do_not_saturate(isa):
    q = np.full((64, 128), -127, np.int8)
    q[::2] = 127
    packed = layout.pack_int8(q, np.ones(64, np.float32))
    x = layout.rotate(np.full((6, 128), -127, np.float32))  # the kernel turns it back
    x[1::2] *= -1
    expected = layout.rotate(x) @ q.T.astype(np.float32)
    assert np.array_equal(run(isa, packed, x), expected)
    assert np.array_equal(run(isa, packed, x[:1].copy()), expected[:1])


@pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("k", [64, 192, 576, 1536])
def test_normalised_activations(isa, kind, k):
    rng = np.random.default_rng(k)
    x = (rng.standard_normal((7, k)) * rng.uniform(0.01, 30, (7, 1))).astype(np.float32)
    x[3] = 0
    weight = rng.standard_normal(k).astype(np.float32)
    out = np.zeros_like(x)
    _native.activations(isa, kind, x, weight, 1e-5, out)
    exact = reference.rmsnorm(x, weight, 1e-5).astype(np.float32)
    exact = layout.rotate(exact) if kind == "int8" else exact
    step = np.abs(exact) * 2**-8 if kind == "bf16" else np.abs(exact).max(axis=1, keepdims=True) / 127 * 0.51
    assert (np.abs(out - exact) <= step + 1e-6).all()
    _native.activations(isa, kind, x, None, -1.0, out)
    np.testing.assert_allclose(out, reference.activations(kind, x), atol=1e-5 * np.abs(x).max())


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    ("rows", "slots", "dim"),
    [
        (1, 1, 16),
        (3, 15, 64),
        (4, 16, 64),
        (7, 17, 80),
        (6, 255, 64),
        (13, 256, 32),
        (9, 300, 128),
        (2, 1000, 64),
        (20, 530, 48),
    ],
)
def test_attention(isa, int8, rows, slots, dim):
    rng = np.random.default_rng(rows * slots)
    q, k, v = (rng.standard_normal((n, dim)).astype(np.float32) for n in (rows, slots, slots))
    limit = np.sort(rng.integers(1, slots + 1, rows)).astype(np.int32)
    limit[-1] = slots
    out = np.zeros_like(q)
    scale = dim**-0.5
    _native.attention(isa, q, k, v, limit, scale, int8, out)
    kk, vv = (
        (reference.quantise_rows(k), reference.quantise_rows(v))
        if int8
        else (reference.round_bf16(k), reference.round_bf16(v))
    )
    expected = reference.attention(reference.round_bf16(q), kk, vv, limit, scale)
    np.testing.assert_allclose(out, expected, atol=0.012 * np.abs(v).max())


@pytest.mark.parametrize("int8", [False, True])
def test_attention_of_a_row_does_not_depend_on_its_neighbours(isa, int8):
    rng = np.random.default_rng(8)
    q, k, v = (rng.standard_normal((n, 64)).astype(np.float32) for n in (23, 400, 400))
    limit = np.linspace(1, 400, 23).astype(np.int32)
    whole = np.zeros_like(q)
    _native.attention(isa, q, k, v, limit, 0.125, int8, whole)
    for i in range(23):
        one = np.zeros((1, 64), np.float32)
        _native.attention(isa, q[i : i + 1].copy(), k, v, limit[i : i + 1].copy(), 0.125, int8, one)
        assert np.array_equal(one[0], whole[i])
