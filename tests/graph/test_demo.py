"""The demo as a user runs it: a process with arguments, on the small ontology."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.graph import small_hpo
from tests.integration.helpers import tiny_model
from vglm.cli_demo import EPILOG
from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.graph.hpo import HPO, load_hpo
from vglm.graph.patient import known_cases, parse_patient, read_patient
from vglm.graph.question import evidence_graph, explanation
from vglm.graph.spans import sequential_text

LENS, HIGH_MYOPIA, TALL = "HP:0000011", "HP:0000013", "HP:0000020"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_hpo.write(tmp_path_factory.mktemp("hpo"))


@pytest.fixture(scope="module")
def hpo(directory: Path) -> HPO:
    return load_hpo(directory)


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VGLM_HOME": str(directory / "home"), "COLUMNS": "160", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "vglm", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_tables(directory: Path) -> None:
    findings = "Ectopia lentis, HP:0000031"
    done = run(
        directory, "--hpo", str(directory), "--findings", findings, "--excluded", "myopia", "--no-explain"
    )
    assert (done.returncode, done.stderr) == (0, "")
    for expected in (
        "4 diseases with phenotypes",
        "absent: Myopia",
        "Marfan syndrome",
        "1/2 and 3/4",
        "PMID:3",
    ):
        assert expected in done.stdout


def test_json(directory: Path) -> None:
    done = run(directory, "--hpo", str(directory), "--findings", LENS, "--top", "2", "--no-explain", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["candidates"][0]["id"] == "OMIM:1"
    assert len(result["candidates"]) == 2
    assert result["patient"]["findings"] == [{"id": LENS, "name": "Ectopia lentis"}]
    assert result["measured"]["ranking_again_ms"] > 0


def test_findings_as_arguments(directory: Path) -> None:
    done = run(
        directory, "--hpo", str(directory), "--no-explain", "--json", "--findings", LENS, TALL, "myopia"
    )
    assert done.returncode == 0, done.stderr
    names = [finding["name"] for finding in json.loads(done.stdout)["patient"]["findings"]]
    assert names == ["Ectopia lentis", "Tall stature", "Myopia"]


def test_commas_separate_terms_but_not_names(tmp_path: Path) -> None:
    small_hpo.write(tmp_path)
    obo = (tmp_path / "hp.obo").read_text().replace("name: High myopia", "name: Myopia, high, both eyes")
    (tmp_path / "hp.obo").write_text(obo)
    findings = "ectopia lentis, Myopia, HIGH, both eyes,,Myopia, Tall stature"
    done = run(tmp_path, "--hpo", str(tmp_path), "--no-explain", "--json", "--findings", findings)
    assert done.returncode == 0, done.stderr
    ids = [finding["id"] for finding in json.loads(done.stdout)["patient"]["findings"]]
    assert ids == [LENS, HIGH_MYOPIA, "HP:0000012", TALL]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--findings", f"{LENS}, qwertz"],
            "error: findings[1]: no phenotype of the graph is called 'qwertz'",
        ),
        (["--findings", ","], "error: findings: at least one is needed"),
        (["--findings", LENS, "--excluded", LENS], "is among the findings, too"),
        (["--findings", LENS, "--patient", "marfan"], "--patient and --findings exclude each other"),
        (["--excluded", LENS], "--excluded goes with --findings"),
        (["--patient", "nobody"], "nobody: cannot be read: No such file or directory; cases of vGLM: loeys"),
        (["--hpo", "nowhere"], "nowhere/hp.obo: no such file"),
        (["--findings", LENS, "--model", "no-such-model"], "no-such-model"),
        (["--findings", LENS, "--model", "no-such-model", "--no-explain"], "no-such-model"),
    ],
)
def test_mistakes_give_one_clear_line(directory: Path, arguments: list[str], message: str) -> None:
    done = run(directory, *([] if "--hpo" in arguments else ["--hpo", str(directory)]), *arguments)
    assert done.returncode == 2
    assert done.stdout == ""  # a ranking by another method, above all
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_help_has_examples(directory: Path) -> None:
    done = run(directory, "--help")
    assert done.returncode == 0
    assert "vglm demo --patient loeys-dietz" in done.stdout
    assert all(case in EPILOG for case in known_cases())


def test_findings_are_linked_as_those_of_suggest(directory: Path) -> None:
    done = run(
        directory,
        "--hpo",
        str(directory),
        "--no-explain",
        "--json",
        "--findings",
        "Ectopia lentsi, HP_0000020",
    )
    assert done.returncode == 0, done.stderr
    assert [one["id"] for one in json.loads(done.stdout)["patient"]["findings"]] == [LENS, TALL]


def test_a_model_without_a_ranking_of_its_own_is_said_to_have_none(directory: Path, tmp_path: Path) -> None:
    arguments = ["--hpo", str(directory), "--findings", LENS, "--no-explain"]
    done = run(directory, *arguments, "--model", str(tiny_model(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert "has no disease ranking of its own: ranked by likelihood ratios" in done.stdout.replace("\n", " ")
    assert "likelihood" not in run(directory, *arguments).stdout


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "p: expected an object, found a list"),
        ({}, "p.findings: lists no finding"),
        ({"findings": "x"}, "p.findings: expected a list"),
        ({"findings": [{"label": "x"}]}, r"p.findings\[0\]: id: expected a string, found None"),
        ({"findings": [LENS, "HP:0000005"]}, r"p.findings\[1\]: .*is not a phenotype"),
        ({"findings": [LENS], "source": []}, None),
        ({"findings": [LENS], "source": [1]}, "p.source: expected an object"),
        ({"findings": [LENS], "note": 5}, "p.note: expected a string"),
    ],
)
def test_patients(hpo: HPO, data: Any, message: str | None) -> None:
    if message is None:
        assert parse_patient(data, hpo, "p").findings == (LENS,)
    else:
        with pytest.raises(GraphError, match=message):
            parse_patient(data, hpo, "p")


def test_patient_files(hpo: HPO, tmp_path: Path) -> None:
    path = tmp_path / "patient.json"
    path.write_text(
        json.dumps({"findings": ["ectopia lentis", {"id": "HP:0000031"}], "sex": "male", "age": "P8Y1M"})
    )
    patient = read_patient(path, hpo)
    assert (patient.findings, patient.description) == ((LENS, TALL), "male, 8 years 1 month")
    path.write_text("{" * 100_000)
    with pytest.raises(GraphError, match="is not JSON"):
        read_patient(path, hpo)
    path.write_text(" " * 2_000_000)
    with pytest.raises(GraphError, match="larger than"):
        read_patient(path, hpo)


def test_cases_that_come_along_say_where_they_are_from() -> None:
    assert known_cases() == ["loeys-dietz", "marfan", "retinitis-pigmentosa"]


def test_what_the_model_reads_is_the_exact_evidence(hpo: HPO) -> None:
    (first,) = hpo.ranker.rank([LENS, TALL], top=1)
    assert sequential_text(evidence_graph(hpo.graph, [first])) == (
        "Marfan syndrome (disease)\n- has phenotype: Ectopia lentis (frequency 1/2)\n"
        "- has phenotype: Ectopia lentis (frequency 3/4)\n"
        "- has phenotype: Tall stature (very frequent, 80-99 %)\n"
    )
    messages = explanation(first.name, ["Ectopia lentis", "Tall stature"])
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[-1]["content"].startswith("Marfan syndrome is a candidate because the graph links it to")


def test_evidence_graph_has_edges_of_the_graph_only(hpo: HPO) -> None:
    candidates = hpo.ranker.rank([LENS, HIGH_MYOPIA])
    small = evidence_graph(hpo.graph, candidates)
    assert isinstance(small, Graph)
    whole = {(e.source, e.relation, e.target) for e in hpo.graph.edges()}
    assert {(e.source, e.relation, e.target) for e in small.edges()} <= whole
    assert {c.id for c in candidates} <= {node.id for node in small.nodes()}


def test_answers_name_what_the_graph_links_and_read_it_once(directory: Path, tmp_path: Path) -> None:
    """With the model: what is asked again finds what was read about it."""
    environment = {**os.environ, "VGLM_GRAPH_STORE": str(tmp_path / "graphs.db")}
    command = [sys.executable, "-m", "vglm", "demo", "--hpo", str(directory), "--json", "--findings"]
    done = subprocess.run(
        [*command, f"{LENS}, {TALL}, {HIGH_MYOPIA}"],
        capture_output=True, text=True, env=environment, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *whys, which = json.loads(done.stdout)["answers"]
    assert len(whys) >= 2
    for answer in whys:
        linked = {edge["target"] for edge in answer["graph"]["edges"]}
        diseases = {edge["source"] for edge in answer["graph"]["edges"]}
        named = {entity["id"] for entity in answer["named"]}
        assert named & linked
        assert named <= linked | diseases
        assert {edge["target"] for edge in answer["evidence"]} == named & linked
    assert {entity["id"] for entity in which["named"]} <= {node["id"] for node in which["graph"]["nodes"]}
    assert which["cached_tokens"] == which["graph_tokens"] > 0
