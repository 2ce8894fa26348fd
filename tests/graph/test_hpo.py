from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graph import small_hpo
from vglm.errors import GraphError
from vglm.graph import cache
from vglm.graph.hpo import HPO, load_hpo
from vglm.graph.hpoa import parse_annotations, parse_frequency
from vglm.graph.obo import parse_obo


@pytest.fixture
def hpo(tmp_path: Path) -> HPO:
    return load_hpo(small_hpo.write(tmp_path))


def test_obo_terms() -> None:
    ontology = parse_obo(small_hpo.OBO.splitlines(keepends=True), "small.obo")
    assert ontology.version == "small/2025-01-16"
    term = ontology.terms["HP:0000010"]
    assert (term.name, term.definition) == ("Abnormal eye", 'Anything "wrong" with an eye.')
    assert term.synonyms == ["Eye disease", "Ocular problem"]
    assert term.parents == ["HP:0000118"]
    assert ontology.replacements() == {
        "HP:9999118": "HP:0000118",
        "HP:0000030": "HP:0000020",
        "HP:0000031": "HP:0000020",
    }
    graph = ontology.to_graph()
    assert graph.num_nodes == 8
    assert graph.ancestors("HP:0000013") == ["HP:0000001", "HP:0000010", "HP:0000012", "HP:0000118"]


def test_replacements_in_a_circle_lead_nowhere() -> None:
    stanza = "[Term]\nid: {0}\nis_obsolete: true\nreplaced_by: {1}\n"
    text = stanza.format("A", "B") + stanza.format("B", "A") + stanza.format("C", "D")
    assert parse_obo(text.splitlines()).replacements() == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no .Term.; is it an OBO file"),
        ("hello", "line 1: expected 'tag: value', found 'hello'"),
        ("[Term]\nname: x", "line 1: the term has no id"),
        ("[Term]\nid: A\n\n[Term]\nid: A", "line 4: the id 'A' was used in line 1"),
        ("[Term]\nid: A\ndef: unquoted", "line 3, def: expected quoted text"),
        ("[Term]\nid: A\ncomment: " + "x" * 2_000_000, "line 3: 2,000,009 characters"),
        ("[Term]\nid: A\nis_a: B", "line 1: A is_a 'B', which is no current term"),
    ],
)
def test_bad_obo_names_the_line(text: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        parse_obo(text.splitlines(), "bad.obo").to_graph()


def test_annotations_become_edges(hpo: HPO) -> None:
    graph = hpo.graph
    disease = graph.node("OMIM:1")
    assert (disease.name, disease.type, disease.aliases) == (
        "Marfan syndrome",
        "disease",
        ("Marfan disease",),
    )
    found = [(e.relation, e.target, dict(e.attributes)) for e in graph.edges_of("OMIM:1")]
    assert found == [
        ("has inheritance", "HP:0000005", {"evidence": "PCS", "references": ["PMID:1"]}),
        (
            "has phenotype",
            "HP:0000011",
            {
                "evidence": "PCS",
                "frequency": 0.5,
                "frequency_label": "1/2",
                "references": ["PMID:3"],
            },
        ),
        (
            "has phenotype",
            "HP:0000011",
            {
                "evidence": "PCS",
                "frequency": 0.75,
                "frequency_label": "3/4",
                "references": ["PMID:1", "PMID:2"],
            },
        ),
        (
            "has phenotype",
            "HP:0000020",
            {
                "evidence": "PCS",
                "frequency": 0.895,
                "frequency_label": "very frequent, 80-99 %",
                "references": ["PMID:1"],
            },
        ),
    ]
    assert [(e.relation, e.target) for e in graph.edges_of("OMIM:2")] == [
        ("does not have phenotype", "HP:0000020"),
        ("has phenotype", "HP:0000013"),
    ]
    assert graph.node("HP:0000005").type == "term"
    assert graph.node("HP:0000011").type == "phenotype"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a\tb", "line 3: expected 12 columns, found 2"),
        (small_hpo.row("OMIM:1", "HP:7777777"), "line 3: hpo_id: 'HP:7777777' is no current term of obo"),
        (small_hpo.row("OMIM:1", "HP:0000032"), "line 3: hpo_id: 'HP:0000032' is no current term"),
        (
            small_hpo.row("OMIM:1", "HP:0000011", aspect="Z"),
            "line 3: aspect: expected one of P I C M H, found 'Z'",
        ),
        (small_hpo.row("OMIM:1", "HP:0000011", qualifier="?"), "line 3: qualifier: expected nothing or NOT"),
        (small_hpo.row("OMIM:1", "HP:0000011", "5/4"), "line 3, frequency: expected n/m"),
        (small_hpo.row("", "HP:0000011"), "line 3, database_id: is empty"),
        (small_hpo.row("HP:0000011", "HP:0000011"), "the id 'HP:0000011' is used twice"),
        ("x" * 2_000_000, "line 3: 2,000,000 characters"),
    ],
)
def test_bad_annotations_name_line_and_column(line: str, message: str) -> None:
    ontology = parse_obo(small_hpo.OBO.splitlines())
    with pytest.raises(GraphError, match=message):
        parse_annotations(small_hpo.hpoa([line]).splitlines(), ontology)


@pytest.mark.parametrize("text", ["", "#only a comment\n", "a\tb\n"])
def test_annotations_without_a_header(text: str) -> None:
    with pytest.raises(GraphError, match="expected the columns database_id"):
        parse_annotations(text.splitlines(keepends=True), parse_obo(small_hpo.OBO.splitlines()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3/4", (0.75, "3/4")),
        ("12.5%", (0.125, "12.5%")),
        ("HP:0040280", (1.0, "obligate")),
        ("0/9", (0.0, "0/9")),
    ],
)
def test_frequencies(text: str, expected: tuple[float, str]) -> None:
    assert parse_frequency(text) == expected


@pytest.mark.parametrize("text", ["", "1/0", "-1/2", "2/1", "nan%", "101%", "HP:0000001", "1/2/3", "often"])
def test_bad_frequencies(text: str) -> None:
    with pytest.raises(GraphError, match="frequency: expected n/m"):
        parse_frequency(text)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("HP:0000011", "HP:0000011"),
        (" HP:0000031 ", "HP:0000020"),
        ("HP:9999118", "HP:0000118"),
        ("ectopia LENTIS", "HP:0000011"),
        ("ocular problem", "HP:0000010"),
    ],
)
def test_resolve(hpo: HPO, given: str, expected: str) -> None:
    assert hpo.resolve(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("HP:0000032", "obsolete and has no single replacement; consider HP:0000012, HP:0000020"),
        ("eye disease", "a name of several terms; give one of HP:0000010, HP:0000011"),
        ("Mypia", "did you mean 'myopia'"),
        ("HP:0000005", r"'HP:0000005' \(Mode of inheritance\) is not a phenotype"),
        ("OMIM:1", "is not a phenotype"),
        ("x" * 10**6, "1000000 characters"),
    ],
)
def test_resolve_refuses(hpo: HPO, given: str, message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        hpo.resolve(given)
    assert len(str(caught.value)) < 300


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"hp\.obo: no such file; `vglm pull hpo` fetches"):
        load_hpo(tmp_path)


def test_not_text(tmp_path: Path) -> None:
    small_hpo.write(tmp_path)
    (tmp_path / "phenotype.hpoa").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GraphError, match=r"phenotype\.hpoa: is not UTF-8 text"):
        load_hpo(tmp_path)


def test_cache_gives_the_same_graph_and_notices_changes(tmp_path: Path) -> None:
    small_hpo.write(tmp_path)
    first, second = load_hpo(tmp_path, tmp_path / "cache"), load_hpo(tmp_path, tmp_path / "cache")
    assert (first.from_cache, second.from_cache) == (False, True)
    assert second.graph == first.graph
    assert second.resolve("HP:0000031") == "HP:0000020"
    finding = ["HP:0000013"]
    assert second.ranker.rank(finding) == first.ranker.rank(finding)
    with (tmp_path / "phenotype.hpoa").open("a") as file:
        file.write(small_hpo.row("OMIM:5", "HP:0000011") + "\n")
    third = load_hpo(tmp_path, tmp_path / "cache")
    assert not third.from_cache
    assert "OMIM:5" in third.graph


def flip_a_byte(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda d: b"", lambda d: d[:-1], lambda d: d[: len(d) // 2], flip_a_byte, lambda d: b"PK" + d]
)
def test_damaged_cache_is_written_anew(tmp_path: Path, damage: Any) -> None:
    small_hpo.write(tmp_path)
    load_hpo(tmp_path, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    again = load_hpo(tmp_path, tmp_path / "cache")
    assert again.graph == load_hpo(tmp_path).graph
    assert load_hpo(tmp_path, tmp_path / "cache").from_cache
    assert [f.name for f in (tmp_path / "cache").iterdir()] == [file.name]


def test_cache_of_another_key_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    assert cache.write(path, "key", {"a": 1}, {"n": np.arange(3)})
    meta, arrays = cache.read(path, "key") or ({}, {})
    assert meta == {"a": 1}
    assert arrays["n"].tolist() == [0, 1, 2]
    assert cache.read(path, "other") is None
    assert cache.read(tmp_path / "none.npz", "key") is None


def test_cache_never_unpickles(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, header=np.array([{"format": cache.FORMAT, "key": "key"}], object))
    assert cache.read(path, "key") is None


def test_unwritable_cache_costs_the_cache_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small_hpo.write(tmp_path)
    (tmp_path / "file").write_text("a file where the directory should be")
    hpo = load_hpo(tmp_path, tmp_path / "file" / "cache")
    assert "OMIM:1" in hpo.graph
    assert "is not cached" in caplog.text
