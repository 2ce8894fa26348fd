"""What a client is told of a graph that cannot be used: the field at fault as `param`, in the server's way to write it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from vglm.errors import ConflictError, GraphError, StoreError, UnknownGraphError
from vglm.serve.errors import ApiError

# "nodes[3].aliases[0]: ..." as the graph's readers begin their messages, but not "line 3: ..." of a file
_PLACE = re.compile(r"((?:[a-z_]+)(?:\[\d+\])?(?:\.[a-z_]+(?:\[\d+\])?)*): ")
_NOT_FIELDS = frozenset({"graph", "node", "edge", "patch", "format", "options", "version", "name"})


@contextmanager
def graph_errors(param: str, within: str | None = None) -> Iterator[None]:
    """Answers in place of errors of graphs and of the store: 404, 409, 503, and 400 for what is malformed.

    `param` is at fault where the message begins with no field; `within` is put before the field (by default `param`).
    """
    try:
        yield
    except UnknownGraphError as error:
        raise ApiError(404, str(error), param=param, code="graph_not_found") from error
    except ConflictError as error:
        raise ApiError(409, str(error), param=param, code="conflict") from error
    except GraphError as error:
        raise ApiError(400, str(error), param=param_of(str(error), param, within)) from error
    except StoreError as error:
        raise ApiError(503, str(error), code="graph_store") from error


def param_of(message: str, param: str, within: str | None = None) -> str:
    """The path of the field that a message of a GraphError begins with: "nodes[3].name: ..." is graph.nodes.3.name."""
    found = _PLACE.match(message)
    if found is None or found[1] in _NOT_FIELDS:
        return param
    place = re.sub(r"\[(\d+)\]", r".\1", found[1])
    prefix = param if within is None else within
    return f"{prefix}.{place}" if prefix else place
