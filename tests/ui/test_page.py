"""The page at / in a real browser, on a real server with a real model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests.serve.server_process import ServerProcess
from tests.ui.chromium import Tab, start_chromium
from tests.ui.conftest import HANDS, OPTIONS, QUESTION, Store
from vglm.serve.ui import library
from vglm.serve.ui.drawing import Look

LIGHT, DARK = Look(), Look(dark=True)


def nodes_of(series: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["node"]: item for item in series["data"] if "node" in item}


def places_of(tab: Tab) -> dict[str, tuple[float, float]]:
    return {node: (item["x"], item["y"]) for node, item in nodes_of(tab.drawing()).items()}


def marked_edges(tab: Tab, look: Look = LIGHT) -> set[tuple[str, str]]:
    links = tab.drawing()["links"]
    return {
        (link["source"].removeprefix("node:"), link["target"].removeprefix("node:"))
        for link in links
        if link["lineStyle"]["color"] == look.accent
    }


# ---- asking -----------------------------------------------------------------------------------------------


def test_an_empty_store_offers_the_example_which_answers(
    tab: Tab, server: ServerProcess, http: httpx.Client
) -> None:
    tab.open(server.url)
    if not http.get("/v1/graphs").json()["data"]:
        tab.click(".v-example")
    tab.open(f"{server.url}/?graph={library.EXAMPLE_NAME}")
    tab.until(lambda: tab.value(".v-question textarea") == library.EXAMPLE_QUESTION, "the example's question")
    before = tab.num_ended
    tab.click(".v-ask")
    tab.wait_ended(before)

    example = json.loads(library.EXAMPLE.read_text())
    names = {node["name"]: node["id"] for node in example["nodes"] if node["type"] == "disease"}
    assert tab.answer in names, "the answer is an entity of the graph"
    edges = {(edge["source"], edge["target"]) for edge in example["edges"]}
    assert marked_edges(tab)
    assert marked_edges(tab) <= edges
    assert nodes_of(tab.drawing())[names[tab.answer]]["symbolSize"] == 24
    assert all("has phenotype" in path for path in tab.texts(".v-path"))
    assert "evidence" in tab.text(".v-legend")
    took = " ".join(tab.texts(".v-took"))
    assert "First word after" in took
    assert "computed now" in took


def test_enter_asks_and_an_edge_that_is_edited_changes_the_answer(
    tab: Tab, server: ServerProcess, http: httpx.Client, stored: Store
) -> None:
    name = stored(HANDS)
    tab.open(f"{server.url}/?graph={name}")
    tab.click(".v-options", "Options")
    tab.choose(".v-mode", "Spans")
    tab.ask(QUESTION, enter=True)
    assert tab.answer == "Achondroplasia"
    assert marked_edges(tab) == {("A", "t")}
    before = places_of(tab)

    tab.ask(QUESTION)
    read, _, computed = tab.tokens()
    assert computed == 0, "the whole graph was there already"
    assert places_of(tab) == before

    tab.choose_node("Trident hand")
    tab.click(".v-edit")
    tab.write(".v-edit-search input", "marf")
    tab.click(".v-found", "Marfan syndrome")
    tab.click(".v-save")
    tab.one(".v-note", "version 2")
    tab.one(".v-version", "Version 2")
    assert tab.texts(".v-link-text") == ["← has phenotype\nMarfan syndrome"]
    edges = http.get(f"/v1/graphs/{name}?format=node-link").json()["edges"]
    assert {"source": "M", "relation": "has phenotype", "target": "t"} in edges
    assert {"source": "A", "relation": "has phenotype", "target": "t"} not in edges

    before_again = tab.num_ended
    tab.click(".v-again")
    tab.wait_ended(before_again)
    tab.one(".v-drawn", "version 2")
    assert tab.answer == "Marfan syndrome"
    assert marked_edges(tab) == {("M", "t")}
    read, _, computed = tab.tokens()
    assert 0 < computed < read, "what the edit left as it was is not computed again"
    kept = before.keys() & places_of(tab).keys()
    assert kept
    assert {node: places_of(tab)[node] for node in kept} == {node: before[node] for node in kept}


def test_an_edge_is_added_deleted_and_brought_back(
    tab: Tab, server: ServerProcess, http: httpx.Client, stored: Store
) -> None:
    name = stored(HANDS)

    def edges() -> list[tuple[str, str, str]]:
        found = http.get(f"/v1/graphs/{name}?format=node-link").json()["edges"]
        return sorted((edge["source"], edge["relation"], edge["target"]) for edge in found)

    before = edges()
    tab.open(f"{server.url}/?graph={name}")
    tab.choose_node("Rhizomelia")
    tab.click(".v-add")
    assert not tab.one(".v-save").is_enabled(), "no node is chosen yet"
    tab.click(".v-relation-offer", "has phenotype")
    assert tab.value(".v-edit-relation input") == "has phenotype"
    tab.write(".v-edit-relation input", "is milder than")
    tab.write(".v-edit-search input", "tall")
    tab.click(".v-found", "Tall stature")
    tab.click(".v-save")
    tab.one(".v-note", "Added")
    assert edges() == sorted([*before, ("r", "is milder than", "s")])
    tab.click(".v-undo")
    tab.one(".v-note", "Deleted")
    assert edges() == before
    tab.click(".v-delete")
    tab.one(".v-note", "version 4")
    assert len(edges()) == len(before) - 1
    tab.click(".v-undo")
    tab.one(".v-note", "Added")
    assert edges() == before


def test_a_conflict_is_said_and_changes_nothing(
    tab: Tab, server: ServerProcess, http: httpx.Client, stored: Store
) -> None:
    name = stored(HANDS)
    tab.open(f"{server.url}/?graph={name}")
    tab.choose_node("Rhizomelia")
    elsewhere = {"upsert_edges": [{"source": "M", "relation": "has phenotype", "target": "r"}]}
    assert http.patch(f"/v1/graphs/{name}", json=elsewhere).status_code == 200
    tab.click(".v-delete")
    tab.one(".v-error", "changed elsewhere")
    assert len(tab.all(".v-link")) == 2, "the record is the current one"
    assert http.get(f"/v1/graphs/{name}").json()["version"] == 2
    tab.click(".v-delete")
    tab.one(".v-note", "version 3")


@pytest.mark.parametrize("form", ["Path", "Grounded", "Free"])
def test_other_forms_of_answers(tab: Tab, server: ServerProcess, stored: Store, form: str) -> None:
    tab.open(f"{server.url}/?graph={stored(HANDS)}")
    tab.click(".v-toggle .q-btn", form)
    tab.ask(QUESTION)
    assert not tab.errors
    assert tab.answer
    if form == "Path":
        assert " has phenotype " in tab.answer
        assert len(marked_edges(tab)) >= 1


def test_what_cannot_be_asked_is_said_in_a_line(tab: Tab, server: ServerProcess, stored: Store) -> None:
    tab.open(f"{server.url}/?graph={stored(HANDS)}")
    tab.ask("   ")
    assert tab.errors == "Write a question first."
    tab.ask("What about quarks?")
    assert "names nothing in this graph" in tab.errors
    assert "\n" not in tab.errors
    tab.ask(QUESTION)
    assert not tab.errors
    tab.open(f"{server.url}/?graph=no-such-graph")
    tab.one(".v-error", "no-such-graph")


def test_stop_ends_an_answer_and_the_next_one_is_whole(
    tab: Tab, server: ServerProcess, http: httpx.Client, stored: Store
) -> None:
    tab.open(f"{server.url}/?graph={stored(HANDS)}")
    tab.click(".v-toggle .q-btn", "Free")
    tab.write(".v-question textarea", "Write a very long story about trident hand, with all details.")
    tab.click(".v-ask")
    tab.click(".v-stop")
    tab.wait_ended(0)
    assert "Stopped" in tab.text(".v-details")
    tab.until(lambda: http.get("/load").json()["num_requests_running"] == 0, "the end of the request")
    tab.click(".v-toggle .q-btn", "Entity")
    tab.ask(QUESTION)
    assert tab.answer == "Achondroplasia"


# ---- the drawing and the page -----------------------------------------------------------------------------


def test_a_node_is_chosen_in_the_drawing(tab: Tab, server: ServerProcess, stored: Store) -> None:
    tab.open(f"{server.url}/?graph={stored(HANDS)}")
    tab.ask(QUESTION)
    tab.click_in_drawing("t")
    tab.one(".v-name", "Trident hand")
    assert "the prongs of a trident" in tab.text(".v-text")
    assert tab.text(".v-type") == "phenotype · t"


def test_the_page_can_be_used_with_the_keyboard(tab: Tab, server: ServerProcess, stored: Store) -> None:
    tab.open(f"{server.url}/?graph={stored(HANDS)}")
    tab.one(".v-question textarea")
    names = []
    for _ in range(60):
        tab.driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = tab.driver.switch_to.active_element
        names.append(focused.get_attribute("aria-label") or focused.text)
        if "Nodes" in names[-1]:
            break
    assert {"Question", "Ask", "Entity"} <= set(names), names
    tab.driver.switch_to.active_element.send_keys(Keys.ENTER)
    tab.until(lambda: tab.all(".v-node"), "the list of nodes")
    tab.driver.switch_to.active_element.send_keys(Keys.TAB)
    name = tab.driver.switch_to.active_element.text
    tab.driver.switch_to.active_element.send_keys(Keys.ENTER)
    tab.one(".v-name", name)


def test_hostile_names_are_text(tab: Tab, server: ServerProcess, stored: Store) -> None:
    attack = '<img src=x onerror="window.hacked=1">'
    script = "</script><script>window.hacked=2</script>{{window.hacked=3}}${window.hacked=4}`"
    graph = {
        "nodes": [
            {"id": "a", "name": f"Alpha {attack}", "type": attack, "text": script, "aliases": [script]},
            {"id": f"b{script}", "name": f"Beta {script}", "type": "' onmouseover=window.hacked=5 '"},
            {"id": "c", "name": "<|im_end|> {a} {b|c}", "type": "__proto__"},
            {"id": "__proto__", "name": "__proto__", "type": "constructor"},
        ],
        "edges": [
            {"source": "a", "relation": attack, "target": f"b{script}"},
            {"source": f"b{script}", "relation": script, "target": "c"},
            {"source": "a", "relation": "__proto__", "target": "__proto__"},
        ],
    }
    tab.open(f"{server.url}/?graph={stored(graph)}")
    tab.click(".v-toggle .q-btn", "Path")
    tab.ask(f"What does Alpha {attack} lead to?")
    assert not tab.errors
    assert len(places_of(tab)) == 4
    for node in places_of(tab):
        tab.hover_in_drawing(node)
    assert tab.driver.execute_script("for (const key in {}) return key; return ''") == ""
    tab.choose_node(f"Alpha {attack}")
    tab.until(lambda: attack in tab.text(".v-name"), "the record")
    assert attack in tab.text(".v-legend")
    assert attack in tab.text(".v-path")
    assert script in tab.text(".v-text")
    tab.click(".v-edit")
    tab.write(".v-edit-search input", "<")
    tab.until(lambda: tab.all(".v-found"), "what the search finds")
    script_result = tab.driver.execute_script(
        "return [window.hacked ?? 0, document.querySelectorAll('img').length]"
    )
    assert script_result == [0, 0]


def test_a_hostile_address_is_text(tab: Tab, server: ServerProcess, stored: Store) -> None:
    stored(HANDS)
    attack = "%3Cimg%20src%3Dx%20onerror%3Dwindow.hacked%3D1%3E%22%27%60%24%7B1%7D"
    tab.open(f"{server.url}/?graph={attack}&q={attack}")
    tab.one(".v-error", "<img src=x onerror=window.hacked=1>")
    assert tab.value(".v-question textarea").startswith("<img")
    assert tab.driver.execute_script("return window.hacked ?? 0") == 0


def test_two_tabs_do_not_meet(tab: Tab, server: ServerProcess, stored: Store) -> None:
    first, second = stored(HANDS), stored({**HANDS, "edges": HANDS["edges"][2:]})
    tab.open(f"{server.url}/?graph={first}")
    tab.ask(QUESTION)
    answer = tab.driver.current_window_handle
    tab.driver.switch_to.new_window("tab")
    tab.open(f"{server.url}/?graph={second}")
    tab.ask("Which disease has tall stature?")
    assert tab.answer == "Marfan syndrome"
    tab.driver.switch_to.window(answer)
    assert tab.answer == "Achondroplasia"
    assert tab.value(".v-question textarea") == QUESTION


def test_what_somebody_writes_is_not_replaced_by_a_suggestion(
    tab: Tab, server: ServerProcess, stored: Store
) -> None:
    first, second = stored(HANDS), stored({"nodes": [{"id": "x", "name": "Lonely"}], "edges": []})
    tab.open(f"{server.url}/?graph={first}")
    tab.until(lambda: "Achondroplasia" in tab.value(".v-question textarea"), "a suggestion")
    tab.choose(".v-graph", second)
    tab.until(lambda: "Lonely" in tab.value(".v-question textarea"), "another suggestion")
    tab.write(".v-question textarea", "My own question")
    tab.choose(".v-graph", first)
    tab.one(".v-version", "5 nodes")
    tab.until(lambda: "A" in places_of(tab), "the drawing")
    assert tab.value(".v-question textarea") == "My own question"


def test_a_reload_keeps_graph_and_question(tab: Tab, server: ServerProcess, stored: Store) -> None:
    name = stored(HANDS)
    stored(HANDS)
    tab.open(f"{server.url}/?graph={name}")
    tab.ask(QUESTION)
    tab.driver.refresh()
    tab.until(lambda: tab.value(".v-question textarea") == QUESTION, "the question")
    assert name in tab.text(".v-graph")
    assert "The answer to a question appears here." in tab.answer


def test_another_graph_is_chosen(tab: Tab, server: ServerProcess, stored: Store) -> None:
    first, second = stored(HANDS), stored({"nodes": [{"id": "x", "name": "Lonely"}], "edges": []})
    tab.open(f"{server.url}/?graph={first}")
    tab.one(".v-version", "5 nodes")
    tab.choose(".v-graph", second)
    tab.one(".v-version", "1 node, 0 edges")
    assert f"graph={second}" in tab.driver.current_url
    tab.ask("What is Lonely?")
    assert tab.answer == "Lonely"


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_cut_off_at_the_side(tab: Tab, server: ServerProcess, stored: Store, width: int) -> None:
    tab.size(width, 800)
    tab.open(f"{server.url}/?graph={stored(HANDS)}")
    tab.ask(QUESTION)
    tab.choose_node("Trident hand")
    tab.one(".v-name", "Trident hand")
    assert tab.driver.execute_script("return document.scrollingElement.scrollWidth") <= width
    across, down = tab.scale()
    assert across == pytest.approx(down), "circles stay circles"
    if width >= 1100:
        assert tab.driver.execute_script("return document.scrollingElement.scrollHeight") <= 800, (
            "it fits the window"
        )


def test_dark_follows_the_system(tab: Tab, server: ServerProcess, stored: Store) -> None:
    tab.dark(True)
    tab.open(f"{server.url}/?graph={stored(HANDS)}")
    tab.ask(QUESTION)
    assert marked_edges(tab, DARK) == {("A", "t")}
    ground = "return getComputedStyle(document.body).backgroundColor"
    assert tab.driver.execute_script(ground) == "rgb(16, 18, 22)"
    tab.dark(False)
    tab.until(lambda: marked_edges(tab, LIGHT) == {("A", "t")}, "the light drawing")
    assert tab.driver.execute_script(ground) == "rgb(245, 246, 248)"


# ---- the server -------------------------------------------------------------------------------------------


def test_the_page_is_beside_the_api(server: ServerProcess, http: httpx.Client) -> None:
    html = http.get("/", headers={"accept": "text/html,*/*;q=0.8"})
    assert html.headers["content-type"].startswith("text/html")
    assert "frame-ancestors 'none'" in html.headers["content-security-policy"]
    index = http.get("/").json()
    assert index["name"] == "vGLM"
    paths = http.get("/openapi.json").json()["paths"]
    assert paths.keys() == index["paths"].keys()
    assert not [path for path in paths if "nicegui" in path]
    missing = http.get("/nowhere", headers={"accept": "text/html"})
    assert missing.status_code == 404
    assert missing.json()["error"]["message"].startswith("there is no path /nowhere")
    assert http.post("/_nicegui_ws/socket.io/", content=b"x" * (2 << 20)).status_code == 413


def test_questions_are_counted_and_logged_as_requests(
    tab: Tab, server: ServerProcess, http: httpx.Client, stored: Store
) -> None:
    def counted() -> float:
        lines = http.get("/metrics").text.splitlines()
        start = 'vglm:http_requests_total{method="POST",path="/",status="200"}'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(start))

    before = counted()
    tab.open(f"{server.url}/?graph={stored(HANDS)}")
    tab.ask(QUESTION)
    assert counted() == before + 1
    assert "method=POST path=/ status=200" in server.errors()
    assert "_nicegui" not in server.errors(), "what the page says to the browser is no request of a client"


def test_a_server_that_nobody_looks_at_does_not_load_nicegui() -> None:
    code = "import sys, vglm.serve.server; print(*(m for m in ('nicegui', 'socketio') if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == ""


def test_without_the_page_the_paths_are_listed(tmp_path: Path) -> None:
    with ServerProcess(*OPTIONS, "--no-ui", "--no-graph-store") as server:
        answer = httpx.get(server.url, headers={"accept": "text/html"}, timeout=60)
        assert answer.json()["name"] == "vGLM"
        assert httpx.get(f"{server.url}/_nicegui_ws/socket.io/", timeout=60).status_code == 404


def test_a_key_is_needed_and_can_be_taken_away(tmp_path: Path, tab: Tab) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ann:secret-of-ann\n")
    store = str(tmp_path / "graphs.db")
    graph = tmp_path / "graph.json"
    graph.write_text(json.dumps(HANDS))
    options = ("--api-key-file", str(keys), "--graph-store", store, "--graph", f"hands={graph}")
    with ServerProcess(*OPTIONS, *options) as server:
        tab.open(server.url)
        tab.write(".v-key input", "secret-of-bob")
        tab.click(".v-enter")
        tab.one(".v-error", "not valid")
        assert not tab.all(".v-ask")
        tab.write(".v-key input", "secret-of-ann")
        tab.one(".v-key input").send_keys(Keys.ENTER)
        tab.ask(QUESTION)
        assert tab.answer == "Achondroplasia"
        assert "api_key_name=ann" in server.errors()
        assert "secret" not in server.errors()
        tab.driver.refresh()
        tab.ask(QUESTION)
        assert tab.answer == "Achondroplasia", "a reload asks for no key again"

        keys.write_text("bob:secret-of-bob\n")

        def refused() -> bool:
            tab.ask(QUESTION)
            return "not valid" in tab.errors

        tab.until(refused, "the refusal of a key that was taken away")
        tab.click(".v-delete") if tab.all(".v-delete") else None
        assert httpx.get(f"{server.url}/v1/models", timeout=60).status_code == 401
        with httpx.Client(headers={"authorization": "Bearer secret-of-bob"}, timeout=60) as client:
            assert client.get(f"{server.url}/v1/graphs/hands").json()["version"] == 1


def test_a_server_that_ends_while_it_answers_says_so(tmp_path: Path, tab: Tab) -> None:
    graph = tmp_path / "graph.json"
    graph.write_text(json.dumps(HANDS))
    options = (
        "--graph-store",
        str(tmp_path / "graphs.db"),
        "--graph",
        f"hands={graph}",
        "--drain-timeout",
        "0.2",
    )
    with ServerProcess(*OPTIONS, *options) as server:
        tab.open(server.url)
        tab.click(".v-toggle .q-btn", "Free")
        tab.write(".v-question textarea", "Write a very long story about trident hand, with all details.")
        tab.click(".v-ask")
        tab.until(lambda: "Writing" in tab.text(".v-state"), "the first words")
        server.process.send_signal(signal.SIGTERM)
        tab.one(".v-error", "shutting down")
        assert server.process.wait(60) == 0
        tab.one("#popup", "Connection lost")


def test_too_many_pages_are_refused(tmp_path: Path) -> None:
    with ServerProcess(*OPTIONS, "--graph-store", str(tmp_path / "graphs.db")) as server:
        with httpx.Client(base_url=server.url, headers={"accept": "text/html"}, timeout=60) as client:
            statuses = [client.get("/").status_code for _ in range(257)]
            assert statuses == [200] * 256 + [503]
            assert client.get("/health").status_code == 200
        assert server.terminate() == 0


def test_chromium_is_asked_for_when_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match="apt-get install chromium"):
        start_chromium(tmp_path)
    assert webdriver.__version__
