"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from vglm.errors import RequestError, VGLMError
from vglm.serve.engine_thread import EngineDeadError
from vglm.serve.streams import AbortedError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    503: "service_unavailable",
    504: "timeout_error",
}


class ApiError(Exception):
    """An answer other than success."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> bytes:
    """The JSON of an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_response(error: ApiError) -> Response:
    """The HTTP answer of an error."""
    body = error_body(error.status, error.message, error.param, error.code)
    return Response(body, error.status, error.headers, "application/json")


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about an exception; of a defect no more than that there is one."""
    match error:
        case ApiError():
            return error
        case RequestError():
            return ApiError(400, str(error), param=error.param)
        case AbortedError():
            return ApiError(error.status, str(error))
        case EngineDeadError():
            return ApiError(503, str(error), code="engine_dead")
        case VGLMError():
            return ApiError(500, str(error))
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), headers=error.headers)
        case RequestValidationError():
            return _validation_error(error)
    return ApiError(500, "internal error; the server's log has the details")


def install_error_handlers(app: FastAPI) -> None:
    """Make every exception of an endpoint an answer in OpenAI's shape."""

    async def answer(_: Request, error: Exception) -> Response:
        return error_response(as_api_error(error))

    for kind in (ApiError, VGLMError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer)


def _validation_error(error: RequestValidationError) -> ApiError:
    errors: list[dict[str, Any]] = list(error.errors())
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        return ApiError(400, f"the body is not valid JSON: {reason} at character {first['loc'][-1]}")
    if first["type"] == "model_attributes_type" and not _param(first, error.body):
        return ApiError(400, "the body must be a JSON object, sent with content-type: application/json")
    by_param: dict[str, list[str]] = {}  # a value that fits no member of a union has an error for each
    for one in [one for one in errors if not _is_mismatch(one)] or errors:
        by_param.setdefault(_param(one, error.body), []).append(str(one["msg"]))
    param = max(by_param, key=lambda name: name.count("."))  # the deepest: the member that fitted best
    messages = "; or: ".join(dict.fromkeys(by_param[param]))
    return ApiError(400, f"{param or 'the body'}: {messages}", param=param or None)


def _is_mismatch(error: dict[str, Any]) -> bool:
    """Whether the value is of another kind altogether, which tells little where another member of the union fits better."""
    kind: str = error["type"]
    return kind.endswith("_type") or kind == "literal_error"


def _param(error: dict[str, Any], body: Any) -> str:
    """The path of the value at fault as in `messages.0.content`: the location without the names of union members."""
    kind, *parts = error["loc"]
    if kind != "body":
        return ".".join(map(str, parts))
    path = []
    for position, part in enumerate(parts):
        last_is_missing = error["type"] == "missing" and position == len(parts) - 1
        if (isinstance(body, dict) and part in body) or (
            isinstance(body, list) and isinstance(part, int) and part < len(body)
        ):
            body = body[part]
        elif not last_is_missing:
            continue
        path.append(str(part))
    return ".".join(path)


@contextmanager
def params_named(names: Mapping[str, str]) -> Iterator[None]:
    """Call the parameters that a RequestError names by the names that the endpoint's body has for them."""
    try:
        yield
    except RequestError as error:
        if error.param is None or error.param not in names:
            raise
        raise RequestError(str(error), names[error.param]) from error
