from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.encoder.disease_graphs import random_hpo, term
from tests.encoder.test_disease_ranker import weights
from vglm.encoder.disease_candidates import Screening, candidates_of, screen
from vglm.encoder.disease_features import TWIN, of_twins
from vglm.encoder.disease_genes import TWINS, UNKNOWN, code, twins
from vglm.encoder.disease_index import disease_index
from vglm.encoder.disease_pooling import POOLED
from vglm.encoder.disease_ranker import DiseaseModel
from vglm.graph.graph import Graph
from vglm.graph.ranking import NOISE

FINDINGS = [term(n) for n in (5, 17, 40, 63)]


def in_two_catalogues(seed: int = 3) -> Graph:
    """Diseases 20 and above are entries of Orphanet."""
    data = random_hpo(seed).to_dict()
    moved = {f"OMIM:{n}": f"ORPHA:{n}" for n in range(20, 40)}
    nodes = [node | {"id": moved.get(node["id"], node["id"])} for node in data["nodes"]]
    edges = [edge | {"source": moved.get(edge["source"], edge["source"])} for edge in data["edges"]]
    return Graph.from_dict({"nodes": nodes, "edges": edges})


def table(**genes_of: list[int]) -> np.ndarray:
    pairs = [(code(disease.replace("_", ":")), gene) for disease, own in genes_of.items() for gene in own]
    return np.array(pairs, np.int32).reshape(-1, 2)


@pytest.mark.parametrize(
    "disease", ["MONDO:1", "OMIM:", "OMIM:x", "OMIM:123456789", "omim:1", "1", "", "OMIM:²", "OMIM:-1"]
)
def test_ids_of_no_catalogue(disease: str) -> None:
    assert code(disease) == UNKNOWN


def test_codes_differ_and_fit() -> None:
    codes = [code(f"{name}:{n}") for name in ("OMIM", "ORPHA", "DECIPHER") for n in (0, 1, 99_999_999)]
    assert len(set(codes)) == 9
    assert 0 <= min(codes) <= max(codes) < 2**31


def test_twins_share_a_gene_and_are_of_another_catalogue() -> None:
    graph = in_two_catalogues()
    index = disease_index(graph)
    ids = [graph.id_of(int(node)) for node in index.ranking.diseases]
    genes = table(
        OMIM_1=[7], OMIM_2=[7], ORPHA_21=[7], ORPHA_22=[8, 7], ORPHA_23=[9], OMIM_3=[9, 10], OMIM_77=[9]
    )
    found = {
        disease: [ids[twin] for twin in row if twin != UNKNOWN]
        for disease, row in zip(ids, twins(graph, index.ranking.diseases, genes).tolist(), strict=True)
    }
    assert {disease: own for disease, own in found.items() if own} == {
        "OMIM:1": ["ORPHA:21", "ORPHA:22"],
        "OMIM:2": ["ORPHA:21", "ORPHA:22"],
        "ORPHA:21": sorted(["OMIM:1", "OMIM:2"], key=ids.index),
        "ORPHA:22": sorted(["OMIM:1", "OMIM:2"], key=ids.index),
        "ORPHA:23": ["OMIM:3"],
        "OMIM:3": ["ORPHA:23"],
    }


def test_no_more_than_so_many_twins() -> None:
    graph = in_two_catalogues()
    index = disease_index(graph)
    genes = table(**{f"OMIM_{n}": [7] for n in range(TWINS + 4)}, ORPHA_20=[7])
    found = twins(graph, index.ranking.diseases, genes)
    assert sorted((found != UNKNOWN).sum(axis=1).tolist())[-1] == TWINS


def screened(graph: Graph, genes: np.ndarray) -> tuple[Screening, np.ndarray]:
    index = disease_index(graph).with_genes(graph, genes)
    nodes = np.array(sorted(graph.index_of(f) for f in FINDINGS), np.int32)
    screening = screen(index, nodes)
    candidates = candidates_of(index, screening, np.arange(len(index.ranking.diseases)))
    return screening, of_twins(screening, candidates, screening.log_lifts)


def test_what_twins_say_is_the_best_of_them() -> None:
    graph = in_two_catalogues()
    screening, found = screened(graph, table(OMIM_1=[7], ORPHA_21=[7], ORPHA_22=[7]))
    ids = [graph.id_of(int(node)) for node in disease_index(graph).ranking.diseases]
    own, first, second = (screening.log_lifts[:, ids.index(i)] for i in ("OMIM:1", "ORPHA:21", "ORPHA:22"))
    best = np.maximum(first, second)
    expected = (best, np.maximum(best - own, 0))
    np.testing.assert_allclose(found[:, ids.index("OMIM:1")], np.stack(expected, axis=1), rtol=1e-5)
    lonely = found[:, ids.index("OMIM:2")]
    np.testing.assert_allclose(lonely[:, 0], np.log(NOISE), rtol=1e-5)
    assert (lonely[:, 1:] == 0).all()
    assert found.shape == (len(FINDINGS), len(ids), len(TWIN))


def test_without_a_table_nothing_is_said() -> None:
    _, found = screened(in_two_catalogues(), table())
    assert (found[:, :, 1:] == 0).all()


def test_a_twin_with_the_findings_lifts_a_disease() -> None:
    graph = in_two_catalogues()
    match = np.array([name == "sum twins above own" for name in POOLED], np.float32)
    plain = replace(weights(), match=match, prior=np.zeros(1, np.float32))
    annotated = [e.target for e in graph.edges_of("ORPHA:25", "out", "has phenotype")]

    def place(genes: np.ndarray) -> int:
        ranked = DiseaseModel(replace(plain, genes=genes)).rank(graph, annotated, top=100)
        return next(c.place for c in ranked if c.id == "OMIM:4")

    assert place(table(OMIM_4=[7], ORPHA_25=[7])) < place(table())
