"""How long graphs take to read and to write, and in how much memory (on Linux): a process of its own for each.

.venv/bin/python bench/graph_formats.py                       # a million edges between 200,000 named nodes
.venv/bin/python bench/graph_formats.py --edges 100000 --formats json,graphml
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vglm.graph.formats.files import FORMATS
from vglm.graph.graph import Graph


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edges", type=int, default=1_000_000)
    parser.add_argument("--nodes", type=int, default=200_000)
    parser.add_argument("--formats", default="tsv,csv,json,ntriples,turtle,jsonld,graphml")
    parser.add_argument("--act", nargs=2, metavar=("ACT", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.act:
        print(json.dumps(measured(*options.act)))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.json"
        source.write_text(random_graph(options.nodes, options.edges))
        print(f"{'format':10} {'MB':>6} {'read, s':>8} {'peak, MB':>9} {'write, s':>9} {'peak, MB':>9}")
        for name in options.formats.split(","):
            path = Path(folder) / f"graph{FORMATS[name].extensions[0]}"
            write = act("write", path)
            read = act("read", path)
            size = path.stat().st_size / 1e6
            print(
                f"{name:10} {size:6.0f} {read['seconds']:8.2f} {read['peak']:9.0f} "
                f"{write['seconds']:9.2f} {write['peak']:9.0f}"
            )
            path.unlink()
        print(f"the graph itself takes {read['graph']:.0f} MB")


def act(what: str, path: Path) -> dict[str, float]:
    """`measured` in a new process."""
    command = [sys.executable, __file__, "--act", what, str(path)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def measured(what: str, path: str) -> dict[str, float]:
    """Processor seconds, megabytes of the graph, and how many the process grew by at its peak."""
    graph = Graph.load(Path(path).with_name("source.json")) if what == "write" else None
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start = time.process_time()
    if graph is None:
        graph = Graph.load(path)
    else:
        graph.save(path)
    seconds = time.process_time() - start
    return {"seconds": seconds, "peak": memory("VmHWM") - before, "graph": graph.nbytes / 1e6}


def memory(field: str) -> float:
    """Megabytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:"))


def random_graph(nodes: int, edges: int) -> str:
    """Node-link JSON of named nodes of five types, and edges of twenty relations."""
    rng = np.random.default_rng(0)
    ends = rng.integers(0, nodes, (2, edges)).tolist()
    relations = rng.integers(0, 20, edges).tolist()
    lines = [
        json.dumps({"id": f"N{number:07}", "name": f"node number {number}", "type": f"type {number % 5}"})
        for number in range(nodes)
    ]
    links = [
        f'{{"source": "N{source:07}", "relation": "relation {relation}", "target": "N{target:07}"}}'
        for source, relation, target in zip(ends[0], relations, ends[1], strict=True)
    ]
    return f'{{"nodes": [{",".join(lines)}], "edges": [{",".join(links)}]}}'


if __name__ == "__main__":
    main()
