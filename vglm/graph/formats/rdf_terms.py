"""Words of RDF, and how names that are no IRIs are written as IRIs and read back."""

from __future__ import annotations

import importlib
import re
from typing import Any
from urllib.parse import quote, unquote

from vglm.errors import GraphError

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
RDFS = "http://www.w3.org/2000/01/rdf-schema#"
SKOS = "http://www.w3.org/2004/02/skos/core#"
OWL = "http://www.w3.org/2002/07/owl#"
XSD = "http://www.w3.org/2001/XMLSchema#"
_OBO = "http://www.geneontology.org/formats/oboInOwl#"
_SCHEMA = ("http://schema.org/", "https://schema.org/")

TYPE, STATEMENT, REIFIES = RDF + "type", RDF + "Statement", RDF + "reifies"
SUBJECT, PREDICATE, OBJECT = RDF + "subject", RDF + "predicate", RDF + "object"
LABEL, ALIAS, COMMENT = RDFS + "label", SKOS + "altLabel", RDFS + "comment"
# The first of these that a resource has gives its name, or its text.
NAMES = (SKOS + "prefLabel", LABEL, *(prefix + "name" for prefix in _SCHEMA))
TEXTS = (
    SKOS + "definition",
    "http://purl.obolibrary.org/obo/IAO_0000115",
    COMMENT,
    "http://purl.org/dc/terms/description",
    *(prefix + "description" for prefix in _SCHEMA),
)
ALIASES = (
    ALIAS,
    *(f"{_OBO}has{kind}Synonym" for kind in ("Exact", "Related", "Narrow", "Broad")),
    *(prefix + "alternateName" for prefix in _SCHEMA),
)
PROPERTY_CLASSES = (
    RDF + "Property",
    *(f"{OWL}{kind}Property" for kind in ("Object", "Datatype", "Annotation")),
)

STRING, LANGUAGE_STRING, BOOLEAN = XSD + "string", RDF + "langString", XSD + "boolean"
INTEGER, DOUBLE = XSD + "integer", XSD + "double"
_UNSIGNED = ("unsignedInt", "unsignedLong", "unsignedShort", "unsignedByte")
_SIGNED = ("nonNegativeInteger", "positiveInteger", "negativeInteger", "nonPositiveInteger")
INTEGERS = frozenset(XSD + name for name in ("integer", "int", "long", "short", "byte", *_UNSIGNED, *_SIGNED))
FLOATS = frozenset((DOUBLE, XSD + "float", XSD + "decimal"))
JSON = "urn:vglm:json"  # datatype of attributes that are lists, objects or null
JSON_KINDS = frozenset((JSON, RDF + "JSON"))

NODE, RELATION, NODE_TYPE, ATTRIBUTE = OWN = tuple(
    f"urn:vglm:{kind}:" for kind in ("node", "relation", "type", "attribute")
)
BASE = "http://base.invalid/"  # what relative IRIs are resolved against; taken off again
_LOCAL = re.compile(r"[#/:]([^#/:]+)[#/]?$")
_DOTS = re.compile(r"[:/]\.\.?(?:[/?#]|$)")  # parts of a path that resolving an IRI takes out


def pyoxigraph() -> Any:
    """The library that parses RDF; raises GraphError with what to install when it is missing."""
    try:
        return importlib.import_module("pyoxigraph")
    except ImportError as error:
        raise GraphError("RDF needs pyoxigraph: pip install 'vglm[rdf]'") from error


def encoded(prefix: str, name: str) -> str:
    """A name as an IRI that reads back as the name."""
    return prefix + quote(name, safe="")


def node_iri(node_id: str, named_node: Any) -> Any:
    """The term of a node: its id where that is an IRI that survives being read, else its id in a URN."""
    if not node_id.startswith(("urn:vglm:", BASE)) and _DOTS.search(node_id) is None:
        try:
            return named_node(node_id)
        except ValueError:
            pass
    return named_node(encoded(NODE, node_id))


def node_id(iri: str) -> str:
    """The id that `node_iri` or a relative IRI stands for; any other IRI is an id itself."""
    if iri.startswith(NODE):
        return unquote(iri.removeprefix(NODE))
    if iri.startswith(BASE):
        return iri.removeprefix(BASE) or "<>"
    return iri


def local_name(iri: str) -> str:
    """The readable end of an IRI: `http://example.org/ns#treats` -> `treats`."""
    for prefix in OWN:
        if iri.startswith(prefix):
            return unquote(iri.removeprefix(prefix))
    if iri.startswith(("_:", BASE)):
        return node_id(iri)
    match = _LOCAL.search(iri)
    return unquote(match[1]) if match else iri
