"""A request gets the same tokens whatever happens around it: batch, cache, chunks, preemption, siblings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from engine_helpers import (
    assert_empty,
    drain,
    generate,
    greedy,
    make_engine,
    model_of,
    prompt,
    tokens_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.core import EngineCore
from vglm.engine.request import PromptEmbeds, Request, RequestKind
from vglm.engine.span_cache import Span

LENGTHS = (1, 3, 4, 5, 8, 17, 30, 41)
PROMPTS = [prompt(length, seed=length) for length in LENGTHS]
SAMPLED = SamplingParams(
    max_tokens=10,
    temperature=0.9,
    seed=3,
    repetition_penalty=1.2,
    frequency_penalty=0.3,
    presence_penalty=0.1,
)


def alone(tokens: list[int], params: SamplingParams) -> list[list[int]]:
    """The output of a request that has an engine to itself, without a cache and in one chunk."""
    return tokens_of(generate(make_engine(prefix_caching=False), [tokens], params))[0]


ALONE = [alone(tokens, greedy(10)) for tokens in PROMPTS]
ALONE_SAMPLED = [alone(tokens, SAMPLED) for tokens in PROMPTS]


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("budget", [8, 13, 64])
@pytest.mark.parametrize("num_blocks", [16, 21, 200])
def test_tokens_do_not_depend_on_batch_chunks_cache_or_preemption(
    num_blocks: int, budget: int, prefix_caching: bool
) -> None:
    engine = make_engine(
        num_blocks, max_model_len=64, max_num_batched_tokens=budget, prefix_caching=prefix_caching
    )
    for _ in range(2):  # the second round hits the cache
        assert tokens_of(generate(engine, PROMPTS, greedy(10))) == ALONE
        assert tokens_of(generate(engine, PROMPTS, SAMPLED)) == ALONE_SAMPLED
    assert (engine.cache.stats.hits > 0) == (prefix_caching and num_blocks == 200)
    assert (engine.stats().num_preemptions > 0) == (num_blocks < 200)
    assert max(tokens for _, tokens in model_of(engine).batches) <= budget
    assert_empty(engine)


def test_one_token_at_a_time_gives_the_same() -> None:
    engine = make_engine(max_num_seqs=1, max_num_batched_tokens=1)
    assert tokens_of(generate(engine, PROMPTS, greedy(10))) == ALONE
    assert set(model_of(engine).batches) == {(1, 1)}


@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_any_block_size_gives_the_same(block_size: int) -> None:
    engine = make_engine(120, block_size, max_model_len=64)
    assert tokens_of(generate(engine, PROMPTS, greedy(10))) == ALONE
    assert_empty(engine)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_traffic_gives_each_request_its_own_tokens(data: st.DataObject) -> None:
    """Requests arrive and are aborted at any time; the memory is compacted in between."""
    engine = make_engine(
        data.draw(st.integers(14, 40)),
        max_model_len=52,
        max_num_seqs=data.draw(st.integers(2, 6)),
        max_num_batched_tokens=data.draw(st.integers(6, 40)),
        prefix_caching=data.draw(st.booleans()),
    )
    to_come = data.draw(st.lists(st.integers(0, len(PROMPTS) - 1), max_size=12))
    requests: list[tuple[int, bool, Request]] = []
    while to_come or engine.has_unfinished:
        for _ in range(data.draw(st.integers(0, 4))):
            if to_come:
                which, sampled = to_come.pop(), data.draw(st.booleans())
                params = SAMPLED if sampled else greedy(10)
                priority = data.draw(st.integers(0, 2))
                name = str(len(requests))
                request = engine.add_request(name, PROMPTS[which], params, priority=priority)
                requests.append((which, sampled, request))
        engine.step()
        engine.check_integrity()
        event = data.draw(st.integers(0, 9))
        if event == 0 and engine.requests:
            engine.abort(data.draw(st.sampled_from(sorted(engine.requests))))
        elif event == 1:
            engine.compact()
        engine.check_integrity()
    for which, sampled, request in requests:
        wanted = (ALONE_SAMPLED if sampled else ALONE)[which][0]
        got = request.sequences[0].output_token_ids
        if request.sequences[0].finish_reason == "abort":
            assert got == wanted[: len(got)]
        else:
            assert got == wanted
    assert_empty(engine)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 24])
@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("num_blocks", [12, 64])
def test_siblings_share_the_prompt_and_differ_afterwards(
    length: int, prefix_caching: bool, num_blocks: int
) -> None:
    tokens = prompt(length, seed=length)
    params = SamplingParams(n=4, max_tokens=12, temperature=1.5, seed=11)
    engine = make_engine(num_blocks, max_model_len=48, prefix_caching=prefix_caching)
    request = generate(engine, [tokens], params)[0]
    # completion i of a seeded request is completion 0 of the same request seeded with seed + i
    for i, sequence in enumerate(request.sequences):
        single = SamplingParams(max_tokens=12, temperature=1.5, seed=11 + i)
        assert sequence.output_token_ids == alone(tokens, single)[0]
    assert len({tuple(s.output_token_ids) for s in request.sequences}) == 4
    if not engine.stats().num_preemptions:
        assert model_of(engine).tokens_computed == length + 4 * 11
        assert model_of(engine).storage.num_copied == (3 if length % 4 else 0)
    assert_empty(engine)


def test_greedy_siblings_end_up_on_the_same_blocks() -> None:
    engine = make_engine()
    request = engine.add_request("a", prompt(9), greedy(14, n=3))
    while len(request.sequences[2].output_token_ids) < 12:
        engine.step()
        engine.check_integrity()
    tables = [sequence.own_pages() for sequence in request.sequences]
    assert tables[0][:5] == tables[1][:5] == tables[2][:5]  # 9 + 11 tokens are computed: 5 full blocks
    drain(engine)
    assert request.sequences[0].output_token_ids == request.sequences[2].output_token_ids
    assert_empty(engine)


def test_siblings_with_prompt_logprobs_in_chunks() -> None:
    tokens = prompt(21)
    params = SamplingParams(n=2, max_tokens=4, temperature=1.0, seed=5, prompt_logprobs=2)
    whole = generate(make_engine(), [tokens], params)[0]
    engine = make_engine(max_num_batched_tokens=8)
    generate(engine, [tokens], greedy(1))
    chunked = generate(engine, [tokens], params)[0]
    assert tokens_of([chunked]) == tokens_of([whole])
    assert [p.token_id for p in chunked.prompt_logprobs] == tokens[1:]
    for a, b in zip(chunked.prompt_logprobs, whole.prompt_logprobs, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-5)
        assert a.top_ids == b.top_ids
        assert len(a.top_ids) == 2


def test_the_end_of_text_ends_only_its_own_sequence() -> None:
    """Make the third greedy token of one prompt the end-of-text token."""
    eos = ALONE[5][0][2]
    engine = make_engine(eos=(eos,))
    requests = generate(engine, PROMPTS, greedy(10))
    for request, (wanted,) in zip(requests, ALONE, strict=True):
        end = wanted.index(eos) + 1 if eos in wanted else len(wanted)
        assert request.sequences[0].output_token_ids == wanted[:end]
        assert request.sequences[0].finish_reason == ("stop" if eos in wanted else "length")


def test_embeddings_stand_in_for_tokens() -> None:
    """Rows of the embedding table at some positions give what the tokens there would have given."""
    engine = make_engine(max_num_batched_tokens=8)
    tokens = prompt(30)
    positions = np.array([0, 3, 7, 8, 9, 29], np.int32)
    rows = model_of(engine).embed[np.array(tokens)[positions]].astype(np.float32)
    model_of(engine).embed = model_of(engine).embed.astype(np.float32).astype(np.float64)
    wanted = tokens_of(generate(engine, [tokens], greedy(8)))
    masked = [1 if i in positions else token for i, token in enumerate(tokens)]

    def run(name: str, rows: np.ndarray) -> Request:
        request = engine.add_request(name, masked, greedy(8), embeds=PromptEmbeds(positions, rows))
        drain(engine)
        return request

    assert tokens_of([run("a", rows)]) == wanted
    again = run("b", rows)
    assert tokens_of([again]) == wanted
    assert again.num_cached_tokens == 28
    other = run("c", -rows)
    assert other.num_cached_tokens == 0  # other embeddings, another key
    assert tokens_of([other]) != wanted
    assert tokens_of([run("d", rows)]) == wanted


def test_spans_of_a_context_are_shared_in_any_order() -> None:
    """Spans of several blocks are computed once each, and requests see them in key order."""
    engine = make_engine(max_num_batched_tokens=16)
    system = span(engine, "system", prompt(10, 1))
    nodes = [span(engine, f"node{i}", prompt(n, i), (system,), 12) for i, n in enumerate((6, 9, 4))]
    edge = span(engine, "edge", prompt(5, 9), (system, *nodes[:2]), 21)
    computed = model_of(engine).tokens_computed
    assert computed == 10 + 6 + 9 + 4 + 5
    context = [system, *nodes, edge]
    outputs = []
    for i, order in enumerate((context, context[::-1], context[2:] + context[:2])):
        request = engine.add_request(f"q{i}", prompt(7, 3), greedy(9), context=order, first_position=32)
        drain_with(engine, context)
        outputs.append(request.sequences[0].output_token_ids)
    assert outputs[0] == outputs[1] == outputs[2]
    assert span(engine, "again", prompt(5, 9), (*nodes[1::-1], system), 21) is edge
    engine.cache.release(edge)
    for held in context:
        engine.cache.release(held)
    assert_empty(engine)


def test_a_span_as_context_is_as_good_as_its_tokens_in_the_prompt() -> None:
    """A question that sees one span, at the position after it, gets what the whole prompt gets."""
    text, question = prompt(10, 1), prompt(15, 2)
    wanted = tokens_of(generate(make_engine(), [text + question], greedy(9)))
    for budget in (8, 64):
        engine = make_engine(max_num_batched_tokens=budget)
        held = span(engine, "text", text)
        for name in ("first", "from the cache"):
            request = engine.add_request(name, question, greedy(9), context=[held], first_position=10)
            drain_with(engine, [held])
            assert tokens_of([request]) == wanted
        assert request.num_cached_tokens == 12
        # the same tokens somewhere else are another span
        request = engine.add_request("shifted", question, greedy(9), context=[held], first_position=11)
        drain_with(engine, [held])
        assert request.num_cached_tokens == 0
        engine.cache.release(held)
        assert_empty(engine)


def span(
    engine: EngineCore, name: str, tokens: list[int], parents: Sequence[Span] = (), position: int = 0
) -> Span:
    """Compute (or find) a span that attends to its parents; it comes back held."""
    request = engine.add_request(
        name, tokens, greedy(1), kind=RequestKind.SPAN, context=parents, first_position=position
    )
    while engine.has_unfinished:
        engine.step()
    assert request.span is not None
    return request.span


def drain_with(engine: EngineCore, held: list[Span]) -> None:
    while engine.has_unfinished:
        engine.step()
        engine.check_integrity(held)
