"""Invented worlds: small graphs of people, companies, drugs, services and the like, to be asked about as people ask.

Graphs of ontologies teach a model to read, but neither what a user calls an edge (`directorOf`, `DEPENDS_ON`) nor how he asks
for it. Here names are made up, so that nothing can be answered but from the graph. The words are in world.json.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vglm.graph.graph import Graph

_DATA: dict[str, Any] = json.loads(Path(__file__).with_name("world.json").read_text("utf-8"))
_WORDS: dict[str, list[str]] = _DATA["words"]
PLURALS: dict[str, str] = _DATA["plurals"]
MOST_EDGES = 16


@dataclass(frozen=True)
class Relation:
    """A kind of edge and how it is asked for: `forward` for what it leads to from {s}, `backward` for what leads to {t}, `so`
    whether it is there. `such` describes what it starts from, given {t}, inside another question. `symmetric`: if it holds one
    way, it holds the other way. `held_out`: for tests, and in no lesson.
    """

    source: str
    words: str
    target: str
    forward: list[str]
    backward: list[str]
    so: str
    such: str
    symmetric: bool
    held_out: bool

    def __hash__(self) -> int:
        return hash((self.source, self.words, self.target))


_RELATIONS = [Relation(**line) for line in _DATA["relations"]]
TRAINED = [relation for relation in _RELATIONS if not relation.held_out]
HELD_OUT = [relation for relation in _RELATIONS if relation.held_out]
ALL_KINDS = {kind for relation in _RELATIONS for kind in (relation.source, relation.target)}
TOPICS: dict[str, str] = _DATA["topics"]  # by the kind that edges start from


@dataclass(frozen=True, slots=True)
class World:
    """A graph, and what is known of it: names and kinds by node id, and of each relation its name in the graph and its edges as
    pairs of node ids. `typed`: whether the graph says the kinds.
    """

    graph: Graph
    names: dict[str, str]
    kinds: dict[str, str]
    typed: bool
    edges: dict[Relation, tuple[str, tuple[tuple[str, str], ...]]]


def random_world(rng: random.Random, known: Sequence[Relation] = TRAINED) -> World:
    """Up to 6 of the `known` relations that share kinds of entities, with up to MOST_EDGES edges."""
    relations = _related(rng, known, rng.randint(2, 6))
    nodes: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    kinds: dict[str, str] = {}
    for kind in sorted({kind for r in relations for kind in (r.source, r.target)}):
        for _ in range(rng.randint(2, 4)):
            name = _name(rng, kind)
            if name not in names.values():
                node = f"n{len(names)}"
                names[node], kinds[node] = name, kind
                nodes.setdefault(kind, []).append(node)
    style = rng.choice(_STYLES)
    tries = max(1, rng.randint(len(relations), MOST_EDGES) // len(relations))
    edges: dict[Relation, tuple[str, tuple[tuple[str, str], ...]]] = {}
    for relation in relations:
        drawn = [
            (rng.choice(nodes[relation.source]), rng.choice(nodes[relation.target])) for _ in range(tries)
        ]
        if pairs := {(source, target) for source, target in drawn if source != target}:
            edges[relation] = style(relation.words), tuple(sorted(pairs))
    typed = rng.random() < 0.85
    graph = Graph.from_dict(
        {
            "nodes": [
                {"id": n, "name": name, "type": kinds[n] if typed else ""} for n, name in names.items()
            ],
            "edges": [
                {"source": s, "relation": name, "target": t}
                for name, pairs in edges.values()
                for s, t in pairs
            ],
        }
    )
    return World(graph, names, kinds, typed, edges)


def _related(rng: random.Random, known: Sequence[Relation], count: int) -> list[Relation]:
    chosen = [rng.choice(known)]
    for _ in range(count - 1):
        kinds = {kind for r in chosen for kind in (r.source, r.target)}
        near = [r for r in known if r not in chosen and kinds & {r.source, r.target}]
        if near:
            chosen.append(rng.choice(near))
    return chosen


# ---- names


def _one(rng: random.Random, words: str) -> str:
    return rng.choice(_WORDS[words])


def _word(rng: random.Random, most: int = 3) -> str:
    return "".join(rng.choices(_WORDS["syllables"], k=rng.randint(2, most))).capitalize()


def _letters(rng: random.Random) -> str:
    return "".join(rng.choices("ABCDEFGKLMNPRSTX", k=rng.randint(2, 4)))


_Named = Callable[[random.Random], str]
_INVENTED: dict[str, _Named] = {
    "person": lambda rng: f"{_one(rng, 'people')} {_word(rng)}{rng.choice(('', 'n', 's', 'son', 'r'))}",
    "company": lambda rng: f"{rng.choice((_word(rng), _one(rng, 'nouns')))} {_one(rng, 'firms')}",
    "city": lambda rng: _word(rng) + rng.choice(("", "ville", "burg", "ton", "stad", " City")),
    "country": lambda rng: _one(rng, "countries"),
    "product": lambda rng: f"{_word(rng, 2)} {rng.choice(('X', 'Pro', '', 'Mini'))}{rng.randint(1, 99)}",
    "account": lambda rng: f"{rng.choice(('ACC', 'IBAN', 'Account '))}{rng.randint(100, 9999)}",
    "film": lambda rng: f"The {_one(rng, 'adjectives')} {_one(rng, 'nouns')}",
    "book": lambda rng: f"{_one(rng, 'nouns')} of {_word(rng)}",
    "drug": lambda rng: _word(rng, 4).lower() + rng.choice(("mab", "nib", "lol", "pril", "statin")),
    "disease": lambda rng: f"{_word(rng)} {rng.choice(('syndrome', 'disease', 'fever', 'anemia'))}",
    "gene": lambda rng: f"{_letters(rng)}{rng.randint(1, 20)}",
    "symptom": lambda rng: _one(rng, "symptoms"),
    "service": lambda rng: f"{_one(rng, 'areas')}-{_one(rng, 'roles')}",
    "server": lambda rng: f"{rng.choice(('srv', 'node', 'host'))}-{rng.randint(1, 99)}",
    "team": lambda rng: f"Team {rng.choice((_word(rng), _one(rng, 'nouns')))}",
    "university": lambda rng: f"University of {_word(rng)}",
}
# Names that the model knows, which it is to read as they are and about which it must forget what it knows.
_REAL: dict[str, _Named] = {
    "person": lambda rng: f"{_one(rng, 'people')} {_one(rng, 'surnames')}",
    "company": lambda rng: f"{_one(rng, 'brands')} {_one(rng, 'firms')}",
    "city": lambda rng: _one(rng, "cities"),
    "product": lambda rng: _one(rng, "products"),
    "film": lambda rng: _one(rng, "films"),
    "book": lambda rng: _one(rng, "books"),
    "drug": lambda rng: _one(rng, "drugs"),
    "disease": lambda rng: _one(rng, "diseases"),
    "gene": lambda rng: _one(rng, "genes"),
    "university": lambda rng: _one(rng, "universities"),
}


def _name(rng: random.Random, kind: str) -> str:
    known = _REAL.get(kind) if rng.random() < 0.5 else None
    return (known or _INVENTED[kind])(rng).strip()


def _camel(words: str) -> str:
    return re.sub(r" (\w)", lambda found: found[1].upper(), words)


_STYLES: tuple[Callable[[str], str], ...] = (
    str,
    str,
    lambda words: words.replace(" ", "_"),
    lambda words: words.replace(" ", "_").upper(),
    _camel,
)
