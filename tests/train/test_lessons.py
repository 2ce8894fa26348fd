"""What lessons say is what their graphs say."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.graph import small_hpo
from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.graph.hpo import load_hpo
from vglm.train.data import reading, shape, stance
from vglm.train.data.suggestion import suggestion_sample
from vglm.train.lessons import BATCH_TOKENS, Lesson, Mixture
from vglm.train.samples import IGNORED, Row, Sample

EDGES = ["a near b", "b near c", "c near d", "a sees d", "e near f", "f sees a", "g near h", "h sees a"]
TOWN = Graph.from_dict(
    {
        "nodes": [{"id": i, "name": f"{i} house", "type": "house", "text": "Old."} for i in "abcdefgh"],
        "edges": [{"source": a, "relation": r, "target": b} for a, r, b in map(str.split, EDGES)],
    }
)


@pytest.mark.parametrize("seed", range(40))
def test_reading_lessons_name_what_is_in_their_part(seed: int) -> None:
    sample = reading.reading_sample(TOWN, random.Random(seed))
    assert sample is not None
    assert sample.graph is not None
    names = set(sample.graph.columns.names)
    for turn in sample.turns:
        assert turn.answer
        if sample.kind == "completion":
            assert turn.answer in names
        elif turn.question.startswith(("Does the graph say", "Is this an edge")):
            edges = {
                (e.source, e.relation, e.target)
                for e in map(sample.graph.edge_at, range(sample.graph.num_edges))
            }
            said = {f"{a} house {r} {b} house" for a, r, b in edges} | {
                f"{a} house, {r}, {b} house" for a, r, b in edges
            }
            true = any(f" {one}?" in turn.question for one in said)
            assert turn.answer == ("Yes." if true else "No.")


def test_a_part_of_one_node_has_no_two_ends_to_join() -> None:
    loop = Graph.from_dict(
        {"nodes": [{"id": "a", "name": "a"}], "edges": [{"source": "a", "relation": "likes", "target": "a"}]}
    )
    samples = [reading.reading_sample(loop, random.Random(seed)) for seed in range(20)]
    assert any(sample is not None for sample in samples)


def test_a_completion_lesson_hides_its_edge() -> None:
    for seed in range(200):
        sample = reading.reading_sample(TOWN, random.Random(seed))
        if sample is not None and sample.kind == "completion":
            assert sample.graph is not None
            (turn,) = sample.turns
            open_end = turn.question.split("(")[1].split(")")[0].split(", ")
            edges = {
                (e.source, e.relation, e.target)
                for e in map(sample.graph.edge_at, range(sample.graph.num_edges))
            }
            filled = tuple((turn.answer if part == "?" else part).replace(" house", "") for part in open_end)
            assert filled not in edges
            return
    pytest.fail("no completion lesson in 200 draws")


@pytest.mark.parametrize("seed", range(20))
def test_random_shapes_are_said_right(seed: int) -> None:
    sample = shape.random_sample(random.Random(seed))
    assert sample.graph is not None
    for turn in sample.turns:
        if "cycle" in turn.question:
            assert turn.answer.startswith("Yes") == shape.structure(sample.graph).has_cycle


def test_nlgraph_is_read(tmp_path: Path) -> None:
    intro = "(i,j) means that they are linked.\nThe nodes are numbered from 0 to 4, and the edges are: "
    asked = {
        f"{intro}(1,0) (2,1)\nQ: Is there a cycle in this graph?\nA:": "No, there is no cycle in this graph.",
        "Graph: (0,1) (3,1)\nQ: Is there a path between node 0 and node 7?\nA:": "The answer is no.",
        "Graph: (0,1)\nQ: Is there a path between node 0 and node 1?\nA:": "The answer is yes.",
    }
    cases = {
        str(i): {"question": question, "answer": answer, "difficulty": "easy"}
        for i, (question, answer) in enumerate(asked.items())
    }
    (tmp_path / "train.json").write_text(json.dumps(cases))
    found = shape.read_nlgraph(tmp_path / "train.json")
    assert [case.answer for case in found] == [False, False, True]
    assert [case.graph.num_nodes for case in found] == [5, 4, 2]
    assert [case.graph.num_edges for case in found] == [2, 2, 1]


def test_a_case_without_a_question_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(
        json.dumps({"7": {"question": "?", "answer": "no", "difficulty": "easy"}})
    )
    with pytest.raises(GraphError, match="case 7"):
        shape.read_nlgraph(tmp_path / "train.json")


def test_explagraphs_is_read(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("Cats are good.\tCats purr.\tsupport\t(cats; capable of; purr)(purr; is a; good thing)\n")
    (case,) = stance.read_stances(path)
    assert case.label == "support"
    assert case.graph.num_edges == 2
    sample = stance.stance_sample(case, random.Random(0))
    assert sample.turns[0].answer == "support"
    assert "Cats purr." in sample.turns[0].question


def test_a_bad_line_of_explagraphs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("a\tb\tmaybe\t(a; b; c)\n")
    with pytest.raises(GraphError, match="line 1"):
        stance.read_stances(path)


def test_beliefs_of_the_test_are_not_trained_on() -> None:
    graph = Graph.from_dict({"nodes": [{"id": "a"}], "edges": []})
    cases = [stance.Stance(f"belief {i % 50}", f"argument {i}", "support", graph) for i in range(500)]
    held = {case.belief for case in cases if stance.is_held_out(case)}
    trained = {case.belief for case in cases if not stance.is_held_out(case)}
    assert held
    assert not held & trained


def test_an_explanation_names_only_what_the_candidate_has(tmp_path: Path) -> None:
    hpo = load_hpo(small_hpo.write(tmp_path), tmp_path)
    made = 0
    for seed in range(60):
        sample = suggestion_sample(hpo.ranker, random.Random(seed))
        if sample is None:
            continue
        made += 1
        assert sample.graph is not None
        (turn,) = sample.turns
        names = set(sample.graph.columns.names)
        for part in turn.answer.split("[")[1:]:
            assert part.split("]")[0] in names
        for frequency in (word.strip("().,") for word in turn.answer.split() if "/" in word):
            labels = [
                str(sample.graph.edge_at(e).attributes.get("frequency_label"))
                for e in range(sample.graph.num_edges)
            ]
            assert frequency in labels
    assert made > 10


def test_modes_that_left_out_different_turns_are_drawn_again() -> None:
    def row(answers: list[int]) -> Row:
        targets = np.array([IGNORED, *answers])
        return Row("reading", targets, targets, targets, np.eye(len(targets), dtype=np.bool_), 2)

    class Writer:
        def row(self, sample: Sample, mode: str, max_tokens: int) -> Row:
            other = sample.kind == "differs" and mode == "sequential"
            return row([5, 7] if other else [5, 6])

    kinds = iter(["differs", "same"])
    lesson = Lesson("reading", 1.0, BATCH_TOKENS, lambda rng: Sample(next(kinds), ()))
    _, batches = Mixture([lesson], Writer()).batch(0, ("spans", "sequential"))  # type: ignore[arg-type]
    assert torch.equal(batches["spans"].targets, batches["sequential"].targets)
    assert next(kinds, None) is None
