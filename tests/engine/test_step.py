"""The arrays of a step, and what building them costs."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
from engine_helpers import greedy, make_engine, prompt
from tiny_model import HIDDEN, VOCAB, TinyStorage

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.block_pool import BlockPool
from vglm.engine.config import EngineConfig
from vglm.engine.core import EngineCore
from vglm.engine.request import RequestKind
from vglm.engine.step import RowKind, StepBatch, StepResult


def next_batch(engine: EngineCore) -> StepBatch:
    return engine.builder.build(engine.scheduler.schedule())


def test_prefill_and_decode_in_one_batch() -> None:
    engine = make_engine(block_size=4)
    tokens = prompt(5)
    engine.add_request("a", tokens, greedy(4))
    engine.step()
    engine.add_request("b", prompt(9, 1), greedy(4))
    batch = next_batch(engine)
    a, b = engine.scheduler.running
    assert batch.token_ids.tolist() == [a.output_token_ids[0], *prompt(9, 1)]
    assert batch.positions.tolist() == [5, *range(9)]
    assert batch.query_start.tolist() == [0, 1, 10]
    assert batch.table_start.tolist() == [0, 2, 5]
    assert batch.table_block.tolist() == a.own_pages() + b.own_pages()
    assert batch.table_valid.tolist() == [4, 2, 4, 4, 1]
    assert batch.output_rows.tolist() == [0, 9]
    arrays = (batch.token_ids, batch.positions, batch.query_start, batch.table_start, batch.table_block)
    for array in (*arrays, batch.table_valid, batch.output_rows):
        assert array.dtype == np.int32
        assert array.flags.c_contiguous


def test_a_chunk_lists_only_the_pages_that_it_needs() -> None:
    engine = make_engine(block_size=4, max_num_batched_tokens=8)
    engine.add_request("a", prompt(30), greedy(4))
    batch = next_batch(engine)
    assert batch.table_valid.tolist() == [4, 4]
    assert len(batch.output_rows) == len(batch.sample_rows) == 0


def test_every_sampling_parameter_reaches_its_row() -> None:
    engine = make_engine(eos=(7,))
    params = SamplingParams(
        temperature=0.7,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        seed=2**64 - 1,
        logprobs=3,
        min_tokens=2,
        stop_token_ids=[9],
        logit_bias={4: -1.5, 9: 2.0},
    )
    engine.add_request("a", prompt(3), SamplingParams(seed=1))
    engine.add_request("b", prompt(4), params)
    engine.step()
    rows = next_batch(engine).sample_rows
    for name in (
        "temperature",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    ):
        assert getattr(rows, name)[1] == np.float32(getattr(params, name))
    assert rows.top_k.tolist() == [0, 5]
    assert rows.seed.tolist() == [1, 2**64 - 1]
    assert rows.num_logprobs.tolist() == [-1, 3]
    assert rows.index.tolist() == [1, 1]
    assert rows.target.tolist() == [-1, -1]
    assert rows.bias_start[:2].tolist() == [0, 0]
    assert dict(zip(rows.bias_id.tolist(), rows.bias_value.tolist(), strict=True)) == {
        4: -1.5,
        7: -np.inf,
        9: -np.inf,
    }
    assert rows.history_start.tolist() == [0, 0, 5]
    assert rows.history.tolist()[:4] == prompt(4)
    assert rows.history_prompt.tolist() == [0, 4]
    engine.step()
    rows = next_batch(engine).sample_rows  # two tokens out: nothing is banned any more
    assert dict(zip(rows.bias_id.tolist(), rows.bias_value.tolist(), strict=True)) == {4: -1.5, 9: 2.0}


def test_a_slot_follows_its_new_owner() -> None:
    engine = make_engine(max_num_seqs=1)
    engine.add_request("a", prompt(3), SamplingParams(max_tokens=1, temperature=0.5))
    engine.add_request("b", prompt(3, 1), SamplingParams(max_tokens=1, temperature=0.25))
    engine.step()
    assert next_batch(engine).sample_rows.temperature.tolist() == [0.25]


def test_kinds_of_output_rows() -> None:
    engine = make_engine()
    engine.add_request("encode", prompt(3), greedy(1), kind=RequestKind.ENCODE)
    engine.add_request("score", prompt(4), greedy(1), kind=RequestKind.SCORE, target_token_ids=[5, 6, 7])
    engine.add_request("logprobs", prompt(3, 2), SamplingParams(prompt_logprobs=2, n=2))
    batch = next_batch(engine)
    rows = batch.sample_rows
    hidden, target, sample = RowKind.HIDDEN, RowKind.TARGET, RowKind.SAMPLE
    assert rows.kind.tolist() == [hidden] * 3 + [target] * 5 + [sample] * 2
    assert rows.target.tolist() == [-1] * 3 + [5, 6, 7] + prompt(3, 2)[1:] + [-1, -1]
    assert batch.output_rows.tolist() == [0, 1, 2, 6, 7, 8, 9, 10, 11, 11]
    assert rows.num_logprobs.tolist() == [-1] * 3 + [0] * 3 + [2] * 2 + [-1] * 2
    assert len(batch.token_ids) == 3 + (4 + 2) + 3  # the last target is never computed


class NoModel:
    """Answers at once, to leave the engine's own time."""

    def execute(self, batch: StepBatch) -> StepResult:
        rows = len(batch.output_rows)
        return StepResult(np.ones(rows, np.int32), np.zeros(rows, np.float32))


@pytest.mark.parametrize(("num_seqs", "limit"), [(1, 0.2e-3), (64, 1e-3)])
def test_overhead_of_a_decode_step(num_seqs: int, limit: float) -> None:
    """Schedule, build and apply together in steady decode: median over steps, in seconds of this thread."""
    config = EngineConfig(
        max_num_seqs=64,
        max_num_batched_tokens=4096,
        max_model_len=1024,
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        eos_token_ids=(0,),
    )
    engine = EngineCore(NoModel(), BlockPool(64 * 64, 16, TinyStorage(1, 1)), config)
    for i in range(num_seqs):
        engine.add_request(str(i), prompt(300, i), SamplingParams(max_tokens=500))
    while any(not request.first_token_time for request in engine.requests.values()):
        engine.step()
    times = []
    for _ in range(200):
        start = time.thread_time()
        engine.step()
        times.append(time.thread_time() - start)
    assert statistics.median(times) < limit
