"""`vglm generate`: prompts from arguments, a file or standard input; text as it comes, or JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vglm.errors import RequestError

if TYPE_CHECKING:
    from vglm.assemble import CompletionChunk
    from vglm.decode.outputs import RequestMetrics, RequestOutput
    from vglm.decode.sampling_params import SamplingParams
    from vglm.llm import LLM


def read_prompts(arguments: list[str], file: Path | None, lines: bool) -> list[str]:
    """The prompts that the command line asks for. Raises RequestError when there is none."""
    prompts = [prompt for prompt in arguments if prompt != "-"]
    texts = []
    if file is not None:
        texts.append(_decoded(file.read_bytes(), str(file)))
    if "-" in arguments or (not arguments and file is None):
        if sys.stdin.isatty():
            raise RequestError("no prompt: give one as an argument, with --file, or on standard input")
        texts.append(_decoded(sys.stdin.buffer.read(), "standard input"))
    for text in texts:
        prompts += [line for line in text.splitlines() if line.strip()] if lines else [text]
    if not prompts or not any(prompts):
        raise RequestError("the prompt is empty")
    return prompts


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{source} is not UTF-8 text (byte {error.start})") from error


def complete(
    model: str,
    prompts: list[str],
    params: SamplingParams,
    engine: dict[str, Any],
    *,
    chat: bool,
    as_json: bool,
) -> None:
    """Generate and print."""
    from vglm.llm import LLM

    llm = LLM(model, **engine)
    asked: list[Any] = [[{"role": "user", "content": text}] for text in prompts] if chat else list(prompts)
    if len(asked) == 1 and params.n == 1 and not as_json:
        say(llm, asked[0], params, echo="" if chat else prompts[0])
        return
    ask = llm.chat if chat else llm.generate
    outputs = ask(asked, params, use_tqdm=sys.stderr.isatty())
    if as_json:
        print(json.dumps(_document(llm, prompts, outputs), indent=2, ensure_ascii=False))
        return
    for prompt, output in zip(prompts, outputs, strict=True):
        for completion in output.outputs:
            print(f"--- {_short(prompt)}{f' [{completion.index + 1}]' if params.n > 1 else ''}")
            print(completion.text)


def say(llm: LLM, prompt: Any, params: SamplingParams, echo: str = "") -> str:
    """Stream one answer to standard output, return its text; times go to standard error if it is a terminal.

    `echo` is the prompt's own text, shown on a terminal so that a completion reads on from it.
    """
    if echo and sys.stdout.isatty():
        print(f"\x1b[2m{echo}\x1b[0m", end="", flush=True)
    text: list[str] = []
    last: CompletionChunk | None = None
    tokens = 0
    for chunk in llm.stream(prompt, params):
        text.append(chunk.text)
        tokens += len(chunk.token_ids)
        print(chunk.text, end="", flush=True)
        last = chunk
    print(flush=True)
    if last is not None and last.metrics is not None and sys.stderr.isatty():
        print(f"\x1b[2m[{_summary(last.metrics, tokens)}]\x1b[0m", file=sys.stderr)
    return "".join(text)


def _summary(metrics: RequestMetrics, tokens: int) -> str:
    first = f", first after {metrics.ttft * 1e3:.0f} ms" if metrics.ttft is not None else ""
    rate = f", then {1 / metrics.tpot:.0f} tokens/s" if metrics.tpot else ""
    return f"{tokens} tokens{first}{rate}"


def _document(llm: LLM, prompts: list[str], outputs: list[RequestOutput]) -> dict[str, Any]:
    options = llm.options
    return {
        "model": llm.model,
        "dtype": options.weight_dtype,
        "kv_cache_dtype": options.kv_dtype,
        "results": [_result(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)],
    }


def _result(prompt: str, output: RequestOutput) -> dict[str, Any]:
    metrics = output.metrics
    return {
        "prompt": prompt,
        "prompt_tokens": len(output.prompt_token_ids),
        "cached_tokens": output.num_cached_tokens,
        "outputs": [
            {
                "text": completion.text,
                "token_ids": completion.token_ids,
                "finish_reason": completion.finish_reason,
                "stop_reason": completion.stop_reason,
            }
            for completion in output.outputs
        ],
        "seconds_to_first_token": metrics.ttft if metrics else None,
        "seconds_per_token": metrics.tpot if metrics else None,
        "seconds": metrics.e2e_latency if metrics else None,
    }


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
