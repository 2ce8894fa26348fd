"""What an answer must look like, from the fields of a body to the grammar that the engine decodes under."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vglm.decode.structured import StructuredOutputs
from vglm.errors import RequestError
from vglm.serve.errors import params_named
from vglm.serve.schemas.responses import FlatSchemaFormat, TextConfig
from vglm.serve.schemas.structured import JSONObjectFormat, JSONSchemaFormat, StructuredOutputsFields
from vglm.serve.tool_calls import CLOSE, OPEN
from vglm.serve.tools import ToolUse, closed

Wanted = tuple[
    str, dict[str, Any]
]  # the parameter that asks, and what it asks for as fields of StructuredOutputs


def structured_outputs(body: object, tools: ToolUse | None) -> tuple[str, StructuredOutputs] | None:
    """(parameter, what it asks for); None when any text will do.

    Raises RequestError when a body asks for two things at once, or for one that cannot be had.
    """
    wanted = list(_wanted(body))
    if tools is not None and (tools.required or not wanted):
        wanted.append(("tools", {"structural_tag": _calls(tools)}))
    if not wanted:
        return None
    if len(wanted) > 1 or (tools is not None and wanted[0][0] != "tools"):
        names = [name for name, _ in wanted] + (["tools"] if tools is not None else [])
        both = " and ".join(dict.fromkeys(names))
        raise RequestError(f"{both} each say what the answer must look like; give one of them", wanted[0][0])
    param, fields = wanted[0]
    with params_named({"structured_outputs": param}):
        return param, StructuredOutputs(**fields)


def _wanted(body: object) -> Iterator[Wanted]:
    match getattr(body, "response_format", None):
        case JSONObjectFormat():
            yield "response_format", {"json_object": True}
        case JSONSchemaFormat(json_schema=named):
            yield "response_format", _schema(named.schema_)
    text = getattr(body, "text", None)
    match text.format if isinstance(text, TextConfig) else None:
        case JSONObjectFormat():
            yield "text.format", {"json_object": True}
        case FlatSchemaFormat(schema_=schema):
            yield "text.format", _schema(schema)
    given = getattr(body, "structured_outputs", None)
    if isinstance(given, StructuredOutputsFields):
        yield "structured_outputs", given.model_dump(by_alias=True, include=_FIELDS, exclude_none=True)
    for kind in ("json", "regex", "choice", "grammar"):
        value = getattr(body, f"guided_{kind}", None)
        if value is not None:
            yield f"guided_{kind}", {kind: value}


_FIELDS = {"json_", "json_object", "regex", "choice", "grammar"}


def _schema(schema: dict[str, Any] | None) -> dict[str, Any]:
    return {"json_object": True} if schema is None else {"json": schema}


def _calls(tools: ToolUse) -> dict[str, Any]:
    """Free text until a call begins, or none at all when one is required; a call is one of the tools' and fits it."""
    structures = [
        {
            "begin": f'{OPEN}\n{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": ',
            "schema": closed(tool.parameters),
            "end": f"}}\n{CLOSE}",
        }
        for tool in tools.callable_tools
    ]
    return {
        "structures": structures,
        "triggers": [OPEN],
        "at_least_one": tools.required,
        "stop_after_first": not tools.parallel,
    }
