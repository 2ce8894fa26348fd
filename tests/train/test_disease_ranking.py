from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.encoder.disease_graphs import random_hpo, term
from vglm.encoder.disease_candidates import DiseaseIndex, candidates_of, screen
from vglm.encoder.disease_features import TWIN
from vglm.encoder.disease_genes import code
from vglm.encoder.disease_index import disease_index
from vglm.encoder.disease_pooling import POOLED
from vglm.encoder.disease_ranker import DiseaseModel, Weights
from vglm.errors import ConfigError
from vglm.graph.graph import Graph
from vglm.graph.hpo import HPO
from vglm.graph.ranking import DiseaseRanker
from vglm.train import disease_examples, disease_ranking
from vglm.train.disease_cases import Case, fair_edges, family_keys, folds, read_cases, series
from vglm.train.disease_examples import example, thinned
from vglm.train.disease_genes import gene_table
from vglm.train.disease_ranking import calibrate, choose_cases, fit, score

DISEASES = 40


@pytest.fixture(scope="module")
def hpo() -> HPO:
    graph = random_hpo(3, diseases=DISEASES)
    return HPO(graph, DiseaseRanker(graph), "random", {}, {})


def patients(hpo: HPO, count: int, seed: int = 0) -> list[Case]:
    """Patients who have about half of what their disease has, and two findings of none."""
    random = np.random.default_rng(seed)
    cases: list[Case] = []
    while len(cases) < count:
        disease = f"OMIM:{random.integers(DISEASES)}"
        annotated = [e.target for e in hpo.graph.edges_of(disease, "out", "has phenotype")]
        findings = {t for t in annotated if random.random() < 0.5} | {
            term(int(n)) for n in random.integers(0, 80, 2)
        }
        cases.append(Case(disease, False, frozenset({"PMID:x"}), sorted(findings), []))
    return cases


def test_reading_cases(hpo: HPO, tmp_path: Path) -> None:
    cited = next(e for e in hpo.graph.edges_of("OMIM:1", "out", "has phenotype")).attributes["references"][0]
    record = {
        "hpo": [[term(5), "x", None], ["HP:9999999", "newer", None]],
        "hpo_excluded": [[term(5), "x"], [term(6), "y"]],
        "pmid": [cited],
        "disease": ["OMIM:1", "disease 1"],
        "variants": [["FBN1", [], "heterozygous"], [None, [], None]],
    }
    lines = [
        record,
        record | {"pmid": ["PMID:other"]},
        record | {"disease": ["OMIM:404", "new"]},
        record | {"hpo": []},
        record | {"pmid": []},
    ]
    path = tmp_path / "patients.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    cases, left_out = read_cases(path, hpo)
    assert [c.cited for c in cases] == [True, False]
    assert cases[0] == Case("OMIM:1", True, frozenset([cited]), [term(5)], [term(6)], frozenset(["FBN1"]))
    assert set(left_out.values()) == {1}


@pytest.mark.parametrize("content", ["[1]", "{", '{"hpo": []}', b"\xff"])
def test_bad_cases(hpo: HPO, tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "patients.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"patients\.jsonl"):
        read_cases(path, hpo)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_cases(tmp_path / "none.jsonl.gz", hpo)


@pytest.mark.parametrize(
    "change",
    [
        {"pmid": "PMID:1"},
        {"pmid": None},
        {"pmid": [1]},
        {"disease": None},
        {"disease": []},
        {"variants": None},
        {"variants": [[]]},
        {"hpo": "HP:1"},
        {"hpo_excluded": [None]},
    ],
)
def test_a_record_of_another_form(hpo: HPO, tmp_path: Path, change: dict[str, object]) -> None:
    record = {"hpo": [[term(5), "x"]], "hpo_excluded": [], "pmid": ["PMID:1"], "disease": ["OMIM:1", "x"]}
    path = tmp_path / "patients.jsonl"
    path.write_text(json.dumps(record) + "\n" + json.dumps(record | change) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"patients\.jsonl: .*line 2: {next(iter(change))}: expected"):
        read_cases(path, hpo)


def test_own_papers_are_left_out(hpo: HPO) -> None:
    edges = hpo.graph.edges_of("OMIM:1")
    (paper,) = next(r for e in edges if len(r := e.attributes.get("references", ())) == 1)
    kept = [hpo.graph.edge_at(int(e)) for e in fair_edges(hpo.graph, "OMIM:1", frozenset([paper]))]
    assert kept == [e for e in edges if list(e.attributes.get("references", ())) != [paper]]
    assert len(kept) < len(edges)


def test_families_stay_in_one_fold() -> None:
    keys = {
        "a": frozenset("12"),
        "b": frozenset("3"),
        "c": frozenset("23"),
        "d": frozenset("4"),
        "e": frozenset("4"),
    }
    found = folds(["e", *keys, "f"], keys, 2, seed=0)
    assert set(found) == set("abcdef")
    assert found["a"] == found["b"] == found["c"]
    assert found["d"] == found["e"]
    assert set(found.values()) == {0, 1}
    assert found == folds(reversed([*keys, "f"]), keys, 2, seed=0)


@pytest.mark.parametrize(
    "name",
    [
        "Noonan syndrome 3",
        "Noonan syndrome, type IV",
        "Noonan syndrome 12, autosomal dominant",
        "Noonan syndrome",
    ],
)
def test_series(name: str) -> None:
    assert series(name) == "noonan syndrome"


def test_genes_make_families(hpo: HPO, tmp_path: Path) -> None:
    path = tmp_path / "genes.txt"
    path.write_text(
        "ncbi\tsymbol\thpo\tname\tfrequency\tdisease\n1\tFBN1\tHP:1\tx\t-\tOMIM:1\n", encoding="utf-8"
    )
    cases = [
        Case("OMIM:1", False, frozenset(), [], []),
        Case("OMIM:2", False, frozenset(), [], [], frozenset(["FBN1"])),
    ]
    keys = family_keys(hpo, cases, path)
    assert keys["OMIM:1"] & keys["OMIM:2"] >= {"gene FBN1"}
    assert family_keys(hpo, cases[:1], None)["OMIM:1"] == {"series 1 disease"}


def test_an_example_is_what_the_model_ranks(hpo: HPO, tmp_path: Path) -> None:
    index = disease_index(hpo.graph)
    case = patients(hpo, 1)[0]
    found = example(hpo, index, case, resnik=True)
    assert found is not None
    fitted = fit([found])
    fitted.save(tmp_path / "model.safetensors")
    ranked = DiseaseModel.load(tmp_path / "model.safetensors").rank(hpo.graph, case.findings, top=DISEASES)
    expected = sorted(score(fitted, found).tolist(), reverse=True)
    np.testing.assert_allclose([c.score for c in ranked], expected, rtol=1e-3, atol=1e-3)
    own = next(c for c in ranked if c.id == case.disease)
    assert own.score == pytest.approx(float(score(fitted, found)[0]), rel=1e-3, abs=1e-3)
    by_method = hpo.ranker.rank(case.findings, top=DISEASES)
    place = next(c.place for c in by_method if c.id == case.disease)
    assert found.places["likelihood"] == pytest.approx(place, abs=1)


def test_a_cited_case_sees_only_what_is_left(hpo: HPO) -> None:
    index = disease_index(hpo.graph)
    disease = max((f"OMIM:{n}" for n in range(DISEASES)), key=lambda d: len(hpo.graph.edges_of(d)))
    edges = hpo.graph.edges_of(disease, "out", "has phenotype")
    every = frozenset(r for e in edges for r in e.attributes["references"])
    whole = Case(disease, False, frozenset(), [edges[0].target], [])
    assert example(hpo, index, Case(disease, True, every, [edges[0].target], [])) is None
    unrelated = example(hpo, index, Case(disease, True, frozenset(["PMID:none"]), whole.findings, []))
    same = example(hpo, index, whole)
    assert unrelated is not None
    assert same is not None
    np.testing.assert_allclose(unrelated.features, same.features, atol=1e-3)


def test_a_twin_that_cites_the_patient_s_paper_says_nothing(hpo: HPO) -> None:
    data = hpo.graph.to_dict()
    data["nodes"] = [n | {"id": "ORPHA:2"} if n["id"] == "OMIM:2" else n for n in data["nodes"]]
    data["edges"] = [e | {"source": "ORPHA:2"} if e["source"] == "OMIM:2" else e for e in data["edges"]]
    graph = Graph.from_dict(data)
    moved = HPO(graph, DiseaseRanker(graph), "random", {}, {})
    genes = np.array([[code("OMIM:1"), 7], [code("ORPHA:2"), 7]], np.int32)
    index = disease_index(graph).with_genes(graph, genes)
    edges = graph.edges_of("ORPHA:2", "out", "has phenotype")
    findings = [edge.target for edge in edges]
    (paper,) = edges[0].attributes["references"][:1]

    def features(papers: set[str], of: DiseaseIndex) -> np.ndarray:
        found = example(moved, of, Case("OMIM:1", False, frozenset(papers), findings, []))
        assert found is not None
        return found.features[0, POOLED.index("mean log lift of twins") :]

    without = features({"PMID:x"}, disease_index(graph))
    assert (features({paper, "PMID:x"}, index)[: len(TWIN)] == without[: len(TWIN)]).all()
    assert features({paper}, index)[-1] == 0
    assert features({"PMID:x"}, index)[0] > without[0]
    assert features({"PMID:x"}, index)[-1] == 1


def test_the_table_of_genes(tmp_path: Path) -> None:
    path = tmp_path / "genes.txt"
    rows = [(5, "OMIM:1"), (3, "OMIM:1"), (3, "OMIM:1"), (3, "ORPHA:2"), (9, "MONDO:1")]
    rows += [(gene, "OMIM:3") for gene in (1, 2, 3)]
    lines = ["header", *(f"{gene}\tG\tHP:1\tx\t-\t{disease}" for gene, disease in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = gene_table(path)
    assert found.dtype == np.int32
    assert found.tolist() == [[code("OMIM:1"), 3], [code("OMIM:1"), 5], [code("ORPHA:2"), 3]]
    assert gene_table(None).shape == gene_table(tmp_path / "none").shape == (0, 2)
    path.write_text("header\n1\tG\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2: expected ncbi_gene_id"):
        gene_table(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        gene_table(path)


def test_a_disease_without_annotations_is_no_example(hpo: HPO) -> None:
    data = hpo.graph.to_dict()
    data["nodes"] += [{"id": "OMIM:bare", "name": "bare", "type": "disease"}]
    graph = Graph.from_dict(data)
    bare = HPO(graph, DiseaseRanker(graph), "random", {}, {})
    assert example(bare, disease_index(graph), Case("OMIM:bare", False, frozenset(), [term(5)], [])) is None


def test_thinning_keeps_the_best_and_weighs_the_rest(hpo: HPO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disease_examples, "HARD", 5)
    monkeypatch.setattr(disease_examples, "DRAWN", 8)
    found = example(hpo, disease_index(hpo.graph), patients(hpo, 1)[0])
    assert found is not None
    thin = thinned(found, np.random.default_rng(0))
    assert thin.features.shape == (14, found.features.shape[1])
    np.testing.assert_array_equal(thin.features[:6], found.features[:6])
    assert np.exp(thin.log_weights).sum() == pytest.approx(len(found.first))


def test_training_beats_the_screening_on_other_patients(hpo: HPO) -> None:
    index = disease_index(hpo.graph)
    made = [example(hpo, index, case) for case in patients(hpo, 160)]
    found = [e for e in made if e is not None]
    fitted = fit(found[:120], penalty=0.01)

    def loss(weights: Weights) -> float:
        logs = [score(weights, e) for e in found[120:]]
        return float(np.mean([np.log(np.exp(x - x.max()).sum()) + x.max() - x[0] for x in logs]))

    screening_only = fit(found[:120], penalty=1e6, prior=False)
    assert loss(fitted) < loss(screening_only)
    assert np.abs(screening_only.match).max() < 1e-3
    assert (screening_only.prior == 0).all()
    again = fit(found[:120], penalty=0.01)
    np.testing.assert_allclose(again.match, fitted.match, atol=1e-5)


def test_no_examples() -> None:
    with pytest.raises(ConfigError, match="no published case"):
        fit([])


def test_at_most_so_many_cases_of_a_disease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disease_ranking, "MAX_CASES", 4)
    monkeypatch.setattr(disease_ranking, "MAX_CITED", 3)
    cases = [Case(d, cited, frozenset(), [], []) for d in "ab" for cited in (True, True, True, False, False)]
    chosen = choose_cases(cases)
    assert [(c.disease, c.cited) for c in chosen].count(("a", False)) == 2
    assert len(chosen) == 6


def test_calibration_finds_the_temperature() -> None:
    random = np.random.default_rng(0)
    scored = []
    for number in range(3000):
        scores = random.standard_normal(20).astype(np.float32) * 3
        chances = np.exp(scores / 2) / np.exp(scores / 2).sum()
        true = int(random.choice(20, p=chances))
        scored.append((np.roll(scores, -true), number % 4 > 0, 1.0))
    temperature, coverage = calibrate(scored)
    assert temperature == pytest.approx(2, rel=0.1)
    assert coverage == 0.75


def test_candidates_given_by_rows(hpo: HPO) -> None:
    index = disease_index(hpo.graph)
    screening = screen(index, np.array([hpo.graph.index_of(term(5))], np.int32))
    one, two = (candidates_of(index, screening, np.array(rows)) for rows in ([3, 4], [4]))
    assert one.terms[one.starts[1] :].tolist() == two.terms.tolist()
