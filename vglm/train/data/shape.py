"""Questions about the shape of graphs: NLGraph (Wang et al., 2023), and any number of random graphs like it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.graph.structure import distance, structure
from vglm.train.samples import Sample, Turn

HELD_OUT = 10  # one question in ten is for the test
PATH_QUESTION = "Is there a path between node {} and node {}?"
CYCLE_QUESTION = "Is there a cycle in this graph?"
_PAIR = re.compile(r"\((\d+),\s*(\d+)\)")
_LAST = re.compile(r"Q:\s*(.+?)\s*A:\s*$", re.DOTALL)
_RANGE = re.compile(r"numbered from (\d+) to (\d+)")
_WORD = re.compile(r"[a-z]+")
_NUMBER = re.compile(r"node (\d+)")


@dataclass(frozen=True, slots=True)
class ShapeCase:
    """One question of NLGraph about a graph: `answer` is whether it is so."""

    graph: Graph
    question: str
    answer: bool
    difficulty: str
    key: str


def read_nlgraph(path: Path) -> list[ShapeCase]:
    """The cases of NLGraph's connectivity or cycle task, JSON by number. Raises GraphError that names the case."""
    cases: list[ShapeCase] = []
    for number, case in json.loads(path.read_text("utf-8")).items():
        found = _LAST.search(case["question"])
        if found is None:
            raise GraphError(f"{path}, case {number}: no question after 'Q:'")
        before = case["question"][: found.start()]
        pairs = [(int(a), int(b)) for a, b in _PAIR.findall(before.replace("(i,j)", ""))]
        span = _RANGE.search(before)
        named = [int(node) for node in _NUMBER.findall(found[1])]
        nodes = {*named, *(node for pair in pairs for node in pair)}
        if span is not None:
            nodes |= set(range(int(span[1]), int(span[2]) + 1))
        answer = "yes" in _WORD.findall(case["answer"].lower())
        key = f"{path.parent.name}:{number}"
        graph = shape_graph(nodes, pairs)
        cases.append(ShapeCase(graph, found[1], answer, case["difficulty"], key))
    return cases


def is_held_out(case: ShapeCase) -> bool:
    """Whether a case is for the test."""
    return int.from_bytes(blake2b(case.key.encode(), digest_size=4).digest(), "little") % HELD_OUT == 0


def shape_graph(nodes: Iterable[int], pairs: Iterable[tuple[int, int]]) -> Graph:
    """A graph of numbered nodes, "node 0", ..., and undirected edges."""
    return Graph.from_dict(
        {
            "nodes": [{"id": str(node), "name": f"node {node}"} for node in sorted(nodes)],
            "edges": [
                {"source": str(min(pair)), "relation": "linked to", "target": str(max(pair))}
                for pair in dict.fromkeys(pairs)
            ],
        }
    )


def case_sample(case: ShapeCase) -> Sample:
    """A case to learn from."""
    return Sample("shape", (Turn(case.question, _yes(case.answer, case.question)),), case.graph)


def random_sample(rng: random.Random, max_nodes: int = 18) -> Sample:
    """A random graph and questions about its shape, as many with yes as with no."""
    count = rng.randint(3, max_nodes)
    pairs = _forest(count, rng) if rng.random() < 0.5 else _random_pairs(count, rng)
    graph = shape_graph(range(count), pairs)
    shape = structure(graph)
    turns = [_turn(rng.choice((CYCLE_QUESTION, "Does the graph have a cycle?")), shape.has_cycle)]
    for _ in range(4):
        a, b = rng.sample(range(count), 2)
        together = int(shape.part[graph.index_of(str(a))]) == int(shape.part[graph.index_of(str(b))])
        words = rng.choice(
            (PATH_QUESTION, "Are node {} and node {} connected?", "Can node {} be reached from node {}?")
        )
        turns.append(_turn(words.format(a, b), together))
    a, b = rng.sample(range(count), 2)
    steps = distance(graph, graph.index_of(str(a)), graph.index_of(str(b)))
    asked = f"How long is the shortest path between node {a} and node {b}?"
    turns.append(Turn(asked, f"{steps} steps." if steps >= 0 else "There is no path."))
    turns.append(Turn("How many connected parts does the graph have?", f"{shape.num_parts}."))
    rng.shuffle(turns)
    return Sample("shape", tuple(turns), graph)


def _forest(count: int, rng: random.Random) -> list[tuple[int, int]]:
    return [(rng.randrange(node), node) for node in range(1, count) if rng.random() < 0.8]


def _random_pairs(count: int, rng: random.Random) -> list[tuple[int, int]]:
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    return rng.sample(pairs, min(len(pairs), rng.randint(1, 2 * count)))


def _turn(question: str, answer: bool) -> Turn:
    return Turn(question, _yes(answer, question))


def _yes(answer: bool, question: str) -> str:
    what = "a cycle" if "cycle" in question else "a path"
    if answer:
        return f"Yes, there is {what}."
    return f"No, there is no {what.removeprefix('a ')}."
