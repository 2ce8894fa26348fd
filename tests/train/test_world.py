"""Questions about invented worlds have the answers that the edges of their graph give."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from vglm.graph.graph import Graph
from vglm.train.data.asking import NOT_SAID, world_sample
from vglm.train.data.world import HELD_OUT, MOST_EDGES, TRAINED, Relation, random_world
from vglm.train.samples import Sample, Turn


def worlds(count: int, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    return [sample for _ in range(count) if (sample := world_sample(rng)) is not None]


def plain(relation: str) -> str:
    """The words of a relation, in whatever style a graph has them."""
    return re.sub(r"(?<=[a-z])([A-Z])", r" \1", relation).replace("_", " ").lower()


def edges_of(graph: Graph) -> list[tuple[str, str, str]]:
    edges = [graph.edge_at(i) for i in range(graph.num_edges)]
    return [(graph.name_of(e.source), plain(e.relation), graph.name_of(e.target)) for e in edges]


def matches(template: str, question: str) -> dict[str, str] | None:
    pattern = re.escape(template).replace(r"\{s\}", "(?P<s>.+)").replace(r"\{t\}", "(?P<t>.+)")
    found = re.fullmatch(pattern, question)
    return None if found is None else found.groupdict()


def answers(
    turn: Turn, relation: Relation, edges: list[tuple[str, str, str]], names: set[str]
) -> list[set[str]]:
    """What the edges answer, for each way in which the question may be one about an entity and the relation."""
    own = [(s, t) for s, words, t in edges if words == relation.words]
    own += [(t, s) for s, t in own] if relation.symmetric else []
    found = []
    for template in relation.forward:
        if (parts := matches(template, turn.question)) is not None and parts["s"] in names:
            found.append({t for s, t in own if s == parts["s"]})
    for template in relation.backward:
        if (parts := matches(template, turn.question)) is not None and parts["t"] in names:
            found.append({s for s, t in own if t == parts["t"]})
    return found


def test_lists_are_what_the_edges_say() -> None:
    checked: Counter[str] = Counter()
    for sample in worlds(300):
        assert sample.graph is not None
        edges = edges_of(sample.graph)
        names = {sample.graph.name_of(node) for node in sample.graph.columns.ids}
        present = {words for _, words, _ in edges}
        for turn in sample.turns:
            given = set() if turn.answer == NOT_SAID else set(turn.answer.split(", "))
            if not given <= names:  # yes and no, and numbers
                continue
            wanted = [a for r in TRAINED if r.words in present for a in answers(turn, r, edges, names)]
            if wanted:
                assert given in wanted, turn
                checked["said" if given else "not said"] += 1
    assert checked["said"] > 500
    assert checked["not said"] > 50


def test_yes_and_no_are_what_the_edges_say() -> None:
    checked: Counter[str] = Counter()
    for sample in worlds(300, seed=1):
        assert sample.graph is not None
        edges = edges_of(sample.graph)
        for turn in sample.turns:
            if turn.answer not in ("Yes.", "No."):
                continue
            said = [
                (parts["s"], r.words, parts["t"]) in edges
                or (r.symmetric and (parts["t"], r.words, parts["s"]) in edges)
                for r in TRAINED
                if r.words in {words for _, words, _ in edges}
                and (parts := matches(r.so, turn.question)) is not None
            ]
            assert (turn.answer == "Yes.") in said, turn
            checked[turn.answer] += 1
    assert 0.5 < checked["Yes."] / checked["No."] < 2


def test_counts_are_of_what_is_listed() -> None:
    counted = [turn for sample in worlds(200) for turn in sample.turns if re.search(r": \d+$", turn.answer)]
    assert len(counted) > 50
    for turn in counted:
        names, _, number = turn.answer.rpartition(": ")
        assert len(names.split(", ")) == int(number)


def test_worlds_are_small_and_like_each_other_for_a_seed() -> None:
    for seed in range(50):
        one, other = (random_world(random.Random(seed)) for _ in range(2))
        assert one.graph.fingerprint == other.graph.fingerprint
        assert one.graph.num_edges <= MOST_EDGES
        assert len(set(one.names.values())) == len(one.names)


def test_relations_for_tests_are_in_no_lesson() -> None:
    assert len(HELD_OUT) >= 5
    held_out = {relation.words for relation in HELD_OUT}
    for sample in worlds(200, seed=2):
        assert sample.graph is not None
        assert not held_out & {words for _, words, _ in edges_of(sample.graph)}


@pytest.mark.parametrize("relation", [*TRAINED, *HELD_OUT], ids=lambda r: f"{r.source} {r.words}")
def test_every_relation_can_be_asked_about(relation: Relation) -> None:
    assert relation.forward
    assert relation.backward
    assert all("{s}" in words and "{t}" not in words for words in relation.forward)
    assert all("{t}" in words and "{s}" not in words for words in relation.backward)
    assert "{s}" in relation.so
    assert "{t}" in relation.so
    assert relation.source == relation.target or not relation.symmetric
