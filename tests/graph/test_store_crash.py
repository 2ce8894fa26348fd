"""What is acknowledged stays: processes killed at any moment, and disks that are full."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vglm.graph.store import GraphStore

NODES = 40

# Version v sets the text of node (v - 2) % NODES to v, adds an edge and removes an older one.
WRITER = f"""
import sys
from vglm.graph.graph import Graph
from vglm.graph.store import GraphStore
store = GraphStore(sys.argv[1], compact_after=30_000)
if "g" not in store:
    store.create("g", Graph.from_dict({{"nodes": [{{"id": f"n{{i}}", "text": "0"}} for i in range({NODES})]}}))
version = store.version("g")
print(version, flush=True)
while True:
    number = version + 1
    node = f"n{{(number - 2) % {NODES}}}"
    old = [(f"n0", f"r{{number - 5}}", f"n1")] if number > 6 else []
    version = store.patch(
        "g",
        upsert_nodes=[{{"id": node, "text": str(number)}}],
        upsert_edges=[("n0", f"r{{number}}", "n1")],
        delete_edges=old,
    )
    print(version, flush=True)
"""


def check_content(store: GraphStore, version: int) -> None:
    graph = store.get("g", version)
    for i in range(NODES):
        last = max((v for v in range(2, version + 1) if (v - 2) % NODES == i), default=0)
        assert graph.node(f"n{i}").text == str(last), (version, i)
    first = max(2, version - 4)
    assert graph.columns.relation_names == tuple(sorted(f"r{v}" for v in range(first, version + 1)))


def test_kill_9_at_any_moment_loses_no_acknowledged_version(tmp_path: Path) -> None:
    path, acknowledged = tmp_path / "graphs.db", 0
    random.seed(20)
    for round_ in range(12):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            if round_ % 3 == 0:
                time.sleep(random.uniform(0.1, 0.6))  # while it starts, opens, or creates
            else:
                writer.stdout.readline()
                time.sleep(random.uniform(0, 0.4))
            writer.kill()
            lines = writer.stdout.read().split(b"\n")
        acknowledged = max([acknowledged, *(int(line) for line in lines[:-1] if line)])
        if not path.exists():
            continue
        with GraphStore(path) as store:
            store.check_integrity()
            if acknowledged == 0 and "g" not in store:
                continue
            current = store.version("g")
            assert current >= acknowledged
            acknowledged = current
            assert [v.number for v in store.versions("g")] == list(range(current, 0, -1))
            for version in {1, current, *random.sample(range(1, current + 1), min(current, 5))}:
                check_content(store, version)
    assert acknowledged > 50


# Writes until it is told that the disk is full, then checks what it can do without more room.
FILLER = """
import sys
from vglm.errors import StoreError
from vglm.graph.graph import Graph
from vglm.graph.store import GraphStore
store = GraphStore(sys.argv[1], compact_after=200_000)
store.create("g", Graph.from_dict({"nodes": [{"id": "n", "text": "1"}]}))
version = 1
try:
    while version < 10_000:
        version = store.patch("g", upsert_nodes=[{"id": "n", "text": f"{version + 1} " + "x" * 5000}])
except StoreError as error:
    print(version, error)
else:
    sys.exit("the disk never became full")
big = Graph.from_triples([(str(i), "r", str(i + 1)) for i in range(300_000)])
for i in range(3):
    try:
        store.create(f"big{i}", big)
        sys.exit("300,000 edges fitted")
    except StoreError as error:
        print(error)
assert store.version("g") == version, store.version("g")
assert store.get("g").node("n").text.startswith(f"{version} ")
assert store.get("g", version // 2).node("n").text.startswith(f"{version // 2} ")
assert store.names() == ["g"]
store.check_integrity()
store.close()
with GraphStore(sys.argv[1]) as again:
    assert again.version("g") == version
    assert again.get("g").node("n").text.startswith(f"{version} ")
    again.check_integrity()
"""


def test_a_file_size_limit_leaves_the_store_whole(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))\n"
    path = tmp_path / "graphs.db"
    done = subprocess.run([sys.executable, "-c", limit + FILLER, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version, message = done.stdout.splitlines()[0].split(" ", 1)
    assert str(path) in message
    assert "nothing has been changed" in message
    with GraphStore(path) as store:  # and there is room again
        assert store.version("g") == int(version) > 50
        assert store.patch("g", upsert_nodes=[{"id": "m"}]) == int(version) + 1
        assert store.get("g", int(version)).node("n").text.startswith(f"{version} ")


def test_a_full_disk_leaves_the_store_whole(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=3m none "$0" && exec "$@"', str(disk)]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    command = [*mount, sys.executable, "-c", FILLER, str(disk / "graphs.db")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the disk is full; nothing has been changed" in done.stdout.splitlines()[0]
