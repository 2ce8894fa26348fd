"""Structured outputs through the public API, on a real model and on tiny ones."""

from __future__ import annotations

import gc
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.integration.helpers import assert_idle, exact, mixed_requests
from vglm import LLM, RequestError, SamplingParams, StructuredOutputs
from vglm.decode.matcher import Matcher
from vglm.decode.outputs import RequestOutput
from vglm.engine.constraint import MaskArray
from vglm.errors import VGLMError

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m-instruct"
PATIENCE = 60.0  # seconds after which something hangs
RECORD = {
    "type": "object",
    "properties": {
        "patient_identifier": {"type": "string", "maxLength": 12},
        "severity_of_condition": {"enum": ["low", "moderate", "high"]},
        "number_of_visits": {"type": "integer", "minimum": 0, "maximum": 100},
        "confirmed_by_specialist": {"type": "boolean"},
    },
    "required": [
        "patient_identifier",
        "severity_of_condition",
        "number_of_visits",
        "confirmed_by_specialist",
    ],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    RECORD,
    {"type": "array", "items": {"enum": ["ataxia", "seizure", "hypotonia"]}, "minItems": 1, "maxItems": 6},
    {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 9}, {"type": "null"}]},
    {"type": "string", "pattern": r"^HP:\d{7}$"},
    {"type": "string", "format": "date"},
    {
        "type": "object",
        "properties": {"x": {"type": "number"}, "more": {"$ref": "#"}},
        "required": ["x"],
        "additionalProperties": False,
    },
    {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 3},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": {"a": [1, "b"]}}], "minItems": 2, "items": False},
]  # fmt: skip


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(MODEL, max_model_len=1024, max_num_seqs=64)


@pytest.fixture
def tiny_llm(tiny: Path, home: Path) -> LLM:
    return LLM(tiny, max_model_len=256, max_num_seqs=16, threads=2)


def structured(max_tokens: int = 200, temperature: float = 0.8, seed: int = 1, **kind: Any) -> SamplingParams:
    """Sampling parameters with structured outputs of that kind."""
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        structured_outputs=StructuredOutputs(**kind),
    )


def ask(llm: LLM, params: SamplingParams, prompt: str = "Describe a patient:") -> RequestOutput:
    return llm.generate(prompt, params, use_tqdm=False)[0]


def test_hot_outputs_that_end_are_valid(llm: LLM) -> None:
    """Temperature 1.5: what the model would like to write is far from JSON."""
    schemas = SCHEMAS * 6
    params = [structured(temperature=1.5, seed=i, json=schema) for i, schema in enumerate(schemas)]
    outputs = llm.generate([f"Case {i}:" for i in range(len(schemas))], params, use_tqdm=False)
    finished = 0
    for schema, output in zip(schemas, outputs, strict=True):
        if output.outputs[0].finish_reason == "stop":
            jsonschema.validate(
                json.loads(output.text),
                schema,
                format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
            )
            finished += 1
    assert finished > len(schemas) // 2
    assert_idle(llm)


def test_every_kind(llm: LLM) -> None:
    assert ask(llm, structured(choice=["yes", "no"])).text in ("yes", "no")
    assert re.fullmatch(r"\d{4}-\d{2}", ask(llm, structured(regex=r"\d{4}-\d{2}")).text)
    assert re.fullmatch("(ab)+c", ask(llm, structured(grammar='start: "ab"+ "c"')).text)
    assert re.fullmatch("(ab)+c", ask(llm, structured(grammar='root ::= "ab"+ "c"')).text)
    params = structured(400, json_object=True)
    outputs = llm.generate(["A JSON object: "] * 8, [params] * 8, use_tqdm=False)
    for text in (output.text for output in outputs if output.outputs[0].finish_reason == "stop"):
        assert isinstance(json.loads(text), dict)
    tag = {"begin": "<call>f(", "schema": RECORD, "end": ")</call>"}
    tags = {"structures": [tag], "triggers": ["<call>"], "at_least_one": True, "stop_after_first": True}
    text = ask(llm, structured(structural_tag=tags)).text
    assert text.startswith("<call>f({")
    jsonschema.validate(json.loads(text[len("<call>f(") : -len(")</call>")]), RECORD)


def test_chat_and_stream(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Describe a patient as JSON."}]
    params = structured(json=RECORD)
    output = llm.chat(messages, params, use_tqdm=False)[0]
    jsonschema.validate(json.loads(output.text), RECORD)
    chunks = list(llm.stream(messages, params))
    assert "".join(chunk.text for chunk in chunks) == output.text
    assert chunks[-1].finish_reason == output.outputs[0].finish_reason == "stop"


def test_forced_text_saves_steps(llm: LLM) -> None:
    """Long names are appended in one go: fewer steps than a third of the tokens."""
    before = llm.engine.metrics.num_steps
    params = structured(
        json={**RECORD, "properties": RECORD["properties"] | {"patient_identifier": {"const": "P1"}}}
    )
    output = ask(llm, params)
    steps, tokens = llm.engine.metrics.num_steps - before, len(output.outputs[0].token_ids)
    jsonschema.validate(json.loads(output.text), RECORD)
    assert steps * 3 < tokens


def test_log_probabilities_are_those_of_scoring(llm: LLM) -> None:
    params = SamplingParams(
        max_tokens=200,
        temperature=0.9,
        seed=3,
        logprobs=2,
        n=2,
        structured_outputs=StructuredOutputs(json=RECORD),
    )
    output = ask(llm, params)
    for completion in output.outputs:
        score = llm.score(
            [{"prompt_token_ids": output.prompt_token_ids}], [completion.token_ids], use_tqdm=False
        )[0]
        assert completion.logprobs is not None
        own = [
            entry[token].logprob
            for entry, token in zip(completion.logprobs, completion.token_ids, strict=True)
        ]
        assert own == score.token_logprobs
        assert completion.cumulative_logprob == pytest.approx(score.logprob)


def test_stop_strings_end_forced_text(llm: LLM) -> None:
    whole = ask(llm, structured(json=RECORD)).text
    stop = SamplingParams(
        max_tokens=200,
        temperature=0.8,
        seed=1,
        stop=["_of_cond"],
        structured_outputs=StructuredOutputs(json=RECORD),
    )
    output = ask(llm, stop)
    assert output.outputs[0].stop_reason == "_of_cond"
    assert output.text == whole[: whole.index("_of_cond")]
    assert_idle(llm)


def test_refusals_change_nothing(llm: LLM) -> None:
    for wanted in ({"uniqueItems": True}, {"pattern": "(?=a)b"}):
        with pytest.raises(RequestError) as refused:
            ask(llm, structured(json=wanted))
        assert refused.value.param == "structured_outputs"
    with pytest.raises(RequestError, match="compiled"):
        llm.engine.add_request("a", [1], structured(regex="a"))
    assert_idle(llm)


def test_a_limit_reached_on_the_way_ends_its_request_only(llm: LLM) -> None:
    regex = ".*(.*(.*(.*a.{10}){3}b.{9}){4}c.{8}){5}"
    expected = [
        exact(output) for output in llm.generate(["x", "y"], structured(20, json=RECORD), use_tqdm=False)
    ]
    with pytest.raises(VGLMError, match="structured output failed: lexer error"):
        llm.generate(["a"] * 4, structured(900, 2.0, regex=regex), use_tqdm=False)
    assert_idle(llm)
    again = llm.generate(["x", "y"], structured(20, json=RECORD), use_tqdm=False)
    assert [exact(output) for output in again] == expected


# ---- the same bits, whatever runs beside it ----


def test_a_constrained_request_has_the_same_tokens_in_any_company(llm: LLM) -> None:
    prompts = [f"Case {i} of {i * i}:" for i in range(64)]
    params = [structured(40, 0.9, seed=i, json=SCHEMAS[i % len(SCHEMAS)]) for i in range(64)]
    params[1::3] = [SamplingParams(max_tokens=30, temperature=0.9, seed=i, logprobs=1) for i in range(21)]
    params[5] = SamplingParams(
        max_tokens=40, seed=5, n=3, logprobs=2, structured_outputs=StructuredOutputs(json=RECORD)
    )
    together = [exact(output) for output in llm.generate(prompts, params, use_tqdm=False)]
    for i in (*range(9), 30, 63):
        assert exact(llm.generate(prompts[i], params[i], use_tqdm=False)[0]) == together[i]
    for options in (
        {"max_num_batched_tokens": 20, "max_num_seqs": 20},
        {"enable_prefix_caching": False, "threads": 1, "max_num_seqs": 7},
        {"kv_cache_memory": "3M", "max_model_len": 128},
    ):
        other = LLM(MODEL, **{"max_model_len": 1024, "max_num_seqs": 64, **options})
        assert [exact(output) for output in other.generate(prompts, params, use_tqdm=False)] == together
        assert (other.stats().num_preemptions > 0) == ("kv_cache_memory" in options)
        assert_idle(other)


def test_free_neighbours_keep_their_bits(tiny_llm: LLM) -> None:
    prompts, params = mixed_requests(20, 261, longest=60)
    alone = [exact(output) for output in tiny_llm.generate(prompts, params, use_tqdm=False)]
    more = [structured(30, 1.2, seed=i, json=SCHEMAS[i % len(SCHEMAS)]) for i in range(20)]
    mixed_prompts: list[Any] = [item for pair in zip(prompts, prompts, strict=True) for item in pair]
    mixed_params = [item for pair in zip(params, more, strict=True) for item in pair]
    together = tiny_llm.generate(mixed_prompts, mixed_params, use_tqdm=False)
    assert [exact(output) for output in together[::2]] == alone
    assert_idle(tiny_llm)


# ---- the step ----


class Watching:
    """Allows everything, once the layers of the forward pass have written to the KV cache."""

    finished = False
    error: str | None = None

    def __init__(self, llm: LLM) -> None:
        self.kv = llm.engine.executor.kv  # type: ignore[attr-defined]
        self.before = self.kv.resident_bytes()
        self.seen = False

    def start(self) -> Watching:
        return self

    def begin(self) -> list[int]:
        return []

    def accept(self, token: int) -> list[int]:
        return []

    def fill_mask(self, row: MaskArray) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.seen and time.monotonic() < deadline:
            self.seen = self.kv.resident_bytes() > self.before
        row[:] = 0xFFFFFFFF

    @staticmethod
    def fill_masks(constraints: Sequence[Any], masks: MaskArray) -> None:
        for constraint, row in zip(constraints, masks, strict=True):
            constraint.fill_mask(row)


def test_masks_are_filled_while_the_layers_run(tiny_llm: LLM) -> None:
    """The filling waits for what the layers write: were it done before them, it would wait in vain."""
    watching = Watching(tiny_llm)
    request = tiny_llm.engine.add_request("a", [5] * 100, SamplingParams(max_tokens=3), constraint=watching)
    while tiny_llm.engine.has_unfinished:
        tiny_llm.engine.step()
    assert watching.seen
    assert len(request.sequences[0].output_token_ids) == 3


def test_threads_share_an_engine_and_its_grammars(tiny_llm: LLM) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(4):
                params = structured(60, 1.0, seed=i, choice=[f"text {number}", f"other {i}"])
                assert ask(tiny_llm, params).text in (f"text {number}", f"other {i}")
                ask(tiny_llm, structured(20, json=RECORD))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not failed
    assert_idle(tiny_llm)


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGALRM, signal.default_int_handler)
from tests.integration.helpers import assert_idle, exact
from vglm import LLM, SamplingParams, StructuredOutputs
llm = LLM(sys.argv[1], max_model_len=2048, threads=2)
short = SamplingParams(max_tokens=8, temperature=0, structured_outputs=StructuredOutputs(json_object=True))
expected = exact(llm.generate("hello", short, use_tqdm=False)[0])
endless = SamplingParams(max_tokens=2000, temperature=1, structured_outputs=StructuredOutputs(regex="(?s:.){5000}"))
interrupts = 0
for i in range(20):
    signal.setitimer(signal.ITIMER_REAL, 0.005 + 0.0037 * i)
    try:
        llm.generate([[3 + i] * 50] * 20, endless, use_tqdm=False)
    except KeyboardInterrupt:
        interrupts += 1
    assert_idle(llm)
    assert exact(llm.generate("hello", short, use_tqdm=False)[0]) == expected
print("interrupts", interrupts)
"""


def test_interrupts(tiny: Path, home: Path) -> None:
    """Control-C at twenty moments, in the filling of masks, too; each time the same LLM goes on."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tiny)], cwd=ROOT, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 18


def test_many_constrained_requests_leave_nothing(tiny_llm: LLM) -> None:
    """Matchers go with their requests."""
    rng = random.Random(0)
    for _ in range(3):
        params = [structured(1 + rng.randrange(8), 1.0, seed=i, json=RECORD) for i in range(60)]
        tiny_llm.generate([[3 + i] for i in range(60)], params, use_tqdm=False)
    assert_idle(tiny_llm)
    gc.collect()
    assert not [found for found in gc.get_objects() if isinstance(found, Matcher)]
