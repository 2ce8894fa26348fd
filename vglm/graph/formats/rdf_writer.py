"""Writes a graph as RDF, so that reading it gives an equal graph.

An edge with attributes is a triple and an `rdf:Statement` about it, which carries them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import chain, groupby
from typing import Any

from vglm.graph.formats import rdf_terms as terms
from vglm.graph.formats.rdf import rdf_format
from vglm.graph.graph import Graph

_PREFIXES = {
    "rdf": terms.RDF,
    "rdfs": terms.RDFS,
    "skos": terms.SKOS,
    "xsd": terms.XSD,
    "relation": terms.RELATION,
    "type": terms.NODE_TYPE,
    "attribute": terms.ATTRIBUTE,
    "node": terms.NODE,
}


def write_rdf(graph: Graph, format: str = "turtle") -> bytes:
    """The graph as "turtle", "ntriples" or "jsonld", the same bytes for equal graphs; raises GraphError for
    another format, or without pyoxigraph."""
    ox = terms.pyoxigraph()
    chosen = rdf_format(format)
    writer = _Writer(graph, ox)
    triples: Iterator[Any] = chain(writer.nodes(), writer.edges())
    options = {"prefixes": _PREFIXES} if format == "turtle" else {}
    if format == "jsonld":
        triples = (ox.Quad(*triple) for triple in triples)
    data: bytes = ox.serialize(triples, format=chosen, **options)
    return data


class _Writer:
    """Makes the triples of a graph; terms that occur often are made once."""

    def __init__(self, graph: Graph, ox: Any) -> None:
        self._graph = graph
        self._ox = ox
        self._subjects = [terms.node_iri(node_id, ox.NamedNode) for node_id in graph.columns.ids]
        self._iri = cache(ox.NamedNode)

    def nodes(self) -> Iterator[Any]:
        """What is said of each node."""
        triple, literal, iri = self._ox.Triple, self._ox.Literal, self._iri
        for subject, node in zip(self._subjects, self._graph.nodes(), strict=True):
            yield triple(subject, iri(terms.LABEL), literal(node.name))
            if node.type:
                yield triple(subject, iri(terms.TYPE), iri(terms.encoded(terms.NODE_TYPE, node.type)))
            if node.text:
                yield triple(subject, iri(terms.COMMENT), literal(node.text))
            for alias in node.aliases:
                yield triple(subject, iri(terms.ALIAS), literal(alias))
            yield from self._attributes(subject, node.attributes)

    def edges(self) -> Iterator[Any]:
        """The triple of each edge, and a statement for each that has attributes or runs beside another."""
        triple = self._ox.Triple
        columns = self._graph.columns
        relations = [
            self._iri(terms.encoded(terms.RELATION, relation)) for relation in columns.relation_names
        ]
        rows = zip(
            columns.sources.tolist(),
            columns.relations.tolist(),
            columns.targets.tolist(),
            columns.edge_attributes.tolist(),
            strict=True,
        )
        for (start, relation, end), parallel in groupby(rows, lambda row: row[:3]):
            edge = triple(self._subjects[start], relations[relation], self._subjects[end])
            yield edge
            texts = [columns.edge_attribute_texts[row[3]] for row in parallel]
            if texts != [""]:
                for number, text in enumerate(texts):
                    statement = self._ox.BlankNode(f"e{start}-{relation}-{end}-{number}")
                    yield from self._statement(statement, edge, text)

    def _statement(self, statement: Any, edge: Any, attributes: str) -> Iterator[Any]:
        triple, iri = self._ox.Triple, self._iri
        yield triple(statement, iri(terms.TYPE), iri(terms.STATEMENT))
        yield triple(statement, iri(terms.SUBJECT), edge.subject)
        yield triple(statement, iri(terms.PREDICATE), edge.predicate)
        yield triple(statement, iri(terms.OBJECT), edge.object)
        if attributes:
            yield from self._attributes(statement, json.loads(attributes))

    def _attributes(self, subject: Any, attributes: Any) -> Iterator[Any]:
        for name, value in attributes.items():
            predicate = self._iri(terms.encoded(terms.ATTRIBUTE, name))
            yield self._ox.Triple(subject, predicate, self._literal(value))

    def _literal(self, value: Any) -> Any:
        literal = self._ox.Literal
        if isinstance(value, str):
            return literal(value)
        if isinstance(value, bool):
            return literal(json.dumps(value), datatype=self._iri(terms.BOOLEAN))
        if isinstance(value, int):
            return literal(str(value), datatype=self._iri(terms.INTEGER))
        if isinstance(value, float):
            return literal(repr(value), datatype=self._iri(terms.DOUBLE))
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
        return literal(text, datatype=self._iri(terms.JSON))
