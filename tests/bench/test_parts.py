"""What benchmarks compute with: lengths, accounting, divergences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vglm.bench import accuracy, allocators, occupancy, traces
from vglm.bench.accuracy import Score, compare, log_softmax
from vglm.errors import ConfigError


def test_a_trace_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023,396,109\n")
    lengths = traces.read_trace(file)
    assert (lengths.prompts, lengths.outputs) == ([374, 396], [44, 109])
    assert lengths.fitting(450, 10).prompts == [374]
    assert lengths.divided(8).prompts == [47, 50]
    with pytest.raises(ConfigError, match="no request"):
        lengths.fitting(10, 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "must name the columns"),
        ("", "must name the columns"),
        ("ContextTokens,GeneratedTokens\n1,2\n3,x\n", "line 3"),
        ("ContextTokens,GeneratedTokens\n0,2\n", "line 2"),
        ("ContextTokens,GeneratedTokens\n5\n", "line 2"),
    ],
)
def test_a_damaged_trace_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        traces.read_trace(file)


def test_the_fit_has_the_traces_means() -> None:
    lengths = traces.fitted_lengths(20000, seed=1)
    assert lengths == traces.fitted_lengths(20000, seed=1)
    assert np.mean(np.log(lengths.prompts)) == pytest.approx(6.63, abs=0.05)
    assert np.mean(np.log(lengths.outputs)) == pytest.approx(5.02, abs=0.05)
    assert max(lengths.prompts) <= 14050
    assert min(lengths.outputs) >= 1


def test_use_of_memory_is_what_arithmetic_says() -> None:
    """Sequences of 100 + 28 tokens, two reservations of 256 slots: 2 at a time, 100 to 127 slots in use."""
    lengths = traces.Lengths("equal", [100] * 12, [28] * 12)
    ended: list[int] = []
    static = occupancy.replay(lengths, 256, 512, 256, ended.append)
    assert sum(ended) == 12
    assert static["steps"] == 6 * 28
    assert static["concurrent"] == 2
    # after step i of a round, 100 + i tokens are valid (the token that was just sampled is not computed yet)
    pressed = [(100 + i) / 256 for i in range(27)]
    assert static["used_slots_valid"] == pytest.approx(np.mean(pressed), abs=0.01)
    paged = occupancy.replay(lengths, 16, 512, 256, ended.append)
    assert paged["steps"] < 6 * 28
    assert paged["concurrent"] > 2


def test_a_reservation_runs_as_pages(model: str) -> None:
    """The native cache has no page of 512 tokens: a reservation spans two, and the tokens stay the same."""
    from vglm.bench.workload import fixed_length
    from vglm.llm import LLM

    llm = LLM(model, threads=1, max_model_len=512, enable_prefix_caching=False)
    lengths = traces.Lengths("two", [300, 20], [4, 6])
    row = occupancy.measure(llm, lengths, 512, 1024, 512, 1, lambda _: None)
    assert row["sequences_per_second"] > 0
    assert row["preemptions"] == 0
    prompt = list(range(100, 400))
    plain = llm.generate([prompt], fixed_length(4), use_tqdm=False)[0].outputs[0].token_ids
    assert _reserved(llm, prompt, 4) == plain


def _reserved(llm: object, prompt: list[int], count: int) -> list[int]:
    from vglm.bench.workload import fixed_length
    from vglm.engine.block_pool import BlockPool
    from vglm.engine.core import EngineCore
    from vglm.engine.executor import NativeExecutor
    from vglm.llm import LLM
    from vglm.options import choose_isa

    assert isinstance(llm, LLM)
    executor = NativeExecutor(
        llm._packed,
        max_model_len=512,
        block_size=256,
        num_blocks=2,
        kv_cache_dtype=llm.options.kv_dtype,
        threads=1,
        isa=choose_isa(),
    )
    config = occupancy._config(512, 1, llm.config.vocab_size, llm.config.hidden_size)
    pool = BlockPool(2, 512, occupancy._NoMemory())
    engine = EngineCore(occupancy._Reserving(executor, 2, 256), pool, config)
    request = engine.add_request("0", prompt, fixed_length(count))
    while engine.has_unfinished:
        engine.step()
    return request.sequences[0].output_token_ids


def test_fragmentation_is_measured_alike() -> None:
    pool, malloc = allocators.fragmentation_table([100, 1000, 3000], live=16, rounds=500)
    assert pool["external"] >= 0
    assert pool["after_compaction"] == 0
    assert 0 < malloc["external"] < 1
    equal, _ = allocators.fragmentation_table([160], live=16, rounds=50)
    assert equal["internal"] == 0


def test_divergence_against_its_definition() -> None:
    rng = np.random.default_rng(0)
    p = log_softmax(rng.standard_normal((4, 50)).astype(np.float32))
    q = log_softmax(rng.standard_normal((4, 50)).astype(np.float32) + 100)
    assert np.exp(q).sum(axis=1) == pytest.approx(1.0)
    targets = np.array([1, 2, 3, 4])
    score = Score()
    compare(score, p, q, targets)
    expected = [
        sum(np.exp(a) * (a - b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)
    ]
    assert score.kl[0] == pytest.approx(expected, rel=1e-4)
    row = score.row("x", reference_loss=-float(p[range(4), targets].sum()))
    assert row["perplexity"] == pytest.approx(np.exp(-q[range(4), targets].mean()), rel=1e-5)
    same = Score()
    compare(same, p, p, targets)
    assert same.agreed == 4
    assert same.kl[0].max() == 0


def test_chunks_cover_the_context_once() -> None:
    batches = list(accuracy.chunk_batches(list(range(300))))
    assert [len(batch.token_ids) for batch in batches] == [256, 44]
    assert np.concatenate([batch.positions for batch in batches]).tolist() == list(range(300))
    assert batches[-1].table_valid.sum() == 300
