"""`Graph.from_...`, `to_...`, `load` and `save`: where graphs come from and go to, each in a file of its own.

A format's file is imported when it is used, and a library such as networkx only when its graphs are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vglm.graph.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from vglm.graph.formats.source import Progress
    from vglm.graph.graph import Graph


class Exchange:
    """What `Graph` inherits to be read and written; docs/graphs.md says what each format keeps.

    Readers raise GraphError that names line or item, and field; they read data only and execute nothing.
    """

    @staticmethod
    def load(
        path: str | Path,
        format: str | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
        progress: Progress | None = None,
        **options: Any,
    ) -> Graph:
        """Reads a graph file, gzip-compressed or not; the extension decides unless `format` names the format.

        `options` go to the format's reader, such as `nodes="entity2text.txt"` for triples. `progress` is called
        with the number of bytes of each read.
        """
        from vglm.graph.formats.files import load

        return load(path, format, limits, progress, options)

    def save(self, path: str | Path, format: str | None = None) -> None:
        """Writes a graph file as a whole or not at all; the extension decides unless `format` does."""
        from vglm.graph.formats.files import save

        save(_graph(self), path, format)

    # ---- node-link JSON

    @staticmethod
    def from_dict(data: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS) -> Graph:
        """Reads node-link JSON: `nodes` with id, name, type, text, aliases, attributes; `edges` (or
        `links`) with source, relation, target, attributes. Unknown fields become attributes. Raises
        GraphError naming item and field.
        """
        from vglm.graph.formats.node_link import graph_from_dict

        return graph_from_dict(data, limits)

    def to_dict(self) -> dict[str, Any]:
        """Node-link JSON in canonical order; empty fields are left out. `from_dict` gives an equal
        graph back."""
        from vglm.graph.formats.node_link import graph_to_dict

        return graph_to_dict(_graph(self))

    @staticmethod
    def from_json(text: str | bytes, limits: Limits = DEFAULT_LIMITS) -> Graph:
        """Reads the text of node-link JSON."""
        from vglm.graph.formats.node_link import read_node_link
        from vglm.graph.formats.source import Source

        return read_node_link(Source.of(text, "JSON", limits.bytes), limits)

    def to_json(self) -> str:
        """The text of node-link JSON, one node or edge a line."""
        from vglm.graph.formats.node_link import write_node_link

        return write_node_link(_graph(self)).decode()

    # ---- triples

    @staticmethod
    def from_triples(triples: Iterable[Sequence[str]], limits: Limits = DEFAULT_LIMITS) -> Graph:
        """Makes a graph of (source, relation, target) triples; the ids are the names too."""
        from vglm.graph.formats.triples import graph_from_triples

        return graph_from_triples(triples, limits)

    def to_triples(self) -> list[tuple[str, str, str]]:
        """The edges as (source id, relation, target id) without attributes, sorted, none twice."""
        from vglm.graph.formats.triples import graph_to_triples

        return graph_to_triples(_graph(self))


def _graph(self: Exchange) -> Graph:
    """Only `Graph` inherits from `Exchange`."""
    return cast("Graph", self)
