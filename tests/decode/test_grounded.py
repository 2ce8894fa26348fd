"""What may be asked for of a grounded text, what is refused, and what texts mean."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest

from tests.decode.grounded_reference import END, TinyTokenizer, legal_texts, mask_of
from vglm.decode.grounded import GroundedDecoder, Grounding, compile_grounding
from vglm.decode.grounded.decoder import GroundedText
from vglm.decode.grounded.names import graph_index
from vglm.decode.grounded.vocabulary import vocabulary_of
from vglm.errors import RequestError, VGLMError
from vglm.graph.build import GraphBuilder
from vglm.graph.graph import Graph

TOKENIZER = TinyTokenizer(
    [*(bytes([b]) for b in range(256)), b"Marfan", b" syndrome", b" -> ", b"has ", b"phenotype"]
)
NODES = [
    {"id": "d1", "name": "Marfan syndrome", "type": "disease"},
    {"id": "d2", "name": "Marfan", "type": "disease"},
    {"id": "d3", "name": "Marfan", "type": "gene"},
    {"id": "p1", "name": "Tall stature", "type": "phenotype"},
    {"id": "p2", "name": "Ectopia lentis", "type": "phenotype"},
    {"id": "p3", "name": "Café au lait, many", "type": "phenotype"},
]
EDGES = [
    {"source": "d1", "relation": "has phenotype", "target": "p1"},
    {"source": "d1", "relation": "has phenotype", "target": "p2"},
    {"source": "d3", "relation": "causes", "target": "d1"},
    {"source": "p1", "relation": "is a", "target": "p1"},
]
GRAPH = Graph.from_dict({"nodes": NODES, "edges": EDGES})


def compiled(grounding: Any, graph: Graph = GRAPH) -> GroundedDecoder:
    return compile_grounding(grounding, graph, TOKENIZER)


def generate(decoder: GroundedDecoder, seed: int, limit: int = 2000) -> bytes:
    """A random text, first bytes equally likely so that names of all kinds are met."""
    text, rng = decoder.start(), random.Random(seed)
    assert isinstance(text, GroundedText)
    tokens = text.begin()
    while not text.finished and len(tokens) < limit:
        allowed = mask_of(text, TOKENIZER.vocab_size)
        assert allowed
        by_byte: dict[bytes, list[int]] = {}
        for token in sorted(allowed):
            by_byte.setdefault(b"" if token == END else TOKENIZER.tokens[token][:1], []).append(token)
        token = rng.choice(by_byte[rng.choice(sorted(by_byte))])
        if token == END:
            break
        tokens += [token, *text.accept(token)]
    return b"".join(TOKENIZER.tokens[token] for token in tokens)


# ---- asking ----


def test_groundings_from_text_and_mappings() -> None:
    assert (
        Grounding.parse("answer")
        == Grounding()
        == Grounding.parse({"kind": "answer"})
        == Grounding.parse("{}")
    )
    assert Grounding.parse('{"kind": "walk", "start": ["d1", "d1"]}').start == ("d1",)
    assert Grounding.parse({"schema": {"type": "null"}}).kind == "json"
    assert Grounding(count=3).min_count == 3
    joined = Grounding.parse({"kind": "walk+answer", "max_hops": 2, "types": ["phenotype"]})
    walk, answer = joined.parts
    assert isinstance(walk, Grounding)
    assert (walk.kind, walk.max_hops, walk.types, walk.separator) == ("walk", 2, ("phenotype",), ", ")
    assert answer == Grounding(of_walk=True)
    assert joined.separator == "\nAnswer: "
    other = Grounding.parse({"kind": "answer+walk", "count": 2, "start": ["d1"]})
    assert [part.kind for part in other.parts if isinstance(part, Grounding)] == ["answer", "walk"]
    assert other.separator == "\n"
    parts = [{"kind": "walk"}, {"kind": "answer", "of_walk": True}]
    assert Grounding.parse({"parts": parts}).kind == "sequence"
    assert hash(joined) == hash(
        Grounding.parse({"kind": "walk+answer", "max_hops": 2, "types": ["phenotype"]})
    )


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("poem", "kind is 'poem'"),
        ({"kind": 3}, "kind is 3"),
        ([], "expected a kind or an object"),
        ({"max_hop": 3}, "it has 'max_hop'"),
        ({"count": 0}, "count is 0"),
        ({"count": True}, "count is True"),
        ({"count": 10**9}, "must lie in 1 to 256"),
        ({"count": 2, "min_count": 3}, "min_count is 3"),
        ({"kind": "walk", "max_hops": 17}, "max_hops is 17"),
        ({"kind": "walk", "max_hops": 2, "min_hops": 3}, "min_hops is 3"),
        ({"kind": "walk", "min_hops": -1}, "min_hops is -1"),
        ({"kind": "walk", "inverse": "yes"}, "inverse is 'yes'"),
        ({"types": "disease"}, "types is 'disease', but must be a list"),
        ({"types": [1]}, "types has 1"),
        ({"candidates": ["\ud800"]}, "candidates has"),
        ({"separator": ""}, "separator must be a text"),
        ({"separator": "x" * 1000}, "separator must be a text"),
        ({"kind": "json"}, "a schema and the kind json come together"),
        ({"kind": "answer", "schema": {}}, "a schema and the kind json come together"),
        ({"schema": [1]}, "schema"),
        ({"schema": "{"}, "not JSON"),
        ({"kind": "sequence"}, "a sequence has parts"),
        ({"kind": "answer", "parts": ["answer"]}, "a sequence has parts"),
        ({"parts": ["answer"] * 17}, "at most 16"),
        ({"parts": [{"parts": ["answer"]}]}, "must not be"),
        ({"parts": [{"schema": {"type": "null"}}]}, "must not be of the kind json"),
        ({"parts": [{"of_walk": True}]}, "of_walk is for an answer"),
        ({"kind": "answer+json"}, "only answer, walk and mentions"),
        ({"kind": "+".join(["answer"] * 40)}, "at most 16"),
        ({"kind": "walk+answer", "count": 2}, "a walk has one end"),
        ("{" * 10_000, "constraint"),
    ],
)
def test_what_makes_no_sense_is_refused(wanted: Any, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        compiled(wanted)
    assert message in str(refused.value)
    assert refused.value.param == "constraint"
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"types": ["planet"]}, "the graph has no node type 'planet'; it has 'disease', 'gene', 'phenotype'"),
        ({"types": ["gene"], "candidates": ["d1"]}, "the graph has no candidates of the types 'gene'"),
        ({"candidates": ["x9"]}, "candidates: the graph has no node with the id 'x9'"),
        ({"count": 6}, "the graph has 5 entities with different names; 6 are needed"),
        ({"kind": "walk", "start": ["p2"]}, "no walk from the nodes of start of 1 to 3 edges"),
        ({"kind": "walk", "relations": ["eats"]}, "no relation 'eats'; it has"),
        ({"kind": "walk", "start": ["d1"], "types": ["gene"]}, "no walk from the nodes of start"),
        ({"kind": "walk", "min_hops": 4, "max_hops": 4, "relations": ["has phenotype"]}, "no walk of 4 to 4 edges"),
        ({"schema": {"x-graph": {"entity": {"types": ["planet"]}}}}, "no node type 'planet'"),
        ({"schema": {"x-graph": {"edge": {"start": ["p2"]}}}}, "no walk from the nodes of start"),
        ({"schema": {"x-graph": "planet"}}, "x-graph is 'planet'"),
        ({"schema": {"x-graph": {"entity": {"colour": 1}}}}, "options of x-graph entity"),
        ({"schema": {"x-graph": "entity", "maxLength": 3}}, "stands beside 'maxLength'"),
        ({"schema": {"x-graph": "edge", "type": "string"}}, "x-graph edge is of the type object"),
        ({"schema": {"enum": []}}, "allows no value"),
        ({"schema": {"type": "string", "minLength": 3, "maxLength": 2}}, "minLength 3 is more than"),
        ({"schema": {"$ref": "#/nowhere"}}, "nothing is there"),
    ],
)  # fmt: skip
def test_what_the_graph_does_not_have_is_refused_before_anything_is_generated(
    wanted: Any, message: str
) -> None:
    with pytest.raises(RequestError) as refused:
        compiled(wanted)
    assert message in str(refused.value)
    assert refused.value.param == "constraint"


def test_empty_graphs_and_nameless_nodes() -> None:
    empty = Graph.from_dict({"nodes": [], "edges": []})
    nameless = Graph.from_dict(
        {"nodes": [{"id": "a", "name": ""}], "edges": [{"source": "a", "relation": "r", "target": "a"}]}
    )
    for graph in (empty, nameless):
        for kind in ("answer", "walk", "mentions", "walk+answer"):
            with pytest.raises(RequestError, match="the graph has no"):
                compiled(kind, graph)
    brackets = Graph.from_dict(
        {"nodes": [{"id": "a", "name": "a]b"}, {"id": "b", "name": "c\nd"}], "edges": []}
    )
    with pytest.raises(RequestError, match="that can be put in brackets"):
        compiled("mentions", brackets)


def test_what_a_model_is_told() -> None:
    assert compiled("answer").instructions.startswith("Answer with the name of one entity of the graph")
    assert (
        "2 to 3 different entities of type disease or gene"
        in compiled({"count": 3, "min_count": 2, "types": ["disease", "gene"]}).instructions
    )
    walk = compiled({"kind": "walk+answer", "inverse": True, "types": ["phenotype"]}).instructions
    for words in (
        "1 to 3 edges",
        "entity <- relation <- entity",
        "ends at an entity of type phenotype",
        "Part 2: Repeat",
    ):
        assert words in walk
    assert "[brackets]" in compiled("mentions").instructions
    assert '{"type": "null"}' in compiled({"schema": {"type": "null"}}).instructions


# ---- reading ----


def test_answers_mean_all_nodes_of_the_name_that_were_asked_for() -> None:
    assert compiled("answer").read("Marfan").answer == ("d2", "d3")
    assert compiled({"types": ["gene"]}).read("Marfan").answer == ("d3",)
    assert compiled({"candidates": ["d2", "p1"]}).read("Marfan").answer == ("d2",)
    read = compiled({"count": 2}).read("Café au lait, many, Marfan syndrome")
    assert [(entity.name, entity.ids) for entity in read.entities] == [
        ("Café au lait, many", ("p3",)),
        ("Marfan syndrome", ("d1",)),
    ]
    assert read.complete
    assert not compiled({"count": 2}).read("Marfan syndrome, Tal").complete
    assert compiled("answer").read([*TOKENIZER.encode("Tall stature"), END]).answer == ("p1",)
    assert compiled("answer").read(b"Tall stature").text == "Tall stature"


@pytest.mark.parametrize("text", ["Marfans", "", "marfan", " Marfan", "Marfan syndrome, Marfan syndrome"])
def test_texts_that_are_not_of_the_form(text: str) -> None:
    decoder = compiled({"count": 2})
    if not text:
        assert not decoder.read(text).complete
        return
    with pytest.raises(RequestError, match="leaves its form at byte") as refused:
        decoder.read(text)
    assert refused.value.param == "text"


def test_walks_mean_edges() -> None:
    read = compiled("walk").read("Marfan -> causes -> Marfan syndrome -> has phenotype -> Tall stature")
    assert [(w.edge.source, w.edge.relation, w.edge.target) for w in read.walk] == [
        ("d3", "causes", "d1"),  # and not d2, which has no edge
        ("d1", "has phenotype", "p1"),
    ]
    assert [GRAPH.edge_at(w.index) for w in read.walk] == [w.edge for w in read.walk]
    back = compiled({"kind": "walk", "inverse": True}).read(
        "Tall stature <- has phenotype <- Marfan syndrome"
    )
    assert [(w.edge.source, w.inverse) for w in back.walk] == [("d1", True)]
    loop = compiled("walk").read("Tall stature -> is a -> Tall stature -> is a -> Tall stature")
    assert len(loop.walk) == 2
    both = compiled({"kind": "walk+answer", "inverse": True}).read(
        "Marfan syndrome <- causes <- Marfan\nAnswer: Marfan"
    )
    assert both.answer == ("d3",)
    assert both.complete
    cut = compiled("walk").read("Marfan -> causes -> Marf")
    assert not cut.complete
    assert cut.walk == ()


def test_mentions_mean_places_in_the_text() -> None:
    decoder = compiled("mentions")
    read = decoder.read("Görlich has [Marfan syndrome], [Marfan] ] and [Café au lait, many].")
    assert [(m.entity.name, m.entity.ids) for m in read.mentions] == [
        ("Marfan syndrome", ("d1",)),
        ("Marfan", ("d2", "d3")),
        ("Café au lait, many", ("p3",)),
    ]
    assert [read.text[m.start : m.end] for m in read.mentions] == [m.entity.name for m in read.mentions]
    assert not decoder.read("It is [Marf").complete
    for wrong in ("[Marfans]", "[]", "a [ b", "[Marfan\n]", "[[Marfan]]", b"[Marfan \xff]", b"\xff"):
        with pytest.raises(RequestError, match="leaves its form"):
            decoder.read(wrong)


def test_sequences_are_read_part_by_part() -> None:
    decoder = compiled({"kind": "mentions+answer", "types": ["disease"], "separator": "\n=> "})
    read = decoder.read("I think of [Tall stature].\n=> Marfan")
    assert [m.entity.ids for m in read.mentions] == [("p1",)]
    assert read.answer == ("d2",)
    with pytest.raises(RequestError, match="leaves its form"):
        decoder.read("Two\nlines\n=> Marfan")
    read = compiled({"kind": "answer+walk", "separator": "; "}).read(
        "Marfan; Marfan syndrome -> has phenotype -> Tall stature"
    )
    assert read.answer == ("d2", "d3")
    assert len(read.walk) == 1


# ---- names of every kind ----


def test_long_names_are_forced_as_the_tokenizer_spells_them() -> None:
    """200 tokens that can only follow are appended, not sampled; of two that differ at their ends all but these."""
    long = "x" * 200
    graph = Graph.from_dict(
        {"nodes": [{"id": "a", "name": long + "ab"}, {"id": "b", "name": long + "cd"}], "edges": []}
    )
    text = compiled("answer", graph).start()
    assert text.begin() == TOKENIZER.encode(long)
    token = TOKENIZER.encode("c")[0]
    assert text.accept(token) == TOKENIZER.encode("d")
    assert text.finished
    one = Graph.from_dict({"nodes": [{"id": "a", "name": long}], "edges": []})
    text = compiled("answer", one).start()
    assert text.begin() == TOKENIZER.encode(long)
    assert text.finished


def test_names_of_the_longest_kind() -> None:
    """10,000 characters of several bytes, which differ in the last one only."""
    names = ["é" * 9_999 + end for end in "ab"]
    graph = Graph.from_dict({"nodes": [{"id": n[-1], "name": n} for n in names], "edges": []})
    decoder = compiled("answer", graph)
    assert {generate(decoder, seed, 30_000).decode() for seed in range(8)} == set(names)
    assert decoder.read(names[1]).answer == ("b",)


def test_control_tokens_in_names_are_text() -> None:
    nodes = [{"id": name, "name": name} for name in ("<s>", "</s>x", "<think>")]
    graph = Graph.from_dict({"nodes": nodes, "edges": []})
    decoder = compiled("answer", graph)
    for seed in range(20):
        text, rng = decoder.start(), random.Random(seed)
        assert isinstance(text, GroundedText)
        tokens = text.begin()
        while not text.finished:
            allowed = sorted(mask_of(text, TOKENIZER.vocab_size))
            assert not {0, 1, 2} & set(allowed)
            token = rng.choice(allowed)
            tokens += [token, *text.accept(token)]
        assert not TOKENIZER.added_ids & set(tokens)
        assert TOKENIZER.decode(tokens) in ("<s>", "</s>x", "<think>")


def test_prefixes_may_end_or_go_on() -> None:
    decoder = compiled({"candidates": ["d1", "d2"]})
    text = decoder.start()
    assert isinstance(text, GroundedText)
    assert TOKENIZER.decode(text.begin()) == "Marfan"
    allowed = mask_of(text, TOKENIZER.vocab_size)
    assert END in allowed
    assert {TOKENIZER.tokens[token] for token in allowed - {END}} == {b" ", b" syndrome"}
    assert {generate(decoder, seed) for seed in range(30)} == {b"Marfan", b"Marfan syndrome"}


def test_a_node_of_very_many_edges() -> None:
    builder = GraphBuilder()
    builder.add_node("hub", name="hub")
    for i in range(20_000):
        builder.add_node(f"n{i}", name=f"node {i % 15_000}")  # some names twice
        builder.add_edge("hub", "has", f"n{i}")
    graph = builder.build()
    decoder = compiled({"kind": "walk+answer", "inverse": True, "max_hops": 2, "start": ["hub"]}, graph)
    for seed in range(20):
        read = decoder.read(generate(decoder, seed))
        assert read.complete
        assert 1 <= len(read.walk) <= 2
        assert all(graph.edge_at(w.index) == w.edge for w in read.walk)


# ---- the constraint ----


def test_tokens_that_are_not_allowed_are_refused_and_change_nothing() -> None:
    text = compiled("answer").start()
    assert isinstance(text, GroundedText)
    text.begin()
    before = mask_of(text, TOKENIZER.vocab_size)
    for token in (0, 2, END, 10**6, -1, TOKENIZER.encode("Z")[0]):
        with pytest.raises(VGLMError, match="not allowed here"):
            text.accept(token)
    assert mask_of(text, TOKENIZER.vocab_size) == before


def test_masks_of_many_texts_at_once() -> None:
    texts = [compiled(kind).start() for kind in ("answer", "walk", "mentions")] * 3
    assert all(isinstance(text, GroundedText) for text in texts)
    for text in texts:
        text.begin()
    masks = np.full((len(texts), -(-TOKENIZER.vocab_size // 32)), 0xFFFFFFFF, np.uint32)
    GroundedText.fill_masks(texts, masks)  # type: ignore[arg-type]
    for text, mask in zip(texts, masks, strict=True):
        row = np.zeros_like(mask)
        text.fill_mask(row)
        assert (row == mask).all()


def test_ten_thousand_random_texts_name_what_exists() -> None:
    """No text leaves its form, whatever is chosen from the masks; what it says is in the graph."""
    groundings: list[Any] = [
        {"count": 3, "min_count": 1},
        {"types": ["disease"], "count": 2},
        {"kind": "walk", "inverse": True, "max_hops": 4, "min_hops": 0},
        {"kind": "walk+answer", "types": ["phenotype"]},
        {"kind": "answer+walk", "start": ["d1", "d3"]},
    ]
    for grounding in groundings:
        decoder = compiled(grounding)
        legal = legal_texts(Grounding.parse(grounding), GRAPH)
        for seed in range(2_000):
            text = generate(decoder, seed)
            assert text in legal
            read = decoder.read(text)
            assert read.complete
            assert all(GRAPH.edge_at(w.index) == w.edge for w in read.walk)
            assert all(GRAPH.name_of(node) == entity.name for entity in read.entities for node in entity.ids)


# ---- compiling again ----


def big_graph(changed: int = 0, count: int = 12_000) -> Graph:
    builder = GraphBuilder()
    for i in range(count):
        builder.add_node(f"n{i:06}", name=f"edited {i}" if i < changed else f"name {i % 9_000} é")
        builder.add_edge(f"n{i:06}", "is a", f"n{(i * 7) % (i + 1):06}")
    return builder.build()


def test_an_edited_graph_takes_over_what_it_shares() -> None:
    """Only the names that are new are sorted, and the result is what sorting everything gives."""
    vocabulary = vocabulary_of(TOKENIZER, TOKENIZER.vocab_size, (END,))
    first, edited, other = big_graph(), big_graph(5), big_graph(12_000)
    assert graph_index(first).names(vocabulary).nodes.native.sorted_afresh == 12_000
    names = graph_index(edited).names(vocabulary).nodes.native
    assert names.sorted_afresh == 5
    nodes = [{"id": node.id, "name": node.name} for node in edited.nodes()]
    grown = Graph.from_dict({"nodes": [*nodes, {"id": "m", "name": "aaa"}], "edges": []})
    assert graph_index(grown).names(vocabulary).nodes.native.sorted_afresh == 1
    assert graph_index(other).names(vocabulary).nodes.native.sorted_afresh == 12_000
    for graph in (edited, grown):
        index = graph_index(graph).names(vocabulary).nodes.native
        expected = sorted({node.name.encode() for node in graph.nodes()})
        assert [index.text(group) for group in range(index.num_groups)] == expected
        for group in range(0, index.num_groups, 501):
            named = [
                i for i in range(graph.num_nodes) if graph.columns.names[i].encode() == index.text(group)
            ]
            assert index.items(group).tolist() == named


def test_equal_graphs_and_groundings_are_compiled_once() -> None:
    again = Graph.from_dict({"nodes": NODES[::-1], "edges": EDGES[::-1]})
    assert compiled({"types": ["disease"]}) is compiled({"types": ["disease"], "count": 1}, again)
    assert compiled("answer") is not compiled("walk")
    other = TinyTokenizer(TOKENIZER.tokens[3:])
    assert compile_grounding("answer", GRAPH, other) is not compiled("answer")


def test_threads_share_decoders() -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for seed in range(60):
                grounding = {"count": 1 + seed % 3, "min_count": 1, "separator": f"; {number % 2} "}
                assert compiled(grounding).read(generate(compiled(grounding), seed)).complete
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
