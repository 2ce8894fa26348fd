"""A restart with `span_cache_dir`: spans come from disk, and answers over them have the same bits as before."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.integration.helpers import FIXTURES
from tests.serve.server_process import ServerProcess, wait_until
from vglm import LLM, Graph, SamplingParams
from vglm.decode.sampling_params import SamplingParams as Params
from vglm.engine.request import RequestKind
from vglm.engine.span_cache import Span
from vglm.errors import ConfigError, ModelError
from vglm.model.pull import pull

ROOT = Path(__file__).parents[2]
SYSTEM = (
    "You answer questions about rare diseases from the facts that you are given, and name what supports you. "
    * 3
)
NODES = [
    "Marfan syndrome is a disorder of connective tissue that affects the skeleton, the eyes and the aorta.",
    "Loeys-Dietz syndrome is a disorder of connective tissue with aneurysms of many arteries, and a cleft uvula.",
    "Ectopia lentis is a displacement of the lens of the eye.",
]
EDGES = [("has phenotype", 0, 2), ("is a differential diagnosis of", 0, 1)]
QUESTION = "\nQuestion: which of them explains a displaced lens?\nAnswer:"


@pytest.fixture(scope="module")
def model() -> str:
    try:
        return str(pull("smollm2-135m-instruct", progress=False))
    except ModelError as error:
        pytest.skip(f"the model cannot be fetched here: {error}")


def finished(
    llm: LLM, text: str, context: tuple[Span, ...], kind: RequestKind, first: int, params: Params
) -> Any:
    """A request that sees `context`, run to its end."""
    engine = llm.engine
    tokens = llm.tokenizer.encode(text)
    request = engine.add_request("request", tokens, params, kind=kind, context=context, first_position=first)
    while engine.has_unfinished:
        engine.step()
    assert request.error is None
    return request


def graph_answer(llm: LLM) -> tuple[list[str], int]:
    """The bits of the log-probabilities of an answer over a graph of spans, and the tokens of its spans."""
    one = SamplingParams(max_tokens=1)

    def span(text: str, first: int, *parents: Span) -> Span:
        made = finished(llm, text, parents, RequestKind.SPAN, first, one).span
        assert isinstance(made, Span)
        return made

    prefix = span(SYSTEM, 0)
    start = prefix.num_tokens
    nodes = [span(text, start, prefix) for text in NODES]
    start += max(node.num_tokens for node in nodes)
    edges = [span(f"This {relation} that.", start, prefix, nodes[a], nodes[b]) for relation, a, b in EDGES]
    context = (prefix, *nodes, *edges)
    params = SamplingParams(max_tokens=16, temperature=0, logprobs=2)
    request = finished(llm, QUESTION, context, RequestKind.GENERATE, start + 32, params)
    for held in context:
        llm.engine.cache.release(held)
    llm.engine.check_integrity()
    (sequence,) = request.sequences
    return bits(sequence.logprobs), sum(held.num_tokens for held in context)


def bits(logprobs: list[Any]) -> list[str]:
    return [
        f"{entry.token_id} {entry.logprob.hex()} {[x.hex() for x in entry.top_logprobs]}"
        for entry in logprobs
    ]


def prompt_answer(llm: LLM) -> list[str]:
    """The same of a plain prompt, which is asked twice: blocks that are used again go to disk."""
    params = SamplingParams(max_tokens=8, temperature=0, logprobs=0)
    outputs = [
        llm.generate([SYSTEM + " ".join(NODES) + QUESTION], params, use_tqdm=False)[0].outputs[0]
        for _ in range(2)
    ]
    answers = [
        [float(entry.logprob).hex() for step in output.logprobs or () for entry in step.values()]
        for output in outputs
    ]
    assert answers[0] == answers[1]
    return answers[0]


def public_answer(llm: LLM) -> list[str]:
    """The same through `generate(graph=...)`, with the graph's records as spans."""
    nodes = [
        {"id": f"n{i}", "name": text.split(" is ")[0], "type": "record", "text": text}
        for i, text in enumerate(NODES)
    ]
    edges = [{"source": f"n{a}", "relation": relation, "target": f"n{b}"} for relation, a, b in EDGES]
    graph = Graph.from_dict({"nodes": nodes, "edges": edges})
    params = SamplingParams(max_tokens=8, temperature=0, logprobs=0)
    (output,) = llm.generate([QUESTION], params, graph=graph, use_tqdm=False)
    steps = output.outputs[0].logprobs or ()
    return [float(entry.logprob).hex() for step in steps for entry in step.values()]


def run(model: str, directory: Path, kv: str) -> dict[str, Any]:
    """What a process of its own answers, and what it took from disk."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.integration.test_span_restart", model, str(directory), kv],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    result: dict[str, Any] = json.loads(process.stdout)
    return result


def main(model: str, directory: str, kv: str) -> None:
    """One of the processes: their spans are written when they end."""
    llm = LLM(model, kv_cache_dtype=kv, span_cache_dir=directory, threads=2, graph_mode="spans")
    graph, span_tokens = graph_answer(llm)
    prompt = prompt_answer(llm)
    public = public_answer(llm)
    assert llm.engine.cache.stats.disk is not None
    disk, metrics = llm.engine.cache.stats.disk, llm.engine.metrics
    print(
        json.dumps(
            {
                "graph": graph, "prompt": prompt, "public": public, "span_tokens": span_tokens,
                "computed": metrics.prompt_tokens, "disk_tokens": disk.hit_tokens, "disk_spans": disk.hits,
                "errors": disk.errors,
            }
        )
    )  # fmt: skip


@pytest.mark.parametrize("kv", ["int8", "bf16"])
def test_a_restart_finds_everything_on_disk(model: str, tmp_path: Path, kv: str) -> None:
    first = run(model, tmp_path, kv)
    assert first["disk_spans"] == 0
    second = run(model, tmp_path, kv)
    assert second["graph"] == first["graph"]
    assert second["prompt"] == first["prompt"]
    assert second["public"] == first["public"]
    assert len(second["public"]) == 8
    assert second["disk_tokens"] >= second["span_tokens"] + 100, (
        "all of the graph, and the prompt's full blocks"
    )
    assert first["computed"] - second["computed"] == second["disk_tokens"], "what is on disk is not computed"
    assert second["errors"] == 0
    assert len(list(tmp_path.glob("spans-*"))) == 1
    other = run(model, tmp_path, "bf16" if kv == "int8" else "int8")
    assert other["disk_spans"] == 0, "KV of another type is no use"
    assert len(list(tmp_path.glob("spans-*"))) == 2


def test_another_instruction_set_has_spans_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGLM_HOME", str(tmp_path / "home"))
    hits = []
    for isa in ("portable", "avx2", "portable"):
        monkeypatch.setenv("VGLM_ISA", isa)
        llm = LLM(FIXTURES / "llama", span_cache_dir=tmp_path / "spans", threads=1)
        for _ in range(2):
            llm.generate([list(range(3, 60))], SamplingParams(max_tokens=2), use_tqdm=False)
        store = llm.engine.cache.store
        assert store is not None
        hits.append(store.stats.hits)
        store.close()
    assert hits == [0, 0, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"span_cache_dir": ""}, "give the path of a directory"),
        ({"span_cache_dir": 7}, "give the path of a directory"),
        ({"span_cache_dir": "/proc/nowhere"}, "cannot be made"),
        ({"span_cache_dir": "{tmp}/spans", "span_cache_size": "1k"}, "give at least"),
        ({"span_cache_size": "much"}, "span_cache_size is 'much'"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, home: Path, options: dict[str, Any], message: str) -> None:
    given = {k: v.replace("{tmp}", str(tmp_path)) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(ConfigError, match=message):
        LLM(FIXTURES / "llama", **given)


def ask_server(url: str) -> dict[str, Any]:
    body = {"prompt": SYSTEM + " ".join(NODES) + QUESTION, "max_tokens": 8, "temperature": 0, "logprobs": 1}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def counters(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    return {
        line.split("{")[0].removeprefix("vglm:"): float(line.split()[-1])
        for line in lines
        if line.startswith("vglm:span_store_")
    }


def test_a_server_that_was_killed(model: str, tmp_path: Path) -> None:
    options = ("--span-cache-dir", str(tmp_path), "--span-cache-size", "256M")
    with ServerProcess(*options, model=model) as server:
        first, second = ask_server(server.url), ask_server(server.url)
        full = second["usage"]["prompt_tokens_details"]["cached_tokens"] // 16
        assert full >= 6
        wait_until(
            lambda: counters(server.url)["span_store_written_total"] == full, what=f"writing {full} blocks"
        )
        server.process.kill()
        server.process.wait(30)
    with ServerProcess(*options, model=model) as server:
        again = ask_server(server.url)
        told = counters(server.url)
    assert again["choices"][0]["logprobs"] == first["choices"][0]["logprobs"]
    assert again["usage"] == second["usage"], "as if it had never been away"
    assert told["span_store_hits_total"] == full
    assert told["span_store_hit_tokens_total"] == 16 * full
    assert told["span_store_errors_total"] == 0
    explained = (ROOT / "docs" / "operations.md").read_text()
    assert [name for name in told if f"`{name}`" not in explained and not name.endswith("_created")] == []


if __name__ == "__main__":
    main(*sys.argv[1:])
