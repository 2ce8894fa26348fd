"""A small graph of diseases and phenotypes, and a tiny model that says that it was trained for spans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.integration.helpers import tiny_model
from vglm import LLM, Graph
from vglm.model.bundle import write_card
from vglm.model.graph_card import GraphCard

PHENOTYPES = {
    "p0": ("Phenotypic abnormality", ()),
    "p1": ("Abnormality of the eye", ("p0",)),
    "p2": ("Ectopia lentis", ("p1",)),
    "p3": ("Myopia", ("p1",)),
    "p4": ("High myopia", ("p3",)),
    "p5": ("Abnormality of the skeleton", ("p0",)),
    "p6": ("Scoliosis", ("p5",)),
    "p7": ("Tall stature", ("p5",)),
    "p8": ("Deafness", ("p0",)),
    "p9": ("Seizure", ("p0",)),
}
DISEASES: dict[str, tuple[str, dict[str, str | None]]] = {
    "d1": ("Marfan syndrome", {"p2": "6/10", "p3": "9/10", "p6": None, "p7": "10/10"}),
    "d2": ("Stickler syndrome", {"p4": "4/5", "p8": "3/5"}),
    "d3": ("Epilepsy", {"p9": "10/10"}),
    "d4": ("Homocystinuria", {"p2": "9/10", "p9": "2/10"}),
    "d5": ("Waardenburg syndrome", {"p8": "8/10"}),
    "d6": ("Rett syndrome", {"p9": "8/10"}),
    "d7": ("Usher syndrome", {"p8": "10/10"}),
}


def clinic() -> Graph:
    """Some diseases with phenotypes and their frequencies, and a hierarchy of phenotypes."""
    nodes: list[dict[str, Any]] = [
        {"id": i, "name": name, "type": "phenotype", "aliases": ["Dislocated lens"] if i == "p2" else []}
        for i, (name, _) in PHENOTYPES.items()
    ]
    nodes += [{"id": i, "name": name, "type": "disease"} for i, (name, _) in DISEASES.items()]
    edges: list[dict[str, Any]] = [
        {"source": i, "relation": "is a", "target": parent}
        for i, (_, parents) in PHENOTYPES.items()
        for parent in parents
    ]
    for disease, (_, phenotypes) in DISEASES.items():
        for phenotype, label in phenotypes.items():
            attributes: dict[str, Any] = {"references": ["PMID:1"]}
            if label is not None:
                n, m = map(int, label.split("/"))
                attributes |= {"frequency": n / m, "frequency_label": label}
            edge = {"source": disease, "relation": "has phenotype", "target": phenotype}
            edges.append({**edge, "attributes": attributes})
    return Graph.from_dict({"nodes": nodes, "edges": edges})


def trained(folder: Path) -> LLM:
    """A tiny model whose card says that it reads spans; what it writes means nothing."""
    base, path = tiny_model(folder), folder / "trained"
    path.mkdir()
    write_card(path, name="trained", version="1", base_model=str(base), graph=GraphCard(spans=True))
    return LLM(path, kv_cache_memory="32M", max_model_len=2048)
