"""`vglm bench serve`: options of the load generator, named as those of `vllm bench serve` where these exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vglm import cli_options as opt
from vglm.errors import ConfigError, VGLMError

_SERVER = "Server"
_LOAD = "Load"
_TRACE = "Recorded trace"
_REQUEST = "Requests"
_REPORT = "Report"

EPILOG = (
    "Examples:\n\n"
    "vglm bench serve\n\n"
    "vglm bench serve --concurrency 1000 --num-requests 5000 --input-len 32 --output-len 16 --metrics\n\n"
    "vglm bench serve --request-rate 8 --burstiness 0.5 --input-len 100:500 --goodput ttft:500 --goodput tpot:50\n\n"
    "vglm bench serve --base-url http://10.0.0.2:8000 --endpoint chat --priority-mix high:0.1,normal:0.6,low:0.3\n\n"
    "vglm bench serve --trace AzureLLMInferenceTrace_conv.csv --trace-duration 60 --trace-speedup 2 --plot load.png\n\n"
    "A trace is a CSV file with columns TIMESTAMP, ContextTokens, GeneratedTokens (Azure), or JSON lines with timestamp "
    "(ms), input_length, output_length and hash_ids (Mooncake)."
)


def serve(
    base_url: Annotated[
        str, typer.Option(help="The server, with or without /v1.", rich_help_panel=_SERVER)
    ] = "http://127.0.0.1:8000",
    endpoint: Annotated[
        str, typer.Option(help="completions, chat, or the path of one.", rich_help_panel=_SERVER)
    ] = "completions",
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Name; default: the server's first.", rich_help_panel=_SERVER),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="OPENAI_API_KEY", help="Sent as bearer token.", rich_help_panel=_SERVER),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Send this too; may be repeated.", rich_help_panel=_SERVER),
    ] = None,
    num_requests: Annotated[
        int | None,
        typer.Option(
            "--num-requests",
            "--num-prompts",
            min=1,
            help="Default: 256, or all of a trace.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            "--max-concurrency",
            min=1,
            help="Requests at once (default: 64); with a rate or a trace, at most (default: no limit).",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    request_rate: Annotated[
        float | None,
        typer.Option(
            help="Requests per second, whatever the server does; inf: all at once.", rich_help_panel=_LOAD
        ),
    ] = None,
    burstiness: Annotated[
        float,
        typer.Option(help="1: Poisson arrivals; less: more bursty; more: more even.", rich_help_panel=_LOAD),
    ] = 1.0,
    timeout: Annotated[
        float, typer.Option(help="Seconds for one request; 0: no limit.", rich_help_panel=_LOAD)
    ] = 600.0,
    retry_429: Annotated[
        bool,
        typer.Option(
            "--retry-429", help="Send again after a 429, when Retry-After says.", rich_help_panel=_LOAD
        ),
    ] = False,
    warmups: Annotated[
        int,
        typer.Option(
            "--warmups",
            "--num-warmups",
            min=0,
            help="Requests before the measured ones.",
            rich_help_panel=_LOAD,
        ),
    ] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="Of lengths, prompts and arrivals.", rich_help_panel=_LOAD)
    ] = 0,
    trace: Annotated[
        Path | None, typer.Option(help="Arrivals and lengths of real requests.", rich_help_panel=_TRACE)
    ] = None,
    trace_speedup: Annotated[
        float, typer.Option(help="Arrivals come so many times as fast.", rich_help_panel=_TRACE)
    ] = 1.0,
    trace_start: Annotated[
        float, typer.Option(help="Second of the trace to begin at.", rich_help_panel=_TRACE)
    ] = 0.0,
    trace_duration: Annotated[
        float | None, typer.Option(help="Seconds of the trace to send.", rich_help_panel=_TRACE)
    ] = None,
    trace_scale: Annotated[int, typer.Option(min=1, help="Divides the lengths.", rich_help_panel=_TRACE)] = 1,
    max_model_len: Annotated[
        int | None, typer.Option(min=2, help="Leave longer requests out.", rich_help_panel=_TRACE)
    ] = None,
    input_len: Annotated[
        str, typer.Option(metavar="N|LOW:HIGH", help="Tokens of a prompt.", rich_help_panel=_REQUEST)
    ] = "128",
    output_len: Annotated[
        str, typer.Option(metavar="N|LOW:HIGH", help="Tokens to generate.", rich_help_panel=_REQUEST)
    ] = "128",
    prefix_len: Annotated[
        int, typer.Option(min=0, help="Tokens that all prompts begin with, on top.", rich_help_panel=_REQUEST)
    ] = 0,
    text: Annotated[
        bool, typer.Option("--text", help="Prompts of words instead of token ids.", rich_help_panel=_REQUEST)
    ] = False,
    token_range: Annotated[
        str,
        typer.Option(
            metavar="LOW:HIGH", help="Token ids that prompts are made of.", rich_help_panel=_REQUEST
        ),
    ] = "1000:16000",
    stream: Annotated[bool, typer.Option(help="Ask for an event stream.", rich_help_panel=_REQUEST)] = True,
    ignore_eos: Annotated[
        bool, typer.Option(help="Ask for exactly so many tokens, past end-of-text.", rich_help_panel=_REQUEST)
    ] = True,
    check_tokens: Annotated[
        bool,
        typer.Option(
            "--check-tokens", help="Ask for token ids, and count what is delivered.", rich_help_panel=_REQUEST
        ),
    ] = False,
    temperature: Annotated[float, typer.Option(min=0, help="Of sampling.", rich_help_panel=_REQUEST)] = 0.0,
    priority_mix: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS:SHARE,...", help="Priority classes, drawn by share.", rich_help_panel=_REQUEST
        ),
    ] = None,
    extra_body: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="More fields of each request.", rich_help_panel=_REQUEST),
    ] = None,
    goodput: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIGURE:MS",
            help="Target for ttft, tpot or e2el; may be repeated.",
            rich_help_panel=_REPORT,
        ),
    ] = None,
    metrics: Annotated[
        bool,
        typer.Option(
            "--metrics", help="Also report what the server's /metrics tell.", rich_help_panel=_REPORT
        ),
    ] = False,
    json_: opt.Json = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw latencies and a timeline.", rich_help_panel=_REPORT),
    ] = None,
    save_requests: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Write each request's times.", rich_help_panel=_REPORT),
    ] = None,
) -> None:
    """Load a server with OpenAI's interface: throughput, latencies, goodput, success rate."""
    from vglm.bench.figures import parse_goodput
    from vglm.bench.plot import check_plot
    from vglm.bench.report import check_writable
    from vglm.bench.serve import ServeLoad
    from vglm.bench.synthetic import parse_mix, parse_range

    check_writable(json_)
    check_writable(plot, "--plot")
    check_writable(save_requests, "--save-requests")
    check_plot(plot)
    targets = parse_goodput(goodput or [])
    work = ServeLoad(
        base_url=base_url,
        headers=_headers(api_key, header or []),
        endpoint=endpoint,
        model=model,
        num_requests=num_requests,
        concurrency=concurrency,
        request_rate=request_rate,
        burstiness=burstiness,
        trace=trace,
        trace_speedup=trace_speedup,
        trace_start=trace_start,
        trace_duration=trace_duration,
        trace_scale=trace_scale,
        max_model_len=max_model_len,
        input_len=parse_range(input_len, "--input-len"),
        output_len=parse_range(output_len, "--output-len"),
        prefix_len=prefix_len,
        text=text,
        token_range=parse_range(token_range, "--token-range", least=0),
        stream=stream,
        ignore_eos=ignore_eos,
        temperature=temperature,
        check_tokens=check_tokens,
        priority_mix=parse_mix(priority_mix) if priority_mix is not None else {},
        extra_body=_json_object(extra_body, "--extra-body"),
        timeout=timeout or None,
        retry_429=retry_429,
        warmups=warmups,
        seed=seed,
        metrics=metrics,
    )
    _run(work, targets, json_, plot, save_requests)


def _run(
    work: Any, targets: dict[str, float], json_: Path | None, plot: Path | None, save: Path | None
) -> None:
    """Measure and publish; a run that was cut short is published too, and then ends with an error status."""
    from vglm.bench.serve import measure
    from vglm.bench.serve_report import report, save_requests

    measured = measure(work)
    run = measured.run
    report(work, measured, targets).publish(json_)
    if save is not None:
        save_requests(run.records, save)
    if plot is not None:
        from vglm.bench.plot import plot as draw

        draw(run, targets, f"{measured.model}, {measured.load}", plot)
    if run.interrupted:
        raise KeyboardInterrupt
    if run.dead is not None:
        raise VGLMError(
            f"the server went away after {len(run.records):,} of {run.planned:,} requests: {run.dead}"
        )
    if not any(record.ok for record in run.records):
        raise VGLMError(f"all {len(run.records):,} requests failed")


def _headers(api_key: str | None, given: list[str]) -> dict[str, str]:
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or not text.isprintable() or not text.isascii() or set(name) & set(' :"'):
            raise ConfigError(f"--header {text!r}: write it as in X-Tenant=blue")
        headers[name.lower()] = value
    if api_key and not (api_key.isprintable() and api_key.isascii()):
        raise ConfigError("--api-key: it must be printable ASCII")
    return headers


def _json_object(text: str | None, option: str) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f'{option} {text}: a JSON object is expected, as in {{"top_k": 5}}')
    return found
