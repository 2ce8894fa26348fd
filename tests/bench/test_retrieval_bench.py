"""`vglm bench retrieval`: figures that can be true, on a made-up graph and on a file."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from vglm.bench.retrieval import Retrieval, run
from vglm.bench.synthetic_graph import synthetic_graph
from vglm.errors import ConfigError
from vglm.graph.search import Method


def test_a_made_up_graph() -> None:
    report = run(Retrieval(nodes=500, edges=2_000, questions=10, budget=256))
    index, linking, times, sizes, edits = report.tables
    assert {row["part"] for row in index.rows} == {"names", "edges both ways", "the graph"}
    assert all(row["megabytes"] > 0 for row in index.rows)
    assert {row["kind"] for row in linking.rows} == {"one entity", "two entities", "misspelt"}
    exact = [row for row in linking.rows if row["kind"] != "misspelt"]
    assert all(row["linked"] > 0.9 for row in exact)
    assert all(row["linked"] > 0.5 for row in linking.rows)
    assert {row["method"] for row in times.rows} == set(get_args(Method))
    for row in times.rows:
        assert 0 < row["p50"] <= row["p90"] <= row["p99"]
        assert row["count"] == 10
    assert all(0 < row["tokens"] <= row["largest"] <= 256 for row in sizes.rows)
    assert all(row["seconds"] > 0 for row in edits.rows)


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "edges.tsv"
    file.write_text("".join(f"n{i}\tr\tn{i + 1}\n" for i in range(20)))
    names = tmp_path / "nodes.tsv"
    names.write_text("id\tname\n" + "".join(f"n{i}\tentity number{i}\n" for i in range(21)))
    report = run(Retrieval(graph=file, node_table=names, questions=4))
    assert report.settings["nodes"] == "21"
    assert all(row["linked"] == 1 for row in report.tables[1].rows if row["kind"] != "misspelt")
    file.write_text("n1\tr\tn1\n")
    with pytest.raises(ConfigError, match="no edges between nodes with names"):
        run(Retrieval(graph=file, questions=1))


def test_the_same_seed_gives_the_same_graph() -> None:
    assert synthetic_graph(300, 900) == synthetic_graph(300, 900)
    assert synthetic_graph(300, 900) != synthetic_graph(300, 900, seed=1)
