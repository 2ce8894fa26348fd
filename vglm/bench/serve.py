"""`vglm bench serve`: a load on any server with OpenAI's interface, and what its users would have seen."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from vglm.bench.answers import RequestFailure
from vglm.bench.arrivals import gamma_arrivals
from vglm.bench.client import Address, Client, Refused
from vglm.bench.load import Load, Plan, Record, Run
from vglm.bench.scrape import Watch
from vglm.bench.synthetic import Ranges, Workload
from vglm.bench.traces import Trace, read_arrivals
from vglm.console import progress_bar
from vglm.errors import ConfigError

DEFAULT_REQUESTS = 256
DEFAULT_CONCURRENCY = 64
_SPARE_FILES = 64  # descriptors besides the connections


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeLoad:
    """A load and the server that gets it.

    Args:
        base_url: the server, with or without /v1. headers: sent with every request.
        endpoint: "completions", "chat", or the path of such an endpoint.
        model: name; None takes the first one of the server.
        num_requests: None is 256, or all of a trace.
        concurrency: requests at once; with a rate or a trace only a bound. None is 64, or no bound.
        request_rate: requests per second of an open loop; burstiness: 1 is a Poisson process, less is more bursty.
        trace: file with arrivals and lengths; trace_speedup, trace_start, trace_duration (seconds), trace_scale
            (divides lengths) and max_model_len (tokens; longer requests are left out) choose from it.
        input_len, output_len: tokens, from and to. prefix_len: tokens that all prompts begin with, on top.
        timeout: seconds of one request, None: no limit.
        warmups: requests that are not measured; the first also tells whether the server understands.
        The rest is as in `Workload` and `Plan`.
    """

    base_url: str = "http://127.0.0.1:8000"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    endpoint: str = "completions"
    model: str | None = None
    num_requests: int | None = None
    concurrency: int | None = None
    request_rate: float | None = None
    burstiness: float = 1.0
    trace: Path | None = None
    trace_speedup: float = 1.0
    trace_start: float = 0.0
    trace_duration: float | None = None
    trace_scale: int = 1
    max_model_len: int | None = None
    input_len: tuple[int, int] = (128, 128)
    output_len: tuple[int, int] = (128, 128)
    prefix_len: int = 0
    text: bool = False
    token_range: tuple[int, int] = (1000, 16000)
    stream: bool = True
    ignore_eos: bool = True
    temperature: float = 0.0
    check_tokens: bool = False
    priority_mix: Mapping[str, float] = field(default_factory=dict)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = 600.0
    retry_429: bool = False
    warmups: int = 1
    seed: int = 0
    metrics: bool = False

    def __post_init__(self) -> None:
        _ = self.path  # refuses what is no endpoint
        if self.request_rate is not None and self.trace is not None:
            raise ConfigError("a trace has its own arrivals; give either --request-rate or --trace")
        for name in ("trace_speedup", "trace_duration", "timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')} {value:g}: it must be positive")
        if not self.trace_start >= 0:
            raise ConfigError(f"--trace-start {self.trace_start:g}: it must not be negative")
        if self.check_tokens and not self.stream:
            raise ConfigError(
                "--check-tokens counts what a stream delivers; it makes no sense with --no-stream"
            )

    @property
    def path(self) -> str:
        """The endpoint's path. Raises ConfigError."""
        known = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
        path = known.get(self.endpoint, self.endpoint)
        if not (
            path.startswith("/") and path.endswith("/completions") and path.isprintable() and " " not in path
        ):
            raise ConfigError(
                f"--endpoint {self.endpoint}: choose completions or chat, or give a path of one of these"
            )
        return path

    @property
    def chat(self) -> bool:
        """Whether prompts are messages."""
        return self.path.endswith("/chat/completions")


@dataclass(slots=True)
class Measured:
    """What `measure` brings back."""

    run: Run
    model: str
    load: str  # in words
    server: dict[str, Any]  # figures of the server's own metrics
    notes: list[str]


def measure(work: ServeLoad) -> Measured:
    """Send the load. Raises ConfigError when the server is not there or does something else."""
    address = Address.parse(work.base_url)
    trace = _trace(work)
    plan, words = _plan(work, trace)
    _raise_file_limit(plan)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_measure(work, address, trace, plan, words))


async def _measure(
    work: ServeLoad, address: Address, trace: Trace | None, plan: Plan, words: str
) -> Measured:
    client = Client(address, work.headers)
    await client.resolve()
    model = work.model or await _first_model(client, work)
    workload = _workload(work, model, trace)
    watch = Watch(client) if work.metrics else None
    load = Load(client, work.path, workload, plan)
    await _warm_up(load, work)
    if watch is not None:
        await watch.start()
    with progress_bar(f"{words}, requests", plan.count) as bar:
        run = await _until_interrupt(load, lambda _: bar.advance())
    notes = []
    if watch is not None:
        await watch.stop()
        if watch.missed:
            notes.append(f"{watch.missed} scrapes of /metrics failed")
    client.close()
    return Measured(run, model, words, watch.figures() if watch is not None else {}, notes)


async def _until_interrupt(load: Load, on_end: Callable[[Record], None]) -> Run:
    """The run; the first Ctrl-C ends it early, a second one everything."""
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        load.stop()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        return await load.run(on_end)
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _first_model(client: Client, work: ServeLoad) -> str:
    """The first model that the server lists. Raises ConfigError."""
    where = "GET /v1/models"
    try:
        async with asyncio.timeout(work.timeout):
            answer = await client.get("/v1/models")
        answer.check_status()
        document = answer.document()
    except (RequestFailure, TimeoutError) as failure:
        raise _explain(work, where, failure) from None
    models = document.get("data") if isinstance(document, dict) else None
    names = [m.get("id") for m in models if isinstance(m, dict)] if isinstance(models, list) else []
    if not names or not isinstance(names[0], str):
        raise ConfigError(
            f"{work.base_url}: {where} lists no model, so this is no server with OpenAI's interface; "
            "name the model with --model if it is one nevertheless"
        )
    return names[0]


async def _warm_up(load: Load, work: ServeLoad) -> None:
    for _ in range(work.warmups):
        try:
            await load.first()
        except (RequestFailure, TimeoutError) as failure:
            raise _explain(work, f"the first request, to {work.path}, failed", failure) from None


def _explain(work: ServeLoad, where: str, failure: RequestFailure | TimeoutError) -> ConfigError:
    """Why the server cannot be measured, for a person."""
    if isinstance(failure, TimeoutError):
        return ConfigError(f"{work.base_url}: {where}: no answer within {work.timeout:g} s")
    if isinstance(failure, Refused):
        return ConfigError(
            f"{work.base_url}: nobody listens there (connection refused); is the server running?"
        )
    if failure.reason in ("HTTP 401", "HTTP 403"):
        return ConfigError(
            f"{work.base_url}: {where}: {failure}; give a key with --api-key or OPENAI_API_KEY"
        )
    if failure.reason in ("HTTP 404", "HTTP 405", "malformed HTTP", "no JSON", "no completion"):
        return ConfigError(f"{work.base_url}: {where}: {failure}; is this a server with OpenAI's interface?")
    return ConfigError(f"{work.base_url}: {where}: {failure}")


def _trace(work: ServeLoad) -> Trace | None:
    if work.trace is None:
        return None
    trace = read_arrivals(work.trace).window(work.trace_start, work.trace_duration).divided(work.trace_scale)
    if work.max_model_len is not None:
        trace = trace.fitting(work.max_model_len - work.prefix_len)
    trace = trace.faster(work.trace_speedup)
    return trace if work.num_requests is None else trace.first(work.num_requests)


def _plan(work: ServeLoad, trace: Trace | None) -> tuple[Plan, str]:
    """How the load is sent, and that in words."""
    common: dict[str, Any] = {"timeout": work.timeout, "retry_429": work.retry_429}
    bound = "" if work.concurrency is None else f", at most {work.concurrency:,} at once"
    if trace is not None:
        arrivals = [request.arrival for request in trace.requests]
        words = f"{trace.source}, {len(arrivals) / max(arrivals[-1], 1e-9):.3g} requests/s on average{bound}"
        return Plan(count=len(arrivals), arrivals=arrivals, concurrency=work.concurrency, **common), words
    count = work.num_requests or DEFAULT_REQUESTS
    if work.request_rate is not None:
        times = gamma_arrivals(count, work.request_rate, work.burstiness, work.seed).tolist()
        words = f"{work.request_rate:g} requests/s, burstiness {work.burstiness:g}{bound}"
        return Plan(count=count, arrivals=times, concurrency=work.concurrency, **common), words
    concurrency = min(work.concurrency or DEFAULT_CONCURRENCY, count)
    return Plan(count=count, concurrency=concurrency, **common), f"{concurrency:,} at once"


def _workload(work: ServeLoad, model: str, trace: Trace | None) -> Workload:
    return Workload(
        model=model,
        chat=work.chat,
        lengths=Ranges(work.input_len, work.output_len),
        trace=trace,
        prefix_len=work.prefix_len,
        text=work.text,
        token_range=work.token_range,
        priority_mix=work.priority_mix,
        seed=work.seed,
        stream=work.stream,
        ignore_eos=work.ignore_eos,
        temperature=work.temperature,
        token_ids=work.check_tokens,
        fields=work.extra_body,
    )


def _raise_file_limit(plan: Plan) -> None:
    """As many open files as the system allows. Raises ConfigError when the connections would not fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = min(plan.concurrency or 0, plan.count) + _SPARE_FILES
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ConfigError(
            f"--concurrency {plan.concurrency}: the system allows {hard:,} open files, and {needed:,} are needed; "
            "raise the hard limit (ulimit -Hn)"
        )


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop where it is installed."""
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    except ModuleNotFoundError:
        return None
    return factory
