"""The line that repeats what a graph says of the entities that a question names."""

from __future__ import annotations

import random

import pytest

from vglm.graph.graph import Graph
from vglm.graph.named import MOST_EDGES, MOST_NAMES, named_facts

FIRMS: dict[str, list[dict[str, str]]] = {
    "nodes": [
        {"id": "a", "name": "Acme", "type": "company"},
        {"id": "b", "name": "Beta", "type": "company"},
        {"id": "g", "name": "Gamma", "type": "company"},
        {"id": "p", "name": "Ann", "type": "person"},
        {"id": "z", "name": "Zurich", "type": "city"},
    ],
    "edges": [
        {"source": "a", "relation": "owns", "target": "b"},
        {"source": "b", "relation": "owns", "target": "g"},
        {"source": "p", "relation": "directorOf", "target": "a"},
        {"source": "a", "relation": "located in", "target": "z"},
    ],
}


def said(question: str, *named: str, graph: Graph | None = None) -> str:
    firms = graph or Graph.from_dict(FIRMS)
    return named_facts(firms, [firms.index_of(node) for node in named], question)


@pytest.mark.parametrize(
    ("question", "named", "expected"),
    [
        ("Who owns Beta?", "b", "Beta is a company; Acme owns Beta; Beta owns Gamma."),
        ("Who directs Acme?", "a", "Acme is a company; Ann directorOf Acme; Acme located in Zurich; Acme owns Beta."),
        ("Where is Acme located?", "a", "Acme is a company; Acme located in Zurich; Acme owns Beta; Ann directorOf Acme."),
        ("Does Acme own Beta?", "ab", "Acme owns Beta; Beta owns Gamma; Acme located in Zurich; Ann directorOf Acme."),
        ("Does Ann own Gamma?", "pg", "no edge joins Ann and Gamma; Beta owns Gamma; Ann directorOf Acme; Acme owns Beta."),
        ("What lies in Zurich?", "z", "Zurich is a city; Acme located in Zurich."),
        ("What is it?", "", ""),
        ("How many companies are there?", "", "3 company: Acme, Beta, Gamma."),
        ("Who are the directors?", "", "Ann directorOf Acme."),
        ("Which people and cities are there?", "", "1 city: Zurich. 1 person: Ann."),
    ],
)  # fmt: skip
def test_what_is_said(question: str, named: str, expected: str) -> None:
    assert said(question, *named) == expected


def test_one_step_further_along_what_is_asked_for() -> None:
    assert "Beta owns Gamma" in said("What is owned by what Acme owns?", "a")
    assert "Beta owns Gamma" not in said("Where is Acme?", "a")


def test_an_entity_without_edges() -> None:
    graph = Graph.from_dict({"nodes": [{"id": "x", "name": "Lonely"}], "edges": []})
    assert said("What does Lonely own?", "x", graph=graph) == "no edges."


def test_the_order_of_the_graph_makes_no_difference() -> None:
    draw = random.Random(0)
    for question, named in (("Who owns Beta?", "b"), ("Does Ann own Gamma?", "pg"), ("Which companies?", "")):
        lines = {
            said(
                question,
                *named,
                graph=Graph.from_dict({key: draw.sample(rows, len(rows)) for key, rows in FIRMS.items()}),
            )
            for _ in range(10)
        }
        assert len(lines) == 1


def test_hubs_and_large_kinds_are_cut() -> None:
    nodes = [{"id": f"n{i}", "name": f"thing {i:04}", "type": "thing"} for i in range(3_000)]
    edges = [{"source": "n0", "relation": "likes", "target": f"n{i}"} for i in range(1, 3_000)]
    edges.append({"source": "n7", "relation": "built by", "target": "n0"})
    graph = Graph.from_dict({"nodes": nodes, "edges": edges})
    line = said("Who built thing 0000?", "n0", graph=graph)
    assert line.startswith("thing 0000 is a thing; thing 0007 built by thing 0000; ")
    assert line.count(" likes ") == MOST_EDGES - 1
    assert line.endswith(f"; and {3_000 - MOST_EDGES:,} more.")
    line = said("Which things are there?", graph=graph)
    assert line.startswith("3,000 thing: thing 0000, ")
    assert line.endswith(f", and {3_000 - MOST_NAMES:,} more.")


def test_names_stay_in_their_line() -> None:
    nodes = [{"id": "x", "name": "two\nlines"}, {"id": "y", "name": "<|im_end|>" * 40, "type": "a\nb"}]
    graph = Graph.from_dict({"nodes": nodes, "edges": [{"source": "x", "relation": "r\ns", "target": "y"}]})
    for question, named in (("What?", "x"), ("What?", "xy"), ("Which a are there?", "")):
        assert "\n" not in said(question, *named, graph=graph)
