"""What an engine is told when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from vglm.engine.policies import LatencyController
from vglm.engine.scheduler import SchedulerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig(SchedulerConfig):
    """Limits of the engine and the facts about the model that it needs."""

    vocab_size: int
    hidden_size: int
    eos_token_ids: tuple[int, ...] = ()
    model_id: str = ""  # part of every span key: the model's fingerprint
    kv_cache_dtype: str = "bf16"
    enable_prefix_caching: bool = True
    seed: int = 0
    ttft_target_ms: float | None = None  # to the first token, and between tokens: see LatencyController
    itl_target_ms: float | None = None


def latency_controller(config: EngineConfig) -> LatencyController | None:
    """The controller of the configured targets; None when there are none."""
    if config.itl_target_ms is None and config.ttft_target_ms is None:
        return None
    itl, ttft = (
        None if target is None else target / 1000 for target in (config.itl_target_ms, config.ttft_target_ms)
    )
    return LatencyController(itl, ttft)
