"""The demo as a user runs it: a process with arguments, on the small ontology."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.graph import small_hpo
from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.graph.hpo import HPO, load_hpo
from vglm.graph.patient import known_cases, parse_patient, read_patient
from vglm.graph.question import evidence_graph, mentions, question

LENS, HIGH_MYOPIA, TALL = "HP:0000011", "HP:0000013", "HP:0000020"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_hpo.write(tmp_path_factory.mktemp("hpo"))


@pytest.fixture(scope="module")
def hpo(directory: Path) -> HPO:
    return load_hpo(directory)


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VGLM_HOME": str(directory / "home"), "COLUMNS": "160", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "vglm.demo", *arguments]
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
        (["--findings", "Mypia"], "options.findings[0]: no phenotype has the id or name 'Mypia'"),
        (["--findings", ","], "options.findings: lists no finding"),
        (["--findings", LENS, "--excluded", LENS], "is both observed and excluded"),
        (["--findings", LENS, "--patient", "marfan"], "--patient and --findings exclude each other"),
        (["--excluded", LENS], "--excluded goes with --findings"),
        (["--patient", "nobody"], "nobody: cannot be read: No such file or directory; cases of vGLM: loeys"),
        (["--hpo", "nowhere"], "nowhere/hp.obo: no such file"),
        (["--findings", LENS, "--model", "no-such-model"], "no-such-model"),
    ],
)
def test_mistakes_give_one_clear_line(directory: Path, arguments: list[str], message: str) -> None:
    done = run(directory, *([] if "--hpo" in arguments else ["--hpo", str(directory)]), *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_help_has_examples(directory: Path) -> None:
    done = run(directory, "--help")
    assert done.returncode == 0
    assert "vglm demo --patient loeys-dietz" in done.stdout


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


def test_the_question_holds_the_exact_evidence(hpo: HPO) -> None:
    (first,) = hpo.ranker.rank([LENS, TALL], top=1)
    messages, text = question(hpo.graph, first, [LENS, TALL], len, 10_000)
    assert text.text == (
        "Marfan syndrome (disease)\n- has phenotype: Ectopia lentis (frequency 1/2)\n"
        "- has phenotype: Ectopia lentis (frequency 3/4)\n"
        "- has phenotype: Tall stature (very frequent, 80-99 %)"
    )
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[-1]["content"] == (
        f"Graph:\n{text.text}\n\nPatient: Ectopia lentis, Tall stature.\n\n"
        "Question: Why is Marfan syndrome a candidate for this patient?"
    )


def test_evidence_graph_has_edges_of_the_graph_only(hpo: HPO) -> None:
    candidates = hpo.ranker.rank([LENS, HIGH_MYOPIA])
    small = evidence_graph(hpo.graph, candidates)
    assert isinstance(small, Graph)
    whole = [(e.source, e.relation, e.target, dict(e.attributes)) for e in hpo.graph.edges()]
    assert all((e.source, e.relation, e.target, dict(e.attributes)) in whole for e in small.edges())
    assert {c.id for c in candidates} <= {node.id for node in small.nodes()}


def test_mentions_are_checked_against_the_evidence(hpo: HPO) -> None:
    (first,) = hpo.ranker.rank([LENS, HIGH_MYOPIA], top=1)
    found = mentions(hpo, first, "It has ectopia LENTIS, high\nmyopia; Tall stature and tall ships.")
    supported = {i for item in first.evidence if item.explained for i in (item.finding, item.matched)}
    assert {i for i, _ in (*found.linked, *found.unlinked)} == {LENS, HIGH_MYOPIA, TALL}
    assert {i for i, _ in found.linked} == supported & {LENS, HIGH_MYOPIA, TALL}
    assert (TALL, "Tall stature") in found.unlinked
    renamed = replace(first, name="Tall stature syndrome")
    assert mentions(hpo, renamed, "Why TALL stature syndrome fits.").unlinked == ()
