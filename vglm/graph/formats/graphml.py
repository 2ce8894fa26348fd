"""Reads GraphML (http://graphml.graphdrawing.org/specification.html) as networkx, igraph, Gephi, yEd and Neo4j write it.

The file is streamed through expat. What XML could be made to do harm with is refused: entities, document types with
declarations of their own, deep nesting, markup of many megabytes; nothing is ever fetched.
"""

from __future__ import annotations

from typing import Any
from xml.parsers import expat

from vglm.errors import GraphError
from vglm.graph.build import GraphBuilder
from vglm.graph.formats.graphml_data import VGLM, GraphData, Item, Key
from vglm.graph.formats.source import Source
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits, shown

_MAX_DEPTH = 64
_MAX_MARKUP = (
    1 << 22
)  # bytes of one tag or comment, which expat reads again with each chunk until it is whole
_DOMAINS = ("node", "edge", "all", "graph", "port", "endpoint", "hyperedge", "graphml")
_DRAWN = ("NodeLabel", "EdgeLabel")  # elements of yEd, inside of data


def read_graphml(source: Source, limits: Limits) -> Graph:
    """Reads GraphML. Nested graphs are read as one; hyperedges are refused. Raises GraphError naming the line."""
    builder = GraphBuilder(limits)
    data = GraphData(builder)
    _Reader(source, data, max(limits.text, limits.attributes)).read()
    data.check_ends()
    return builder.build()


class _Reader:
    """Collects keys, nodes and edges from expat's events."""

    def __init__(self, source: Source, data: GraphData, longest: int) -> None:
        self._source = source
        self._data = data
        self._longest = longest
        self._open: list[str] = []  # local names of the elements that are open
        self._items: list[Item] = []  # nodes and edges that are open, the innermost last
        self._key_id, self._key = "", Key("", "", "", "")  # the key that is open
        self._data_depth = 0  # of the data element that is open, or 0
        self._is_drawing = False  # it has elements inside
        self._text: list[str] | None = None  # what is collected
        self._length = 0
        self._parser = self._new_parser()

    def read(self) -> None:
        """Parses everything; raises GraphError."""
        seen = 0
        try:
            for chunk in self._source.chunks():
                self._parser.Parse(chunk)
                seen += len(chunk)
                if seen - self._parser.CurrentByteIndex > _MAX_MARKUP:
                    raise self._error(f"markup of more than {_MAX_MARKUP:,} bytes")
            self._parser.Parse(b"", True)
        except expat.ExpatError as error:
            where = f"{self._source.name}, line {error.lineno}, column {error.offset + 1}"
            raise GraphError(f"{where}: is not XML: {expat.ErrorString(error.code)}") from error
        except (LookupError, ValueError) as error:
            if isinstance(error, GraphError):
                raise
            raise self._error(f"its encoding is not read ({str(error)[:100]}); save it as UTF-8") from error

    def _new_parser(self) -> Any:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = self._doctype
        parser.EntityDeclHandler = self._entity
        parser.SkippedEntityHandler = self._entity
        return parser

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition(" ")[2]
        if len(self._open) >= _MAX_DEPTH:
            raise self._error(f"elements nested more than {_MAX_DEPTH} deep")
        if not self._open and name != "graphml":
            raise self._error(f"expected <graphml>, found {shown(name)}")
        parent = self._open[-1] if self._open else ""
        self._open.append(name)
        if self._data_depth:
            if not self._is_drawing or name in _DRAWN:
                self._text, self._length = [] if name in _DRAWN else None, 0
            self._is_drawing = True
        elif name in ("node", "edge"):
            self._items.append(Item(attributes, self._where(), name == "node"))
        elif name == "data" and parent in ("node", "edge"):
            self._key_id = self._known_key(attributes)
            self._data_depth, self._is_drawing = len(self._open), False
            self._collect()
        elif name == "key":
            self._key_id, self._key = self._new_key(attributes)
        elif name == "default" and parent == "key":
            self._collect()
        elif name == "hyperedge":
            raise self._error("a hyperedge, which joins any number of nodes, is not read")

    def _end(self, tag: str) -> None:
        name = self._open.pop()
        if self._data_depth:
            if len(self._open) < self._data_depth:
                self._data_depth = 0
                if not self._is_drawing:
                    self._items[-1].data[self._key_id] = self._taken()
            elif name in _DRAWN and (label := self._taken().strip()):
                self._items[-1].labels.append(label)
        elif name in ("node", "edge"):
            self._data.add(self._items.pop())
        elif name == "default" and self._open[-1] == "key":
            self._key.default = self._taken()
        elif name == "key":
            self._data.add_key(self._key_id, self._key, self._where())

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._length += len(text)
            if self._length > self._longest:
                raise self._error(f"more than {self._longest:,} characters of text")
            self._text.append(text)

    def _doctype(self, name: str, system: str | None, public: str | None, declares: bool) -> None:
        if declares:
            raise self._error("a document type with declarations of its own (such as entities) is not read")

    def _entity(self, name: str, *_: Any) -> None:
        raise self._error(f"the entity {shown(name)} is not read")

    def _known_key(self, attributes: dict[str, str]) -> str:
        key_id = attributes.get("key", "")
        if key_id not in self._data.keys:
            raise self._error(f"data: no key has the id {shown(key_id)}")
        if key_id in self._items[-1].data:
            raise self._error(f"data: {shown(self._data.keys[key_id].name)} is given twice")
        return key_id

    def _new_key(self, attributes: dict[str, str]) -> tuple[str, Key]:
        if "id" not in attributes:
            raise self._error("key.id: is missing")
        domain = attributes.get("for", "all")
        if domain not in _DOMAINS:
            raise self._error(f"key.for: expected one of {', '.join(_DOMAINS)}, found {shown(domain)}")
        name = attributes.get("attr.name", attributes["id"])
        kind = attributes.get(f"{VGLM} kind", "")
        return attributes["id"], Key(name, attributes.get("attr.type", "string"), kind, domain)

    def _collect(self) -> None:
        self._text, self._length = [], 0

    def _taken(self) -> str:
        text, self._text = "".join(self._text or ()), None
        return text

    def _where(self) -> str:
        return f"{self._source.name}, line {self._parser.CurrentLineNumber}"

    def _error(self, message: str) -> GraphError:
        return GraphError(f"{self._where()}: {message}")
