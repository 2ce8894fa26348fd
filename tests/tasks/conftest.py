"""The clinic of clinic.py and its model, for tests of suggestions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tasks.clinic import clinic, trained
from vglm import Graph


@pytest.fixture(scope="module")
def graph() -> Graph:
    return clinic()


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VGLM_HOME", str(tmp_path_factory.mktemp("home")))
        yield trained(tmp_path_factory.mktemp("model"))
