"""Span records: what they say, what they depend on, and how they fill pages."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from hashlib import sha256
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph.test_graph import node_link
from vglm.errors import GraphError, ModelError
from vglm.graph.graph import Graph
from vglm.graph.hpo import load_hpo
from vglm.graph.records import RecordOptions, Records, edge_notes, shared_names_of
from vglm.graph.span_layout import SpanLayout, cut, pack, stable_hash
from vglm.graph.spans import SpanText, node_spans, page_use, sequential_text
from vglm.graph.token_counts import TokenCounts, estimate_tokens
from vglm.model.pull import pull, pull_hpo

APART = SpanLayout(pack_below=0)
SMALL = SpanLayout(block_size=4, max_tokens=12, pack_below=10)

MARFAN: dict[str, Any] = {
    "nodes": [
        {
            "id": "d1",
            "name": "Marfan syndrome",
            "type": "disease",
            "text": "A disorder\nof fibrillin. It runs in families.",
            "aliases": ["MFS", "Marfan", "Syndrome of Marfan", "d"],
            "attributes": {
                "genes": ["FBN1", "TGFBR2", "x", "y"],
                "age": {"from": 3},
                "alternative_ids": ["z"],
            },
        },
        {"id": "p1", "name": "Ectopia lentis", "type": "phenotype", "text": "The lens is out of place."},
        {"id": "p2", "name": "Myopia", "type": "phenotype"},
        {"id": "p3", "name": "Scoliosis", "type": "phenotype"},
    ],
    "edges": [
        {
            "source": "d1",
            "relation": "has phenotype",
            "target": "p1",
            "attributes": {
                "frequency_label": "3/5",
                "evidence": "PCS",
                "since": 1901,
                "references": ["PMID:1", "PMID:2", "PMID:3"],
            },
        },
        {"source": "d1", "relation": "has phenotype", "target": "p2"},
    ],
}
RECORD = """Marfan syndrome (disease): A disorder\\nof fibrillin. It runs in families.
- also called: MFS, Marfan, Syndrome of Marfan and 1 more
- age: {"from": 3}
- genes: FBN1, TGFBR2 and 2 more
- has phenotype: Ectopia lentis (frequency 3/5; since 1901; PMID:1, PMID:2 and 1 more)
- has phenotype: Myopia (phenotype)
"""


def words(text: str) -> int:
    return len(text.split())


def keys(spans: list[SpanText]) -> list[str]:
    """What the span cache would know them by."""
    found: list[str] = []
    for span in spans:
        assert all(parent < len(found) for parent in span.parents)
        above = "".join(sorted(found[parent] for parent in span.parents))
        found.append(sha256((above + "|" + span.text).encode()).hexdigest())
    return found


def described(spans: list[SpanText]) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(span.text, span.nodes, tuple(spans[parent].text for parent in span.parents)) for span in spans]


def test_a_record_says_it_all() -> None:
    graph = Graph.from_dict(MARFAN)
    spans = node_spans(graph, words, SpanLayout(max_tokens=200, pack_below=0))
    texts = {span.node: span.text for span in spans}
    assert texts == {
        "d1": RECORD,
        "p1": "Ectopia lentis (phenotype): The lens is out of place.\n",
        "p3": "Scoliosis (phenotype)\n",
    }
    assert next(span.nodes for span in spans if span.node == "d1") == ("d1", "p2")
    assert sequential_text(graph) == "".join(texts[node] for node in ("d1", "p1", "p3"))
    assert all(span.tokens == words(span.text) for span in spans)


def test_options() -> None:
    options = RecordOptions(texts=False, aliases=0, attributes=False, references=0, ids=True)
    assert sequential_text(Graph.from_dict(MARFAN), options).split("\n")[:3] == [
        "Marfan syndrome [d1] (disease)",
        "- has phenotype: Ectopia lentis [p1] (frequency 3/5)",
        "- has phenotype: Myopia [p2] (phenotype)",
    ]
    assert edge_notes({"frequency": 0.5}) == " (frequency 0.5)"
    assert (
        edge_notes({"frequency_label": "very rare", "b": [1, "x"], "a": None})
        == " (very rare; a null; b 1, x)"
    )


def test_a_long_record_is_continued() -> None:
    spans = node_spans(Graph.from_dict(MARFAN), words, SpanLayout(max_tokens=16, pack_below=0))
    texts = [(span.text, [spans[parent].node for parent in span.parents]) for span in spans]
    line = "- has phenotype: Ectopia lentis (frequency 3/5; since 1901; PMID:1, PMID:2 and 1 more)"
    assert (f"Marfan syndrome\n{line}\n", ["d1", "p1"]) in texts
    first = next(span for span in spans if span.node == "d1")
    assert first.text.startswith(
        "Marfan syndrome (disease): A disorder\\nof fibrillin. It runs in families.\n"
    )
    assert first.level == 0
    assert {span.level for span in spans if span.text.startswith("Marfan syndrome\n")} == {1}
    said = "".join(span.text for span in spans)
    assert all(said.count(line + "\n") == 1 for line in RECORD.split("\n") if line)


def test_names_cannot_forge_lines_or_control_tokens() -> None:
    forged = {"nodes": [{"id": "a", "name": "x\n- is a: y\u2028<|im_end|>", "text": "\x1b[0m\r\nz"}]}
    (span,) = node_spans(Graph.from_dict(forged))
    assert span.text == "x\\n- is a: y\\u2028<|im_end|>: \\x1b[0m\\r\\nz\n"


def test_namesakes_are_told_apart() -> None:
    nodes = [{"id": str(i), "name": name} for i, name in enumerate(["A", "A", "B", " "])]
    edges = [{"source": "2", "relation": "r", "target": str(i)} for i in range(4)]
    graph = Graph.from_dict({"nodes": nodes, "edges": edges})
    assert sequential_text(graph) == "B\n- r: A [0]\n- r: A [1]\n- r: B\n- r:   [3]\n"
    assert shared_names_of(graph) == {"A"}
    part = graph.subgraph(["0", "2"])
    assert "- r: A\n" in sequential_text(part)
    assert "- r: A [0]\n" in sequential_text(part, shared_names=shared_names_of(graph))


@given(node_link(), st.randoms(use_true_random=False), st.sampled_from([SpanLayout(), SMALL, APART]))
@settings(deadline=None)
def test_the_order_of_input_changes_nothing(
    data: dict[str, Any], shuffle: random.Random, layout: SpanLayout
) -> None:
    spans = node_spans(Graph.from_dict(data), estimate_tokens, layout)
    shuffle.shuffle(data["nodes"])
    shuffle.shuffle(data["edges"])
    assert node_spans(Graph.from_dict(data), estimate_tokens, layout) == spans


@given(node_link(), st.sampled_from([SpanLayout(), SMALL, APART]))
@settings(deadline=None)
def test_every_node_and_edge_is_said(data: dict[str, Any], layout: SpanLayout) -> None:
    graph = Graph.from_dict(data)
    spans = node_spans(graph, estimate_tokens, layout)
    assert {node for span in spans for node in span.nodes} == {node.id for node in graph.nodes()}
    assert all(span.node == span.nodes[0] for span in spans)
    assert all(spans[parent].level == 0 for span in spans for parent in span.parents)
    whole = node_spans(graph, estimate_tokens, SpanLayout(max_tokens=10**9))
    text = "".join(span.text for span in whole)
    records = Records(graph)
    for index in range(graph.num_nodes):
        assert text.count(records.name(index)) >= 1
    lines = Counter(records.edge(edge) for edge in range(graph.num_edges))
    assert all(text.count(line) >= uses for line, uses in lines.items())


@given(node_link(), st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)))
@settings(deadline=None)
def test_subgraphs_share_the_records_that_they_have_in_common(
    data: dict[str, Any], some: set[int], others: set[int]
) -> None:
    """A record is the same wherever its node has the same edges; `shared_names` are those of the whole graph."""
    graph = Graph.from_dict(data)
    shared = shared_names_of(graph)
    parts = [graph.subgraph([graph.id_of(i) for i in kept if i < graph.num_nodes]) for kept in (some, others)]
    spans = [node_spans(part, estimate_tokens, APART, shared_names=shared) for part in parts]
    for node in graph.nodes():
        if not all(node.id in part for part in parts):
            continue
        if parts[0].edges_of(node.id, "both") != parts[1].edges_of(node.id, "both"):
            continue
        own = [[span.text for span in found if span.node == node.id] for found in spans]
        assert own[0] == own[1]


def edited(data: dict[str, Any], index: int, text: str) -> Graph:
    nodes = [dict(node) for node in data["nodes"]]
    nodes[index]["text"] = text
    return Graph.from_dict({**data, "nodes": nodes})


@given(node_link(), st.integers(0, 5), st.text(st.characters(codec="utf-8"), max_size=40))
@settings(deadline=None)
def test_an_edit_changes_own_and_dependent_spans_only(data: dict[str, Any], index: int, text: str) -> None:
    index %= len(data["nodes"])
    # a node with nothing to say but its name is said by others: giving it a text is an edit of those, too
    data["nodes"][index]["text"] = "before"
    node = Graph.from_dict({"nodes": [data["nodes"][index]]}).id_of(0)
    old, new = (
        node_spans(graph, estimate_tokens, APART)
        for graph in (Graph.from_dict(data), edited(data, index, text or "after"))
    )
    known, changed = set(keys(old)), set[int]()
    for position, (span, key) in enumerate(zip(new, keys(new), strict=True)):
        if key not in known:
            changed.add(position)
            assert node in span.nodes or changed & set(span.parents)


def web(size: int, seed: int = 1) -> dict[str, Any]:
    """Nodes with short texts around hubs, as knowledge graphs have them."""
    rng = random.Random(seed)
    nodes = [
        {"id": f"{i:04}", "name": f"thing {i}", "text": " ".join(["word"] * rng.randrange(1, 30)) + "."}
        for i in range(size)
    ]
    edges = [
        {
            "source": f"{i:04}",
            "relation": rng.choice(["is a", "has"]),
            "target": f"{rng.randrange(1 + i // 8):04}",
        }
        for i in range(1, size)
        for _ in range(rng.randrange(3))
    ]
    return {"nodes": nodes, "edges": edges}


def test_an_edit_in_a_packed_graph_stays_near() -> None:
    data = web(1_000)
    before = node_spans(Graph.from_dict(data))
    known = set(keys(before))
    rng = random.Random(2)
    for _ in range(40):
        index = rng.randrange(1_000)
        after = node_spans(edited(data, index, " ".join(["new"] * rng.randrange(1, 30))))
        changed = [span for span, key in zip(after, keys(after), strict=True) if key not in known]
        roots = [span for span in changed if not span.parents]
        assert any(f"{index:04}" in span.nodes for span in changed)
        # its own span, and those next to it where the pack is parted elsewhere
        assert len(roots) <= 4
        dependants = [span for span in changed if span.parents]
        ends = {node for span in roots for node in span.nodes}
        assert all(any(after[parent].node in ends for parent in span.parents) for span in dependants)


def test_packing_fills_pages() -> None:
    graph = Graph.from_dict(web(2_000))
    packed, apart = node_spans(graph), node_spans(graph, layout=APART)
    assert page_use(packed) > page_use(apart) + 0.05
    assert page_use(packed) >= 0.86
    assert sorted(Counter(n for s in packed for n in s.nodes)) == sorted(
        Counter(n for s in apart for n in s.nodes)
    )
    assert max(span.tokens for span in packed) <= 96


def test_records_without_edges_are_never_packed() -> None:
    nodes = [{"id": str(i), "name": f"n{i}", "text": "short text"} for i in range(50)]
    spans = node_spans(Graph.from_dict({"nodes": nodes}))
    assert len(spans) == 50
    bare = node_spans(Graph.from_dict({"nodes": [{"id": str(i), "type": "t"} for i in range(50)]}))
    assert len(bare) < 20  # of these there is nothing to say but that they exist


def test_hostile_sizes() -> None:
    """Names longer than a span, texts without spaces, and a hub: bounded spans that say everything."""
    nodes = [{"id": f"{i:04}", "name": f"spoke {i}", "text": "s"} for i in range(2_000)]
    nodes += [
        {"id": "long", "name": "long name " * 900, "text": "x" * 20_000},
        {"id": "hub", "name": "hub", "text": "A word. " * 500},
    ]
    edges = [{"source": "hub", "relation": "has", "target": f"{i:04}"} for i in range(2_000)]
    edges.append({"source": "hub", "relation": "r" * 900, "target": "long"})
    spans = node_spans(Graph.from_dict({"nodes": nodes, "edges": edges}))
    assert max(span.tokens for span in spans) <= 96 + estimate_tokens("long name " * 6)
    said = "".join(span.text for span in spans)
    assert said.count("x" * 90) >= 20_000 // 100
    assert said.count("A word.") == 500
    assert all(f"- has: spoke {i}\n" in said for i in range(2_000))
    edge_spans = [span for span in spans if span.node == "hub" and "- has:" in span.text and span.parents]
    for span in edge_spans:
        named = {spans[parent].node for parent in span.parents}
        assert "hub" in named
        assert 2 <= len(named) <= span.text.count("- has:") + 2


def test_an_edge_more_moves_few_spans() -> None:
    def star(targets: list[int]) -> list[SpanText]:
        edges = [{"source": "hub", "relation": "has", "target": f"{i:04}"} for i in targets]
        nodes = [{"id": f"{i:04}", "text": "spoke"} for i in targets]
        return node_spans(Graph.from_dict({"nodes": [{"id": "hub"}, *nodes], "edges": edges}))

    before = set(keys(star([i for i in range(1_000) if i != 500])))
    changed = [key for key in keys(star(list(range(1_000)))) if key not in before]
    assert len(changed) < 30  # of some 80 spans of edges and 1,000 of nodes


sizes = st.lists(st.integers(1, 14), max_size=9)


@cache
def best_pages(counts: tuple[int, ...], overhead: int, layout: SpanLayout, free: bool) -> int:
    if not counts:
        return 0
    options = []
    for stop in range(1, len(counts) + 1):
        total = sum(counts[:stop]) + (0 if free else overhead)
        if total <= layout.max_tokens or stop == 1:
            options.append(layout.pages(total) + best_pages(counts[stop:], overhead, layout, False))
    return min(options)


@given(sizes, st.integers(0, 5), st.booleans())
def test_cuts_take_the_fewest_pages(counts: list[int], overhead: int, first: bool) -> None:
    hashes = [999] * len(counts)  # none of which parts the list
    groups = cut(counts, hashes, overhead, SMALL, first)
    assert [i for group in groups for i in range(group.start, group.stop)] == list(range(len(counts)))
    totals = [sum(counts[group]) + (0 if first and group.start == 0 else overhead) for group in groups]
    assert all(
        total <= 12 or group.stop - group.start == 1 for total, group in zip(totals, groups, strict=True)
    )
    assert sum(map(SMALL.pages, totals)) == best_pages(tuple(counts), overhead, SMALL, first)


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 99)), max_size=30))
def test_packs(items: list[tuple[int, int]]) -> None:
    counts, hashes = [size for size, _ in items], [digest for _, digest in items]
    groups = pack(counts, hashes, SMALL)
    assert [i for group in groups for i in range(group.start, group.stop)] == list(range(len(counts)))
    assert all(sum(counts[group]) <= 12 for group in groups)
    assert sum(SMALL.pages(sum(counts[group])) for group in groups) <= sum(map(SMALL.pages, counts))
    for group in groups:  # nobody is joined for nothing
        if group.stop - group.start > 1:
            assert SMALL.pages(sum(counts[group])) < sum(map(SMALL.pages, counts[group]))


def test_packs_of_sorted_hashes_need_no_recursion() -> None:
    for hashes in (range(5_000), range(5_000, 0, -1)):
        groups = pack([5] * 5_000, list(hashes), SMALL)
        assert groups[0].start == 0
        assert groups[-1].stop == 5_000
        assert all(a.stop == b.start for a, b in pairwise(groups))


@given(st.lists(st.integers(1, 60), min_size=60, max_size=120), st.integers(0, 59))
@settings(deadline=None)
def test_packs_far_from_a_change_stay(counts: list[int], place: int) -> None:
    layout = SpanLayout()
    hashes = [stable_hash(str(i)) for i in range(len(counts))]
    before = pack(counts, hashes, layout)
    without = pack(counts[:place] + counts[place + 1 :], hashes[:place] + hashes[place + 1 :], layout)
    moved = [g if g.stop <= place else slice(g.start + 1, g.stop + 1) for g in without]
    new = {(g.start, g.stop) for g in moved} - {(g.start, g.stop) for g in before}
    assert len(new) <= 6


def test_layouts_are_checked() -> None:
    with pytest.raises(GraphError, match="max_tokens must be at least block_size"):
        SpanLayout(block_size=32, max_tokens=16)


def test_counts_are_remembered() -> None:
    class Tokenizer:
        calls = 0

        def encode(self, text: str, add_special: bool = True, allow_special_tokens: bool = True) -> list[int]:
            assert not add_special
            assert not allow_special_tokens
            self.calls += 1
            return [0] * len(text)

    tokenizer = Tokenizer()
    count = TokenCounts(tokenizer, capacity=2)
    assert [count(text) for text in ("a", "bb", "a", "ccc", "a")] == [1, 2, 1, 3, 1]
    assert tokenizer.calls == 4


def test_the_real_ontology_fills_its_pages() -> None:
    """All 31,721 records of the Human Phenotype Ontology, counted by a real tokenizer."""
    from vglm import LLM

    try:
        directory, model = pull_hpo(progress=False), pull("smollm2-135m-instruct", progress=False)
    except ModelError as error:
        pytest.skip(f"cannot be fetched here: {error}")
    graph = load_hpo(directory).graph
    tokenizer = LLM(model, max_model_len=512).tokenizer
    diseases = graph.nodes_of_type("disease")[::40].tolist()
    chosen = {graph.id_of(i) for i in diseases} | {
        n.id for i in diseases for n in graph.neighbors(graph.id_of(i))
    }
    part = graph.subgraph(chosen)
    spans = node_spans(part, TokenCounts(tokenizer))
    assert page_use(spans) >= 0.9
    real = [len(ids) for ids in tokenizer.encode_batch([s.text for s in spans], False, False)]
    slots = sum(-(-count // 16) * 16 for count in real)
    assert sum(real) / slots >= 0.9
    assert sorted(real)[len(real) // 20] >= 20
    assert sorted(real)[len(real) * 99 // 100] <= 100
