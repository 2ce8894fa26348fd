"""Candidates scored over their trie get the bits that `LLM.score` gives them, on the native core."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.integration.helpers import DTYPES, TOKENS_OF_TINY
from vglm import LLM, Graph, SamplingParams
from vglm.engine.request import RequestKind
from vglm.errors import ModelError, RequestError

MODEL = "smollm2-135m-instruct"


def ids(length: int, seed: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(5, 250, length).tolist()
    return tokens


def shapes() -> list[list[int]]:
    """Names of one token and of 200, prefixes of each other, shared stems, names twice."""
    stems = [ids(n, 7) for n in (1, 5, 15, 16, 17, 33)]
    found = [[i] for i in range(40, 60)] + [ids(200, 1), [*ids(150, 1), *ids(50, 2)], ids(200, 1)[:31]]
    found += [stem + ids(1 + (i + j) % 7, i) for i, stem in enumerate(stems) for j in range(12)]
    return found + stems + stems[:2]


@pytest.mark.parametrize(("dtype", "kv"), DTYPES)
@pytest.mark.parametrize("prompt_len", [1, 32, 300, 517])
def test_bits_of_one_by_one(tiny: Path, home: Path, dtype: str, kv: str, prompt_len: int) -> None:
    prompt, candidates = ids(prompt_len, 3), shapes()
    llm = LLM(tiny, dtype=dtype, kv_cache_dtype=kv, max_model_len=1024, kv_cache_memory="64M")
    wanted = [output.token_logprobs for output in llm.score([prompt], candidates, use_tqdm=False)]
    found = llm.score_candidates(prompt, candidates, end=False)
    assert [score.token_logprobs for score in found] == wanted
    llm.engine.check_integrity()


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 1},
        {"max_num_batched_tokens": 64},
        {"max_num_batched_tokens": 300, "threads": 3},
        {"enable_prefix_caching": False},
        {"block_size": 64, "kv_cache_memory": "64M"},
        {"max_model_len": 560, "kv_cache_memory": "TIGHT"},
    ],
)
def test_bits_do_not_depend_on_threads_steps_pages_or_memory(
    tiny: Path, home: Path, options: dict[str, object]
) -> None:
    prompt, candidates = ids(300, 3), shapes()
    if options.get("kv_cache_memory") == "TIGHT":
        options = {**options, "kv_cache_memory": block_bytes_of(tiny) * 36}
    wanted = LLM(tiny, max_model_len=1024).score_candidates(prompt, candidates, end=False)
    llm = LLM(tiny, **{"max_model_len": 1024, **options})
    assert llm.score_candidates(prompt, candidates, end=False) == wanted
    llm.engine.check_integrity()


def block_bytes_of(model: Path) -> int:
    from vglm.engine.executor import block_bytes

    llm = LLM(model)
    return block_bytes(llm._packed, llm.options.block_size, llm.options.kv_dtype)


def test_order_end_token_normalisation_and_duplicates(tiny: Path, home: Path) -> None:
    llm = LLM(tiny)
    names = ["Marfan syndrome", "Marfan", "Ehlers", "Marfan", "\u00e9\u4e2d\U0001f600"]
    found = llm.score_candidates("The disease is ", names)
    assert [score.text for score in found] == names
    assert found[1] == found[3]
    assert llm.score_candidates("The disease is ", names[::-1]) == found[::-1]
    end = llm.config.eos_token_ids[0]
    encoded = [[*llm.tokenizer.encode(name, add_special=False), end] for name in names]
    assert [s.token_logprobs for s in llm.score_candidates("The disease is ", encoded)] != [
        s.token_logprobs for s in found
    ]  # another end token
    without = llm.score_candidates("The disease is ", encoded, end=False)
    assert [s.token_logprobs for s in without] == [s.token_logprobs for s in found]
    for plain, mean in zip(
        found, llm.score_candidates("The disease is ", names, normalize="tokens"), strict=True
    ):
        assert plain.logprob == sum(plain.token_logprobs)
        assert mean.logprob == plain.logprob / len(plain.token_logprobs)


def test_what_cannot_be_scored_is_refused_and_changes_nothing(tiny: Path, home: Path) -> None:
    llm = LLM(tiny, max_model_len=256)
    refused: list[tuple[object, str]] = [
        ([], "no candidates"),
        ("Marfan", "must be a list"),
        (None, "must be a list"),
        (["a", ""], "candidate 1 is empty"),
        (["a", []], "candidate 1 is empty"),
        (["a", [1, TOKENS_OF_TINY]], "candidate 1 has token id"),
        (["a", 7], "candidate 1: token ids"),
        (["a", "b" * 400], "candidate 1 has 401 tokens"),
        (["b" * 10_000_000], "10000000 characters"),
        (["a"] * 100_000, "100000 candidates; at most 65536"),
        (["\ud800"], "not valid Unicode"),
    ]
    for candidates, message in refused:
        with pytest.raises(RequestError, match=message) as error:
            llm.score_candidates("The disease is ", candidates)  # type: ignore[arg-type]
        assert len(str(error.value)) < 300
    with pytest.raises(RequestError, match="normalize"):
        llm.score_candidates("The disease is ", ["a"], normalize="length")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="one prompt"):
        llm.score_candidates(["one", "two"], ["a"])  # type: ignore[list-item]
    assert not llm.engine.has_unfinished
    assert len(llm.score_candidates("The disease is ", ["a"])) == 1


def test_a_control_token_in_a_name_is_text(tiny: Path, home: Path) -> None:
    llm = LLM(tiny)
    control = llm.tokenizer.id_to_token(llm.config.eos_token_ids[0])
    assert control is not None
    spelled = llm.tokenizer.encode(control, add_special=False, allow_special_tokens=False)
    assert len(spelled) > 1
    found = llm.score_candidates("x", [control, spelled], end=False)
    assert found[0].token_logprobs == found[1].token_logprobs


def test_generation_beside_candidates_gets_its_own_tokens(tiny: Path, home: Path) -> None:
    """A stream that is open while candidates are scored goes on as if nothing had happened."""
    llm = LLM(tiny, max_num_batched_tokens=128)
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    wanted = llm.generate([ids(30, 9)], params, use_tqdm=False)[0].outputs[0].token_ids
    stream = llm.stream(ids(30, 9), params)
    tokens = [next(stream).token_ids for _ in range(3)]
    found = llm.score_candidates(ids(300, 3), shapes(), end=False)
    tokens += [chunk.token_ids for chunk in stream]
    assert [token for chunk in tokens for token in chunk] == wanted
    assert found == LLM(tiny).score_candidates(ids(300, 3), shapes(), end=False)


@pytest.mark.parametrize("mode", ["spans", "sequential"])
def test_candidates_after_a_graph_get_the_bits_of_score_requests(tiny: Path, home: Path, mode: str) -> None:
    """The names of a graph's nodes after a question about it, in any order of the graph."""
    nodes = [
        {"id": f"n{i}", "name": f"node {i} of {i % 3}", "type": "A", "text": "some words"} for i in range(12)
    ]
    edges = [{"source": f"n{i}", "relation": "near", "target": f"n{(3 * i + 1) % 12}"} for i in range(12)]
    names = [" " + node["name"] for node in nodes]
    graph = Graph.from_dict({"nodes": nodes, "edges": edges})
    llm = LLM(tiny, max_model_len=4096, kv_cache_memory="128M")
    found = llm.score_candidates("Which node?", names, graph=graph, graph_mode=mode, end=False)
    shuffled = Graph.from_dict({"nodes": nodes[::-1], "edges": edges[5:] + edges[:5]})
    assert llm.score_candidates("Which node?", names, graph=shuffled, graph_mode=mode, end=False) == found
    prompt = llm.asking.complete("Which node?", graph, mode=mode).prompt
    for name, score in zip(names, found, strict=True):
        request = llm.engine.add_request(
            name,
            prompt.token_ids,
            SamplingParams(max_tokens=1),
            kind=RequestKind.SCORE,
            target_token_ids=llm.tokenizer.encode(name, add_special=False),
            span_specs=prompt.span_specs,
            first_position=prompt.first_position,
        )
        while llm.engine.has_unfinished:
            llm.engine.step()
        assert [token.logprob for token in request.scores] == score.token_logprobs
    assert bool(prompt.span_specs) == (mode == "spans")
    llm.engine.check_integrity()


@pytest.fixture(scope="module")
def real() -> LLM:
    try:
        return LLM(MODEL, max_model_len=2048)
    except ModelError as error:
        pytest.skip(f"the model cannot be fetched here: {error}")


def test_real_names_after_a_real_prompt(real: LLM) -> None:
    names = [
        " Marfan syndrome",
        " Marfan lipodystrophy syndrome",
        " Loeys-Dietz syndrome",
        " Ehlers-Danlos syndrome",
        " Ehlers-Danlos syndrome, classic type",
        " Ehlers-Danlos syndrome, vascular type",
        " cystic fibrosis",
        " pantothenate kinase-associated neurodegeneration",
    ]
    prompt = (
        "A tall patient with a dislocated lens and a widened aorta. " * 20 + "The most likely diagnosis is"
    )
    found = real.score_candidates(prompt, names, end=False)
    wanted = real.score(prompt, names, use_tqdm=False)
    assert [score.token_logprobs for score in found] == [output.token_logprobs for output in wanted]
    computed = real.engine.metrics.prompt_tokens
    real.score_candidates(prompt, names, end=False)
    rows = real.engine.metrics.prompt_tokens - computed
    assert rows < sum(
        len(score.token_logprobs) for score in found
    )  # the prompt's last page and what is not shared
