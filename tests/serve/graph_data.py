"""A small graph for requests, and the bodies that are asked with it."""

from __future__ import annotations

import itertools
import random
from typing import Any

NODES: list[dict[str, Any]] = [
    {"id": "d1", "name": "Marfan syndrome", "type": "disease", "text": "A disorder of connective tissue."},
    {"id": "d2", "name": "Down syndrome", "type": "disease", "text": "Trisomy 21."},
    {"id": "d3", "name": "Cystic fibrosis", "type": "disease"},
    {"id": "p1", "name": "Tall stature", "type": "phenotype"},
    {"id": "p2", "name": "Ectopia lentis", "type": "phenotype", "aliases": ["Dislocated lens"]},
    {"id": "p3", "name": "Intellectual disability", "type": "phenotype"},
    {"id": "p4", "name": "Bronchiectasis", "type": "phenotype"},
    {"id": "g1", "name": "FBN1", "type": "gene"},
]
EDGES: list[dict[str, Any]] = [
    {"source": "d1", "relation": "has phenotype", "target": "p1"},
    {"source": "d1", "relation": "has phenotype", "target": "p2", "frequency": 0.6},
    {"source": "d2", "relation": "has phenotype", "target": "p3"},
    {"source": "d3", "relation": "has phenotype", "target": "p4"},
    {"source": "g1", "relation": "causes", "target": "d1"},
]
GRAPH: dict[str, Any] = {"nodes": NODES, "edges": EDGES}
QUESTION = "Which disease explains Tall stature and Ectopia lentis?"
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": 24,
    "temperature": 0,
}
_numbers = itertools.count()


def shuffled(graph: dict[str, Any], seed: int) -> dict[str, Any]:
    """The same graph, written down in another order."""
    order = random.Random(seed)
    nodes, edges = list(graph["nodes"]), list(graph["edges"])
    order.shuffle(nodes)
    order.shuffle(edges)
    return {"edges": edges, "nodes": nodes}


def new_name() -> str:
    """A name that no other test has used."""
    return f"graph-{next(_numbers)}"


def synthetic(nodes: int, seed: int = 0) -> dict[str, Any]:
    """A graph of people who know each other."""
    order = random.Random(seed)
    people = [{"id": f"n{i}", "name": f"Person {i}", "type": "person"} for i in range(nodes)]
    pairs = [(order.randrange(nodes), order.randrange(nodes)) for _ in range(2 * nodes)]
    return {
        "nodes": people,
        "edges": [{"source": f"n{a}", "relation": "knows", "target": f"n{b}"} for a, b in pairs],
    }
