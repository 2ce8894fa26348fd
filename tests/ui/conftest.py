"""One server and one Chromium for the tests of the page; each test has a tab and graphs of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from selenium import webdriver

from tests.serve.server_process import ServerProcess
from tests.ui.chromium import PATIENCE, Tab, start_chromium

OPTIONS = ("--kv-cache-memory", "300M", "--max-model-len", "4096")
_numbers = itertools.count()

Store = Callable[[dict[str, Any]], str]

#: Small enough for the smallest model to answer by: who has the hand?
HANDS = {
    "nodes": [
        {"id": "A", "name": "Achondroplasia", "type": "disease"},
        {"id": "M", "name": "Marfan syndrome", "type": "disease"},
        {
            "id": "t",
            "name": "Trident hand",
            "type": "phenotype",
            "text": "A hand in which the fingers are of nearly equal length and point away from each other, "
            "so that the first two and the last two of them form the prongs of a trident with the thumb.",
        },
        {
            "id": "r",
            "name": "Rhizomelia",
            "type": "phenotype",
            "text": "Disproportionate shortening of the part of the limbs that is next to the trunk, "
            "which are the upper arms and the thighs, while the parts further out are of nearly usual length.",
        },
        {
            "id": "s",
            "name": "Tall stature",
            "type": "phenotype",
            "text": "A height above that which is expected according to age and gender norms, "
            "measured from the top of the head to the soles of the feet, standing upright without shoes.",
        },
    ],
    "edges": [
        {"source": "A", "relation": "has phenotype", "target": "t"},
        {"source": "A", "relation": "has phenotype", "target": "r"},
        {"source": "M", "relation": "has phenotype", "target": "s"},
    ],
}
QUESTION = "Which disease has trident hand?"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """`vglm serve` with the page, and with a store that is empty at first."""
    store = tmp_path_factory.mktemp("store") / "graphs.db"
    with ServerProcess(*OPTIONS, "--ui", "--graph-store", str(store)) as process:
        yield process
        assert process.alive, f"the server has died: {process.errors()}"


@pytest.fixture(scope="session")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = start_chromium(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture
def tab(chromium: webdriver.Chrome) -> Iterator[Tab]:
    """A new tab, closed afterwards; what the browser complains about fails the test."""
    home = chromium.current_window_handle
    chromium.switch_to.new_window("tab")
    tab = Tab(chromium)
    tab.console_errors()  # those of tests before this one
    yield tab
    errors = tab.console_errors()
    for handle in chromium.window_handles:
        if handle != home:
            chromium.switch_to.window(handle)
            chromium.close()
    chromium.switch_to.window(home)
    assert not [error for error in errors if "ERR_CONNECTION" not in error], errors


@pytest.fixture
def stored(http: httpx.Client) -> Store:
    """Stores a graph under a name of its own, which it returns."""

    def store(graph: dict[str, Any]) -> str:
        name = f"graph-{next(_numbers)}"
        answer = http.post("/v1/graphs", json={"name": name, "graph": graph})
        assert answer.status_code == 200, answer.text
        return name

    return store
