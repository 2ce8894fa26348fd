"""The OpenAPI document at /openapi.json: what the schemas say, and what only the running server knows.

FastAPI writes most of it. Here it becomes true of this server: its refusals (FastAPI's own 422 is a 400 here), the model's
names, how many tokens there are, whether a key is needed, what the events of a stream hold.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from vglm.graph.annotations import HAS_PHENOTYPE
from vglm.serve.auth import OPEN_PATHS
from vglm.serve.schemas.chat import ChatChunk
from vglm.serve.schemas.common import SERVED_MARK, ErrorAnswer
from vglm.serve.schemas.completions import CompletionAnswer
from vglm.serve.schemas.responses import ResponseStreamEvent
from vglm.serve.schemas.suggest import SuggestAnswer, SuggestChunk
from vglm.serve.serving import Serving

#: By path, what the data of the events is where an operation can answer with a stream of them.
EVENTS: dict[str, Any] = {
    "/v1/completions": CompletionAnswer | ErrorAnswer,
    "/v1/chat/completions": ChatChunk | ErrorAnswer,
    "/v1/responses": ResponseStreamEvent,
    "/v1/graphs/{graph}/suggest": SuggestAnswer | SuggestChunk | ErrorAnswer,
}

_REF = "#/components/schemas/"
_REFUSALS = {
    400: "The request is malformed, or asks for what this model cannot do.",
    401: "An API key is needed, or the one that was given is not known.",
    404: "There is no such model, or graph.",
    408: "The body did not arrive in time.",
    409: "The name is taken, or the graph is at another version.",
    413: "The body is too large.",
    429: "Too many requests wait, or too many with this key.",
    500: "The request has failed in the server.",
    503: "The server is shutting down, overloaded or broken.",
    504: "The request took longer than the server allows.",
}
_OF_ALL = (400, 408, 413, 500, 503, 504)  # every operation reads a body when there is one
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    429: {"Retry-After": {"schema": {"type": "integer", "minimum": 0}}},
    503: {"Retry-After": {"schema": {"type": "integer", "minimum": 0}}},
}


def document(app: FastAPI, serving: Serving) -> dict[str, Any]:
    """The document of an app that has all its routers."""
    out = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    schemas: dict[str, Any] = out["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    open_paths = _open_paths(serving, out["paths"])
    for path, methods in out["paths"].items():
        for operation in methods.values():
            _add_refusals(operation, needs_key=path not in open_paths)
            if path in EVENTS and "requestBody" in operation:
                _add_events(operation, EVENTS[path], schemas)
    _define(ErrorAnswer, schemas)
    if _has_keys(serving):
        out["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    _fill_in(out, _facts(serving))
    return out


def _has_keys(serving: Serving) -> bool:
    return bool(serving.options.api_keys) or serving.options.api_key_file is not None


def _open_paths(serving: Serving, paths: Collection[str]) -> Collection[str]:
    """The paths that ask for no key."""
    if not _has_keys(serving):
        return paths
    return OPEN_PATHS | {"/metrics"} if serving.options.metrics_open else OPEN_PATHS


def _add_refusals(operation: dict[str, Any], needs_key: bool) -> None:
    """Every status that the operation can answer with besides its success."""
    responses = operation["responses"]
    responses.pop("422", None)
    statuses: set[int] = set(_OF_ALL)
    if "requestBody" in operation:
        statuses |= {404, 429}
    if operation.get("parameters"):
        statuses.add(404)
    if "graphs" in operation.get("tags", ()):
        statuses |= {404, 409}
    if needs_key:
        statuses.add(401)
        operation["security"] = [{"bearer": []}, {"header": []}]
    for status in sorted(statuses):
        refusal = responses.setdefault(str(status), {})
        refusal["description"] = _REFUSALS[status]
        refusal["content"] = {"application/json": {"schema": {"$ref": _REF + "ErrorAnswer"}}}
        if status in _HEADERS:
            refusal["headers"] = _HEADERS[status]


def _add_events(operation: dict[str, Any], of: Any, schemas: dict[str, Any]) -> None:
    """The stream that the operation can answer with, as OpenAPI 3.2 and FastAPI describe one."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": _define(of, schemas)}
    item = {
        "type": "object",
        "required": ["data"],
        "properties": {"event": {"type": "string"}, "data": {"anyOf": [{"const": "[DONE]"}, data]}},
    }
    operation["responses"]["200"]["content"]["text/event-stream"] = {"itemSchema": item}


def _define(of: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type; the models in it are put among the components."""
    schema = TypeAdapter(of).json_schema(mode="serialization", ref_template=_REF + "{model}")
    for name, definition in schema.pop("$defs", {}).items():
        schemas.setdefault(name, definition)
    if isinstance(of, type):
        schemas.setdefault(of.__name__, schema)
        schema = {"$ref": _REF + of.__name__}
    return schema


def _facts(serving: Serving) -> dict[str, dict[str, Any]]:
    """What the marks in the schemas stand for (see `vglm.serve.schemas.common.served`)."""
    config = serving.llm.engine.config
    names = list(serving.model_names)
    tokenizer = serving.llm.tokenizer
    says_something = bool(tokenizer.prefix_ids or tokenizer.suffix_ids)  # even an empty text has tokens then
    edge = serving.graphs.example
    link = {"head": edge.source, "relation": edge.relation} if edge is not None else {}
    ends = {"source": edge.source, "target": edge.target} if edge is not None else {}
    findings = {"findings": [edge.target]} if edge is not None and edge.relation == HAS_PHENOTYPE else {}
    return {
        "suggest_examples": {"examples": [findings, findings | {"stream": True}]} if findings else {},
        "link_example": {"example": link} if link else {},
        "explain_example": {"example": ends} if ends else {},
        "model_names": {"enum": ["", *names]},  # an empty name is the first one
        "model_name": {"enum": names},
        "token_id": {"maximum": config.vocab_size - 1},
        "token_ids": {"maxItems": config.max_model_len},
        "text": {"minLength": 0 if says_something else 1},
        "graph_name": {"examples": graphs}
        if (graphs := [name for name, _ in serving.options.graphs])
        else {},
        "n": {"maximum": config.max_num_seqs},
        "dimensions": {"minimum": config.hidden_size, "maximum": config.hidden_size},
    }


def _fill_in(node: Any, facts: dict[str, dict[str, Any]]) -> None:
    """Put the facts in the place of their marks."""
    if isinstance(node, dict):
        if SERVED_MARK in node:
            node.update(facts[node.pop(SERVED_MARK)])
        for child in node.values():
            _fill_in(child, facts)
    elif isinstance(node, list):
        for child in node:
            _fill_in(child, facts)
