"""Graphs as spans: the reference's numbers, whatever the order, exactly what is new computed, live edits exact."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.helpers import FIXTURES, TOKENS_OF_TINY, tiny_model
from tests.native.forward_helpers import log_softmax
from tests.reference import Reference
from vglm import LLM, Graph, GraphQuery, RequestError, SamplingParams
from vglm.decode.outputs import RequestOutput
from vglm.engine.request import SpanSpec
from vglm.model.bundle import write_card
from vglm.model.checkpoint import open_checkpoint
from vglm.model.graph_card import GraphCard

QUESTION = "Which node is it?"
GREEDY = SamplingParams(max_tokens=6, temperature=0.0, logprobs=TOKENS_OF_TINY, ignore_eos=True)
Document = dict[str, list[dict[str, Any]]]
NewLLM = Callable[..., LLM]


def document(nodes: int, seed: int = 0, edges_per_node: float = 2.0, words: int = 8) -> Document:
    """A random graph in node-link form; a few nodes have many edges, so that their records are cut."""
    draw = random.Random(seed)
    text = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    ids = [f"n{i}" for i in range(nodes)]

    def node(i: str) -> dict[str, Any]:
        words_of = " ".join(draw.choices(text, k=words))
        return {"id": i, "name": f"node {i[1:]}", "type": draw.choice(["A", "B"]), "text": words_of}

    def edge() -> dict[str, Any]:
        ends = {"source": draw.choice(ids[: 1 + nodes // 2]), "target": draw.choice(ids)}
        return {"relation": draw.choice(["near", "part of"]), **ends}

    return {"nodes": [node(i) for i in ids], "edges": [edge() for _ in range(int(nodes * edges_per_node))]}


def shuffled(given: Document, seed: int) -> Graph:
    draw = random.Random(seed)
    return Graph.from_dict({key: draw.sample(rows, len(rows)) for key, rows in given.items()})


@pytest.fixture
def new_llm(tmp_path: Path, home: Path) -> NewLLM:
    def new(**options: Any) -> LLM:
        defaults: dict[str, Any] = {"max_model_len": 2048, "graph_mode": "spans", "kv_cache_memory": "256M"}
        return LLM(tiny_model(tmp_path), **{**defaults, **options})

    return new


def ask(llm: LLM, graph: Graph, params: SamplingParams = GREEDY, **options: Any) -> RequestOutput:
    return llm.generate([QUESTION], params, use_tqdm=False, graph=graph, **options)[0]


def exact(output: RequestOutput) -> list[object]:
    first = output.outputs[0]
    assert first.logprobs is not None
    rows = [{token: entry.logprob for token, entry in row.items()} for row in first.logprobs]
    return [first.token_ids, rows]


def dense(
    specs: tuple[SpanSpec, ...], after: list[int], start: int
) -> tuple[list[int], list[int], np.ndarray[Any, Any]]:
    """Tokens, positions and mask of spans and what follows them, as one sequence in which each token sees what its span
    attends to.
    """
    places, tokens, positions = [], [], []
    for spec in specs:
        places.append(range(len(tokens), len(tokens) + len(spec.tokens)))
        tokens += spec.tokens.tolist()
        positions += range(spec.first_position, spec.first_position + len(spec.tokens))
    places.append(range(len(tokens), len(tokens) + len(after)))
    tokens += after
    positions += range(start, start + len(after))
    visible = np.zeros((len(tokens), len(tokens)), bool)
    parents = [spec.parents for spec in specs] + [tuple(range(len(specs)))]
    for own, attended in zip(places, parents, strict=True):
        visible[own.start : own.stop, own.start : own.stop] = np.tri(len(own), dtype=bool)
        for parent in attended:
            visible[own.start : own.stop, places[parent].start : places[parent].stop] = True
    return tokens, positions, visible


@pytest.mark.parametrize(("dtype", "allowed"), [("bf16", 5e-3), ("int8", 5e-2)])
def test_spans_are_the_dense_mask_reference(new_llm: NewLLM, dtype: str, allowed: float) -> None:
    """Words before the graph, records, continuations with edges, and the question: every kind of span is in it."""
    graph = Graph.from_dict(document(7, seed=3, edges_per_node=4))
    llm = new_llm(dtype=dtype)
    prompt = llm.asking.complete(QUESTION, graph).prompt
    assert len({spec.first_position for spec in prompt.span_specs}) == 3
    assert any(len(spec.parents) > 2 for spec in prompt.span_specs), "no span reads both ends of an edge"
    output = ask(llm, graph)
    generated = output.outputs[0].token_ids
    tokens, positions, visible = dense(
        prompt.span_specs, prompt.token_ids + generated[:-1], prompt.first_position
    )
    checkpoint = open_checkpoint(FIXTURES / "llama")
    reference = Reference(checkpoint.config, checkpoint.tensor)
    assert output.outputs[0].logprobs is not None
    rows = output.outputs[0].logprobs
    found = np.array([[row[token].logprob for token in range(TOKENS_OF_TINY)] for row in rows])

    def divergence(mask: np.ndarray[Any, Any] | None, where: list[int] | None) -> float:
        """KL from the reference's distributions to the engine's, in nats, the largest of all tokens'."""
        wanted = log_softmax(reference.logits(tokens, where, visible=mask))[-len(generated) :]
        return float((np.exp(wanted) * (wanted - found)).sum(axis=1).max())

    assert divergence(visible, positions) < allowed
    blind = visible.copy()  # as if continuations did not see the ends of their edges
    first = sum(len(spec.tokens) for spec in prompt.span_specs[: len(prompt.span_specs) // 2])
    blind[first:, len(prompt.span_specs[0].tokens) : first] = False
    assert min(divergence(None, None), divergence(blind, positions)) > 5 * allowed, (
        "the test cannot tell masks apart"
    )


def test_a_thousand_shuffles_give_the_same_bits_and_hit_every_time(new_llm: NewLLM) -> None:
    given = document(24, seed=1)
    llm = new_llm()
    first = ask(llm, shuffled(given, 0))
    assert first.graph is not None
    assert first.graph.num_cached_tokens == 0
    for seed in range(1, 1001):
        again = ask(llm, shuffled(given, seed))
        assert exact(again) == exact(first)
        assert again.graph is not None
        assert again.graph.num_cached_tokens == again.graph.num_tokens == first.graph.num_tokens


def test_what_two_graphs_share_is_computed_once(new_llm: NewLLM) -> None:
    given = document(30, seed=5, edges_per_node=0)
    parts = [{**given, "nodes": given["nodes"][a:b]} for a, b in ((0, 20), (10, 30))]
    llm = new_llm()
    first, second = (ask(llm, Graph.from_dict(part)) for part in parts)
    assert first.graph is not None
    assert second.graph is not None
    assert abs(second.graph.num_cached_tokens / second.graph.num_tokens - 0.5) < 0.1
    assert exact(second) == exact(ask(new_llm(), Graph.from_dict(parts[1])))


def test_an_edit_computes_exactly_what_depends_on_it(new_llm: NewLLM) -> None:
    """In a graph of a thousand nodes; and the answer afterwards is a fresh engine's, bit for bit."""
    given = document(1000, seed=7)
    llm = new_llm(kv_cache_memory="1G")
    ask(llm, Graph.from_dict(given))
    for node, field in ((400, "text"), (3, "name"), (999, "type")):
        before = llm.asking.complete(QUESTION, Graph.from_dict(given)).prompt.span_specs
        given["nodes"][node][field] += " x"
        graph = Graph.from_dict(given)
        after = llm.asking.complete(QUESTION, graph).prompt.span_specs
        fresh = keys_of(llm, after).keys() - keys_of(llm, before).keys()
        changed = {spec.tokens.tobytes() for spec in after} - {spec.tokens.tobytes() for spec in before}
        dependants = [spec for spec in after if {after[p].tokens.tobytes() for p in spec.parents} & changed]
        assert 1 <= len(fresh) <= len(changed) + len(dependants)
        assert len(fresh) < 0.05 * len(after), "an edit of one node reaches far"
        inserted, computed = llm.stats().cache.inserted, llm.engine.metrics.prompt_tokens
        output = ask(llm, graph)
        assert llm.stats().cache.inserted - inserted <= len(fresh) + 2, (
            "more spans than those, and the question's"
        )
        new_tokens = sum(keys_of(llm, after)[key] for key in fresh)
        computed = llm.engine.metrics.prompt_tokens - computed
        assert new_tokens <= computed <= new_tokens + len(output.prompt_token_ids)
        assert exact(output) == exact(ask(new_llm(kv_cache_memory="1G"), graph))


def keys_of(llm: LLM, specs: tuple[SpanSpec, ...]) -> dict[bytes, int]:
    from vglm.engine.contexts import span_keys

    keys = span_keys(llm.engine.blocks.span_keys, specs)
    return {key: len(spec.tokens) for key, spec in zip(keys, specs, strict=True)}


def test_sequential_mode_is_the_canonical_text(new_llm: NewLLM) -> None:
    given = document(12, seed=2)
    llm = new_llm(graph_mode="auto")
    outputs = [ask(llm, shuffled(given, seed)) for seed in range(4)]
    assert [output.graph.mode for output in outputs if output.graph] == ["sequential"] * 4
    assert all(exact(output) == exact(outputs[0]) for output in outputs)
    forced = ask(llm, shuffled(given, 0), graph_mode="spans")
    assert forced.graph is not None
    assert forced.graph.mode == "spans"


def test_control_tokens_in_a_graph_are_text(new_llm: NewLLM) -> None:
    llm = new_llm()
    spelled = [llm.tokenizer.id_to_token(token) or "" for token in llm.tokenizer.special_ids]
    nodes = [{"id": f"{i}", "name": f"a{name}b", "text": name * 3} for i, name in enumerate(spelled)]
    graph = Graph.from_dict(
        {"nodes": nodes, "edges": [{"source": "0", "relation": spelled[0], "target": "0"}]}
    )
    for mode in ("spans", "sequential"):
        prompt = llm.asking.complete(QUESTION, graph, mode=mode).prompt
        tokens = {token for spec in prompt.span_specs[1:] for token in spec.tokens.tolist()} or set(
            prompt.token_ids[1:]
        )
        assert not tokens & set(llm.tokenizer.special_ids)
        assert len(ask(llm, graph, graph_mode=mode).outputs[0].token_ids) == 6


def test_a_model_that_is_asked_about_graphs_gets_texts_through_its_chat_template(
    tmp_path: Path, home: Path
) -> None:
    base = tiny_model(tmp_path)
    graph = shuffled(document(12, seed=2), 0)
    tokens = {}
    for facts in (False, True):
        folder = tmp_path / f"facts-{facts}"
        folder.mkdir()
        write_card(folder, name="mine", version="1", base_model=str(base), graph=GraphCard(facts=facts))
        llm = LLM(folder, max_model_len=2048, kv_cache_memory="64M")
        messages = [{"role": "user", "content": QUESTION}]
        asked = llm.chat(messages, GREEDY, use_tqdm=False, graph=graph)[0]
        tokens[facts] = ask(llm, graph).prompt_token_ids
        assert (tokens[facts] == asked.prompt_token_ids) == facts
        ids = llm.tokenizer.encode(QUESTION, add_special=False)
        assert llm.asking.complete(ids, graph).prompt.token_ids[-len(ids) :] == ids  # tokens are as they are
        streamed = list(llm.stream(QUESTION, GREEDY, graph=graph))
        assert "".join(chunk.text for chunk in streamed) == ask(llm, graph).outputs[0].text
    assert tokens[False] != tokens[True]


def test_answers_name_entities_and_cite_edges(new_llm: NewLLM) -> None:
    graph = Graph.from_dict(document(20, seed=9))
    llm = new_llm()
    hot = SamplingParams(max_tokens=80, temperature=1.5, seed=1, n=3)
    for constraint in ("answer", "walk", {"kind": "answer", "types": ["A"]}):
        for completion in ask(llm, graph, hot, constraint=constraint).outputs:
            assert completion.graph is not None
            assert completion.graph.complete
            assert all(entity.id in graph for entity in completion.graph.answer)
            for path in completion.graph.evidence:
                assert all(edge in graph.edges_of(edge.source) for edge in path)
    with pytest.raises(RequestError, match="constraint"):
        ask(llm, graph, constraint={"kind": "answer", "types": ["no such type"]})
    with pytest.raises(RequestError, match="over a graph"):
        llm.generate(["x"], constraint="answer")


def test_a_query_reads_the_part_of_the_graph_that_the_question_names(new_llm: NewLLM) -> None:
    graph = Graph.from_dict(document(300, seed=4))
    llm = new_llm()
    query = GraphQuery(graph, hops=1, budget=400)
    output = llm.generate(["What is near node 17?"], GREEDY, use_tqdm=False, graph=query)[0]
    assert output.graph is not None
    assert [entity.id for entity in output.graph.entities] == ["n17"]
    assert 0 < output.graph.num_nodes < 300
    assert output.graph.num_tokens < 600


@pytest.mark.parametrize(
    ("graph", "options", "message"),
    [
        ({"nodes": []}, {}, "must be a Graph or a GraphQuery"),
        (
            Graph.from_dict({"nodes": [], "edges": []}),
            {"graph_mode": "both"},
            "choose auto, spans, sequential",
        ),
        (Graph.from_dict({"nodes": [], "edges": []}), {"constraint": "answer"}, "constraint"),
        ([Graph.from_dict({"nodes": [], "edges": []})] * 2, {}, "1 prompts but 2 of graph"),
    ],
)
def test_bad_requests_are_refused(new_llm: NewLLM, graph: Any, options: dict[str, Any], message: str) -> None:
    llm = new_llm()
    with pytest.raises(RequestError, match=message):
        ask(llm, graph, **options)
    assert not llm.engine.has_unfinished


def test_an_empty_graph_is_no_error(new_llm: NewLLM) -> None:
    output = ask(new_llm(), Graph.from_dict({"nodes": [], "edges": []}))
    assert len(output.outputs[0].token_ids) == 6
