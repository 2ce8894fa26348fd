from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.encoder.disease_graphs import random_hpo, term
from vglm.encoder import disease_ranker
from vglm.encoder.disease_candidates import candidates_of, screen, speaks_against
from vglm.encoder.disease_features import TWIN, WHOLE
from vglm.encoder.disease_index import KEPT_FILES, disease_index
from vglm.encoder.disease_pooling import BASIS, EXTREMES, POOLED, pooled
from vglm.encoder.disease_ranker import PRIOR, DiseaseModel, Weights
from vglm.errors import GraphError, ModelError
from vglm.graph.graph import Graph
from vglm.graph.ranking import DiseaseRanker

FINDINGS, EXCLUDED = [term(n) for n in (5, 17, 40, 63)], [term(8), term(30)]


def weights(seed: int = 0) -> Weights:
    random = np.random.default_rng(seed)
    size = len(POOLED)
    values = {
        "mean": random.standard_normal(size),
        "scale": random.uniform(0.5, 2, size),
        "match": random.standard_normal(size),
        "screening": [0.3],
        "prior": random.standard_normal(len(PRIOR)),
        "calibration": [1.5, 0.8],
    }
    arrays = {name: np.array(value, np.float32) for name, value in values.items()}
    return Weights(**arrays, genes=np.array([[1, 5], [2, 5]], np.int32))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return random_hpo(3)


@pytest.fixture
def model(tmp_path: Path) -> DiseaseModel:
    weights().save(tmp_path / "ranker.safetensors")
    return DiseaseModel.load(tmp_path / "ranker.safetensors")


def test_all_diseases_are_ranked_with_evidence(model: DiseaseModel, graph: Graph) -> None:
    found = model.rank(graph, FINDINGS, EXCLUDED, top=1000)
    assert sorted(c.id for c in found) == sorted(i for i in graph.columns.ids if i.startswith("OMIM:"))
    assert [c.place for c in found] == list(range(1, len(found) + 1))
    assert all(a.score >= b.score for a, b in pairwise(found))
    assert sum(c.probability or 0 for c in found) == pytest.approx(0.8, rel=1e-4)
    by_likelihood = {c.id: c for c in DiseaseRanker(graph).rank(FINDINGS, EXCLUDED, 1000)}
    assert all(c.evidence == by_likelihood[c.id].evidence for c in found)
    assert found[:3] == model.rank(graph, FINDINGS, EXCLUDED, top=3)


def test_the_order_of_findings_does_not_matter(model: DiseaseModel, graph: Graph) -> None:
    assert model.rank(graph, FINDINGS, EXCLUDED) == model.rank(graph, FINDINGS[::-1] * 2, EXCLUDED[::-1])


def test_scores_are_the_plain_weighted_sum(model: DiseaseModel, graph: Graph) -> None:
    index = disease_index(graph)
    present = np.array(sorted(graph.index_of(f) for f in FINDINGS), np.int32)
    absent = np.array(sorted(graph.index_of(f) for f in EXCLUDED), np.int32)
    screening = screen(index, present)
    against = speaks_against(index, absent)
    rows = np.arange(len(index.ranking.diseases))
    features = pooled(index, screening, candidates_of(index, screening, rows), present)
    w, names = model.weights, [graph.id_of(int(d)) for d in index.ranking.diseases]
    for candidate in model.rank(graph, FINDINGS, EXCLUDED, top=5):
        row = names.index(candidate.id)
        expected = sum(
            float(np.clip((x - m) / s, -5, 5) * weight)
            for x, m, s, weight in zip(features[row], w.mean, w.scale, w.match, strict=True)
        )
        expected += 0.3 * float(screening.scores[row] + 0.3 * screening.around[row] + against[row])
        expected += float(w.prior[0]) * (index.properties.values[row, 7] > 0)
        assert candidate.score == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_what_is_excluded_never_speaks_for_a_disease(model: DiseaseModel, graph: Graph) -> None:
    before = {c.id: c.score for c in model.rank(graph, FINDINGS, top=1000)}
    fell = 0
    for phenotype in (graph.id_of(i) for i in range(graph.num_nodes) if graph.edge_indices(i, "in").size):
        if phenotype in FINDINGS or not phenotype.startswith("HP:"):
            continue
        try:
            after = model.rank(graph, FINDINGS, [phenotype], top=1000)
        except GraphError:  # it contradicts a finding, or is no phenotype
            continue
        changed = {c.id for c in after if c.score != pytest.approx(before[c.id], abs=1e-4)}
        assert all(c.score <= before[c.id] + 1e-4 for c in after)
        fell += len(changed)
    assert fell > 0


def test_diseases_beyond_the_candidates_follow_in_the_order_of_the_screening(
    model: DiseaseModel, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disease_ranker, "CANDIDATES", 7)
    found = model.rank(graph, FINDINGS, top=1000)
    index = disease_index(graph)
    screening = screen(index, np.array(sorted(graph.index_of(f) for f in FINDINGS), np.int32))
    published = index.properties.values[:, 7] > 0
    order = np.argsort(-(screening.scores + 0.3 * screening.around + 5 * published), kind="stable")
    expected = [graph.id_of(int(index.ranking.diseases[row])) for row in order]
    assert {c.id for c in found[:7]} == set(expected[:7])
    assert [c.id for c in found[7:]] == expected[7:]
    assert all(c.probability == 0 for c in found[7:])


def test_the_prior_can_be_left_out(model: DiseaseModel, graph: Graph) -> None:
    without = DiseaseModel(replace(model.weights, prior=np.zeros(len(PRIOR), np.float32)))
    assert without.rank(graph, FINDINGS) == model.rank(graph, FINDINGS, prior=False)


def test_an_edited_graph_is_ranked_anew(model: DiseaseModel, graph: Graph) -> None:
    data = graph.to_dict()
    data["nodes"].append({"id": "OMIM:new", "name": "a new disease", "type": "disease"})
    data["edges"] += [{"source": "OMIM:new", "relation": "has phenotype", "target": f} for f in FINDINGS]
    found = model.rank(Graph.from_dict(data), FINDINGS, top=1000)
    assert "OMIM:new" in [c.id for c in found]
    assert [e.exact for c in found if c.id == "OMIM:new" for e in c.evidence] == [True] * 4


def test_a_disease_that_has_none_of_what_was_looked_for(model: DiseaseModel) -> None:
    triples = {"a": ["x", "y"], "b": ["x", "z"], "c": ["z"]}
    edges = [
        {"source": d, "relation": "has phenotype", "target": t} | ({"frequency": 0} if d == "b" else {})
        for d, terms in triples.items()
        for t in terms
    ]
    nodes = [{"id": i, "type": "disease" if i in triples else "phenotype"} for i in "abcxyz"]
    graph = Graph.from_dict({"nodes": nodes, "edges": edges})
    without = Graph.from_dict({"nodes": nodes, "edges": [e for e in edges if e["source"] != "b"]})
    found = [(c.id, c.score) for c in model.rank(graph, ["z"])]
    assert sorted(i for i, _ in found) == ["a", "c"]
    assert found == [(c.id, c.score) for c in model.rank(without, ["z"])]


def test_the_index_is_cached_by_content(tmp_path: Path) -> None:
    graph = random_hpo(9)
    first = DiseaseModel(weights(), tmp_path).rank(graph, FINDINGS)
    files = list(tmp_path.iterdir())
    assert len(files) == 1
    again = Graph.from_dict(graph.to_dict())
    assert DiseaseModel(weights(), tmp_path).rank(again, FINDINGS) == first
    files[0].write_bytes(b"damaged")
    assert DiseaseModel(weights(), tmp_path).rank(Graph.from_dict(graph.to_dict()), FINDINGS) == first


def test_the_newest_indexes_stay_in_the_cache(tmp_path: Path) -> None:
    other = tmp_path / "hpo-1.npz"
    other.write_bytes(b"")
    written: list[Path] = []
    for seed in range(KEPT_FILES + 2):
        disease_index(random_hpo(seed, terms=8, diseases=3), tmp_path)
        (new,) = set(tmp_path.glob("diseases-*")) - set(written)
        os.utime(new, (seed, seed))
        written.append(new)
    disease_index(random_hpo(99, terms=8, diseases=3), tmp_path)
    kept = set(tmp_path.glob("diseases-*"))
    assert len(kept) == KEPT_FILES
    assert kept & set(written) == set(written[1 - KEPT_FILES :])
    assert other.exists()


def test_threads_share_a_model(model: DiseaseModel) -> None:
    graph, found = random_hpo(5), []
    threads = [threading.Thread(target=lambda: found.append(model.rank(graph, FINDINGS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(ranked == found[0] for ranked in found)


@pytest.mark.parametrize(
    ("findings", "excluded", "message"),
    [
        ([], [], "at least one"),
        (["HP:9999999"], [], "no node"),
        ([term(5)], [term(5)], "both observed and excluded"),
        ([term(5)] * 1001, [], "the limit is"),
    ],
)
def test_bad_findings(
    model: DiseaseModel, graph: Graph, findings: Sequence[str], excluded: Sequence[str], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        model.rank(graph, findings, excluded)


def test_a_graph_without_diseases(model: DiseaseModel) -> None:
    with pytest.raises(GraphError, match="nothing to rank"):
        model.rank(Graph.from_triples([("a", "is a", "b")]), ["a"])


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "ranker.safetensors"
    with pytest.raises(ModelError, match="cannot be read"):
        DiseaseModel.load(path)
    path.write_bytes(b"x" * 40)
    with pytest.raises(ModelError, match="cannot be read"):
        DiseaseModel.load(path)
    save_file({"a": np.zeros(1)}, path)
    with pytest.raises(ModelError, match="expected the format"):
        DiseaseModel.load(path)
    good = tmp_path / "good.safetensors"
    weights().save(good)
    raw = good.read_bytes()
    path.write_bytes(raw.replace(b"mean best log lift", b"mean worst log lif"))
    with pytest.raises(ModelError, match="other inputs"):
        DiseaseModel.load(path)
    damaged: list[Any] = [np.zeros((3, 3), np.int32), np.zeros((3, 2), np.float32), np.zeros(4, np.int32)]
    for genes in damaged:
        replace(weights(), genes=genes).save(path)
        with pytest.raises(ModelError, match="int32 pairs"):
            DiseaseModel.load(path)
    replace(weights(), match=np.full(len(POOLED), np.nan, np.float32)).save(path)
    with pytest.raises(ModelError, match="finite tensor 'match'"):
        DiseaseModel.load(path)
    assert set(load_file(good)) == set(Weights.__dataclass_fields__)


def test_what_ships_ranks_a_graph_that_it_has_never_seen() -> None:
    path = Path(__file__).parents[2] / "models/open-autoglm-v1/disease-ranker.safetensors"
    graph = random_hpo(11)
    annotated = [e.target for e in graph.edges_of("OMIM:7", "out", "has phenotype")]
    best = DiseaseModel.load(path).rank(graph, annotated, top=1)[0]
    assert best.id == "OMIM:7"
    assert 0 < (best.probability or 0) < 1


def test_names_of_the_inputs_are_their_places(graph: Graph) -> None:
    index = disease_index(graph)
    present = np.array([graph.index_of(FINDINGS[0])], np.int32)
    screening = screen(index, present)
    features = pooled(index, screening, candidates_of(index, screening, np.arange(5)), present)
    assert features.shape == (5, len(POOLED))
    x = dict(zip(POOLED, features.T, strict=True))
    np.testing.assert_array_equal(x["mean best log lift"], x["sum best log lift"])
    np.testing.assert_array_equal(x["least log lift"], x["mean best log lift"])
    np.testing.assert_allclose(x["mean best log lift"], screening.log_lifts[0, :5], atol=1e-4)
    np.testing.assert_array_equal(x["likelihood"], screening.scores[:5])
    assert (x["spread of log lift"] == 0).all()
    assert len(POOLED) == len(set(POOLED)) == features.shape[1]
    parts = 2 * (len(BASIS) + len(TWIN)) + len(EXTREMES) + len(WHOLE) + 1
    assert len(POOLED) == parts
