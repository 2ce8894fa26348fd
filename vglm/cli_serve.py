"""`vglm serve`: an OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vglm import cli_options as opt
from vglm.errors import ConfigError

_SERVER = "Server"
_LIMITS = "Limits"
_POLICY = "Scheduling"
_GRAPHS = "Graphs"
_WATCH = "Logs, metrics and traces"

EPILOG = (
    "Examples:\n\n"
    "vglm serve smollm2-135m-instruct\n\n"
    "vglm serve model.gguf --host 0.0.0.0 --port 8080 --api-key-file keys.txt --log-format json\n\n"
    "vglm serve model.gguf --ttft-target-ms 500 --itl-target-ms 40\n\n"
    "curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\\n\n"
    '     -d \'{"messages": [{"role": "user", "content": "Hello"}]}\''
)


def serve(
    model: opt.Model,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=_SERVER)] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", rich_help_panel=_SERVER)] = 8000,
    uds: Annotated[
        Path | None, typer.Option(help="Listen on this Unix socket instead.", rich_help_panel=_SERVER)
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(help="Name that clients use; may be repeated.", rich_help_panel=_SERVER),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="VGLM_API_KEY", help="Accept this key; may be repeated.", rich_help_panel=_SERVER
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Accept the keys in this file; reloaded when it changes.", rich_help_panel=_SERVER),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Browsers may call from this origin; may be repeated.", rich_help_panel=_SERVER),
    ] = None,
    coalesce: Annotated[
        bool, typer.Option(help="Merge increments that are ready together.", rich_help_panel=_SERVER)
    ] = True,
    ui: Annotated[
        bool | None,
        typer.Option(
            "--ui/--no-ui",
            help="Show a page at / (default: if NiceGUI is installed).",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    drain_timeout: Annotated[
        float, typer.Option(help="Seconds for requests in flight after SIGTERM.", rich_help_panel=_SERVER)
    ] = 30.0,
    graph_store: Annotated[
        Path | None,
        typer.Option(
            help="Keep named graphs in this file (default: as vglm graph does).", rich_help_panel=_GRAPHS
        ),
    ] = None,
    no_graph_store: Annotated[
        bool, typer.Option("--no-graph-store", help="Store no graphs.", rich_help_panel=_GRAPHS)
    ] = False,
    graph: Annotated[
        list[str] | None,
        typer.Option(help="Load NAME=FILE into the store first; may be repeated.", rich_help_panel=_GRAPHS),
    ] = None,
    classifier: Annotated[
        list[str] | None,
        typer.Option(
            help="Classify graphs with NAME=FILE of vglm train classifier; may be repeated.",
            rich_help_panel=_GRAPHS,
        ),
    ] = None,
    max_queue: Annotated[
        int, typer.Option(help="Completions that may wait; more get 429.", rich_help_panel=_LIMITS)
    ] = 8192,
    per_key_limit: Annotated[
        int | None, typer.Option(help="Unfinished requests of one key.", rich_help_panel=_LIMITS)
    ] = None,
    max_connections: Annotated[int, typer.Option(help="Open connections.", rich_help_panel=_LIMITS)] = 16384,
    max_body: Annotated[str, typer.Option(help="Largest body, as in 32M.", rich_help_panel=_LIMITS)] = "32M",
    header_timeout: Annotated[
        float, typer.Option(help="Seconds for a request's head.", rich_help_panel=_LIMITS)
    ] = 30.0,
    body_timeout: Annotated[
        float, typer.Option(help="Seconds for a request's body.", rich_help_panel=_LIMITS)
    ] = 60.0,
    request_timeout: Annotated[
        float | None, typer.Option(help="Seconds for a request in all.", rich_help_panel=_LIMITS)
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option(min=1, help="Sequences in one step.", rich_help_panel=_POLICY)
    ] = 64,
    max_num_batched_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens in one step.", rich_help_panel=_POLICY)
    ] = 2048,
    max_wait: Annotated[
        float,
        typer.Option(help="Seconds after which a low priority waits no longer.", rich_help_panel=_POLICY),
    ] = 10.0,
    ttft_target_ms: Annotated[
        float | None, typer.Option(help="Aim for this time to first token.", rich_help_panel=_POLICY)
    ] = None,
    itl_target_ms: Annotated[
        float | None, typer.Option(help="Aim for this time between tokens.", rich_help_panel=_POLICY)
    ] = None,
    log_level: Annotated[
        str, typer.Option(help="debug, info, warning or error.", rich_help_panel=_WATCH)
    ] = "info",
    log_format: Annotated[str, typer.Option(help="text or json.", rich_help_panel=_WATCH)] = "text",
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Log prompts and outputs too.", rich_help_panel=_WATCH)
    ] = False,
    metrics_prefix: Annotated[
        str, typer.Option(help="vglm, or vllm for dashboards made for vLLM.", rich_help_panel=_WATCH)
    ] = "vglm",
    metrics_need_key: Annotated[
        bool,
        typer.Option("--metrics-need-key", help="Ask for a key at /metrics too.", rich_help_panel=_WATCH),
    ] = False,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
            help="Send OpenTelemetry traces there (http/protobuf).",
            rich_help_panel=_WATCH,
        ),
    ] = None,
    dtype: opt.Dtype = "auto",
    kv_cache_dtype: opt.KVDtype = "auto",
    threads: opt.Threads = None,
    max_model_len: opt.MaxModelLen = None,
    kv_cache_memory: opt.KVMemory = None,
    block_size: opt.BlockSize = 16,
    prefix_caching: opt.PrefixCaching = True,
    span_cache_dir: opt.SpanCacheDir = None,
    span_cache_size: opt.SpanCacheSize = "1G",
) -> None:
    """Serve a model over HTTP, with OpenAI's interface."""
    from vglm.options import parse_bytes

    run(
        model,
        opt.given(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_wait=max_wait,
            ttft_target_ms=ttft_target_ms,
            itl_target_ms=itl_target_ms,
            dtype=dtype,
            kv_cache_dtype=kv_cache_dtype,
            threads=threads,
            max_model_len=max_model_len,
            kv_cache_memory=kv_cache_memory,
            block_size=block_size,
            enable_prefix_caching=prefix_caching,
            span_cache_dir=span_cache_dir,
            span_cache_size=span_cache_size,
        ),
        host=host,
        port=port,
        uds=uds,
        served_model_names=tuple(served_model_name or ()),
        api_keys=tuple(api_key or ()),
        api_key_file=api_key_file,
        cors_origins=tuple(cors_origin or ()),
        coalesce=coalesce,
        ui=ui,
        drain_timeout=drain_timeout,
        max_queue=max_queue,
        per_key_limit=per_key_limit,
        max_connections=max_connections,
        max_body_bytes=parse_bytes("max_body", max_body),
        header_timeout=header_timeout,
        body_timeout=body_timeout,
        request_timeout=request_timeout,
        log_level=log_level,
        log_format=log_format,
        log_prompts=log_prompts,
        metrics_prefix=metrics_prefix,
        metrics_open=not metrics_need_key,
        otlp_endpoint=otlp_endpoint,
        graph_store=graph_store,
        has_graph_store=not no_graph_store,
        graphs=graph or [],
        classifiers=classifier or [],
    )


def run(model: str, engine: dict[str, Any], **options: Any) -> None:
    """Serve, and exit with the server's status."""
    try:
        from vglm.serve.graph_service import parse_named_file
        from vglm.serve.options import ServeOptions
        from vglm.serve.server import serve as run_server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("vglm"):
            raise
        raise ConfigError(
            f"the server needs the package {error.name}, which is not installed: pip install 'vglm[serve]'"
        ) from error
    for name, option, example in (
        ("graphs", "--graph", "hpo=hp.obo"),
        ("classifiers", "--classifier", "toxic=toxic.safetensors"),
    ):
        options[name] = tuple(parse_named_file(option, text, example) for text in options.pop(name, ()))
    raise typer.Exit(run_server(model, engine, ServeOptions(**options)))
