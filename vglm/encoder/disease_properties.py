"""What a graph states about each disease besides its phenotypes: how well it is documented, how it is inherited, when
it begins. All of it is read from the edges of the graph, so a disease that a user adds has these properties too."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.graph.derived import once_per_graph
from vglm.graph.graph import Graph

Floats = npt.NDArray[np.float32]

INHERITANCE = "has inheritance"
COURSE = "has clinical course"
DOMINANT, RECESSIVE, X_LINKED, MITOCHONDRIAL = range(4)
MODES = {
    "HP:0000006": DOMINANT,
    "HP:0000007": RECESSIVE,
    "HP:0001417": X_LINKED,
    "HP:0001419": X_LINKED,
    "HP:0001423": X_LINKED,
    "HP:0001427": MITOCHONDRIAL,
}
# Ages in years at which the ontology's onset terms begin and end.
ONSETS = {
    "HP:0030674": (0.0, 0.0),  # antenatal
    "HP:0011460": (0.0, 0.0),  # embryonal
    "HP:0011461": (0.0, 0.0),  # fetal
    "HP:0034199": (0.0, 0.0),  # late first trimester
    "HP:0034198": (0.0, 0.0),  # second trimester
    "HP:0034197": (0.0, 0.0),  # third trimester
    "HP:0003577": (0.0, 0.0),  # congenital
    "HP:0003623": (0.0, 0.08),  # neonatal
    "HP:0003593": (0.08, 1.0),  # infantile
    "HP:0011463": (1.0, 5.0),  # childhood
    "HP:0003621": (5.0, 16.0),  # juvenile
    "HP:0003581": (16.0, 80.0),  # adult
    "HP:0011462": (16.0, 40.0),  # young adult
    "HP:0025708": (16.0, 19.0),  # early young adult
    "HP:0025709": (19.0, 25.0),  # intermediate young adult
    "HP:0025710": (25.0, 40.0),  # late young adult
    "HP:0003596": (40.0, 60.0),  # middle age
    "HP:0003584": (60.0, 80.0),  # late
}
NO_ONSET = -1.0
EVIDENCE = ("PCS", "TAS", "IEA")  # a published study, a traceable statement, taken over by a program
CATALOGUES = ("OMIM:", "ORPHA:", "DECIPHER:")
NAMES = (
    *("share PCS", "share TAS", "share IEA", "share with counts", "share with a frequency"),
    *("log annotations", "log references", "log papers", "modes of inheritance known"),
    *("dominant", "recessive", "X-linked", "mitochondrial", "onset known"),
)
NUM_DOCUMENTATION = 9  # the first of NAMES say how well a disease is documented, the others what it is


@dataclass(frozen=True)
class Properties:
    """Of D diseases: `values` float32[D, len(NAMES)]; `onset` float32[D, 2], the earliest begin and the latest end of
    the stated onsets in years, `NO_ONSET` where none is stated."""

    values: Floats
    onset: Floats


def properties(graph: Graph, diseases: npt.NDArray[np.integer], edges: npt.NDArray[np.integer]) -> Properties:
    """Of `diseases` (node indices, ascending), from some of their outgoing edges (indices, in any order)."""
    table = _attribute_table(graph)
    relations = graph.columns.relations[edges]
    rows = np.searchsorted(diseases, graph.columns.sources[edges])
    size = len(diseases)
    values = np.zeros((size, len(NAMES)), np.float32)

    phenotype = relations == graph.relation_code(HAS_PHENOTYPE)
    own, codes = rows[phenotype], graph.columns.edge_attributes[edges[phenotype]]
    count = np.bincount(own, minlength=size)
    for column in range(table.facts.shape[1]):
        values[:, column] = np.bincount(own, table.facts[codes, column], size) / np.maximum(count, 1)
    values[:, 5] = np.log1p(count)
    values[:, 6:8] = np.log1p(_count_references(table, own, codes, size))

    inherited = relations == graph.relation_code(INHERITANCE)
    for row, mode in zip(rows[inherited].tolist(), _targets(graph, edges[inherited]), strict=True):
        values[row, 8] = 1
        if mode in MODES:
            values[row, NUM_DOCUMENTATION + MODES[mode]] = 1
    onset = np.full((size, 2), NO_ONSET, np.float32)
    course = relations == graph.relation_code(COURSE)
    for row, term in zip(rows[course].tolist(), _targets(graph, edges[course]), strict=True):
        if term in ONSETS:
            begin, end = ONSETS[term]
            onset[row, 0] = begin if onset[row, 0] == NO_ONSET else min(begin, float(onset[row, 0]))
            onset[row, 1] = max(end, float(onset[row, 1]))
    values[:, 13] = onset[:, 0] != NO_ONSET
    return Properties(values, onset)


def _targets(graph: Graph, edges: npt.NDArray[np.integer]) -> list[str]:
    return [graph.columns.ids[int(target)] for target in graph.columns.targets[edges]]


@dataclass(frozen=True)
class _Attributes:
    """Of C distinct edge attributes: `facts` float32[C, 5] (the first five of NAMES), and a CSR table of references as
    numbers, with `papers` bool by number."""

    facts: Floats
    starts: npt.NDArray[np.int64]
    references: npt.NDArray[np.int64]
    papers: npt.NDArray[np.bool_]


@once_per_graph
def _attribute_table(graph: Graph) -> _Attributes:
    texts = graph.columns.edge_attribute_texts
    facts = np.zeros((len(texts), 5), np.float32)
    numbers: dict[str, int] = {}
    references: list[int] = []
    starts = np.zeros(len(texts) + 1, np.int64)
    for code in range(len(texts)):
        fields = json.loads(texts[code]) if texts[code] else {}
        if fields.get("evidence") in EVIDENCE:
            facts[code, EVIDENCE.index(fields["evidence"])] = 1
        facts[code, 3] = "/" in str(fields.get("frequency_label", ""))
        facts[code, 4] = "frequency" in fields
        references.extend(numbers.setdefault(str(r), len(numbers)) for r in fields.get("references", ()))
        starts[code + 1] = len(references)
    papers = np.array([not name.startswith(CATALOGUES) for name in numbers], bool)
    return _Attributes(facts, starts, np.array(references, np.int64), papers)


def _count_references(
    table: _Attributes, rows: npt.NDArray[np.integer], codes: npt.NDArray[np.integer], size: int
) -> npt.NDArray[np.int64]:
    """How many different references each row has, and how many of these are papers, int64[size, 2]."""
    lengths = table.starts[codes + 1] - table.starts[codes]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    numbers = table.references[np.repeat(table.starts[codes], lengths) + within]
    every = max(len(table.papers), 1)
    row, number = np.divmod(np.unique(np.repeat(rows, lengths) * np.int64(every) + numbers), every)
    return np.stack(
        [np.bincount(row, minlength=size), np.bincount(row[table.papers[number]], minlength=size)], axis=1
    )
