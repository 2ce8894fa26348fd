"""Benchmarks run on the real model, with little work."""

from __future__ import annotations

import pytest

from vglm.errors import ModelError
from vglm.model.pull import pull


@pytest.fixture(scope="session")
def model() -> str:
    """Path of the real model."""
    try:
        return str(pull("smollm2-135m-instruct", progress=False))
    except ModelError as error:
        pytest.skip(f"the model cannot be fetched here: {error}")
