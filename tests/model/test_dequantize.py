"""Our reading of ggml's blocks against the gguf package, on random bits."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as expected

from vglm.model.dequantize import FORMATS, dequantize


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_bit_for_bit(kind: str) -> None:
    assert FORMATS[kind][0] == GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    rng = np.random.default_rng(len(kind))
    raw = rng.integers(0, 256, (7, 3 * FORMATS[kind][0]), dtype=np.uint8)
    with np.errstate(all="ignore"):  # random bits make infinite and undefined scales too
        ours, theirs = dequantize(raw, kind), expected(raw, GGMLQuantizationType[kind])
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    np.testing.assert_array_equal(ours, theirs)
    assert np.isfinite(ours).mean() > 0.5


def test_other_formats_are_refused() -> None:
    with pytest.raises(KeyError):
        dequantize(np.zeros((1, 84), np.uint8), "Q2_K")
