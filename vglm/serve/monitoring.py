"""What is watched: the metrics of one server and whoever wants to know of every request."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, FastAPI
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from vglm.serve.access_log import RequestObserver
from vglm.serve.http_metrics import HttpMetrics
from vglm.serve.limits import BodyLimits
from vglm.serve.logs import LogWriter
from vglm.serve.metrics import EngineCollector, new_registry, render
from vglm.serve.protocol import LimitedProtocol
from vglm.serve.serving import Serving
from vglm.serve.tracing import Tracing

router = APIRouter(tags=["server"])


class Monitoring:
    """The metrics of a server, made of what its parts count themselves."""

    def __init__(self, app: FastAPI, serving: Serving, bodies: BodyLimits) -> None:
        prefix = serving.options.metrics_prefix
        protocol: type[LimitedProtocol] | None = serving.protocol
        log: LogWriter | None = serving.log_writer
        self.http = HttpMetrics(
            prefix=prefix,
            paths={path for route in app.routes if (path := getattr(route, "path", None))},
            admission=serving.admission,
            connections=serving.num_connections,
            refused_connections=None if protocol is None else protocol.refused,
            held_body_bytes=lambda: bodies.held_bytes,
            dropped_log_lines=None if log is None else lambda: log.dropped,
        )
        engine = EngineCollector(
            model_name=serving.model_names[0],
            prefix=prefix,
            metrics=lambda: serving.llm.engine.metrics,
            stats=serving.engine.stats,
            alive=lambda: serving.engine.alive,
            integrity_errors=lambda: serving.engine.num_integrity_errors,
            controller=lambda: _controller_state(serving),
            facts=_facts(serving),
        )
        self.registry = new_registry(engine, self.http)
        self.observers: list[RequestObserver] = [self.http]
        self._tracing: Tracing | None = None
        if serving.options.otlp_endpoint is not None:
            self._tracing = Tracing(serving.options.otlp_endpoint, serving.model_names[0])
            self.observers.append(self._tracing)

    def stop(self) -> None:
        """Send what has not been sent yet."""
        if self._tracing is not None:
            self._tracing.stop()


def _controller_state(serving: Serving) -> Mapping[str, float | None]:
    """What the latency controller does; empty when there are no targets."""
    controller = serving.llm.engine.controller
    if controller is None:
        return {}
    state = controller.state()
    return {
        "token_budget": state.token_budget,
        "max_running": state.max_running,
        "itl_p95_seconds": state.itl_p95,
        "decreases": state.decreases,
        "increases": state.increases,
        "ttft_target_seconds": controller.ttft_target,
        "itl_target_seconds": controller.itl_target,
    }


def _facts(serving: Serving) -> dict[str, str]:
    options, config = serving.llm.options, serving.llm.engine.config
    return {
        "block_size": str(options.block_size),
        "num_gpu_blocks": str(serving.llm.engine.pool.num_blocks),  # the name that vLLM's dashboards ask for
        "cache_dtype": options.kv_dtype,
        "enable_prefix_caching": str(options.enable_prefix_caching),
        "max_model_len": str(config.max_model_len),
    }


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(http: HttpRequest) -> Response:
    """Metrics in Prometheus' text format."""
    monitoring: Monitoring = http.app.state.monitoring
    body, content_type = render(monitoring.registry)
    return Response(body, headers={"content-type": content_type})
