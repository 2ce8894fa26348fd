"""Findings as people write them: ids in other spellings, what is no phenotype, contradictions, all mistakes at once."""

from __future__ import annotations

import pytest

from tests.tasks.clinic import clinic
from vglm import Graph, GraphError
from vglm.tasks.findings import MOST_REFUSED, link_findings, link_patient


@pytest.fixture(scope="module")
def ontology() -> Graph:
    """Ids as in the Human Phenotype Ontology, and a disease and a modifier whose names are like words of findings."""
    nodes = [
        {"id": "HP:0001083", "name": "Ectopia lentis", "type": "phenotype"},
        {"id": "HP:0003236", "name": "Elevated circulating creatine kinase", "type": "phenotype"},
        {"id": "OMIM:1", "name": "CK syndrome", "type": "disease"},
        {"id": "HP:1", "name": "Prolonged", "type": "modifier"},
    ]
    edges = [{"source": "OMIM:1", "relation": "has phenotype", "target": "HP:0001083"}]
    return Graph.from_dict({"nodes": nodes, "edges": edges})


@pytest.mark.parametrize(
    "written",
    ["HP:0001083", "hp:0001083", "HP_0001083", "http://purl.obolibrary.org/obo/HP_0001083"],
)
def test_an_id_may_be_written_as_ontologies_write_it(ontology: Graph, written: str) -> None:
    (found,) = link_findings(ontology, [written], "findings")
    assert (found.id, found.given) == ("HP:0001083", written)


def test_a_word_that_names_a_disease_is_said_to_be_one(ontology: Graph) -> None:
    with pytest.raises(
        GraphError, match=r"findings\[0\]: 'ck syndrome' \(OMIM:1\) is a disease, not a pheno"
    ):
        link_findings(ontology, ["ck syndrome"], "findings")
    with pytest.raises(GraphError, match=r"'omim_1' \(CK syndrome, OMIM:1\) is a disease"):
        link_findings(ontology, ["omim_1"], "findings")


@pytest.mark.parametrize("text", ["elevated CK", "prolonged aPTT"])
def test_only_phenotypes_are_offered(ontology: Graph, text: str) -> None:
    with pytest.raises(GraphError) as caught:
        link_findings(ontology, [text], "findings")
    assert "CK syndrome" not in str(caught.value)
    assert "'Prolonged'" not in str(caught.value)


def test_a_phenotype_that_shares_a_word_is_offered(ontology: Graph) -> None:
    with pytest.raises(
        GraphError, match="phenotypes with a word of it are 'Elevated circulating creatine kinase'"
    ):
        link_findings(ontology, ["high kinase"], "findings")


def test_all_that_cannot_be_read_is_named_at_once(ontology: Graph) -> None:
    with pytest.raises(GraphError) as caught:
        link_findings(ontology, ["qwertz", "Ectopia lentis", 3, "asdf"], "findings")  # type: ignore[list-item]
    message = str(caught.value)
    assert "findings[0]: no phenotype of the graph is called 'qwertz'" in message
    assert "findings[2]: expected an id" in message
    assert "findings[3]: no phenotype of the graph is called 'asdf'" in message
    assert "findings[1]" not in message


def test_a_message_does_not_grow_without_end(ontology: Graph) -> None:
    with pytest.raises(GraphError, match=r"; and 92 more$") as caught:
        link_findings(ontology, ["qwertz"] * (MOST_REFUSED + 92), "findings")
    assert str(caught.value).count("qwertz") == MOST_REFUSED


def test_what_is_present_is_a_kind_of_what_is_absent() -> None:
    said = (
        r"excluded: p1 \(Abnormality of the eye\) cannot be absent: p2 \(Ectopia lentis\).* is a kind of it"
    )
    with pytest.raises(GraphError, match=said):
        link_patient(clinic(), ["Ectopia lentis"], ["Abnormality of the eye"])
    with pytest.raises(GraphError, match="p0"):  # further up
        link_patient(clinic(), ["Ectopia lentis"], ["Phenotypic abnormality"])
    with pytest.raises(GraphError, match=r"excluded: p2 \(Ectopia lentis\) is among the findings"):
        link_patient(clinic(), ["p2"], ["p2"])


def test_one_kind_of_what_is_present_may_be_absent() -> None:
    present, absent = link_patient(clinic(), ["Myopia"], ["High myopia"])
    assert ([one.id for one in present], [one.id for one in absent]) == (["p3"], ["p4"])
