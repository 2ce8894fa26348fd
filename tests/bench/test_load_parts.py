"""What a load is made of and what is computed from it: arrivals, traces, prompts, statistics, metrics, pictures."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vglm.bench import figures
from vglm.bench.arrivals import gamma_arrivals
from vglm.bench.load import Record, Run
from vglm.bench.plot import concurrency_over_time, tokens_over_time
from vglm.bench.scrape import Metrics, Watch, quantile
from vglm.bench.synthetic import Ranges, Workload, parse_mix, parse_range
from vglm.bench.traces import Trace, TracedRequest, read_arrivals
from vglm.errors import ConfigError

# ---- arrivals


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_arrivals_have_their_rate_and_burstiness(burstiness: float) -> None:
    times = gamma_arrivals(40_000, 8.0, burstiness, seed=3)
    intervals = np.diff(times, prepend=0.0)
    assert (intervals >= 0).all()
    assert 1 / intervals.mean() == pytest.approx(8.0, rel=0.03)
    assert intervals.std() / intervals.mean() == pytest.approx(burstiness**-0.5, rel=0.05)
    if burstiness == 1.0:  # a Poisson process: as many in each second as variance
        counts = np.bincount(times.astype(int))[:-1]
        assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.1)


def test_arrivals_are_the_same_for_a_seed() -> None:
    assert gamma_arrivals(9, 2.0, seed=1).tolist() == gamma_arrivals(9, 2.0, seed=1).tolist()
    assert gamma_arrivals(9, 2.0, seed=1).tolist() != gamma_arrivals(9, 2.0, seed=2).tolist()
    assert gamma_arrivals(3, float("inf")).tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("rate", "burstiness"), [(0, 1), (-1, 1), (float("nan"), 1), (1, 0), (1, float("inf"))]
)
def test_arrivals_that_make_no_sense_are_refused(rate: float, burstiness: float) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        gamma_arrivals(3, rate, burstiness)


# ---- traces

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:16:46.6805900,879,55\n"
)
MOONCAKE = (
    '{"timestamp": 500, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}\n\n'
    '{"timestamp": 27500, "input_length": 512, "output_length": 6, "hash_ids": [0]}\n'
    '{"timestamp": 30500.5, "input_length": 20, "output_length": 7}\n'
)


def written(folder: Path, text: str) -> Path:
    file = folder / "trace"
    file.write_bytes(text.encode())
    return file


def test_an_azure_trace(tmp_path: Path) -> None:
    trace = read_arrivals(written(tmp_path, AZURE))
    assert [r.arrival for r in trace.requests] == [0.0, pytest.approx(4.314579), 60.0]
    assert [(r.prompt, r.output) for r in trace.requests] == [(374, 44), (396, 109), (879, 55)]
    marked = read_arrivals(written(tmp_path, "\ufeff" + AZURE.replace("\n", "\r\n")))
    assert marked == trace
    zoned = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,1,2\n2024-05-10 00:00:01+00:00,3,4\n"
    assert read_arrivals(written(tmp_path, zoned)).requests[1].arrival == pytest.approx(0.99007)


def test_a_mooncake_trace(tmp_path: Path) -> None:
    trace = read_arrivals(written(tmp_path, MOONCAKE))
    assert trace.requests == [
        TracedRequest(0.0, 700, 5, (0, 1)),
        TracedRequest(27.0, 512, 6, (0,)),
        TracedRequest(pytest.approx(30.0005), 20, 7),  # type: ignore[arg-type]
    ]


def test_parts_of_a_trace(tmp_path: Path) -> None:
    trace = read_arrivals(written(tmp_path, MOONCAKE))
    assert [r.arrival for r in trace.window(20, 8).requests] == [7.0]
    assert [r.prompt for r in trace.window(20, None).requests] == [512, 20]
    assert [r.prompt for r in trace.fitting(518).requests] == [512, 20]
    assert [r.arrival for r in trace.faster(10).requests] == pytest.approx([0, 2.7, 3.00005])
    assert trace.first(1).requests == trace.requests[:1]
    divided = trace.divided(100)
    assert [(r.prompt, r.output) for r in divided.requests] == [(7, 1), (6, 1), (1, 1)]
    assert divided.block == 6
    with pytest.raises(ConfigError, match="seconds 100 to 200"):
        trace.window(100, 100)
    with pytest.raises(ConfigError, match="fits into 5 tokens"):
        trace.fitting(5)


def mooncake(**fields: Any) -> str:
    row = {"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]} | fields
    return json.dumps({k: v for k, v in row.items() if v is not None}) + "\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "neither JSON lines"),
        ("a,b\n1,2\n", "neither JSON lines"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        (AZURE + "2023-11-16 18:17:00,5,x\n", "line 5: lengths must be whole numbers"),
        (AZURE + "2023-11-16 18:17:00,5\n", "line 5: lengths must be whole numbers"),
        (AZURE + "2023-11-16 18:17:00,0,1\n", "line 5: lengths must be positive"),
        (AZURE + "yesterday,5,1\n", "line 5: 'yesterday' is no time"),
        (AZURE + "2023-11-16 18:17:00+00:00,5,1\n", "line 5: .* is no time like the others"),
        (AZURE + "2023-11-16 18:15:47,5,1\n", "line 5: it arrives before"),
        (AZURE + '"' + "x" * 200_000 + '",5,1\n', "line 5: field larger"),
        (mooncake() + "{nonsense\n", "line 2: no JSON"),
        (mooncake() + "[1]\n", "line 2: no JSON object"),
        (mooncake() + mooncake(timestamp="0"), "line 2: timestamp is '0'"),
        (mooncake() + mooncake(timestamp=-1), "line 2: timestamp is -1"),
        (mooncake() + mooncake(timestamp=True), "line 2: timestamp is True"),
        (mooncake() + mooncake(timestamp=None), "line 2: timestamp is None"),
        (mooncake() + mooncake(input_length=0), "line 2: input_length is 0"),
        (mooncake() + mooncake(output_length=1.5), "line 2: output_length is 1.5"),
        (mooncake() + mooncake(output_length=None), "line 2: output_length is None"),
        (mooncake() + mooncake(hash_ids=3), "line 2: hash_ids"),
        (mooncake() + mooncake(hash_ids=[1, -2]), "line 2: hash_ids"),
        (mooncake() + mooncake(hash_ids=[1]), "line 2: 1 hash_ids for 600 tokens; blocks of 512 make 2"),
        (mooncake(timestamp=9) + mooncake(timestamp=8), "line 2: it arrives before"),
    ],
)
def test_a_damaged_trace_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as error:
        read_arrivals(file)
    assert str(file) in str(error.value)


# ---- workloads


def test_a_workload_is_the_same_for_a_seed() -> None:
    one, same, other = (Workload(model="m", lengths=Ranges((1, 50), (2, 9)), seed=seed) for seed in (1, 1, 2))
    assert [one.ask(i) for i in range(9)] == [same.ask(i) for i in range(9)]
    assert [one.ask(i) for i in range(9)] != [other.ask(i) for i in range(9)]
    assert len({one.ask(i).body for i in range(-5, 20)}) == 25


def test_lengths_and_ids_are_in_their_ranges() -> None:
    workload = Workload(model="m", lengths=Ranges((3, 6), (2, 4)), token_range=(10, 12))
    bodies = [json.loads(workload.ask(i).body) for i in range(300)]
    assert {len(b["prompt"]) for b in bodies} == {3, 4, 5, 6}
    assert {b["max_tokens"] for b in bodies} == {2, 3, 4}
    assert {token for b in bodies for token in b["prompt"]} == {10, 11, 12}
    assert bodies[0] | {"prompt": 0, "max_tokens": 0} == {
        "model": "m", "prompt": 0, "max_tokens": 0, "temperature": 0.0, "stream": True,
        "stream_options": {"include_usage": True}, "ignore_eos": True,
    }  # fmt: skip


def test_prompts_share_their_prefix_and_nothing_else() -> None:
    workload = Workload(model="m", lengths=Ranges((8, 8), (1, 1)), prefix_len=20)
    prompts = [json.loads(workload.ask(i).body)["prompt"] for i in range(10)]
    assert {len(p) for p in prompts} == {28}
    assert len({tuple(p[:20]) for p in prompts}) == 1
    assert len({tuple(p[20:]) for p in prompts}) == 10


def test_equal_blocks_of_a_trace_are_equal_tokens() -> None:
    requests = [
        TracedRequest(0, 1000, 3, (7, 8)),
        TracedRequest(1, 600, 4, (7, 9)),
        TracedRequest(2, 530, 5, (7, 8)),
    ]
    for scale in (1, 3):
        workload = Workload(model="m", trace=Trace("t", requests).divided(scale))
        asks = [workload.ask(i) for i in range(3)]
        first, second, third = (json.loads(ask.body)["prompt"] for ask in asks)
        assert [len(first), len(second), len(third)] == [-(-n // scale) for n in (1000, 600, 530)]
        block = -(-512 // scale)
        assert first[:block] == second[:block] == third[:block]
        assert first[block : len(third)] == third[block:]
        assert first[block : len(second)] != second[block:]
    assert [ask.output_tokens for ask in asks] == [1, 2, 2]


def test_words_and_messages() -> None:
    text = json.loads(Workload(model="m", lengths=Ranges((40, 40), (1, 1)), text=True).ask(0).body)
    assert len(text["prompt"].split()) == 40
    chat = json.loads(
        Workload(model="m", lengths=Ranges((40, 40), (1, 1)), chat=True, stream=False).ask(0).body
    )
    assert chat["messages"] == [{"role": "user", "content": text["prompt"]}]
    assert chat["stream"] is False
    assert "stream_options" not in chat


def test_words_are_about_as_many_tokens(model: str) -> None:
    from vglm.bench.synthetic import _WORDS
    from vglm.model.checkpoint import open_checkpoint

    tokens = open_checkpoint(Path(model)).tokenizer().encode(" ".join(_WORDS), add_special=False)
    assert len(tokens) == pytest.approx(len(_WORDS), rel=0.02)


def test_priorities_have_their_shares() -> None:
    workload = Workload(
        model="m",
        lengths=Ranges((1, 1), (1, 1)),
        priority_mix=parse_mix("high:1,normal:2,-3:1"),
        fields={"top_k": 5},
    )
    asks = [workload.ask(i) for i in range(2000)]
    shares = {name: sum(a.priority == name for a in asks) / 2000 for name in ("high", "normal", "-3")}
    assert shares == {
        "high": pytest.approx(0.25, abs=0.04), "normal": pytest.approx(0.5, abs=0.04), "-3": pytest.approx(0.25, abs=0.04)
    }  # fmt: skip
    bodies = [json.loads(a.body) for a in asks[:50]]
    assert all(b["top_k"] == 5 for b in bodies)
    assert {b["priority"] for b in bodies} == {"high", "normal", -3}


@pytest.mark.parametrize(
    "text", ["", "high", "high:", "high:x", "high:0", "high:-1", "high:inf", ":1", "a:1,a:2", "a:1,"]
)
def test_a_mix_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--priority-mix"):
        parse_mix(text)


def test_ranges() -> None:
    assert parse_range("5", "--x") == (5, 5)
    assert parse_range("5:9", "--x") == (5, 9)
    for text in ("", "a", "5:", "9:5", "0", "1:2:3", "-1", "1.5"):
        with pytest.raises(ConfigError, match="--x"):
            parse_range(text, "--x")


# ---- figures


def record(index: int = 0, **fields: Any) -> Record:
    """A request of 5 tokens sent at 1 s, first after 0.1 s, then one each 0.05 s, ended 0.01 s later."""
    plain: dict[str, Any] = {
        "due": 1.0, "sent": 1.0, "first": 1.1, "last": 1.3, "end": 1.31, "prompt_tokens": 7, "output_tokens": 5,
        "gaps": array("f", [0.05] * 4), "ok": True, "priority": None,
    }  # fmt: skip
    return Record(index, **(plain | fields))


FAILED: dict[str, Any] = {
    "ok": False,
    "first": float("nan"),
    "last": 0.0,
    "gaps": array("f"),
    "output_tokens": 0,
}


def test_latencies_of_one_request() -> None:
    r = record()
    assert figures.latencies([r], "ttft").tolist() == pytest.approx([100])
    assert figures.latencies([r], "tpot").tolist() == pytest.approx([50])
    assert figures.latencies([r], "itl").tolist() == pytest.approx([50] * 4)
    assert figures.latencies([r], "e2el").tolist() == pytest.approx([310])


def test_what_was_not_measured_is_left_out() -> None:
    whole = record(first=float("nan"), gaps=array("f"))
    single = record(output_tokens=1, gaps=array("f"), last=1.1)
    failed = record(**FAILED)
    assert len(figures.latencies([whole, failed], "ttft")) == 0
    assert len(figures.latencies([single, failed], "tpot")) == 0
    assert len(figures.latencies([whole, single, failed], "e2el")) == 2
    assert len(figures.latencies([], "itl")) == 0
    assert set(figures.summary(figures.latencies([], "itl")).values()) == {None}


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_summaries_are_numpys(values: list[float]) -> None:
    found = figures.summary(np.array(values))
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["std"] == pytest.approx(np.std(values), abs=1e-6)
    assert found["max"] == max(values)
    for p in (50, 90, 95, 99):
        assert found[f"p{p}"] == pytest.approx(np.percentile(values, p))


def test_throughput_and_goodput() -> None:
    records = [record(i) for i in range(6)] + [record(6, sent=0.5), record(7, **FAILED, reason="x")]
    run = Run(records, planned=10, seconds=4.0, peak_concurrency=3, unfinished=2)
    found = figures.throughput(run, {"ttft": 200.0, "e2el": 400.0})
    assert found["completed"] == 7
    assert found["failed"] == 1
    assert found["unfinished"] == 2
    assert found["success_rate"] == 7 / 8
    assert found["request_throughput"] == 7 / 4
    assert found["request_goodput"] == 6 / 4  # the one that was sent early took 600 ms to its first token
    assert found["output_throughput"] == 35 / 4
    assert found["input_throughput"] == 49 / 4
    assert found["total_token_throughput"] == 84 / 4
    assert figures.throughput(run, {})["request_goodput"] is None
    assert figures.throughput(Run([], 0), {"ttft": 1.0})["request_goodput"] == 0.0


def test_each_target_counts() -> None:
    r = record()
    assert figures.meets(r, {"ttft": 101, "tpot": 51, "e2el": 311})
    assert not figures.meets(r, {"ttft": 99})
    assert not figures.meets(r, {"tpot": 49})
    assert not figures.meets(r, {"e2el": 309})
    assert not figures.meets(record(**FAILED), {"ttft": 1e9})


def test_priorities_in_their_order() -> None:
    records = [
        record(i, priority=p) for i, p in enumerate(["low", "5", "high", "normal", "-2", "high", "gold"])
    ]
    records.append(record(9, **FAILED, priority="high"))
    rows = figures.by_priority(Run(records, planned=8, seconds=2.0), {"ttft": 200.0})
    assert [row["priority"] for row in rows] == ["high", "normal", "low", "-2", "5", "gold"]
    assert (rows[0]["requests"], rows[0]["success_rate"], rows[0]["request_goodput"]) == (3, 2 / 3, 1.0)
    assert rows[0]["p50_ttft_ms"] == pytest.approx(100)


def test_failures_are_counted_by_reason() -> None:
    records = [record(0), *(record(i, **FAILED, reason="HTTP 500", detail=f"d{i}") for i in range(3))]
    records.append(record(9, **FAILED, reason="timeout"))
    assert figures.failures(records) == [
        {"reason": "HTTP 500", "requests": 3, "example": "d0"},
        {"reason": "timeout", "requests": 1, "example": ""},
    ]


def test_goodput_targets() -> None:
    assert figures.parse_goodput([]) == {}
    assert figures.parse_goodput(["ttft:500", "tpot:50.5,e2el:2000"]) == {
        "ttft": 500,
        "tpot": 50.5,
        "e2el": 2000,
    }
    for wrong in ("ttft", "itl:5", "ttft:x", "ttft:0", "ttft:-1", "ttft:inf", "", "ttft:1,ttft:2"):
        with pytest.raises(ConfigError, match="--goodput"):
            figures.parse_goodput([wrong])


# ---- the server's metrics


def test_metrics_are_read_as_prometheus_writes_them() -> None:
    registry = CollectorRegistry()
    steps = Histogram(
        "vglm:scheduler_step_seconds", "d", ["model_name"], registry=registry, buckets=[0.001, 0.01]
    )
    preempted = Counter("vglm:num_preemptions", "d", ["model_name"], registry=registry)
    queries, hits = (
        Counter(f"vglm:prefix_cache_{n}", "d", ["m"], registry=registry) for n in ("queries", "hits")
    )
    resident = Gauge("process_resident_memory_bytes", 'd "quoted" \\ {x="y"}', registry=registry)
    for label in ("a", 'b "x" }\n'):
        steps.labels(label).observe(0.0004)
        preempted.labels(label).inc(2)
    queries.labels("m").inc(10)
    hits.labels("m").inc(1)
    resident.set(5e6)
    watch = Watch(None)  # type: ignore[arg-type]  # nothing is fetched here
    watch.before = Metrics(generate_latest(registry).decode())
    for seconds in [0.0005] * 97 + [0.005] * 3:
        steps.labels("a").observe(seconds)
    preempted.labels("a").inc(3)
    queries.labels("m").inc(100)
    hits.labels("m").inc(80)
    watch.after = Metrics(generate_latest(registry).decode())
    watch.peak_resident = watch.after.values["process_resident_memory_bytes"]
    assert watch.figures() == {
        "peak_resident_bytes": 5e6,
        "scheduler_steps": 100,
        "scheduler_mean_ms": pytest.approx((97 * 0.5 + 3 * 5) / 100),
        "scheduler_p99_ms": pytest.approx(
            1 + 9 * 2 / 3
        ),  # two thirds into the bucket that holds ranks 98 to 100
        "preemptions": 3,
        "span_cache_hit_rate": pytest.approx(0.8),
    }


def test_metrics_that_do_not_exist_are_left_out() -> None:
    watch = Watch(None)  # type: ignore[arg-type]
    watch.before = watch.after = Metrics('up 1\nnonsense\nx{y="z" 3\nodd nothing\n# TYPE a counter\n')
    assert watch.before.values == {"up": 1.0}
    assert watch.figures() == {}


@given(st.lists(st.floats(0, 9.9), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    bounds = [1.0, 2.0, 5.0, 10.0, float("inf")]
    counts = {bound: float(sum(v <= bound for v in values)) for bound in bounds}
    found = quantile(counts, q)
    true = sorted(values)[int(np.ceil(q * len(values))) - 1]
    upper = next(bound for bound in bounds if true <= bound)
    lower = max([0.0, *(bound for bound in bounds if bound < upper)])
    assert found is not None
    assert lower <= found <= upper


def test_quantiles_at_the_edges() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({1.0: 0.0, float("inf"): 0.0}, 0.5) is None
    assert quantile({1.0: 0.0, float("inf"): 4.0}, 0.5) == 1.0


# ---- pictures


def test_what_a_timeline_shows() -> None:
    records = [
        record(0),
        record(1, sent=1.05, end=1.2, first=float("nan"), gaps=array("f")),
        record(2, **FAILED),
    ]
    edges = np.array([0.0, 1.0, 1.125, 1.175, 1.4])
    assert tokens_over_time(records, edges).tolist() == [0, 1, 1, 8]
    times, level = concurrency_over_time(records[:2])
    assert times.tolist() == pytest.approx([1.0, 1.05, 1.2, 1.31])
    assert level.tolist() == [1, 2, 1, 0]
