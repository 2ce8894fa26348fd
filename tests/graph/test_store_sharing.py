"""Several threads and processes at one store: no lost update, no half version, no stale read."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vglm.errors import ConflictError
from vglm.graph.graph import Graph
from vglm.graph.store import GraphStore

START = Graph.from_dict(
    {
        "nodes": [{"id": "counter", "text": "0"}, {"id": "a"}, {"id": "b"}],
        "edges": [{"source": "a", "relation": "r0", "target": "b"}],
    }
)


def step(store: GraphStore) -> int:
    """Adds one to the counter and renames the edge, if nobody else did meanwhile."""
    while True:
        stored = store.read("g")
        count = int(stored.graph.node("counter").text)
        try:
            return store.patch(
                "g",
                upsert_nodes=[{"id": "counter", "text": str(count + 1)}],
                delete_edges=[("a", f"r{count}", "b")],
                upsert_edges=[("a", f"r{count + 1}", "b")],
                expected_version=stored.version,
            )
        except ConflictError:
            continue


def consistent(graph: Graph) -> int:
    """The counter, which the only edge must agree with."""
    count = int(graph.node("counter").text)
    assert graph.columns.relation_names == (f"r{count}",)
    assert graph.num_edges == 1
    return count


def in_threads(*works: Callable[[], None]) -> None:
    """Runs all at once; raises what the first to fail raised."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    for error in errors:
        raise error


@pytest.mark.parametrize("cache_bytes", [0, 1 << 29])
def test_threads_lose_no_update_and_read_whole_versions(tmp_path: Path, cache_bytes: int) -> None:
    with GraphStore(tmp_path / "g.db", cache_bytes=cache_bytes, compact_after=20_000) as store:
        store.create("g", START)
        writers, rounds = 3, 25
        done = threading.Event()
        reads = []

        def write() -> None:
            for _ in range(rounds):
                step(store)

        def read() -> None:
            last = 0
            while not done.is_set():
                stored = store.read("g")
                assert consistent(stored.graph) == stored.version - 1 >= last
                last = stored.version - 1
                reads.append(last)
                old = 1 + last // 2
                assert consistent(store.get("g", old)) == old - 1

        def write_all() -> None:
            try:
                in_threads(*[write] * writers)
            finally:
                done.set()

        in_threads(write_all, read, read)
        assert store.version("g") == writers * rounds + 1
        assert consistent(store.get("g")) == writers * rounds
        assert len(set(reads)) > 3


WORKER = """
import sys
from pathlib import Path
from tests.graph.test_store_sharing import consistent, step
from vglm.graph.store import GraphStore
with GraphStore(sys.argv[1], compact_after=10_000) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(sys.argv[2])):
        version = step(store)
        assert consistent(store.get("g", version)) == version - 1
        assert consistent(store.get("g")) >= version - 1
"""


def start_worker(path: Path, rounds: int) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), str(rounds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )


def test_processes_lose_no_update_and_see_each_other(tmp_path: Path) -> None:
    with GraphStore(tmp_path / "g.db") as store:
        store.create("g", START)
        rounds = 20
        workers = [start_worker(store.path, rounds) for _ in range(3)]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        for _ in range(rounds):
            assert consistent(store.get("g")) < store.version("g")
            step(store)
        for worker in workers:
            worker.communicate(timeout=120)
            assert worker.returncode == 0
        assert consistent(store.get("g")) == 4 * rounds
        store.check_integrity()


def test_creators_race_for_one_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "graphs.db"
    code = (
        "import sys; from vglm.graph.store import GraphStore; from vglm.graph.graph import Graph\n"
        "with GraphStore(sys.argv[1]) as s: s.create(sys.argv[2], Graph.from_triples([('a', 'r', sys.argv[2])]))"
    )
    racers = [subprocess.Popen([sys.executable, "-c", code, str(path), f"g{i}"]) for i in range(5)]
    assert [racer.wait(120) for racer in racers] == [0] * 5
    with GraphStore(path) as store:
        assert store.names() == [f"g{i}" for i in range(5)]
        assert all(f"g{i}" in store.get(f"g{i}") for i in range(5))
    assert [file.name for file in path.parent.iterdir()] == ["graphs.db"]


def test_a_reader_keeps_its_version_while_others_write(tmp_path: Path) -> None:
    with GraphStore(tmp_path / "g.db") as store, GraphStore(tmp_path / "g.db") as other:
        store.create("g", START)
        held = other.get("g")
        for _ in range(5):
            step(store)
        assert consistent(held) == 0
        assert other.version("g") == 6
        assert consistent(other.get("g")) == 5
        store.delete("g")
        assert consistent(held) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_opens_connections_of_its_own(tmp_path: Path) -> None:
    code = (
        "import os, sys; from vglm.graph.store import GraphStore; from vglm.graph.graph import Graph\n"
        "store = GraphStore(sys.argv[1]); store.create('g', Graph.from_triples([('a', 'r', 'b')]))\n"
        "child = os.fork()\n"
        "version = store.patch('g', upsert_nodes=[{'id': 'child' if child == 0 else 'parent'}])\n"
        "assert version in (2, 3)\n"
        "if child == 0: os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert store.version('g') == 3 and store.get('g').num_nodes == 4\n"
        "store.check_integrity()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "g.db")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
