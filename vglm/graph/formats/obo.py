"""OBO ontologies (http://owlcollab.github.io/oboformat/doc/GO.format.obo-1_4.html) as graphs, of any kind.

Terms are nodes, their namespaces types, definitions texts, synonyms aliases; `is_a` and `relationship` are edges.
Obsolete terms, cross-references and logical definitions are left out.
"""

from __future__ import annotations

from vglm.errors import GraphError
from vglm.graph.build import GraphBuilder
from vglm.graph.formats.source import Source
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits
from vglm.graph.obo import IS_A, parse_obo


def read_obo_graph(source: Source, limits: Limits, *, node_type: str = "term") -> Graph:
    """Reads OBO 1.2 or 1.4; `node_type` is the type of terms without a namespace.

    What an edge mentions and the file does not describe becomes a node with nothing but its id. Raises GraphError
    naming the line.
    """
    ontology = parse_obo((line for _, line in source.lines()), source.name)
    builder = GraphBuilder(limits)
    for term in ontology.terms.values():
        if term.obsolete:
            continue
        where = f"{source.name}, line {term.line}"
        kind = term.namespace or node_type
        attributes = {"comment": term.comment} if term.comment else {}
        name = term.name or term.id
        builder.add_node(term.id, name, kind, term.definition, term.synonyms, attributes, where)
        for parent in term.parents:
            builder.add_edge(term.id, IS_A, parent, where=where, code=0)
        for relation, target in term.relationships:
            if not target:
                raise GraphError(f"{where}, relationship: expected a relation and a term")
            label = ontology.relations.get(relation) or relation
            builder.add_edge(term.id, label.replace("_", " "), target, where=where, code=0)
    return builder.build(bare_ends=True)
