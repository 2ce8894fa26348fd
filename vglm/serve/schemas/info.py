"""Bodies of the endpoints that tell about the server."""

from __future__ import annotations

from typing import Literal

from vglm.serve.schemas.common import Answer


class ModelCard(Answer):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    parent: str | None = None
    max_model_len: int


class ModelList(Answer):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(Answer):
    """The server works."""

    status: Literal["ok"] = "ok"


class Load(Answer):
    """How busy the server is."""

    server_load: int
    num_requests_running: int
    num_requests_waiting: int
    max_num_seqs: int
    kv_cache_usage: float
    draining: bool


class Version(Answer):
    """vGLM's version."""

    version: str


class Index(Answer):
    """What the server offers."""

    name: str
    version: str
    models: list[str]
    paths: dict[str, list[str]]
