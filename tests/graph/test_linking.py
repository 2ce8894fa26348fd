"""Entities in questions: names as they stand, aliases, ids, misspelt names, and questions that mean harm."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph.strategies import graphs
from vglm.errors import GraphError
from vglm.graph import exact_names, fuzzy, linking
from vglm.graph.closest import closest, known_nodes
from vglm.graph.derived import once_per_graph
from vglm.graph.graph import Graph
from vglm.graph.linking import Mention, link, linker, shared_index
from vglm.graph.name_index import KEY_WORDS, NameIndex
from vglm.graph.records import shared_names_of
from vglm.graph.words import question_words, similarity, words

NODES: list[dict[str, Any]] = [
    {"id": "d1", "name": "Marfan syndrome", "type": "disease", "aliases": ["MFS", "Marfan disease"]},
    {"id": "d2", "name": "Syndrome", "type": "disease"},
    {"id": "d3", "name": "Marfan syndrome type 2", "type": "disease"},
    {"id": "p1", "name": "Ectopia lentis", "type": "phenotype", "aliases": ["Dislocated lens"]},
    {"id": "p2", "name": "Tall stature", "type": "phenotype"},
    {"id": "g1", "name": "MFS", "type": "gene"},
    {"id": "g2", "name": "WAS", "type": "gene"},
    {"id": "HP:0001083", "name": "T-cell lymphopenia", "type": "phenotype"},
    {"id": "s1", "name": "Straße", "type": "place"},
    {"id": "z1", "name": "糖尿病", "type": "disease", "aliases": ["消渴病"]},
    {"id": "e1", "name": "∑∆", "type": "symbol"},
    {"id": "c1", "name": "C++", "type": "language"},
    {"id": "k1", "name": "bell\x07 ringing\u202e", "type": "sound"},
]
GRAPH = Graph.from_dict({"nodes": NODES, "edges": [{"source": "g1", "relation": "causes", "target": "d1"}]})


def named(*names: str) -> Graph:
    return Graph.from_dict({"nodes": [{"id": f"n{i:05}", "name": name} for i, name in enumerate(names)]})


def found(question: str, graph: Graph = GRAPH, **options: Any) -> list[tuple[str, str, str]]:
    """Of each mention: its text, and the best entity and how it was found."""
    mentions = link(graph, question, **options)
    for mention in mentions:
        assert question[mention.start : mention.end] == mention.text
        assert mention.total >= len(mention.entities) > 0
        scores = [entity.score for entity in mention.entities]
        assert scores == sorted(scores, reverse=True)
        assert all(0 < score <= 1 for score in scores)
    return [(mention.text, mention.best.id, mention.best.method) for mention in mentions]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is Marfan syndrome?", [("Marfan syndrome", "d1", "exact")]),
        ("what is MARFAN  SYNDROME", [("MARFAN  SYNDROME", "d1", "exact")]),
        ("Is Marfan syndrome type 2 rare?", [("Marfan syndrome type 2", "d3", "exact")]),
        ("Marfan syndrome's course", [("Marfan syndrome", "d1", "exact")]),
        (
            "a dislocated lens, tall stature",
            [("dislocated lens", "p1", "alias"), ("tall stature", "p2", "exact")],
        ),
        ("T cell lymphopenia", [("T cell lymphopenia", "HP:0001083", "exact")]),
        ("what of HP:0001083?", [("HP:0001083", "HP:0001083", "id")]),
        ("Who was it?", []),
        ("Is WAS a gene?", [("WAS", "g2", "exact")]),
        ("in der STRASSE", [("STRASSE", "s1", "exact")]),
        ("他有糖尿病吗", [("糖尿病", "z1", "exact")]),
        ("消渴病是什么", [("消渴病", "z1", "alias")]),
        ("what does ∑∆ mean", [("∑∆", "e1", "exact")]),
        ("bell ringing", [("bell ringing", "k1", "exact")]),
        ("What is Marfan syndrom?", [("Marfan syndrom", "d1", "fuzzy")]),
        ("children with tall statures", [("tall statures", "p2", "fuzzy")]),
        ("lentis ectopia", [("lentis ectopia", "p1", "fuzzy")]),
        ("ectpoia lentis", [("ectpoia lentis", "p1", "fuzzy")]),
        ("Nothing of that kind", []),
        ("", []),
        ("\x00\ud800 \u202e", []),
    ],
)
def test_names_in_questions(question: str, expected: list[tuple[str, str, str]]) -> None:
    assert found(question) == expected


def test_which_of_several_namesakes() -> None:
    assert found("MFS") == [("MFS", "g1", "exact")]  # the name before the alias
    assert [entity.id for entity in link(GRAPH, "MFS")[0].entities] == ["g1", "d1"]
    edges = [{"source": f"m{i}", "relation": "r", "target": "m2"} for i in (0, 1)]
    nodes = [
        {"id": f"m{i}", "name": name, "type": kind}
        for i, (name, kind) in enumerate([("Mercury", "planet"), ("mercury", "element"), ("Mercury", "god")])
    ]
    graph = Graph.from_dict({"nodes": nodes, "edges": edges})
    assert found("Mercury", graph)[0][1] == "m2"  # most edges
    assert found("mercury", graph)[0][1] == "m1"  # written just so
    assert found("the planet Mercury", graph)[0][1] == "m0"  # its type is said
    assert found("Mercury", graph, types=["planet"])[0][1] == "m0"
    assert found("Which planet is Mercury?", graph)[0][1] == "m2"  # what is asked for, not what is named
    (mention,) = link(graph, "Mercury", limit=1)
    assert (len(mention.entities), mention.total) == (1, 3)


@pytest.mark.parametrize("misspelt", ["brast", "breastt", "braest", "berast", "bresst", "rbeast", "Breasts"])
def test_every_kind_of_slip(misspelt: str) -> None:
    graph = named("breast cancer", "blood cancer", "beast", "cancer", "lung cancer", "rest")
    assert [name for _, name, _ in found(f"What of {misspelt} cancer?", graph)] == ["n00000"]


def test_short_words_are_not_taken_for_others() -> None:
    graph = named("mouse", "fall", "mole", "PLAT", "smell", "pimple", "trial")
    assert found("A house in the tall hole, a plan for all, small and simple", graph) == []
    assert found("the molse and a trail", graph) == [("trail", "n00006", "fuzzy")]  # two letters swapped
    assert found("moles", graph) == [("moles", "n00002", "fuzzy")]  # inflected


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("tall and thin, with scoliosis", ["Scoliosis"]),
        ("tall chim", ["Tall chin"]),
        ("haemophilia", []),
        ("haemobillia", ["Haemobilia"]),
        ("brachidactily", ["Brachydactyly"]),
    ],
)
def test_a_slip_is_not_another_word(question: str, expected: list[str]) -> None:
    names = ("Tall chin", "Scoliosis", "Haemobilia", "Brachydactyly", "Thick chin", "Tall stature")
    graph = Graph.from_dict({"nodes": [{"id": name, "name": name} for name in names], "edges": []})
    assert [mention.best.name for mention in link(graph, question)] == expected


def test_codes_are_not_taken_for_others() -> None:
    graph = named("BRCA1", "OMIM 154700", "interleukin 12")
    assert found("BRCA2, OMIM 154701, interleukin 13", graph) == []
    assert found("interleukine 12", graph) == [("interleukine 12", "n00002", "fuzzy")]


@pytest.mark.parametrize(
    "question",
    [
        "diabetes mellitus type 2",
        "type 2 diabetes mellitus",
        "type II diabetis mellitus",
        "vitamin B deficiency",
    ],
)
def test_a_number_tells_names_apart(question: str) -> None:
    graph = named(
        "diabetes mellitus type 1", "vitamin D deficiency", "osteoarthritis", "pneumonia", "hypoxia"
    )
    assert found(question, graph) == []
    assert found("mellitus diabetes type 1", graph)[0][1] == "n00000"
    assert found("diabetes mellitus, type unknown", graph)[0][1] == "n00000"


def test_without_fuzzy_names_stand_as_they_are() -> None:
    assert found("Marfan syndrom and tall stature", fuzzy=False) == [("tall stature", "p2", "exact")]


def test_refused_arguments() -> None:
    with pytest.raises(GraphError, match="question: expected a string, found 3"):
        link(GRAPH, 3)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="types: expected a list"):
        link(GRAPH, "x", types="disease")


def test_empty_graph() -> None:
    assert link(Graph.from_dict({"nodes": []}), "Marfan syndrome HP:0000118 ∑") == []


# ---- properties

scripts = st.text(
    st.characters(codec="utf-8", max_codepoint=0x2FFF)
    | st.sampled_from(" '\u2019.,-_\tsSßİǅﬁ糖がﾞก\u0301\u0345Å"),
    max_size=24,
)


@given(scripts)
@settings(max_examples=500)
def test_words_of_a_question_are_the_words_of_names(text: str) -> None:
    placed = question_words(text, 1_000)
    assert [word.text for word in placed] == words(text)
    assert all(0 <= word.start < word.end <= len(text) for word in placed)
    assert [word.start for word in placed] == sorted(word.start for word in placed)
    assert question_words(text, 2) == placed[:2]


@given(st.lists(scripts, min_size=1, max_size=6), st.data())
@settings(deadline=None)
def test_a_name_in_a_question_is_found(names: list[str], data: st.DataObject) -> None:
    """Every exact mention spells an entity's name, and a telling name that stands alone is found."""
    graph = named(*names)
    wanted = data.draw(st.sampled_from(names))
    mentions = link(graph, f"so: {wanted} ...", fuzzy=False)
    for mention in mentions:
        for entity in mention.entities:
            if entity.method == "exact" and words(mention.text):
                assert "".join(words(entity.name)) == "".join(words(mention.text))
    own = words(wanted)
    if any(len(word) > 1 and word not in exact_names.FUNCTION_WORDS for word in own):
        assert any(
            "".join(own) in "".join(words(mention.text)) or "".join(words(mention.text)) in "".join(own)
            for mention in mentions
        )


@given(graphs(), st.text(max_size=40), st.randoms())
@settings(deadline=None)
def test_the_order_of_the_graph_does_not_matter(graph: Graph, question: str, random_: random.Random) -> None:
    data = graph.to_dict()
    random_.shuffle(data["nodes"])
    random_.shuffle(data["edges"])
    asked = f"{question} {graph.node_at(0).name} {graph.id_of(graph.num_nodes - 1)}"
    assert link(Graph.from_dict(data), asked) == link(graph, asked)


@given(graphs())
@settings(deadline=None)
def test_shared_names_are_those_of_records(graph: Graph) -> None:
    assert linker(graph).shared_names == shared_names_of(graph)


@given(st.text("abcdef", max_size=9), st.text("abcdef", max_size=9))
def test_similarity(one: str, other: str) -> None:
    assert similarity(one, other) == pytest.approx(similarity(other, one))
    assert (similarity(one, other) == 1) == (one == other)
    assert 0 <= similarity(one, other) <= 1


# ---- hostile graphs and questions


@pytest.mark.parametrize(
    "question",
    [
        "Marfan syndrome " + "x" * 10_000_000,
        "Marfan syndrome " + "é" * 10_000_000,
        "Marfan syndrome " + "a b " * 2_500_000,
        "Marfan syndrome " + "糖" * 3_000_000,
        "Marfan syndrome " + "'s" * 5_000_000,
        "Marfan syndrome " * 650_000,
        "Marfan syndrome " + "\u0301" * 5_000_000,
    ],
    ids=["word", "non-ascii word", "words", "characters", "possessives", "names", "marks"],
)
def test_a_question_of_ten_megabytes(question: str) -> None:
    mentions = link(GRAPH, question)
    assert mentions[0].best.id == "d1"
    assert mentions[-1].end <= linking.MAX_QUESTION_CHARACTERS
    assert len(mentions) <= linking.MAX_QUESTION_WORDS


def test_many_namesakes_are_ranked_by_their_edges() -> None:
    count = 40 * exact_names._RANKED
    nodes = [{"id": f"n{i:06}", "name": "Copied Title"} for i in range(count)]
    edges = [{"source": f"n{count - 5:06}", "relation": "r", "target": f"n{i:06}"} for i in range(3)]
    (mention,) = link(Graph.from_dict({"nodes": nodes, "edges": edges}), "the copied title?")
    assert mention.total == count
    assert [entity.id for entity in mention.entities[:5]] == [
        f"n{i:06}" for i in (count - 5, 0, 1, 2, 3)
    ]  # 3, 1, 1, 1 and no edges


def test_names_that_are_prefixes_of_each_other() -> None:
    names = [" ".join(["la"] * length) for length in range(2, 2 * KEY_WORDS + 1)]
    graph = named(*names)
    for length in (2, 5, KEY_WORDS, KEY_WORDS + 1, 2 * KEY_WORDS):
        (mention,) = link(graph, f"{' '.join(['la'] * length)} then")
        assert mention.best.name == names[length - 2]
    mentions = link(graph, "la " * 1_000)
    assert len(mentions[0].best.name.split()) == 2 * KEY_WORDS
    assert sum(len(mention.best.name.split()) for mention in mentions) >= 900


def test_names_of_very_many_words_are_found_as_they_stand() -> None:
    long_name = " ".join(f"word{i}" for i in range(800))
    other = long_name.replace("word700", "another")
    graph = named(long_name, other)
    assert [m.best.name for m in link(graph, other)] == [other]
    assert link(graph, long_name.replace("word3 ", "wrd3 ")) == []  # too long to be looked for otherwise


def test_similar_words_are_looked_for_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = str.maketrans("0123456789", "qwertyuiop")
    graph = named(*(f"abcdef{i:05}".translate(letters) for i in range(20_000)))
    compared: list[str] = []

    def counted(one: str, other: str) -> float:
        compared.append(other)
        return similarity(one, other)

    monkeypatch.setattr(fuzzy, "similarity", counted)
    link(graph, " ".join(f"abcdeg{i:05}x".translate(letters) for i in range(1_000)))
    assert 0 < len(compared) <= fuzzy.MAX_WORDS * fuzzy._COMPARED_WORDS


def test_a_million_types_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"id": f"n{i:05}", "name": f"name {i}", "type": f"type {i}"} for i in range(20_000)]
    graph = Graph.from_dict({"nodes": nodes})
    linker(graph)
    calls: list[str] = []
    monkeypatch.setattr(exact_names, "words", lambda text: calls.append(text) or words(text))
    assert found("name 77", graph)[0][1] == "n00077"
    assert len(calls) <= 1


# ---- the index


def test_versions_with_the_same_names_share_an_index() -> None:
    data = GRAPH.to_dict()
    edited = Graph.from_dict({**data, "edges": []})
    assert linker(edited).index is linker(GRAPH).index
    assert linker(edited)._prominence.degrees.sum() == 0
    data["nodes"][0]["name"] = "Another"
    renamed = Graph.from_dict(data)
    assert linker(renamed).index is not linker(GRAPH).index
    assert found("another", renamed)[0][1] == data["nodes"][0]["id"]


def test_an_index_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linking, "SLOW_BUILD", -1.0)
    monkeypatch.setattr(linking, "_VERSIONS", 0)  # other graphs of this size are no versions of this one
    builds: list[int] = []
    build = NameIndex.build
    monkeypatch.setattr(NameIndex, "build", lambda graph: builds.append(1) or build(graph))

    def fresh() -> Graph:  # no index of these names is in memory
        return named("one name", "∑", "another näme")

    first = shared_index(fresh(), tmp_path).to_arrays()
    again = shared_index(fresh(), tmp_path)
    assert len(builds) == 1
    assert again.symbols == first[0]["symbols"]
    assert all(np.array_equal(array, first[1][name]) for name, array in again.to_arrays()[1].items())
    del again
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    graph = fresh()
    index = shared_index(graph, tmp_path)
    assert len(builds) == 2
    assert linker(graph).index is index
    assert found("another näme", graph)[0][2] == "exact"


def test_a_linker_does_not_keep_its_graph_alive() -> None:
    graph = named("one", "two")
    link(graph, "one")
    index = weakref.ref(linker(graph).index)
    gone = weakref.ref(graph)
    del graph
    gc.collect()
    assert gone() is None
    assert index() is None


def test_what_is_derived_is_made_once_and_holds_up_nobody_else() -> None:
    slow, quick = named("slow"), named("quick")
    started, release = threading.Event(), threading.Event()
    made: list[str] = []

    def build(graph: Graph) -> str:
        name = graph.node_at(0).name
        if name == "slow":
            started.set()
            assert release.wait(30)
        made.append(name)
        return name

    get = once_per_graph(build)
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(get(slow))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert started.wait(30)
    assert get(quick) == "quick"
    release.set()
    for thread in threads:
        thread.join()
    assert answers == ["slow"] * 4
    assert made == ["quick", "slow"]


# ---- ids that are given


def test_known_ids() -> None:
    assert known_nodes(GRAPH, ["p2", "d1", "p2"], "entities").tolist() == [
        GRAPH.index_of("p2"),
        GRAPH.index_of("d1"),
    ]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            ["d1", "Marfan syndrom"],
            r"entities\[1\]: .*'Marfan syndrom'; the closest are 'Marfan syndrome' \('d1'\)",
        ),
        (["hp:0001083"], r"'T-cell lymphopenia' \('HP:0001083'\)"),
        (["HP:0001084"], r"'T-cell lymphopenia' \('HP:0001083'\)"),
        (["qqqqqq"], "has no node with the id 'qqqqqq'$"),
        (["\ud800"], r"entities\[0\]"),
        ([""], r"entities\[0\]"),
        (["x" * 10_000_000], r"\(10000000 characters\)"),
        ([None], "the id None$"),
        ("d1", "expected a list of node ids, found 'd1'"),
        ({"d1"}, "expected a list of node ids, found a set"),
        (7, "expected a list of node ids, found 7"),
        (["d1"] * 300, "300 ids, the limit is 256"),
    ],
)
def test_unknown_ids_name_the_closest(ids: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        known_nodes(GRAPH, ids, "entities")


def test_closest_in_an_empty_graph() -> None:
    assert closest(Graph.from_dict({"nodes": []}), "x") == []


def test_mentions_compare_by_value() -> None:
    one, other = (link(GRAPH, "tall stature") for _ in range(2))
    assert one == other
    assert isinstance(one[0], Mention)
