"""Models for the integration tests. Packed weights of tiny models go to a temporary home."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.helpers import tiny_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty VGLM_HOME."""
    folder = tmp_path / "home"
    monkeypatch.setenv("VGLM_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with a tokenizer and a chat template."""
    return tiny_model(tmp_path_factory.mktemp("models"))
