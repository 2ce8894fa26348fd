"""Random ontologies with annotated diseases, of the shape that the Human Phenotype Ontology has."""

from __future__ import annotations

from typing import Any

import numpy as np

from vglm.graph.build import GraphBuilder
from vglm.graph.graph import Graph


def term(number: int) -> str:
    return f"HP:{number:07d}"


def random_hpo(seed: int, terms: int = 80, diseases: int = 40) -> Graph:
    """Terms with one or two parents of lower number; diseases with 1 to 12 annotations of every kind."""
    random = np.random.default_rng(seed)
    builder = GraphBuilder()
    for number in range(terms):
        builder.add_node(term(number), f"finding {number}", "phenotype")
        for parent in {int(p) for p in random.integers(0, number, 2)} if number else ():
            builder.add_edge(term(number), "is a", term(parent))
    for mode in ("HP:0000006", "HP:0000007", "HP:0003577", "HP:0011463"):
        if not builder.has_node(mode):
            builder.add_node(mode, mode, "term")
    for number in range(diseases):
        disease = f"OMIM:{number}"
        builder.add_node(disease, f"{number} disease", "disease")
        count = int(random.integers(1, min(13, terms)))
        for found in random.choice(terms, count, replace=False):
            papers = random.choice(4, int(random.integers(1, 3)), replace=False)
            attributes: dict[str, Any] = {
                "references": [f"PMID:{number}{paper}" for paper in papers],
                "evidence": str(random.choice(["PCS", "TAS", "IEA"])),
            }
            if random.random() < 0.6:
                affected, examined = int(random.integers(1, 4)), int(random.integers(4, 6))
                attributes |= {"frequency": affected / examined, "frequency_label": f"{affected}/{examined}"}
            builder.add_edge(disease, "has phenotype", term(int(found)), attributes)
        builder.add_edge(disease, "has inheritance", str(random.choice(["HP:0000006", "HP:0000007"])))
        builder.add_edge(disease, "has clinical course", str(random.choice(["HP:0003577", "HP:0011463"])))
    return builder.build()
