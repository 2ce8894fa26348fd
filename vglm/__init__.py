"""vGLM: inference for graph language models, fast on machines without a GPU."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vglm.decode.graph_outputs import GraphOutput
    from vglm.decode.grounded import Grounding
    from vglm.decode.outputs import (
        CandidateScore,
        CompletionOutput,
        EmbeddingOutput,
        Logprob,
        RequestMetrics,
        RequestOutput,
        ScoreOutput,
    )
    from vglm.decode.sampling_params import SamplingParams
    from vglm.decode.structured import StructuredOutputs
    from vglm.errors import ConfigError, GraphError, ModelError, RequestError, VGLMError
    from vglm.graph.graph import Edge, Graph, Node
    from vglm.graph.store import GraphStore
    from vglm.llm import LLM
    from vglm.tasks.asking import GraphQuery
    from vglm.tasks.explanation import Explained
    from vglm.tasks.ranking import Ranked

# Imported on first use: `vglm --help` and the graph tools need no engine.
_HOME = {
    "LLM": "vglm.llm",
    "SamplingParams": "vglm.decode.sampling_params",
    "StructuredOutputs": "vglm.decode.structured",
    **dict.fromkeys(
        (
            "CandidateScore",
            "CompletionOutput",
            "EmbeddingOutput",
            "Logprob",
            "RequestMetrics",
            "RequestOutput",
            "ScoreOutput",
        ),
        "vglm.decode.outputs",
    ),
    **dict.fromkeys(("VGLMError", "ModelError", "RequestError", "GraphError", "ConfigError"), "vglm.errors"),
    **dict.fromkeys(("Graph", "Node", "Edge"), "vglm.graph.graph"),
    "GraphOutput": "vglm.decode.graph_outputs",
    "GraphQuery": "vglm.tasks.asking",
    "GraphStore": "vglm.graph.store",
    "Explained": "vglm.tasks.explanation",
    "Ranked": "vglm.tasks.ranking",
    "Grounding": "vglm.decode.grounded",
}

__all__ = [
    "LLM",
    "CandidateScore",
    "CompletionOutput",
    "ConfigError",
    "Edge",
    "EmbeddingOutput",
    "Explained",
    "Graph",
    "GraphError",
    "GraphOutput",
    "GraphQuery",
    "GraphStore",
    "Grounding",
    "Logprob",
    "ModelError",
    "Node",
    "Ranked",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "ScoreOutput",
    "StructuredOutputs",
    "VGLMError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vglm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
