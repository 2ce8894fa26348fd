"""Wrong input is refused with a sentence and changes nothing; what is interrupted leaves nothing behind."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.gguf_files import write_random_llama
from tests.integration.helpers import assert_idle, exact, tiny_model, write_llama
from vglm import LLM, SamplingParams
from vglm.errors import ConfigError, ModelError, RequestError, VGLMError

FOUR = SamplingParams(max_tokens=4, temperature=0)
LONG = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = tmp_path_factory.mktemp("robust")
    before = os.environ.get("VGLM_HOME")
    os.environ["VGLM_HOME"] = str(folder / "home")
    try:
        return LLM(tiny_model(folder), max_model_len=256, threads=1, max_num_seqs=16)
    finally:
        if before is None:
            del os.environ["VGLM_HOME"]
        else:
            os.environ["VGLM_HOME"] = before


def embeds(position: Any = 1, vector: Any = None, **more: Any) -> dict[str, Any]:
    vector = np.zeros(40, np.float32) if vector is None else vector
    return {"prompt_token_ids": [5, 6, 7], "prompt_embeds": {position: vector}, **more}


# ---- wrong requests ----

WRONG_PROMPTS: list[tuple[Any, str]] = [
    ("", "empty"),
    ([[]], "empty"),
    ([""], "empty"),
    (None, "prompts must be"),
    (5, "prompts must be"),
    (b"abc", "token ids"),
    ([b"abc"], "token ids"),
    ([[[1, 2]]], "token ids"),
    ([1, "a"], "token ids"),
    ([np.array([1.0, 2.0])], "token ids"),
    ([np.array([[1, 2]])], "token ids"),
    ([True], "token ids"),
    ([-1], "token id"),
    ([261], "261"),
    ([2**70], "token ids"),
    ([[5] * 256], "max_model_len is 256"),
    ("x" * 5000, "max_model_len is 256"),
    ("a\ud800b", "Unicode"),
    (["fine", "a\udfffb"], "Unicode"),
    ({}, "mapping"),
    ({"prompt": "a", "prompt_token_ids": [1]}, "mapping"),
    ({"prompt": "a", "extra": 1}, "mapping"),
    ({"prompt": None}, "must be text"),
    ({"prompt_token_ids": None}, "token ids"),
    ({"prompt_token_ids": "abc"}, "token ids"),
    ({"prompt": "a", "prompt_embeds": None}, "prompt_embeds"),
    ({"prompt": "a", "prompt_embeds": {}}, "prompt_embeds"),
    ({"prompt": "a", "prompt_embeds": [np.zeros(40)]}, "prompt_embeds"),
    (embeds(vector=np.zeros(41)), "shape"),
    (embeds(vector=np.zeros((2, 20))), "one-dimensional"),
    (embeds(vector=np.full(40, np.nan)), "finite"),
    (embeds(vector=np.full(40, np.inf)), "finite"),
    (embeds(vector=np.full(40, 1e300)), "finite"),
    (embeds(vector=np.zeros(40, complex)), "real numbers"),
    (embeds(vector="abc"), "prompt_embeds"),
    (embeds(3), "ascend"),
    (embeds(-1), "ascend"),
    (embeds(2**40), "prompt_embeds"),
    (embeds("1"), "whole numbers"),
    (embeds(1.0), "whole numbers"),
    ({"prompt": "abc", "prompt_embeds": {0: np.zeros(40), 1: np.zeros(3)}}, "equal size"),
]


@pytest.mark.parametrize(("prompt", "message"), WRONG_PROMPTS)
def test_wrong_prompts(llm: LLM, prompt: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        llm.generate(prompt, FOUR, use_tqdm=False)
    assert_idle(llm)


def test_one_wrong_prompt_among_good_ones_runs_none(llm: LLM) -> None:
    steps = llm.engine.metrics.num_steps
    with pytest.raises(RequestError, match="261"):
        llm.generate([[5, 6], [7, 261], [8]], FOUR, use_tqdm=False)
    assert llm.engine.metrics.num_steps == steps
    assert_idle(llm)


WRONG_CALLS: list[tuple[Callable[[LLM], Any], str]] = [
    (lambda m: m.generate(["a", "b"], [FOUR]), "2 prompts but 1"),
    (lambda m: m.generate(["a"], "x"), "sampling_params"),  # type: ignore[arg-type]
    (lambda m: m.generate(["a"], [None]), "sampling_params"),  # type: ignore[list-item]
    (lambda m: m.generate(["a"], {"max_tokens": 3}), "sampling_params"),  # type: ignore[arg-type]
    (lambda m: m.generate(["a"], []), "1 prompts but 0"),
    (lambda m: m.generate(["a"], SamplingParams(n=17)), "max_num_seqs"),
    (lambda m: m.generate(["a"], SamplingParams(n=10**9)), "max_num_seqs"),
    (lambda m: m.generate(["a"], SamplingParams(logit_bias={999: 1.0})), "logit_bias"),
    (lambda m: m.generate(["a"], SamplingParams(stop_token_ids=[10**9])), "stop_token_ids"),
    (lambda m: m.generate(embeds(), SamplingParams(prompt_logprobs=1)), "prompt_logprobs"),
    (lambda m: m.score("a", ""), "continuation is empty"),
    (lambda m: m.score("a", None), "continuations"),  # type: ignore[arg-type]
    (lambda m: m.score("a", [None]), "continuation 0"),  # type: ignore[list-item]
    (lambda m: m.score("a", [5, 6]), "continuation 0"),  # type: ignore[list-item]
    (lambda m: m.score("a", [[1.5]]), "continuation 0"),  # type: ignore[list-item]
    (lambda m: m.score("a", [[5], [261]]), "261"),
    (lambda m: m.score("a", ["\ud800"]), "Unicode"),
    (lambda m: m.score(["a", "b", "c"], ["a", "b"]), "3 prompts but 2"),
    (lambda m: m.score("a", [[5] * 300]), "max_model_len"),
    (lambda m: m.encode(""), "empty"),
    (lambda m: m.encode([[5] * 257]), "max_model_len"),
    (lambda m: m.chat(None), "messages"),  # type: ignore[arg-type]
    (lambda m: m.chat("hi"), "messages must be a list"),  # type: ignore[arg-type]
    (lambda m: m.chat([{"content": "hi"}]), "messages\\[0\\] has no role"),
    (lambda m: m.chat([{"role": "user", "content": None}]), "messages\\[0\\] has no content"),
    (lambda m: m.chat([{"role": "user", "content": "\ud800"}]), "Unicode"),
    (lambda m: m.stream(["a", "b"]), "one prompt"),
    (lambda m: m.stream([]), "one prompt"),
    (lambda m: m.stream(None), "one prompt"),  # type: ignore[arg-type]
    (lambda m: m.stream(""), "empty"),
    (lambda m: m.stream("a", "x"), "sampling_params"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "message"), WRONG_CALLS)
def test_wrong_calls(llm: LLM, call: Callable[[LLM], Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call(llm)
    assert_idle(llm)


def test_the_largest_requests_that_fit(llm: LLM) -> None:
    assert llm.generate([[5] * 255], LONG, use_tqdm=False)[0].outputs[0].finish_reason == "length"
    assert len(llm.encode([[5] * 256], use_tqdm=False)) == 1
    assert len(llm.score([[5] * 200], [[6] * 56], use_tqdm=False)[0].token_logprobs) == 56
    assert llm.generate([], FOUR, use_tqdm=False) == llm.score("a", [], use_tqdm=False) == []
    assert len(llm.generate(["a"] * 3, SamplingParams(n=16), use_tqdm=False)) == 3
    assert_idle(llm)


def test_embeddings_that_overflow_do_not_reach_other_requests(llm: LLM) -> None:
    """The largest finite floats may become NaN inside; the blocks they were in serve others afterwards."""
    expected = [exact(o) for o in llm.generate(["abc", "a" * 50], FOUR, use_tqdm=False)]
    for value in (3e38, -3e38, 1e30):
        llm.generate(embeds(vector=np.full(40, value, np.float32)), LONG, use_tqdm=False)
        again = llm.generate(["abc", "a" * 50], FOUR, use_tqdm=False)
        assert [exact(o) for o in again] == expected
    assert_idle(llm)


def test_logits_that_are_not_finite_fail_their_request(tmp_path: Path, home: Path) -> None:
    """Token 7 has an infinite embedding: what holds it fails with the reason, then and only then."""
    model = write_llama(tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {"tie_word_embeddings": False}
    (model / "config.json").write_text(json.dumps(config))
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.embed_tokens.weight"][7] = np.inf
    save_file(tensors, model / "model.safetensors")
    engine = LLM(model, max_model_len=64, dtype="bf16")
    params = SamplingParams(max_tokens=3, temperature=0, logit_bias={7: -100})
    expected = exact(engine.generate([[5]], params, use_tqdm=False)[0])
    for prompts in ([[7]], [[5], [5, 7], [6]]):
        with pytest.raises(VGLMError, match="not finite"):
            engine.generate(prompts, params, use_tqdm=False)
        assert_idle(engine)
        assert exact(engine.generate([[5]], params, use_tqdm=False)[0]) == expected
    with pytest.raises(VGLMError, match="not finite"):
        engine.score([[7]], [[5]], use_tqdm=False)
    with pytest.raises(VGLMError, match="not finite"):
        list(engine.stream([7], params))
    assert_idle(engine)


# ---- wrong options and models ----

WRONG_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"dtype": "fp8"}, "dtype"),
    ({"dtype": None}, "dtype"),
    ({"dtype": np.array([1, 2])}, "dtype"),
    ({"kv_cache_dtype": "int4"}, "kv_cache_dtype"),
    ({"block_size": 17}, "block_size"),
    ({"block_size": 16.0}, "block_size"),
    ({"threads": 0}, "threads"),
    ({"threads": 1.5}, "threads"),
    ({"threads": 10**9}, "threads"),
    ({"max_num_seqs": 0}, "max_num_seqs"),
    ({"max_num_seqs": "many"}, "max_num_seqs"),
    ({"max_num_batched_tokens": 0}, "max_num_batched_tokens"),
    ({"max_model_len": 1}, "max_model_len"),
    ({"max_model_len": 5000}, "4096"),
    ({"max_model_len": 10**9}, "max_model_len"),
    ({"kv_cache_memory": 0}, "kv_cache_memory"),
    ({"kv_cache_memory": 1}, "kv_cache_memory"),
    ({"kv_cache_memory": -5}, "kv_cache_memory"),
    ({"kv_cache_memory": 1.5}, "kv_cache_memory"),
    ({"kv_cache_memory": "1.5.3G"}, "kv_cache_memory"),
    ({"kv_cache_memory": 10**14}, "kv_cache_memory"),
    ({"kv_cache_memory": "64K", "max_model_len": 4096}, "kv_cache_memory"),
    ({"seed": -1}, "seed"),
    ({"enable_prefix_caching": "no"}, "enable_prefix_caching"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS)
def test_wrong_options(tiny: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(tiny, **options)


def test_unknown_options(tiny: Path) -> None:
    with pytest.raises(TypeError, match="tensor_parallel"):
        LLM(tiny, tensor_parallel=2)


def test_wrong_instruction_set(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGLM_ISA", "sse")
    with pytest.raises(ConfigError, match="VGLM_ISA"):
        LLM(tiny)


@pytest.mark.parametrize(
    "model", ["nope", "", None, 5, b"abc", "/dev/null", "/", "a\0b", "\ud800", "x" * 5000, Path("/nowhere")]
)
def test_wrong_models(model: Any) -> None:
    with pytest.raises(ModelError):
        LLM(model)


def test_damaged_gguf_files(tmp_path: Path, home: Path) -> None:
    """Cut anywhere, or overwritten with noise: a ModelError, or a model that runs, and nothing is kept."""
    good = write_random_llama(tmp_path / "good.gguf", "Q4_0").read_bytes()
    assert LLM(tmp_path / "good.gguf").generate("ab", FOUR, use_tqdm=False)
    kept = set(home.glob("packed/*"))
    rng = np.random.default_rng(0)
    bad = tmp_path / "bad.gguf"
    for cut in [0, 1, 3, 4, 8, 23, 24, 100, *rng.integers(100, len(good), 12).tolist(), len(good) - 1]:
        bad.write_bytes(good[:cut])
        with pytest.raises(ModelError):
            LLM(bad)
    for _ in range(30):
        noisy = bytearray(good)
        for at in rng.integers(0, 4000, 5):
            noisy[at] = int(rng.integers(256))
        bad.write_bytes(noisy)
        try:
            assert LLM(bad, max_model_len=16).generate("ab", FOUR, use_tqdm=False)
        except VGLMError:
            continue
    bad.write_bytes(rng.bytes(5000))
    with pytest.raises(ModelError):
        LLM(bad)
    assert kept <= set(home.glob("packed/*"))
    assert not list(home.glob("packed/*.tmp"))


def test_a_model_that_the_native_core_refuses(tmp_path: Path, home: Path) -> None:
    """80 query heads for one KV head are more than the core takes: a ModelError with the reason."""
    model = tmp_path / "wide"
    write_llama(model, num_attention_heads=80, num_key_value_heads=1, head_dim=2)
    with pytest.raises(ModelError, match="query heads"):
        LLM(model)


# ---- interrupts and abandoned work ----


def test_abandoned_streams(llm: LLM) -> None:
    for steps in (0, 1, 5):
        stream = llm.stream("abc", LONG)
        for _ in range(steps):
            next(stream)
        assert llm.engine.has_unfinished
        del stream
        assert_idle(llm)
    for chunk in llm.stream("abc", LONG):
        assert chunk.token_ids
        break
    assert_idle(llm)
    stream = llm.stream("abc", LONG)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert_idle(llm)


def test_streams_that_the_garbage_collector_ends_in_the_middle_of_a_step(llm: LLM) -> None:
    expected = [exact(o) for o in llm.generate(["abc"] * 5, LONG, use_tqdm=False)]
    gc.collect()
    before = gc.get_threshold()
    for _ in range(10):
        cycle: list[Any] = [llm.stream("xyz", LONG)]
        next(cycle[0])
        cycle.append(cycle)
    del cycle
    try:
        gc.set_threshold(7)  # now it runs wherever the engine makes objects
        assert [exact(o) for o in llm.generate(["abc"] * 5, LONG, use_tqdm=False)] == expected
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert_idle(llm)


def test_a_stream_and_a_batch_at_once(llm: LLM) -> None:
    alone = "".join(chunk.text for chunk in llm.stream("abc", LONG))
    expected = exact(llm.generate("other", FOUR, use_tqdm=False)[0])
    stream = llm.stream("abc", LONG)
    text = next(stream).text
    assert exact(llm.generate("other", FOUR, use_tqdm=False)[0]) == expected
    assert text + "".join(chunk.text for chunk in stream) == alone
    assert_idle(llm)


def test_threads_share_an_engine(llm: LLM) -> None:
    prompts = [[i + 3, 2 * i + 3, 9] for i in range(12)]
    params = [SamplingParams(max_tokens=5 + i, temperature=0.8, seed=i) for i in range(12)]
    expected = [exact(o) for o in llm.generate(prompts, params, use_tqdm=False)]
    got: dict[int, Any] = {}
    failed: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for round_number in range(3):
                mine = range(thread, 12, 4)
                outputs = llm.generate([prompts[i] for i in mine], [params[i] for i in mine], use_tqdm=False)
                got.update({100 * round_number + i: exact(o) for i, o in zip(mine, outputs, strict=True)})
                with pytest.raises(RequestError):
                    llm.generate([[261]], use_tqdm=False)
                next(llm.stream("abc", LONG))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert all(got[100 * r + i] == expected[i] for r in range(3) for i in range(12))
    gc.collect()
    assert_idle(llm)


INTERRUPTED = """
import signal, sys, time
from tests.integration.helpers import assert_idle, exact
from vglm import LLM, SamplingParams
llm = LLM(sys.argv[1], max_model_len=2048, threads=2)
params = SamplingParams(max_tokens=8, temperature=0)
expected = exact(llm.generate("hello", params, use_tqdm=False)[0])
endless = SamplingParams(max_tokens=2000, temperature=0, ignore_eos=True)
interrupts = 0
for i in range(20):
    signal.setitimer(signal.ITIMER_REAL, 0.002 + 0.0037 * i)
    try:
        if i % 2:
            for chunk in llm.stream("abc", endless):
                pass
        else:
            llm.generate([[3 + i] * 500] * 20, endless, use_tqdm=False)
    except KeyboardInterrupt:
        interrupts += 1
    assert_idle(llm)
    assert exact(llm.generate("hello", params, use_tqdm=False)[0]) == expected
print("interrupts", interrupts)
"""


def test_interrupts(tiny: Path, home: Path) -> None:
    """Control-C at twenty moments of a run; each time the same LLM goes on as if nothing had been."""
    script = "import signal\nsignal.signal(signal.SIGALRM, signal.default_int_handler)\n" + INTERRUPTED
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 18


def test_control_c_ends_a_program(tiny: Path, home: Path) -> None:
    script = (
        # a runner in the background may have passed on that SIGINT is ignored
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys\nfrom vglm import LLM, SamplingParams\n"
        "llm = LLM(sys.argv[1], max_model_len=4096)\nprint('ready', flush=True)\n"
        "while True: llm.generate(['abc'] * 8, SamplingParams(max_tokens=4000, ignore_eos=True))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tiny)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors


# ---- processes and threads ----

FORKED = """
import os, sys
from vglm import LLM, SamplingParams
from vglm.errors import VGLMError
params = SamplingParams(max_tokens=4, temperature=0)
llm = LLM(sys.argv[1], max_model_len=256, threads=int(sys.argv[2]))
expected = llm.generate("hello", params, use_tqdm=False)[0].text
child = os.fork()
if not child:
    status = 3
    try:
        status = 0 if llm.generate("hello", params, use_tqdm=False)[0].text == expected else 4
    except VGLMError as error:
        status = 7 if "forked" in str(error) else 5
    del llm  # without threads to wait for
    os._exit(status)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert llm.generate("hello", params, use_tqdm=False)[0].text == expected
"""


@pytest.mark.parametrize(("threads", "status"), [(1, 0), (2, 7)])
def test_a_forked_process_does_not_hang(tiny: Path, home: Path, threads: int, status: int) -> None:
    """Threads do not live on in a fork: said as an error. One thread needs no others."""
    command = [sys.executable, "-c", FORKED, str(tiny), str(threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, f"{status}\n"), done.stderr


NO_ROOM = """
import os, resource, sys
from vglm import LLM, SamplingParams
from vglm.errors import ConfigError
llm = LLM(sys.argv[1], max_model_len=256, threads=2)
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), -1))
for options in ({"threads": 512}, {"kv_cache_memory": "8G", "threads": 1}):
    try:
        LLM(sys.argv[1], max_model_len=256, **options)
    except ConfigError as error:
        print(error)
llm.generate("hello", SamplingParams(max_tokens=4), use_tqdm=False)
"""


def test_an_address_space_without_room_for_threads_or_cache(tiny: Path, home: Path) -> None:
    command = [sys.executable, "-c", NO_ROOM, str(tiny)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no room for") == 2


# ---- leaks ----


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_ten_thousand_requests_leave_nothing(llm: LLM) -> None:
    """Memory settles: the second half adds less than 4 MB. leak.py, beside this file, runs ten times more."""
    rng = np.random.default_rng(0)
    params = [SamplingParams(max_tokens=1 + i % 2, seed=i, logprobs=i % 2 or None) for i in range(500)]
    halves = []
    for i in range(20):
        if i in (10, 19):
            gc.collect()
            halves.append(resident())
        prompts = [rng.integers(3, 261, 1 + k % 24).tolist() for k in range(500)]
        llm.generate(prompts, params, use_tqdm=False)
    assert_idle(llm)
    assert halves[1] - halves[0] < 4 << 20
