from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph import small_hpo
from vglm.errors import GraphError
from vglm.graph import ranking
from vglm.graph.graph import Graph
from vglm.graph.hpo import HPO, load_hpo
from vglm.graph.ranking import DiseaseRanker

EYE, LENS, MYOPIA, HIGH_MYOPIA, TALL = (f"HP:00000{n}" for n in (10, 11, 12, 13, 20))
# P(term | disease) of the small ontology: (4 + 1) / (6 + 2), midpoint of "very frequent", 50 %, the value for
# an unknown frequency, (2 + 1) / (2 + 2)
LENS_1, TALL_1, HIGH_2, MYOPIA_3, TALL_4 = 5 / 8, 0.895, 0.5, 0.7, 3 / 4


@pytest.fixture(scope="module")
def hpo(tmp_path_factory: pytest.TempPathFactory) -> HPO:
    return load_hpo(small_hpo.write(tmp_path_factory.mktemp("hpo")))


def scores(hpo: HPO, *arguments: Any, **options: Any) -> dict[str, float]:
    values = hpo.ranker.scores(*arguments, **options)
    return dict(
        zip((hpo.graph.id_of(int(i)) for i in hpo.ranker.index.diseases), values.tolist(), strict=True)
    )


def test_information_content(hpo: HPO) -> None:
    content = hpo.ranker.index.information_content
    expected = {"HP:0000118": 0.0, EYE: -math.log(3 / 4), LENS: math.log(4), MYOPIA: math.log(2)}
    expected |= {HIGH_MYOPIA: math.log(4), TALL: math.log(2), "HP:0000005": 0.0}
    found = {term: float(content[hpo.graph.index_of(term)]) for term in expected}
    assert found == pytest.approx(expected, abs=1e-6)


def test_resnik_by_hand(hpo: HPO) -> None:
    eye = -math.log(3 / 4)
    assert scores(hpo, [HIGH_MYOPIA], method="resnik") == pytest.approx(
        {"OMIM:1": eye, "OMIM:2": math.log(4), "OMIM:3": math.log(2), "OMIM:4": 0.0}, abs=1e-6
    )
    assert scores(hpo, [HIGH_MYOPIA, TALL], method="resnik")["OMIM:1"] == pytest.approx(eye + math.log(2))


def test_likelihood_by_hand(hpo: HPO) -> None:
    breadth = np.array([LENS_1 + TALL_1, HIGH_2, MYOPIA_3, TALL_4]) + ranking.BREADTH_OFFSET
    penalty = ranking.BREADTH_WEIGHT * (np.log(breadth) - math.log(breadth.mean()))
    p_eye, p_myopia = (LENS_1 + HIGH_2 + MYOPIA_3) / 4, (HIGH_2 + MYOPIA_3) / 4
    any_1 = min(1 - (1 - LENS_1) * (1 - TALL_1), 0.99)
    p_any = (any_1 + HIGH_2 + MYOPIA_3 + TALL_4) / 4
    lifts = [
        max(LENS_1 / p_eye, any_1 / p_any),
        HIGH_2 / (HIGH_2 / 4),
        max(MYOPIA_3 / p_myopia, MYOPIA_3 / p_eye, MYOPIA_3 / p_any),
        TALL_4 / p_any,
    ]
    expected = np.log(ranking.NOISE + (1 - ranking.NOISE) * np.array(lifts)) - penalty
    assert list(scores(hpo, [HIGH_MYOPIA]).values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_excluded_findings_count_against_nearly_obligate_ones_only(hpo: HPO) -> None:
    without, excluded = scores(hpo, [HIGH_MYOPIA]), scores(hpo, [HIGH_MYOPIA], [TALL])
    difference = {disease: excluded[disease] - without[disease] for disease in without}
    assert difference == pytest.approx(
        {"OMIM:1": math.log1p(-ranking.EXCLUSION_TRUST * TALL_1), "OMIM:2": 0, "OMIM:3": 0, "OMIM:4": 0},
        abs=1e-6,
    )
    (first,) = hpo.ranker.rank([LENS], [TALL], top=1)
    assert (first.id, [item.finding for item in first.against]) == ("OMIM:1", [TALL])
    assert first.against[0].log_ratio == pytest.approx(difference["OMIM:1"], abs=1e-6)


def test_evidence(hpo: HPO) -> None:
    first, *others = hpo.ranker.rank([LENS, TALL], top=9)
    assert (first.place, first.id, first.name) == (1, "OMIM:1", "Marfan syndrome")
    assert [c.place for c in others] == [2, 3, 4]
    lens = next(item for item in first.evidence if item.finding == LENS)
    assert (lens.matched, lens.ancestor, lens.exact, lens.explained) == (LENS, LENS, True, True)
    assert lens.information_content == pytest.approx(math.log(4))
    assert lens.frequency == "1/2 and 3/4"
    assert lens.references == ("PMID:3", "PMID:1", "PMID:2")
    edges = [hpo.graph.edge_at(edge) for edge in lens.edges]
    assert {(e.source, e.relation, e.target) for e in edges} == {("OMIM:1", "has phenotype", LENS)}
    assert len(edges) == 2
    myopia = next(c for c in others if c.id == "OMIM:2").evidence
    assert {(e.finding, e.matched, e.ancestor) for e in myopia} == {
        (LENS, HIGH_MYOPIA, EYE),
        (TALL, HIGH_MYOPIA, "HP:0000118"),
    }
    assert not any(e.explained for e in myopia)


def test_evidence_adds_up_to_the_score(hpo: HPO) -> None:
    for candidate in hpo.ranker.rank([LENS, HIGH_MYOPIA], [TALL]):
        annotations = hpo.ranker.annotations_of(candidate.id)
        breadth = hpo.ranker.score_annotations(annotations, [LENS, HIGH_MYOPIA]) - sum(
            e.log_ratio for e in candidate.evidence
        )
        parts = sum(e.log_ratio for e in (*candidate.evidence, *candidate.against))
        assert parts + breadth == pytest.approx(candidate.score, abs=1e-5)


def test_order_and_repetition_of_findings_do_not_matter(hpo: HPO) -> None:
    assert hpo.ranker.rank([LENS, TALL, MYOPIA]) == hpo.ranker.rank([MYOPIA, LENS, LENS, TALL])


def test_annotations_without_a_paper(hpo: HPO) -> None:
    whole = hpo.ranker.annotations_of("OMIM:1")
    assert dict(zip(whole.terms.tolist(), whole.frequencies.tolist(), strict=True)) == pytest.approx(
        {hpo.graph.index_of(LENS): LENS_1, hpo.graph.index_of(TALL): TALL_1}
    )
    rest = hpo.ranker.annotations_of("OMIM:1", ["PMID:1", "PMID:2"])
    assert rest.terms.tolist() == [hpo.graph.index_of(LENS)]
    assert rest.frequencies.tolist() == [0.5]  # (1 + 1) / (2 + 2) of PMID:3
    nothing = hpo.ranker.annotations_of("OMIM:1", ["PMID:1", "PMID:2", "PMID:3"])
    assert hpo.ranker.score_annotations(nothing, [LENS]) < min(scores(hpo, [LENS]).values())


@pytest.mark.parametrize(
    ("findings", "excluded", "method", "message"),
    [
        ([], [], "likelihood", "needs at least one observed finding"),
        (["HP:1"], [], "likelihood", "no node with the id 'HP:1'"),
        ([LENS], [LENS], "likelihood", "HP:0000011 is both observed and excluded"),
        ([LENS] * 2000, [], "likelihood", "findings: 2,000 in all, the limit is 1,000"),
        ([LENS], [], "guess", "method: expected 'likelihood' or 'resnik', found 'guess'"),
    ],
)
def test_bad_requests(hpo: HPO, findings: list[str], excluded: list[str], method: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        hpo.ranker.rank(findings, excluded, method=method)


@pytest.mark.parametrize(
    "attributes",
    [
        {"frequency": 2},
        {"frequency": True},
        {"frequency": "often"},
        {"frequency": 1, "frequency_label": "5/4"},
    ],
)
def test_bad_frequencies_in_a_graph(attributes: dict[str, Any]) -> None:
    edge = {"source": "d", "relation": "has phenotype", "target": "p", "attributes": attributes}
    with pytest.raises(GraphError, match="edge attribute frequency"):
        DiseaseRanker(Graph.from_dict({"nodes": [{"id": "d"}, {"id": "p"}], "edges": [edge]}))


def test_nothing_to_rank() -> None:
    with pytest.raises(GraphError, match="nothing to rank"):
        DiseaseRanker(Graph.from_triples([("a", "is a", "b")]))


@st.composite
def ontologies(draw: st.DrawFn) -> Graph:
    terms = draw(st.integers(2, 8))
    parents = [(child, draw(st.integers(0, child - 1))) for child in range(1, terms)]
    parents += draw(
        st.lists(st.tuples(st.integers(0, terms - 1), st.integers(0, terms - 1)), max_size=3)
    )  # cycles too
    edges = [{"source": f"t{c}", "relation": "is a", "target": f"t{p}"} for c, p in parents]
    annotation = st.fixed_dictionaries(
        {
            "source": st.sampled_from(["d0", "d1", "d2", "d3"]),
            "relation": st.just("has phenotype"),
            "target": st.sampled_from([f"t{t}" for t in range(terms)]),
            "frequency": st.sampled_from([0.0, 0.2, 0.95, 1.0]),
        }
    )
    edges += draw(st.lists(annotation, min_size=1, max_size=12))
    edges.append({"source": "d0", "relation": "has phenotype", "target": "t0"})
    nodes = [{"id": f"t{t}"} for t in range(terms)] + [{"id": f"d{d}"} for d in range(4)]
    return Graph.from_dict({"nodes": nodes, "edges": edges})


@settings(deadline=None)
@given(ontologies(), st.data())
def test_fast_scores_equal_the_plain_ones(graph: Graph, draw: st.DataObject) -> None:
    ranker = DiseaseRanker(graph)
    terms = [node.id for node in graph.nodes() if node.id[0] == "t"]
    findings = draw.draw(st.lists(st.sampled_from(terms), min_size=1, max_size=4, unique=True))
    excluded = draw.draw(
        st.lists(st.sampled_from(terms), max_size=3, unique=True).filter(lambda e: not set(e) & set(findings))
    )
    for method in ("likelihood", "resnik"):
        fast = ranker.scores(findings, excluded, method)  # type: ignore[arg-type]
        for row, disease in enumerate(ranker.index.diseases.tolist()):
            annotations = ranker.annotations_of(graph.id_of(disease))
            plain = ranker.score_annotations(annotations, findings, excluded, method)  # type: ignore[arg-type]
            assert fast[row] == pytest.approx(plain, abs=1e-4)
    best = ranker.index.diseases[ranker.scores(findings).argmax()]
    assert ranker.rank(findings)[0].id == graph.id_of(int(best))


def test_index_survives_its_arrays(hpo: HPO, tmp_path: Path) -> None:
    index = hpo.ranker.index
    again = type(index).from_arrays({**index.to_arrays(), "graph.ids": np.zeros(1)})
    assert DiseaseRanker(hpo.graph, again).rank([LENS, TALL]) == hpo.ranker.rank([LENS, TALL])
