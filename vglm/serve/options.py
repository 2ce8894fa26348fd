"""What a user may choose about the server; about the engine see `vglm.options`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vglm.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Options of the server.

    Args:
        host, port: where to listen; port 0 takes a free one. uds: a Unix socket's path instead.
        served_model_names: names that clients may use for the model; empty: the name it was loaded under.
        api_keys: keys that are accepted; api_key_file: more of them, reloaded when the file changes.
        max_queue: completions that may wait besides those that run; with more, a request is refused with 429.
        per_key_limit: unfinished requests of one API key.
        max_connections: open connections.
        max_body_bytes, max_header_bytes, max_json_depth: limits of a request.
        header_timeout, body_timeout: seconds in which a request's head and body must arrive.
        request_timeout: seconds from the end of a request's head to the end of its answer; None: no limit.
        drain_timeout: seconds that requests in flight get to finish after SIGTERM.
        cors_origins: origins that browsers may call from; none by default.
        coalesce: merge the increments of a stream that are ready at the same time into one message.
        log_level, log_format ("text" or "json"), log_prompts: what is logged.
        metrics_prefix: "vglm", or "vllm" for dashboards made for vLLM. metrics_open: /metrics needs no key.
        graph_store: the file of the graph store; None: `vglm.graph.store_file.default_store_path()`. has_graph_store: whether
            there is one at all. graphs: (name, file) of graphs that are loaded into it at the start.
        classifiers: (name, file) of graph classifiers that requests may name.
        ui: whether there is a page at /; None: if NiceGUI is installed.
        otlp_endpoint: where OpenTelemetry traces go; None: nowhere.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    uds: Path | None = None
    served_model_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    api_key_file: Path | None = None
    max_queue: int = 8192
    per_key_limit: int | None = None
    max_connections: int = 16384
    max_body_bytes: int = 32 << 20
    max_header_bytes: int = 64 << 10
    max_json_depth: int = 64
    header_timeout: float = 30.0
    body_timeout: float = 60.0
    request_timeout: float | None = None
    drain_timeout: float = 30.0
    cors_origins: tuple[str, ...] = ()
    coalesce: bool = True
    log_level: str = "info"
    log_format: str = "text"
    log_prompts: bool = False
    metrics_prefix: str = "vglm"
    metrics_open: bool = True
    ui: bool | None = None
    otlp_endpoint: str | None = None
    graph_store: Path | None = None
    has_graph_store: bool = True
    graphs: tuple[tuple[str, Path], ...] = ()
    classifiers: tuple[tuple[str, Path], ...] = ()

    def __post_init__(self) -> None:
        for name, low, high in _WHOLE:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and low <= value <= high):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
        for name in ("header_timeout", "body_timeout", "request_timeout", "drain_timeout"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds < 1e9:
                raise ConfigError(f"{name} is {seconds!r}; it must be a positive number of seconds")
        if self.graphs and not self.has_graph_store:
            raise ConfigError("graphs can be loaded into a graph store only, and there is to be none")
        for name, allowed in _CHOICES:
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")


_WHOLE = (
    ("port", 0, 65535),
    ("max_queue", 0, 1 << 24),
    ("per_key_limit", 1, 1 << 24),
    ("max_connections", 1, 1 << 20),
    ("max_body_bytes", 1 << 10, 1 << 32),
    ("max_header_bytes", 1 << 10, 1 << 20),
    ("max_json_depth", 4, 512),
)
_CHOICES = (
    ("log_level", ("debug", "info", "warning", "error")),
    ("log_format", ("text", "json")),
    ("metrics_prefix", ("vglm", "vllm")),
)
