"""Evaluations of a model's language, reasoning and explanations, on a tiny real model and small data."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.graph import small_hpo
from tests.integration.helpers import tiny_model
from vglm.errors import ConfigError
from vglm.evaluate import explanation, language, reasoning
from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.hpo import HPO, load_hpo
from vglm.tasks.suggestion import SuggestionExplained


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("models")))


@pytest.fixture
def hpo(tmp_path: Path) -> HPO:
    return load_hpo(small_hpo.write(tmp_path), tmp_path)


def write_questions(data: Path) -> None:
    """Cases of both sets, enough of them that some are held out."""
    stances = data / "graphqa/explagraphs/train.tsv"
    stances.parent.mkdir(parents=True)
    lines = [f"Belief {i}.\tArgument {i}.\tsupport\t(a{i}; causes; b{i})" for i in range(60)]
    stances.write_text("\n".join(lines) + "\n", "utf-8")
    cycles = data / "graphqa/nlgraph/cycle/train.json"
    cycles.parent.mkdir(parents=True)
    question = "Edges: (0,1) (1,2)\nQ: Is there a cycle in this graph?\nA:"
    case = {"question": question, "answer": "No, there is no cycle.", "difficulty": "easy"}
    cycles.write_text(json.dumps({str(i): case for i in range(40)}), "utf-8")


def test_reasoning_scores_both_systems_on_what_is_held_out(model: str, tmp_path: Path) -> None:
    write_questions(tmp_path)
    figures = reasoning.run(tmp_path, model=model, base=model)
    assert {figure.data for figure in figures} == {"ExplaGraphs", "NLGraph cycle", "random graphs"}
    assert len(figures) == 3 * 4  # the base without and with facts, and the model in two modes
    for figure in figures:
        assert 0 < figure.n < 20 or figure.data == "random graphs"
        assert figure.low <= figure.value <= figure.high
    same = [figure.value for figure in figures if figure.data == "ExplaGraphs"]
    assert same[0] == same[3]  # base and model are one, in sequential mode


def test_reasoning_without_data_says_what_is_missing(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="explagraphs"):
        reasoning.run(tmp_path, model=model, base=model)


def test_a_model_does_not_change_from_itself(model: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"The {i}th word of a text that is long enough." for i in range(400)), "utf-8")
    figures = language.run(tmp_path, model=model, base=model, texts=[text], tokens=3_000)
    change = next(figure for figure in figures if figure.metric == "change")
    assert change.value == 0.0
    assert all(figure.value > 1 for figure in figures if figure.metric == "perplexity")


def test_a_text_that_is_too_short_or_missing_is_refused(model: str, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.", "utf-8")
    with pytest.raises(ConfigError, match="too short"):
        language.run(tmp_path, model=model, base=model, texts=[short])
    with pytest.raises(ConfigError, match="no such file"):
        language.run(tmp_path, model=model, base=model, texts=[tmp_path / "none.txt"])


def test_each_dtype_has_its_row_and_its_cost(model: str, tmp_path: Path) -> None:
    write_questions(tmp_path)
    figures = reasoning.run(tmp_path, model=model, base=model, dtypes=("int8", "bf16"))
    systems = [figure.system for figure in figures if figure.data == "NLGraph cycle"]
    assert systems[2:] == [
        f"{model} ({said})"
        for said in (
            "int8",
            "bf16",
            "int8 less bf16",
            "int8, sequential",
            "bf16, sequential",
            "int8 less bf16, sequential",
        )
    ]
    for data in ("ExplaGraphs", "NLGraph cycle", "random graphs"):
        rows = {figure.system: figure.value for figure in figures if figure.data == data}
        cost = rows[f"{model} (int8 less bf16)"]
        assert cost == pytest.approx(rows[f"{model} (int8)"] - rows[f"{model} (bf16)"])


def test_a_text_in_each_dtype(model: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"The {i}th word of a text that is long enough." for i in range(400)), "utf-8")
    figures = language.run(
        tmp_path, model=model, base=model, texts=[text], tokens=3_000, dtypes=("int8", "bf16")
    )
    rows = {(figure.system, figure.metric): figure for figure in figures}
    assert rows[f"{model} (bf16)", "change"].value == 0.0
    cost = rows[f"{model} (int8 less bf16)", "change"]
    ratio = rows[f"{model} (int8)", "perplexity"].value / rows[f"{model} (bf16)", "perplexity"].value
    assert cost.value == pytest.approx(ratio - 1)
    assert cost.low <= cost.value <= cost.high


def test_a_text_that_is_no_text_is_refused(model: str, tmp_path: Path) -> None:
    (tmp_path / "picture.txt").write_bytes(b"abc\xff")
    with pytest.raises(ConfigError, match=r"picture.txt: is no UTF-8 text \(byte 3\)"):
        language.run(tmp_path, model=model, base=model, texts=[tmp_path / "picture.txt"])


# ---- explanations


def write_patients(data: Path) -> None:
    """Patients of the small ontology; the last one's paper is cited for its disease."""
    path = data / explanation.PATIENTS
    path.parent.mkdir(parents=True)
    cases: list[dict[str, Any]] = [
        {
            "hpo": [["HP:0000013", "High myopia"]],
            "hpo_excluded": [["HP:0000020", "Tall stature"]],
            "pmid": ["PMID:77"],
        },
        {
            "hpo": [["HP:0000011", "Ectopia lentis"], ["HP:7777777", "newer"]],
            "hpo_excluded": [],
            "pmid": ["PMID:78"],
        },
        {"hpo": [["HP:0000020", "Tall stature"]], "hpo_excluded": [], "pmid": ["PMID:1"]},
    ]
    with gzip.open(path, "wt", encoding="utf-8") as out:
        for number, case in enumerate(cases):
            out.write(json.dumps({"id": f"case {number}", "disease": ["OMIM:1", "First"], **case}) + "\n")


@pytest.fixture
def patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data, with the small ontology in place of the fetched one."""
    write_patients(tmp_path)
    folder = small_hpo.write(tmp_path)
    monkeypatch.setattr(explanation, "pull_hpo", lambda progress: folder)
    monkeypatch.setattr(explanation, "home", lambda: tmp_path)
    return tmp_path


def test_explanations_are_evaluated_and_written_out(model: str, patients: Path) -> None:
    out = patients / "samples.md"
    figures = explanation.run(patients, model=model, base=model, dtypes=("int8", "bf16"), samples=out)
    assert {figure.metric for figure in figures} == set(explanation.METRICS)
    assert {figure.n for figure in figures} == {3}
    systems = [figure.system for figure in figures if figure.metric == "names belong"]
    assert systems == [model, f"{model} (int8)", f"{model} (bf16)", f"{model} (int8 less bf16)"]
    text = out.read_text("utf-8")
    assert text.count("### ") == 2  # the third is no uncited patient
    assert "Findings: High myopia" in text
    assert "Absent: Tall stature" in text
    assert text.count("\n> ") == 2


def test_only_uncited_patients(patients: Path) -> None:
    hpo = load_hpo(small_hpo.write(patients), patients)
    path = patients / explanation.PATIENTS
    assert len(explanation.read_patients(path, hpo, 9, 0)) == 3
    found = explanation.read_patients(path, hpo, 9, 0, uncited=True)
    assert sorted(one.id for one in found) == ["case 0", "case 1"]
    assert {one.id: one.findings for one in found}["case 1"] == ["HP:0000011"]


def test_patients_that_cannot_be_read(patients: Path) -> None:
    hpo = load_hpo(small_hpo.write(patients), patients)
    (patients / explanation.PATIENTS).write_bytes(b"not gzip")
    with pytest.raises(ConfigError, match="cannot be read as published patients"):
        explanation.read_patients(patients / explanation.PATIENTS, hpo, 9, 0)


def test_what_is_checked_of_an_explanation(hpo: HPO) -> None:
    graph = hpo.graph
    disease = graph.id_of(int(hpo.ranker.index.diseases[0]))
    edges = graph.edges_of(disease, relation=HAS_PHENOTYPE)
    phenotype = edges[0].target
    candidate = next(one for one in hpo.ranker.rank([phenotype], (), 100) if one.id == disease)
    text = f"[{candidate.name}] fits: it has [{graph.name_of(phenotype)}]."
    cited = tuple(edge for edge in edges if edge.target == phenotype)
    said = SuggestionExplained(1, disease, text, edges=cited, finish_reason="stop")
    good = explanation.checked(hpo, candidate, said)
    assert all(getattr(good, name) for name in explanation.METRICS.values())
    assert not explanation.checked(hpo, candidate, replace(said, edges=())).edges_belong
    assert not explanation.checked(hpo, candidate, replace(said, finish_reason="length")).finished
    assert not explanation.checked(hpo, candidate, replace(said, text="[Green hair].")).names_belong
    assert not explanation.checked(hpo, candidate, replace(said, text="It fits.")).names_a_finding
