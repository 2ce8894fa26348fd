"""A small ontology with annotations, written by hand, whose information contents can be computed on paper."""

from __future__ import annotations

from pathlib import Path

OBO = r"""format-version: 1.2
data-version: small/2025-01-16

[Term]
id: HP:0000001
name: All

[Term]
id: HP:0000118
name: Phenotypic abnormality
alt_id: HP:9999118
is_a: HP:0000001 ! All

[Term]
id: HP:0000010
name: Abnormal eye
def: "Anything \"wrong\" with an eye." [ref:1]
synonym: "Eye disease" EXACT []
synonym: "Ocular problem" RELATED layperson [ref:2]
is_a: HP:0000118 {source="x"} ! Phenotypic abnormality

[Term]
id: HP:0000011
name: Ectopia lentis
synonym: "Eye disease" RELATED []
is_a: HP:0000010 ! Abnormal eye

[Term]
id: HP:0000012
name: Myopia
is_a: HP:0000010 ! Abnormal eye

[Term]
id: HP:0000013
name: High myopia
is_a: HP:0000012 ! Myopia

[Term]
id: HP:0000020
name: Tall stature
is_a: HP:0000118 ! Phenotypic abnormality

[Term]
id: HP:0000030
name: obsolete Long
is_obsolete: true
replaced_by: HP:0000020

[Term]
id: HP:0000031
name: obsolete Longer
is_obsolete: true
replaced_by: HP:0000030

[Term]
id: HP:0000032
name: obsolete Unclear
is_obsolete: true
consider: HP:0000012
consider: HP:0000020

[Term]
id: HP:0000005
name: Mode of inheritance
is_a: HP:0000001 ! All

[Typedef]
id: part_of
name: part of
"""

HEADER = (
    "database_id\tdisease_name\tqualifier\thpo_id\treference\tevidence\tonset\tfrequency\tsex\tmodifier\t"
    "aspect\tbiocuration"
)


def row(
    disease: str,
    term: str,
    frequency: str = "",
    reference: str = "PMID:1",
    *,
    name: str = "",
    qualifier: str = "",
    aspect: str = "P",
) -> str:
    name = name or f"Disease {disease[-1:]}"
    return "\t".join(
        (disease, name, qualifier, term, reference, "PCS", "", frequency, "", "", aspect, "HPO:x[2025-01-16]")
    )


ROWS = [
    row("OMIM:1", "HP:0000011", "3/4", "PMID:1;PMID:2", name="Marfan syndrome"),
    row("OMIM:1", "HP:0000011", "1/2", "PMID:3", name="Marfan disease"),
    row("OMIM:1", "HP:0000030", "HP:0040281", name="Marfan syndrome"),
    row("OMIM:1", "HP:0000005", aspect="I", name="Marfan syndrome"),
    row("OMIM:2", "HP:0000013", "50%"),
    row("OMIM:2", "HP:0000020", qualifier="NOT"),
    row("OMIM:3", "HP:0000012"),
    row("OMIM:3", "HP:0000020", "0/7"),
    row("OMIM:4", "HP:0000020", "2/2"),
]


def hpoa(rows: list[str] | None = None) -> str:
    return "\n".join(["#description: small", HEADER, *(ROWS if rows is None else rows)]) + "\n"


def write(directory: Path) -> Path:
    """Writes hp.obo and phenotype.hpoa into a directory."""
    (directory / "hp.obo").write_text(OBO, encoding="utf-8")
    (directory / "phenotype.hpoa").write_text(hpoa(), encoding="utf-8")
    return directory
