"""Evaluations of a model's language, reasoning and explanations, on a tiny real model and small data."""

from __future__ import annotations

import json
from pathlib import Path

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


def explained(hpo: HPO, text: str, wrong_edge: bool = False) -> SuggestionExplained:
    disease = hpo.graph.id_of(int(hpo.ranker.index.diseases[0]))
    other = hpo.graph.id_of(int(hpo.ranker.index.diseases[1]))
    edges = tuple(hpo.graph.edges_of(other if wrong_edge else disease, relation=HAS_PHENOTYPE))
    name = hpo.graph.name_of(disease)
    phenotype = hpo.graph.name_of(hpo.graph.edges_of(disease, relation=HAS_PHENOTYPE)[0].target)
    said = text.format(disease=name, phenotype=phenotype)
    return SuggestionExplained(1, disease, said, edges=edges, finish_reason="stop")


def looked_up(hpo: HPO, text: str, wrong_edge: bool = False) -> explanation.Checked:
    one = explained(hpo, text, wrong_edge)
    phenotype = hpo.graph.edges_of(one.id, relation=HAS_PHENOTYPE)[0].target
    candidates = hpo.ranker.rank([phenotype], (), 100)
    candidate = next(candidate for candidate in candidates if candidate.id == one.id)
    return explanation.checked(hpo, "p", candidate, one)


def test_what_an_explanation_says_is_looked_up(hpo: HPO) -> None:
    good = looked_up(hpo, "[{disease}] fits: it has [{phenotype}].")
    assert good.names_belong
    assert good.edges_belong
    assert good.frequencies_right
    assert good.findings_right
    assert good.finished
    assert good.num_named == 1
    assert not looked_up(hpo, "[{disease}] fits: it has [Green hair].").names_belong
    assert not looked_up(hpo, "[{phenotype}] is seen in 991/992.").frequencies_right
    assert not looked_up(hpo, "[{disease}] fits.", wrong_edge=True).edges_belong
    assert not looked_up(hpo, "[{disease}] fits: green hair matches [{phenotype}].").findings_right
    assert not looked_up(hpo, "[{disease}] fits. It does not explain {phenotype}.").findings_right
