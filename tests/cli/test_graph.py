"""vglm graph: a store of its own for each test, real processes, real files."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import COMMAND, Run
from tests.graph import small_hpo
from vglm.graph.graph import Graph
from vglm.graph.hpo import load_hpo
from vglm.graph.store import GraphStore

MOVIES: dict[str, Any] = {
    "nodes": [
        {"id": "m1", "name": "Alien", "type": "film", "text": "In space. No one can hear you."},
        {"id": "p1", "name": "Sigourney Weaver", "type": "person", "aliases": ["Susan Weaver"]},
        {"id": "p2", "name": "Ridley Scott", "type": "person", "attributes": {"born": 1937}},
        {"id": "x", "name": "\x1b[31mred\x1b[0m [bold]markup[/bold]\n"},
    ],
    "edges": [
        {"source": "p1", "relation": "plays in", "target": "m1", "attributes": {"role": "Ripley"}},
        {"source": "p2", "relation": "directs", "target": "m1"},
    ],
}
COMMANDS = ["import", "export", "list", "show", "stats", "query", "patch", "delete", "versions", "snapshot"]

Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def graph(vglm: Run, tmp_path: Path) -> Call:
    """Runs `vglm graph`, in `tmp_path`, with a store of the test's own."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = {
            "VGLM_GRAPH_STORE": str(tmp_path / "store" / "graphs.db"),
            "VGLM_HOME": str(tmp_path / "home"),
        }
        return vglm("graph", *arguments, environment=environment, cwd=tmp_path, **options)

    (tmp_path / "movies.json").write_text(json.dumps(MOVIES))
    return run


@pytest.fixture
def movies(graph: Call) -> Call:
    done = graph("import", "movies", "movies.json")
    assert (done.returncode, done.stderr) == (0, "")
    return graph


def test_help_has_examples_for_every_command(vglm: Run) -> None:
    assert all(command in vglm("graph", "--help").stdout for command in COMMANDS)
    for command in COMMANDS:
        done = vglm("graph", command, "--help")
        assert done.returncode == 0, done.stderr
        assert "Examples:" in done.stdout
        assert f"vglm graph {command}" in done.stdout


def test_import_list_show_export(movies: Call, tmp_path: Path) -> None:
    listed = json.loads(movies("list", "--json").stdout)
    assert [(g["name"], g["version"], g["nodes"], g["edges"]) for g in listed] == [("movies", 1, 4, 2)]
    assert "movies" in movies("list").stdout
    shown = movies("show", "movies").stdout
    for word in ("version 1", "4 nodes", "film", "directs", "Alien"):
        assert word in shown
    assert movies("export", "movies", "copy.json").returncode == 0
    assert Graph.load(tmp_path / "copy.json") == Graph.from_dict(MOVIES)
    out = movies("export", "movies", "-", "--format", "json").stdout
    assert Graph.from_json(out) == Graph.from_dict(MOVIES)


def test_show_a_node_by_id_and_by_name(movies: Call) -> None:
    by_id, by_name = movies("show", "movies", "m1"), movies("show", "movies", "ALIEN")
    assert by_id.returncode == 0
    assert by_id.stdout == by_name.stdout
    for word in ("Alien", "In space.", "plays in", "Sigourney Weaver", "Ripley"):
        assert word in by_id.stdout
    document = json.loads(movies("show", "movies", "m1", "--json", "--edges", "1").stdout)
    assert document["node"] == MOVIES["nodes"][0]
    assert document["degree"] == {"out": 0, "in": 2}
    assert len(document["in"]) == 1


def test_control_characters_do_not_reach_the_terminal(movies: Call) -> None:
    for arguments in (["show", "movies"], ["show", "movies", "x"], ["query", "movies", "q", "-e", "x"]):
        done = movies(*arguments)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        assert "[bold]markup[/bold]" in done.stdout


def test_stats(movies: Call) -> None:
    found = json.loads(movies("stats", "movies", "--json").stdout)
    assert found["types"] == {"person": 2, "": 1, "film": 1}
    assert found["relations"] == {"directs": 1, "plays in": 1}
    assert (found["hub"], found["max_degree"], found["isolated"], found["loops"]) == ("m1", 2, 1, 0)
    assert found["disk_bytes"] > 0
    text = movies("stats", "movies").stdout
    assert "at most 2, m1" in text


def test_patch_versions_snapshots(movies: Call, tmp_path: Path) -> None:
    assert movies("snapshot", "movies", "first").stdout == "first: version 1 of movies\n"
    (tmp_path / "patch.json").write_text(
        json.dumps(
            {
                "upsert_nodes": [{"id": "p3", "name": "John Hurt", "type": "person"}],
                "upsert_edges": [{"source": "p3", "relation": "plays in", "target": "m1", "role": "Kane"}],
                "delete_nodes": ["x"],
            }
        )
    )
    done = movies("patch", "movies", "patch.json", "--json", "--expect-version", "1")
    assert json.loads(done.stdout) == {"name": "movies", "version": 2, "nodes": 4, "edges": 3}
    done = movies(
        "patch",
        "movies",
        "-",
        stdin='{"delete_edges": [{"source": "p3", "relation": "plays in", "target": "m1"}]}',
    )
    assert done.stdout == "movies: is now version 3 with 4 nodes and 2 edges\n"
    versions = json.loads(movies("versions", "movies", "--json").stdout)
    assert [(v["number"], v["edges"], v["snapshots"]) for v in versions] == [
        (3, 2, []),
        (2, 3, []),
        (1, 2, ["first"]),
    ]
    assert len(json.loads(movies("versions", "movies", "--limit", "2", "--json").stdout)) == 2
    assert "p3" not in movies("export", "movies", "-", "--format", "json", "--version", "first").stdout
    assert "Kane" in movies("export", "movies", "-", "--format", "json", "--version", "2").stdout
    assert "first" in movies("snapshot", "movies").stdout
    assert movies("snapshot", "movies", "first", "--delete").returncode == 0
    assert json.loads(movies("snapshot", "movies", "--json").stdout) == []
    pruned = json.loads(movies("versions", "movies", "--keep", "1", "--json").stdout)
    assert pruned["dropped"] == 2
    assert [v["number"] for v in pruned["versions"]] == [3]


def test_query_finds_entities_paths_and_what_is_left_out(movies: Call) -> None:
    document = json.loads(
        movies("query", "movies", "Did Sigourney Weaver work with Ridley Scott?", "--json").stdout
    )
    assert [mention["entities"][0]["id"] for mention in document["entities"]] == ["p1", "p2"]
    assert Graph.from_dict(document["graph"]).num_nodes == 3
    assert document["paths"][0]["nodes"] == ["p1", "m1", "p2"]
    assert document["left_out"]["nodes"] == 0
    text = movies("query", "movies", "Did Sigourney Weaver work with Ridley Scott?").stdout
    assert "Sigourney Weaver -[plays in]-> Alien <-[directs]- Ridley Scott" in text
    record = movies("query", "movies", "-e", "p1", "who?", "--text").stdout
    assert "plays in: Alien" in record
    small = json.loads(movies("query", "movies", "Alien", "--budget", "12", "--hops", "1", "--json").stdout)
    assert small["left_out"]["why"]


def test_import_again_is_refused_or_a_new_version(movies: Call, tmp_path: Path) -> None:
    done = movies("import", "movies", "movies.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "a graph named 'movies' already; --replace" in done.stderr
    (tmp_path / "pairs.tsv").write_text("a\tr\tb\nb\tr\tc\n")
    done = movies("import", "movies", "pairs.tsv", "--replace", "--option", "header=false", "--json")
    assert json.loads(done.stdout) == {"name": "movies", "version": 2, "nodes": 3, "edges": 2}
    assert json.loads(movies("show", "movies", "--version", "1", "--json").stdout)["nodes"] == 4


def test_import_the_human_phenotype_ontology(graph: Call, tmp_path: Path) -> None:
    folder = tmp_path / "hpo"
    folder.mkdir()
    small_hpo.write(folder)
    done = graph("import", "ontology", "hpo", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    with GraphStore(tmp_path / "store" / "graphs.db") as store:
        assert store.get("ontology") == load_hpo(folder).graph


def test_delete_asks_or_needs_yes(movies: Call) -> None:
    done = movies("delete", "movies")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert movies("delete", "movies", "--yes").returncode == 0
    assert json.loads(movies("list", "--json").stdout) == []


def test_looking_makes_no_store(graph: Call, tmp_path: Path) -> None:
    assert "no graphs" in graph("list").stdout
    assert graph("list", "--json").stdout == "[]\n"
    assert graph("show", "movies").returncode == 2
    assert graph("import", "movies", "/nonexistent.json").returncode == 2
    assert not (tmp_path / "store").exists()


def test_the_store_option_names_a_file(graph: Call, tmp_path: Path) -> None:
    assert graph("import", "movies", "movies.json", "--store", "mine.db").returncode == 0
    assert json.loads(graph("list", "--json").stdout) == []
    with GraphStore(tmp_path / "mine.db") as store:
        assert store.get("movies") == Graph.from_dict(MOVIES)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "films"], "there is no graph named 'films'"),
        (["show", "movies", "m7"], "no node has the id or the name 'm7'"),
        (["show", "movies", "--version", "9"], "no version 9"),
        (["show", "movies", "--version", "later"], "no snapshot 'later'"),
        (["show", "movies", "--version", "9" * 5000], "no version 99999"),
        (["export", "movies", "x.abc"], "'.abc' is not known"),
        (["export", "movies", "/nonexistent/x.json"], "/nonexistent/x.json"),
        (["export", "movies", "-"], "--format"),
        (["import", "a/b", "movies.json"], "has the character '/'"),
        (["import", "new", "/nonexistent.json"], "/nonexistent.json"),
        (["import", "new", "movies.json", "-o", "wrong"], "KEY=VALUE"),
        (["import", "new", "movies.json", "-o", "wrong=1"], "'wrong'"),
        (["import", "new", "movies.json", "-o", "limits=1"], "'limits'"),
        (["patch", "movies", "/nonexistent.json"], "/nonexistent.json"),
        (["patch", "movies", "movies.json"], "has no field 'nodes'"),
        (["patch", "movies", "bad.json"], "line 1, column"),
        (["patch", "movies", "edge.json"], "no node has the id 'q'"),
        (["patch", "movies", "good.json", "--expect-version", "4"], "version 1 and not 4"),
        (["snapshot", "movies", "12"], "is a number"),
        (["snapshot", "movies", "none", "--delete"], "no snapshot"),
        (["query", "movies", "q", "--method", "magic"], "method"),
        (["query", "movies", "q", "--budget", "0"], "budget"),
        (["query", "movies", "q", "-e", "nobody"], "nobody"),
        (["list", "--store", "movies.json"], "not a graph store; it has not been changed"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_2(
    movies: Call, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "bad.json").write_text("{nonsense")
    (tmp_path / "edge.json").write_text('{"upsert_edges": [["p1", "knows", "q"]]}')
    (tmp_path / "good.json").write_text('{"upsert_nodes": [{"id": "new"}]}')
    done = movies(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert json.loads(movies("list", "--json").stdout)[0]["version"] == 1


def test_ctrl_c_during_an_import_leaves_nothing(graph: Call, tmp_path: Path) -> None:
    path = tmp_path / "large.tsv"
    path.write_text("".join(f"node {i}\tr\tnode {i * 7919 % 2_000_000}\n" for i in range(1_500_000)))
    store = tmp_path / "g.db"
    command = [*COMMAND, "graph", "import", "large", str(path), "--store", str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 60
        while not store.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in errors
    with GraphStore(store) as opened:
        assert opened.names() == []
        opened.check_integrity()


def test_a_terminal_shows_progress_and_asks_before_it_deletes(graph: Call, tmp_path: Path) -> None:
    path = tmp_path / "some.tsv"
    path.write_text("".join(f"node {i}\tr\tnode {i * 7919 % 200_000}\n" for i in range(200_000)))
    arguments = ["--store", str(tmp_path / "g.db")]
    seen, status = on_a_terminal(["graph", "import", "some", str(path), *arguments], "")
    assert status == 0
    assert "reading, MB" in seen
    assert "200,000 edges" in seen
    seen, status = on_a_terminal(["graph", "delete", "some", *arguments], "n\n")
    assert "all versions)? [y/N]" in seen
    with GraphStore(tmp_path / "g.db") as store:
        assert store.names() == ["some"]
    seen, status = on_a_terminal(["graph", "delete", "some", *arguments], "y\n")
    assert status == 0
    with GraphStore(tmp_path / "g.db") as store:
        assert store.names() == []


def on_a_terminal(arguments: list[str], typed: str) -> tuple[str, int]:
    """What a command writes to a terminal on which `typed` is typed, and its status."""
    master, slave = pty.openpty()
    process = subprocess.Popen([*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    os.write(master, typed.encode())
    seen = b""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if select.select([master], [], [], 0.2)[0]:
            try:
                data = os.read(master, 65536)
            except OSError:  # the terminal's other end is closed
                break
            if not data:
                break
            seen += data
    os.close(master)
    return seen.decode(errors="replace"), process.wait(60)
