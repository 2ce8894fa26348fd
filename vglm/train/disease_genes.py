"""The table of genes that a disease ranker carries, from `genes_to_phenotype.txt` of the ontology's release."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vglm.encoder.disease_genes import MAX_GENES, UNKNOWN, code
from vglm.errors import ConfigError

_COLUMNS = ("ncbi_gene_id", "gene_symbol", "hpo_id", "hpo_name", "frequency", "disease_id")


def gene_pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """The number of a gene, its symbol and the id of a disease, for each line. Raises ConfigError for another form."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as genes of diseases: {error}") from error
    for number, line in enumerate(lines[1:], 2):
        fields = line.split("\t")
        if len(fields) != len(_COLUMNS) or not fields[0].isdecimal():
            raise ConfigError(f"{path}, line {number}: expected {', '.join(_COLUMNS)} between tabs")
        yield int(fields[0]), fields[1], fields[-1]


def gene_table(path: Path | None) -> npt.NDArray[np.int32]:
    """Pairs (`code` of a disease, number of a gene), int32[P, 2], ascending, of the diseases with at most `MAX_GENES` genes;
    none without a file. Raises ConfigError for a file of another form."""
    genes_of: dict[int, set[int]] = defaultdict(set)
    if path is not None and path.is_file():
        for gene, _, disease in gene_pairs(path):
            genes_of[code(disease)].add(gene)
    genes_of.pop(UNKNOWN, None)
    pairs = [(number, gene) for number, own in genes_of.items() if len(own) <= MAX_GENES for gene in own]
    return np.array(sorted(pairs), np.int32).reshape(-1, 2)
