"""Which entries of the catalogues share a gene: OMIM, Orphanet and DECIPHER describe the same disease independently.

A model carries a table of (disease, gene) from the ontology's `genes_to_phenotype.txt`; nothing is kept about the phenotypes,
which come from the graph that is ranked. A disease of a graph that the table does not know has no twins."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

from vglm.encoder.disease_properties import CATALOGUES
from vglm.graph.graph import Graph

Ints = npt.NDArray[np.int32]

MAX_GENES = 2  # an entry of more genes is a group of diseases
TWINS = 8  # of one disease, those of fewest genes first
_SPAN = 10**8  # above every number of a catalogue
UNKNOWN = -1


def code(disease: str) -> int:
    """The number of a disease in a table of genes; `UNKNOWN` for an id of no catalogue."""
    for place, catalogue in enumerate(CATALOGUES):
        number = disease.removeprefix(catalogue)
        if number != disease and number.isascii() and number.isdigit() and len(number) <= 8:
            return place * _SPAN + int(number)
    return UNKNOWN


def twins(graph: Graph, diseases: npt.NDArray[np.integer], genes: Ints) -> Ints:
    """For each of D diseases (node indices) the rows of those in another catalogue that share a gene, int32[D, TWINS],
    `UNKNOWN` where there are fewer; `genes` int32[P, 2] are pairs of the `code` of a disease and the number of a gene."""
    codes = [code(graph.columns.ids[int(node)]) for node in diseases]
    row_of = {number: row for row, number in enumerate(codes) if number != UNKNOWN}
    genes_of: dict[int, set[int]] = defaultdict(set)
    rows_of: dict[int, set[int]] = defaultdict(set)
    for number, gene in genes.tolist():
        if number in row_of:
            genes_of[row_of[number]].add(gene)
            rows_of[gene].add(row_of[number])
    found = np.full((len(codes), TWINS), UNKNOWN, np.int32)
    for row, own in genes_of.items():
        sharing = {twin for gene in own for twin in rows_of[gene]}
        others = [twin for twin in sharing if codes[twin] // _SPAN != codes[row] // _SPAN]
        others.sort(key=lambda twin: (len(genes_of[twin]), twin))
        found[row, : len(others)] = others[:TWINS]
    return found
