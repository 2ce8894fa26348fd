"""OBO ontologies of any kind as graphs."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.graph import small_hpo
from vglm.errors import GraphError, ModelError
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits
from vglm.graph.obo import parse_obo
from vglm.model.pull import pull_hpo

GENES = r"""format-version: 1.4
ontology: go

[Term]
id: GO:1
name: heart development
namespace: biological_process
def: "How a heart\, or \"pump\", comes about." [ref:1]
comment: Not the heart itself.
synonym: "cardiogenesis" EXACT []
is_a: GO:2 ! organ development
relationship: part_of GO:2 {source="x"} ! organ development
relationship: regulates CL:9

[Term]
id: GO:2
name: organ development
namespace: biological_process
xref: Wikipedia:Organ

[Term]
id: GO:3
name: obsolete thing
is_obsolete: true
is_a: GO:2

[Typedef]
id: part_of
name: is part of
"""


def test_terms_relationships_and_namespaces(tmp_path: Path) -> None:
    graph = Graph.from_obo(GENES)
    heart = graph.node("GO:1")
    assert (heart.name, heart.type, heart.aliases) == (
        "heart development",
        "biological_process",
        ("cardiogenesis",),
    )
    assert heart.text == 'How a heart, or "pump", comes about.'
    assert heart.attributes == {"comment": "Not the heart itself."}
    assert graph.to_triples() == [
        ("GO:1", "is a", "GO:2"),
        ("GO:1", "is part of", "GO:2"),
        ("GO:1", "regulates", "CL:9"),
    ]
    assert "GO:3" not in graph
    assert graph.node("CL:9").type == ""
    path = tmp_path / "go.obo.gz"
    path.write_bytes(gzip.compress(GENES.replace("\n", "\r\n").encode()))
    assert Graph.load(path) == graph


def test_the_small_ontology_reads_as_for_the_ranking() -> None:
    plain = parse_obo(small_hpo.OBO.splitlines()).to_graph("phenotype")
    graph = Graph.from_obo(small_hpo.OBO, node_type="phenotype")
    assert graph.to_triples() == plain.to_triples()
    assert [node.name for node in graph.nodes()] == [node.name for node in plain.nodes()]
    assert {node.type for node in graph.nodes()} == {"phenotype"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"obo: has no \[Term\]"),
        ("[Term]\nname: x\n", "line 1: the term has no id"),
        ("[Term]\nid: a\n\n[Term]\nid: a\n", "line 4: the id 'a' was used in line 1"),
        ("[Term]\nid: a\nnonsense\n", "line 3: expected 'tag: value', found 'nonsense'"),
        ("[Term]\nid: a\ndef: no quotes\n", "line 3, def: expected quoted text"),
        ("[Term]\nid: a\nrelationship: part_of\n", "line 1, relationship: expected a relation and a term"),
        ("[Term]\nid: a\nis_a:\n", r"line 1.target: is empty"),
        (f"[Term]\nid: a\nname: {'x' * 20_000}\n", r"line 1.name: 20,000 characters, the limit is 10,000"),
        (f"[Term]\nid: a\nname: {'x' * 2_000_000}\n", "line 3: 2,000,006 characters, the limit is 1,000,000"),
    ],
)
def test_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Graph.from_obo(text)


def test_bytes_that_are_no_text_and_limits() -> None:
    with pytest.raises(GraphError, match="line 2: is not UTF-8 text"):
        Graph.from_obo(b"[Term]\nid: \xff\n")
    with pytest.raises(GraphError, match="more than 1 nodes"):
        Graph.from_obo(GENES, Limits(nodes=1))
    with pytest.raises(GraphError, match="no option 'kind'; it has node_type"):
        Graph.from_obo(GENES, kind="x")


def test_the_human_phenotype_ontology_survives_every_format(tmp_path: Path) -> None:
    try:
        directory = pull_hpo(progress=False)
    except ModelError as error:
        pytest.skip(f"the ontology cannot be fetched here: {error}")
    graph = Graph.load(directory / "hp.obo")
    assert graph.num_nodes == 19_034
    assert graph.name_of("HP:0001166") == "Arachnodactyly"
    for name in ("hp.json", "hp.ttl", "hp.nt.gz", "hp.jsonld", "hp.graphml"):
        graph.save(tmp_path / name)
        assert Graph.load(tmp_path / name) == graph, name
    assert Graph.from_networkx(graph.to_networkx()) == graph
    graph.save(tmp_path / "hp.tsv")
    assert Graph.load(tmp_path / "hp.tsv").to_triples() == graph.to_triples()
