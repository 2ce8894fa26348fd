"""Grounded decoding through the public API on a real model: hot texts name what exists, forced tokens save steps."""

from __future__ import annotations

import gc
import json
import random
from typing import Any

import jsonschema
import pytest

from tests.integration.helpers import assert_idle, exact
from vglm import LLM, Graph, RequestError, SamplingParams
from vglm.decode.grounded.decoder import GroundedText

MODEL = "smollm2-135m-instruct"
DISEASES = [
    "Marfan syndrome",
    "Marfan",
    "Loeys-Dietz syndrome",
    "Loeys-Dietz syndrome 2",
    "Usher syndrome",
    "Fièvre [x]",
]
FINDINGS = [
    "Tall stature",
    "Ectopia lentis",
    "Tall",
    "Café-au-lait spots, many",
    "Hearing loss",
    '"Odd" gait\\',
    "日本",
]
RELATIONS = ["has finding", "has finding, rarely"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "disease": {"x-graph": {"entity": {"types": ["disease"]}}},
        "findings": {"type": "array", "items": {"x-graph": {"entity": {"types": ["finding"]}}}, "minItems": 1, "maxItems": 3},
        "evidence": {"type": "array", "items": {"x-graph": "edge"}, "minItems": 1, "maxItems": 2},
        "certain": {"type": "boolean"},
    },
    "required": ["disease", "findings", "evidence", "certain"],
}  # fmt: skip
GROUNDINGS: list[Any] = [
    {"types": ["disease"]},
    {"count": 3},
    {"kind": "walk", "inverse": True},
    {"kind": "walk+answer", "types": ["finding"]},
    {"schema": SCHEMA},
    "mentions",
]


def small_graph() -> Graph:
    rng = random.Random(4)
    nodes = [{"id": f"d{i}", "name": name, "type": "disease"} for i, name in enumerate(DISEASES)]
    nodes += [{"id": f"f{i}", "name": name, "type": "finding"} for i, name in enumerate(FINDINGS)]
    nodes += [{"id": "f9", "name": "Tall stature", "type": "finding"}]  # a name twice
    edges = [
        {"source": node["id"], "relation": rng.choice(RELATIONS), "target": f"f{rng.choice([*range(7), 9])}"}
        for node in nodes[:6]
        for _ in range(3)
    ]
    edges.append({"source": "f2", "relation": "is a", "target": "f0"})
    return Graph.from_dict({"nodes": nodes, "edges": edges})


GRAPH = small_graph()


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(MODEL, max_model_len=2048, max_num_seqs=32)


def hot(seed: int, max_tokens: int = 120, **options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=1.5, seed=seed, **options)


NAMES = {node.name for node in GRAPH.nodes()}
EDGES = [(edge.source, edge.relation, edge.target) for edge in GRAPH.edges()]


def check(grounding: Any, output: Any) -> bool:
    """What a text names exists; whether the text is complete."""
    said, text = output.outputs[0].graph, output.text
    if output.outputs[0].finish_reason != "stop":
        return False
    assert said.complete
    assert all(GRAPH.name_of(node.id) in NAMES for node in said.answer)
    if isinstance(grounding, str):
        assert all(piece.partition("]")[0] in NAMES for piece in text.split("[")[1:])
    elif "schema" in grounding:
        check_json(json.loads(text), said)
    elif "kind" in grounding:
        assert said.evidence
        assert all((e.source, e.relation, e.target) in EDGES for path in said.evidence for e in path)
        check_words(text.partition("\nAnswer: ")[0], said.evidence[0])
    else:
        assert all(GRAPH.name_of(node.id) in text for node in said.answer)
    return True


def check_words(walk: str, path: Any) -> None:
    """The text of a walk says its edges, in order."""
    position = 0
    for edge in path:
        position = walk.index(edge.relation, position) + len(edge.relation)
        assert {GRAPH.name_of(edge.source) in walk, GRAPH.name_of(edge.target) in walk} == {True}


def check_json(value: Any, said: Any) -> None:
    """A document validates, and its entities and edges are the graph's."""
    jsonschema.validate(value, SCHEMA)
    assert said.json == value
    assert GRAPH.name_of(said.answer[0].id) == value["disease"]
    for written in value["evidence"]:
        sources, targets = (
            [node.id for node in GRAPH.nodes() if node.name == written[end]] for end in ("source", "target")
        )
        assert any((s, written["relation"], t) in EDGES for s in sources for t in targets)


def test_hundreds_of_hot_texts_name_what_exists(llm: LLM) -> None:
    groundings = GROUNDINGS * 40
    prompts = [f"Case {i}: what may it be?" for i in range(len(groundings))]
    params = [hot(i) for i in range(len(groundings))]
    outputs = llm.generate(prompts, params, use_tqdm=False, graph=GRAPH, constraint=groundings)
    complete = [check(grounding, output) for grounding, output in zip(groundings, outputs, strict=True)]
    assert sum(complete) > len(complete) // 2
    assert all(
        done for done, grounding in zip(complete, groundings, strict=True) if grounding == {"count": 3}
    )
    assert_idle(llm)


def test_forced_tokens_save_steps(llm: LLM) -> None:
    before = llm.engine.metrics.num_steps
    walk = {"kind": "walk", "min_hops": 3, "inverse": True}
    output = llm.generate("Why?", hot(5), use_tqdm=False, graph=GRAPH, constraint=walk)[0]
    steps, tokens = llm.engine.metrics.num_steps - before, len(output.outputs[0].token_ids)
    assert check(walk, output)
    assert steps * 2 < tokens


def test_what_can_only_be_one_text_needs_no_sampling(llm: LLM) -> None:
    only = {"candidates": ["d3"]}
    before = llm.engine.metrics.num_steps
    output = llm.generate("Which?", hot(1), use_tqdm=False, graph=GRAPH, constraint=only)[0]
    assert output.text == "Loeys-Dietz syndrome 2"
    assert output.outputs[0].finish_reason == "stop"
    assert llm.engine.metrics.num_steps - before <= 2
    assert output.outputs[0].graph is not None
    assert [node.id for node in output.outputs[0].graph.answer] == ["d3"]


def test_the_same_text_in_any_company(llm: LLM) -> None:
    groundings = GROUNDINGS * 4
    prompts = [f"Case {i}:" for i in range(len(groundings))]
    params = [hot(i, 40, logprobs=1) for i in range(len(groundings))]
    together = [
        exact(output)
        for output in llm.generate(prompts, params, use_tqdm=False, graph=GRAPH, constraint=groundings)
    ]
    for i in (0, 3, 4, 5, 14, 22):
        alone = llm.generate(prompts[i], params[i], use_tqdm=False, graph=GRAPH, constraint=groundings[i])[0]
        assert exact(alone) == together[i]


def test_log_probabilities_are_those_of_scoring(llm: LLM) -> None:
    params = hot(3, logprobs=1, n=2)
    output = llm.generate("Why?", params, use_tqdm=False, graph=GRAPH, constraint="walk+answer")[0]
    for completion in output.outputs:
        scored = llm.score(
            [{"prompt_token_ids": output.prompt_token_ids}], [completion.token_ids], use_tqdm=False
        )[0]
        assert completion.logprobs is not None
        pairs = zip(completion.logprobs, completion.token_ids, strict=True)
        assert [entry[token].logprob for entry, token in pairs] == scored.token_logprobs


def test_streams_and_chats(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Which disease explains tall stature?"}]
    output = llm.chat(messages, hot(2), use_tqdm=False, graph=GRAPH, constraint={"types": ["disease"]})[0]
    assert output.text in DISEASES
    chunks = list(llm.stream(messages, hot(2), graph=GRAPH, constraint={"types": ["disease"]}))
    assert "".join(chunk.text for chunk in chunks) == output.text


def test_refusals_change_nothing(llm: LLM) -> None:
    for wrong in ({"types": ["planet"]}, {"kind": "walk", "start": ["f0"]}, {"count": 99}, "poem"):
        with pytest.raises(RequestError) as refused:
            llm.generate("x", hot(1), use_tqdm=False, graph=GRAPH, constraint=wrong)
        assert refused.value.param == "constraint"
    assert_idle(llm)


def test_constraints_go_with_their_requests(llm: LLM) -> None:
    llm.generate(["a", "b"], hot(1, 5), use_tqdm=False, graph=GRAPH, constraint="mentions")
    gc.collect()
    assert not [found for found in gc.get_objects() if isinstance(found, GroundedText)]
