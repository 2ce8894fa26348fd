"""The numpy reference gives transformers' logits, for every architecture, from every config layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.reference import Reference
from vglm.model.checkpoint import open_checkpoint

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/expected.npz"))


def assert_matches(model: Path, expected: Path) -> None:
    checkpoint = open_checkpoint(model)
    wanted = np.load(expected / "expected.npz")
    logits = Reference(checkpoint.config, checkpoint.tensor).logits(wanted["token_ids"].tolist())
    np.testing.assert_allclose(logits[wanted["rows"]], wanted["logits"], atol=1e-4, rtol=0)


def test_every_architecture_has_a_fixture() -> None:
    architectures = {open_checkpoint(FIXTURES / name).config.architecture for name in NAMES}
    assert architectures == {"llama", "qwen2", "qwen3", "glm", "glm4"}


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_transformers(name: str) -> None:
    assert_matches(FIXTURES / name, FIXTURES / name)


def test_config_of_transformers_4(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(FIXTURES / "llama-llama3", model)
    shutil.move(model / "config-transformers4.json", model / "config.json")
    assert_matches(model, FIXTURES / "llama-llama3")


@pytest.mark.parametrize("name", ["llama-llama3", "qwen2-yarn", "llama-linear-bias"])
def test_the_test_would_notice_missing_rope_scaling(name: str) -> None:
    checkpoint = open_checkpoint(FIXTURES / name)
    wanted = np.load(FIXTURES / name / "expected.npz")
    object.__setattr__(checkpoint.config.rope, "scaling", None)
    logits = Reference(checkpoint.config, checkpoint.tensor).logits(wanted["token_ids"].tolist())
    assert np.abs(logits[wanted["rows"]] - wanted["logits"]).max() > 1e-2
