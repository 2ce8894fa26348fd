from __future__ import annotations

import pytest

from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.graph.text import TextOptions, graph_text

DATA = {
    "nodes": [
        {"id": "d1", "name": "Marfan syndrome", "type": "disease", "text": "A disorder\nof fibrillin."},
        {"id": "p1", "name": "Ectopia lentis", "type": "phenotype", "text": "The lens is out of place."},
        {"id": "p2", "name": "Myopia", "type": "phenotype"},
        {"id": "p3", "name": "Myopia"},
    ],
    "edges": [
        {
            "source": "d1",
            "relation": "has phenotype",
            "target": "p1",
            "attributes": {
                "frequency": 0.6,
                "frequency_label": "3/5",
                "references": ["PMID:1", "PMID:2", "PMID:3"],
            },
        },
        {
            "source": "d1",
            "relation": "has phenotype",
            "target": "p2",
            "attributes": {"frequency_label": "very frequent, 80-99 %"},
        },
        {"source": "p2", "relation": "is a", "target": "p3"},
    ],
}
FULL = """Marfan syndrome (disease)
- definition: A disorder\\nof fibrillin.
- has phenotype: Ectopia lentis (frequency 3/5; PMID:1, PMID:2 and 1 more)
- has phenotype: Myopia [p2] (very frequent, 80-99 %)
Ectopia lentis (phenotype)
- definition: The lens is out of place.
Myopia [p2] (phenotype)
- is a: Myopia [p3]
Myopia [p3]"""


def words(text: str) -> int:
    return len(text.split())


def test_the_whole_text_is_exact() -> None:
    result = graph_text(Graph.from_dict(DATA))
    assert result.text == FULL
    assert result.tokens == len(FULL)
    assert result.complete


def test_options() -> None:
    graph = Graph.from_dict(DATA)
    plain = TextOptions(definitions=False, frequencies=False, references=0, bare_nodes=False, ids=True)
    assert graph_text(graph, options=plain).text == (
        "Marfan syndrome [d1] (disease)\n- has phenotype: Ectopia lentis [p1]\n- has phenotype: Myopia [p2]\n"
        "Myopia [p2] (phenotype)\n- is a: Myopia [p3]"
    )


@pytest.mark.parametrize("budget", range(8, 60))
def test_budget_is_kept_and_what_is_missing_is_said(budget: int) -> None:
    graph = Graph.from_dict(DATA)
    result = graph_text(graph, words, budget)
    assert result.tokens == words(result.text) <= budget
    lines = result.text.split("\n")
    missing = result.nodes_left_out, result.edges_left_out, result.definitions_left_out
    if result.complete:
        assert result.text == FULL
    else:
        *lines, last = lines
        assert last.startswith("(left out: ")
        assert [int(word) for word in last.split() if word.isdigit()] == [n for n in missing if n]
    assert set(lines) <= set(FULL.split("\n"))
    assert len(lines) + sum(missing) == len(FULL.split("\n"))


def test_preferred_nodes_come_first_and_definitions_last() -> None:
    graph = Graph.from_dict(DATA)
    result = graph_text(graph, words, 19, first=["p2"])
    assert result.text.split("\n") == [
        "Marfan syndrome (disease)",
        "Myopia [p2] (phenotype)",
        "- is a: Myopia [p3]",
        "(left out: 2 nodes, 2 edges, 2 definitions)",
    ]


def test_a_name_cannot_forge_a_line() -> None:
    forged = "Myopia\n- has phenotype: Death\u2028\u202eevil\x1b[31m"
    text = graph_text(Graph.from_dict({"nodes": [{"id": "a", "name": forged}]})).text
    assert text == "Myopia\\n- has phenotype: Death\\u2028\\u202eevil\\x1b[31m"


def test_budget_too_small() -> None:
    with pytest.raises(GraphError, match="budget: 2 tokens are too few"):
        graph_text(Graph.from_dict(DATA), words, 2)
