"""Reads RDF: Turtle, N-Triples and JSON-LD become nodes, relations and attributes.

The parser is pyoxigraph's, which streams and never fetches anything; what its triples mean for a graph is in
`rdf_triples`. Formats: https://www.w3.org/TR/turtle/, https://www.w3.org/TR/n-triples/, https://www.w3.org/TR/json-ld11/.
"""

from __future__ import annotations

import re
from typing import Any

from vglm.errors import GraphError
from vglm.graph.formats import rdf_terms as terms
from vglm.graph.formats.rdf_guard import Guarded, GuardedJsonLd, GuardedTurtle
from vglm.graph.formats.rdf_lines import NTriplesFile
from vglm.graph.formats.rdf_triples import Triples
from vglm.graph.formats.source import Source
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits, shown

_FORMATS = {"turtle": "TURTLE", "ntriples": "N_TRIPLES", "jsonld": "JSON_LD"}


def read_rdf(
    source: Source,
    limits: Limits,
    format: str = "turtle",
    *,
    language: str = "en",
    base: str | None = None,
) -> Graph:
    """Reads "turtle", "ntriples" or "jsonld".

    Of labels in several languages the one in `language` becomes the name and the others aliases. Relative IRIs
    are resolved against `base`; without one they become ids as they are. Raises GraphError naming the line.
    """
    ox = terms.pyoxigraph()
    chosen = rdf_format(format)
    # Labels of blank nodes are the file's own in N-Triples; elsewhere the parser makes some of them up.
    triples = Triples(source.name, limits, language, keep_labels=format == "ntriples")
    data: Guarded
    if format == "ntriples":
        data = NTriplesFile(source, triples)
    else:
        data = GuardedTurtle(source) if format == "turtle" else GuardedJsonLd(source)
    try:
        quads = ox.parse(data, format=chosen, base_iri=terms.BASE if base is None else base)
        triples.read(quads, ox, data)
    except (SyntaxError, ValueError, OSError) as error:
        if isinstance(error, GraphError):
            raise
        if isinstance(data.error, GraphError):
            raise data.error from error
        raise GraphError(f"{source.name}: {_explained(error)}") from error
    return triples.graph()


def rdf_format(format: str) -> Any:
    """pyoxigraph's constant for a format; raises GraphError for another."""
    if format not in _FORMATS:
        raise GraphError(f"format: {shown(format)} is not one of {', '.join(_FORMATS)}")
    return getattr(terms.pyoxigraph().RdfFormat, _FORMATS[format])


def _explained(error: Exception) -> str:
    message = str(error)
    if "LoadDocumentCallback" in message or "remote context" in message:
        return "its @context is at another address, and nothing is fetched: write the context into the file"
    return re.sub(r" \(line \d+\)$", "", message.removeprefix("Parser error at "))[:300]
