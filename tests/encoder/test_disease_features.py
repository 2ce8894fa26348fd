from __future__ import annotations

import math

import numpy as np
import pytest

from tests.encoder.disease_graphs import random_hpo, term
from vglm.encoder.disease_candidates import DiseaseIndex, candidates_of, screen, speaks_against, with_first
from vglm.encoder.disease_features import AROUND, MATCH, WHOLE, around, match, share, whole
from vglm.encoder.disease_pooling import pooled
from vglm.encoder.disease_properties import NAMES, properties
from vglm.graph.graph import Graph
from vglm.graph.profile import Profile
from vglm.graph.ranking import NOISE, DiseaseRanker

FINDINGS, EXCLUDED = [term(n) for n in (5, 17, 40, 63)], [term(8), term(30)]


def known(seed: int) -> tuple[Graph, DiseaseRanker, DiseaseIndex]:
    graph = random_hpo(seed)
    ranker = DiseaseRanker(graph)
    return graph, ranker, DiseaseIndex.build(graph, ranker.index)


def nodes(graph: Graph, ids: list[str]) -> np.ndarray:
    return np.array(sorted(graph.index_of(i) for i in ids), np.int32)


@pytest.mark.parametrize("seed", range(3))
def test_screening_scores_as_the_likelihood_method(seed: int) -> None:
    graph, ranker, index = known(seed)
    screening = screen(index, nodes(graph, FINDINGS))
    against = speaks_against(index, nodes(graph, EXCLUDED))
    np.testing.assert_allclose(screening.scores, ranker.scores(FINDINGS), atol=1e-4)
    np.testing.assert_allclose(screening.scores + against, ranker.scores(FINDINGS, EXCLUDED), atol=1e-4)
    assert (against <= 0).all()
    vectors = index.vectors
    expected = (screening.scores[vectors.neighbours] * vectors.weights).sum(axis=1)
    np.testing.assert_allclose(screening.around, expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_matches_agree_with_plain_profiles(seed: int) -> None:
    graph, _, index = known(seed)
    findings = nodes(graph, FINDINGS)
    screening = screen(index, findings)
    rows = np.arange(len(index.ranking.diseases))[::-1]
    candidates = candidates_of(index, screening, rows)
    shared = share(index.ranking, candidates, findings)
    found, closest = match(index.ranking, candidates, shared, findings), shared.closest
    content = index.ranking.information_content
    position = 0
    for place, row in enumerate(rows):
        annotations = index.ranking.annotations(int(row))
        profile = Profile(index.ranking, annotations)
        for at, finding in enumerate(findings.tolist()):
            x = dict(zip(MATCH, found[at, place].tolist(), strict=False))
            lift = profile.best_match(index.ranking, finding)[1]
            assert x["best log lift"] == pytest.approx(math.log(NOISE + (1 - NOISE) * lift), abs=1e-4)
            held = [a for a in index.ranking.ancestors(finding).tolist() if a in profile.below]
            assert x["shared content"] == pytest.approx(max(content[held], default=0), abs=1e-5)
            assert x["exact"] == (finding in annotations.terms)
            assert x["frequency"] == pytest.approx(profile.frequency.get(finding, 0), abs=1e-5)
            assert x["shared ancestors"] == pytest.approx(
                len(held) / len(index.ranking.ancestors(finding)), abs=1e-5
            )
        above = set().union(*(index.ranking.ancestors(f).tolist() for f in findings.tolist()))
        for annotated in annotations.terms.tolist():
            common = above & set(index.ranking.ancestors(annotated).tolist())
            assert closest[position] == pytest.approx(max(content[list(common)], default=0), abs=1e-5)
            position += 1


def test_shapes() -> None:
    graph, _, index = known(0)
    findings = nodes(graph, FINDINGS)
    screening = screen(index, findings)
    candidates = candidates_of(index, screening, np.array([3, 1, 2]))
    shared = share(index.ranking, candidates, findings)
    matches = match(index.ranking, candidates, shared, findings)
    both = np.concatenate((matches, around(screening, candidates)), axis=2)
    assert both.shape == (len(findings), 3, len(MATCH) + len(AROUND))
    assert whole(index.ranking, candidates, matches, shared, screening).shape == (3, len(WHOLE))
    none = match(index.ranking, candidates, shared, nodes(graph, []))
    assert none.shape[:2] == (0, 3)
    assert np.isfinite(both).all()


def test_a_candidate_known_by_all_it_is_known_by_stays_as_it_is() -> None:
    graph, ranker, index = known(1)
    findings = nodes(graph, FINDINGS)
    screening = screen(index, findings)
    rows = np.array([7, 1, 2])
    before = candidates_of(index, screening, rows)
    disease = graph.id_of(int(index.ranking.diseases[7]))
    edges = graph.edge_indices(graph.index_of(disease), "out")
    stated = properties(graph, index.ranking.diseases[7:8], edges)
    score = ranker.score_annotations(ranker.annotations_of(disease), FINDINGS)
    after = with_first(before, index, screening, 7, score, ranker.annotations_of(disease), stated)
    first, second = (pooled(index, screening, c, findings) for c in (before, after))
    np.testing.assert_allclose(first, second, atol=1e-3)
    assert (before.properties.values == after.properties.values).all()


def test_properties_by_hand() -> None:
    graph = Graph.from_dict(
        {
            "nodes": [{"id": i} for i in ("D", "T1", "T2", "HP:0000007", "HP:0011463", "HP:0003581")],
            "edges": [
                _edge("T1", evidence="PCS", frequency=0.5, frequency_label="1/2", references=["PMID:1"]),
                _edge("T2", evidence="IEA", references=["OMIM:1", "PMID:1"]),
                _edge("HP:0000007", "has inheritance"),
                _edge("HP:0011463", "has clinical course"),
                _edge("HP:0003581", "has clinical course"),
            ],
        }
    )
    found = properties(graph, np.array([graph.index_of("D")]), np.arange(graph.num_edges))
    x = dict(zip(NAMES, found.values[0].tolist(), strict=True))
    assert (x["share PCS"], x["share IEA"], x["share TAS"]) == (0.5, 0.5, 0)
    assert (x["share with counts"], x["share with a frequency"]) == (0.5, 0.5)
    assert x["log references"] == pytest.approx(math.log(3))
    assert x["log papers"] == pytest.approx(math.log(2))
    assert (x["recessive"], x["dominant"], x["onset known"]) == (1, 0, 1)
    assert found.onset[0].tolist() == [1, 80]


def _edge(target: str, relation: str = "has phenotype", **attributes: object) -> dict[str, object]:
    return {"source": "D", "relation": relation, "target": target, "attributes": attributes}
