"""What triples of RDF say about nodes and edges.

Resources are nodes; their labels are names, `rdf:type` the type, comments and definitions the text, alternative
labels aliases, other literals attributes. Triples between resources are edges, whose relation is the predicate's
label if the file has one, else the last part of its IRI. Statements about a triple (reified, or RDF 1.2's
annotations) are attributes of its edge. Properties that the file declares are relations, not nodes.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError
from vglm.graph.build import Codes, GraphBuilder
from vglm.graph.formats import rdf_terms as terms
from vglm.graph.formats.rdf_guard import MAX_IRI, Guarded
from vglm.graph.formats.rdf_literals import Descriptions, Literals
from vglm.graph.graph import Graph, Ints
from vglm.graph.limits import Limits, shown

Edge = tuple[int, int, int]
_PARTS = (terms.SUBJECT, terms.PREDICATE, terms.OBJECT)
_MAX_RATIO = 50  # a line of three abbreviated names, written out
_FREE_SIZE = 1 << 26  # the ratio is looked at beyond this size only


class _Iris(Codes):
    """Numbers IRIs and blank nodes; raises GraphError for IRIs beyond reason."""

    __slots__ = ("source",)

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def __missing__(self, text: str) -> int:
        if len(text) > MAX_IRI:
            raise GraphError(f"{self.source}: the IRI {shown(text)} is longer than {MAX_IRI:,}")
        return super().__missing__(text)


class Triples:
    """Triples by number, a few bytes each, until all are known and can become a graph."""

    def __init__(self, source: str, limits: Limits, language: str, keep_labels: bool) -> None:
        self._source = source
        self._limits = limits
        self._language = language
        self._keep_labels = keep_labels
        self._codes = _Iris(source)  # of IRIs and of ids of blank nodes
        self._blank: dict[str, str] = {}  # a blank node's label -> its id, numbered as they come
        self._links = (array("i"), array("i"), array("i"))  # subjects, predicates, objects
        self._literals = Literals()

    def read(self, quads: Iterable[Any], ox: Any, file: Guarded) -> None:
        """Takes all triples, of whatever named graph, that are parsed from `file`; raises GraphError when they are
        more than the limits, or so much longer than the file that it must be made to be."""
        named, literal = ox.NamedNode, ox.Literal
        codes, (subjects, predicates, objects) = self._codes, self._links
        room = self._limits.edges + self._limits.nodes
        size = 0
        for quad in quads:
            subject, value = quad.subject, quad.object
            start = subject.value if type(subject) is named else self._blank_id(subject.value)
            predicate = quad.predicate.value
            kind = type(value)
            if kind is literal:
                end = value.datatype.value
                self._literals.add(codes[start], codes[predicate], value)
            elif kind is ox.Triple:
                end = ""
                self._add_reifier(start, predicate, value, ox)
            else:
                end = value.value if kind is named else self._blank_id(value.value)
                subjects.append(codes[start])
                predicates.append(codes[predicate])
                objects.append(codes[end])
            size += len(start) + len(predicate) + len(end)
            if size > _FREE_SIZE and size > file.seen * _MAX_RATIO:
                raise GraphError(
                    f"{self._source}: its IRIs are more than {_MAX_RATIO} times as long as the file"
                )
            if len(subjects) + len(self._literals) > room:
                raise self._too_many()

    def add_links(self, subjects: list[str], predicates: list[str], objects: list[str]) -> Iterator[str]:
        """Adds triples between IRIs, many at once, and returns those IRIs that are new."""
        known = len(self._codes)
        for column, iris in zip(self._links, (subjects, predicates, objects), strict=True):
            column.frombytes(self._codes.of(iris).tobytes())
        if len(self._links[0]) > self._limits.edges + self._limits.nodes:
            raise self._too_many()
        return self._since(known)

    def add_texts(
        self, subjects: list[str], predicates: list[str], texts: list[str], languages: list[str | None]
    ) -> Iterator[str]:
        """Adds triples with plain texts, many at once, and returns the IRIs that are new."""
        known = len(self._codes)
        self._literals.extend(self._codes.of(subjects), self._codes.of(predicates), texts, languages)
        if len(self._literals) > self._limits.edges + self._limits.nodes:
            raise self._too_many()
        return self._since(known)

    def _since(self, known: int) -> Iterator[str]:
        return islice(reversed(self._codes), len(self._codes) - known)

    def _too_many(self) -> GraphError:
        return GraphError(f"{self._source}: more than {self._limits.edges + self._limits.nodes:,} triples")

    def graph(self) -> Graph:
        """Everything read, as a graph."""
        iris = list(self._codes)
        links = np.stack([np.frombuffer(column, np.int32) for column in self._links])
        about = Descriptions(self._literals, iris, self._language)
        statements = self._statements(links, iris)
        is_type = links[1] == self._code(terms.TYPE)
        types = links[:, is_type]
        properties = [self._code(kind) for kind in terms.PROPERTY_CLASSES]
        hidden = np.zeros(len(iris), bool)
        hidden[types[0][np.isin(types[2], properties)]] = True
        hidden[[statement for found in statements.values() for statement in found]] = True
        edges = links[:, ~(is_type | hidden[links[0]] | hidden[links[2]])]
        is_node = about.subjects()
        is_node[links[1]] = False  # a predicate of which labels are given only
        is_node[types[0]] = is_node[edges[0]] = is_node[edges[2]] = True
        nodes = np.flatnonzero(is_node & ~hidden)
        builder = GraphBuilder(self._limits)
        ids = self._add_nodes(builder, nodes, types, about, iris)
        relations = about.names(np.unique(edges[1]).tolist())
        _add_edges(builder, edges[:, ~_among(edges, statements)], nodes, relations, len(iris))
        for (start, link, end), found in statements.items():
            if start in ids and end in ids:
                ends = ids[start], relations[link], ids[end]
                where = f"{self._source}: edge {' '.join(map(shown, ends))}"
                for statement in found:
                    builder.add_edge(*ends, about.attributes(statement), where)
        return builder.build()

    def _add_nodes(
        self,
        builder: GraphBuilder,
        nodes: npt.NDArray[np.intp],
        types: Ints,
        about: Descriptions,
        iris: Sequence[str],
    ) -> dict[int, str]:
        """Adds the nodes with these numbers and returns their ids."""
        kinds: dict[int, list[int]] = defaultdict(list)
        for subject, kind in zip(types[0].tolist(), types[2].tolist(), strict=True):
            kinds[subject].append(kind)
        kind_names = about.names(np.unique(types[2]).tolist())
        ids: dict[int, str] = {}
        for code in nodes.tolist():
            node_id = ids[code] = terms.node_id(iris[code])
            own = [kind_names[kind] for kind in _ordered_types(kinds.get(code, ()), iris)]
            builder.add_node(node_id, *about.node(code, own), f"{self._source}: {shown(node_id)}")
        return ids

    def _statements(self, links: Ints, iris: Sequence[str]) -> dict[Edge, list[int]]:
        """The blank statements about each asserted triple.

        A statement that is linked in other ways too, or whose triple is not asserted, stays what it is: a node.
        """
        kind, parts = self._code(terms.STATEMENT), [self._code(part) for part in _PARTS]
        typed = (links[1] == self._code(terms.TYPE)) & (links[2] == kind)
        found: dict[int, dict[int, int]] = {
            code: {} for code in np.unique(links[0][typed]).tolist() if iris[code].startswith("_:")
        }
        codes = np.fromiter(found, np.int32, len(found))
        near = ~typed & (np.isin(links[0], codes) | np.isin(links[2], codes))
        for start, link, end in links[:, near].T.tolist():
            found.pop(end, None)
            if start in found and (link not in parts or found[start].setdefault(link, end) != end):
                del found[start]
        abouts: dict[Edge, list[int]] = defaultdict(list)
        for code, said in found.items():
            if len(said) == 3:
                abouts[said[parts[0]], said[parts[1]], said[parts[2]]].append(code)
        asserted = set(map(tuple, links[:, _among(links, abouts)].T.tolist()))
        return {edge: abouts[edge] for edge in abouts if edge in asserted}

    def _add_reifier(self, start: str, predicate: str, triple: Any, ox: Any) -> None:
        """A triple term of RDF 1.2, as the parts of a reified statement."""
        ends = (triple.subject, triple.object)
        if predicate != terms.REIFIES or not all(
            isinstance(end, ox.NamedNode | ox.BlankNode) for end in ends
        ):
            raise GraphError(
                f"{self._source}: triple terms (RDF 1.2) are read as statements about an edge only"
            )
        subject, value = (
            end.value if isinstance(end, ox.NamedNode) else self._blank_id(end.value) for end in ends
        )
        said = zip(
            (terms.TYPE, *_PARTS), (terms.STATEMENT, subject, triple.predicate.value, value), strict=True
        )
        for part, end in said:
            for column, iri in zip(self._links, (start, part, end), strict=True):
                column.append(self._codes[iri])

    def _blank_id(self, label: str) -> str:
        if self._keep_labels:
            return f"_:{label}"
        return self._blank.setdefault(label, f"_:{len(self._blank) + 1}")

    def _code(self, iri: str) -> int:
        return self._codes.get(iri, -1)


def _add_edges(
    builder: GraphBuilder, edges: Ints, nodes: npt.NDArray[np.intp], relations: dict[int, str], count: int
) -> None:
    """Adds edges int32[3, n] of numbers below `count` between `nodes`, which were added in this order."""
    places = np.zeros((2, count), np.int32)  # among the nodes; among the relations
    places[0, nodes] = np.arange(len(nodes))
    places[1, list(relations)] = np.arange(len(relations))
    builder.add_numbered(
        places[0, edges[0]], places[1, edges[1]], places[0, edges[2]], list(relations.values())
    )


def _among(links: Ints, edges: dict[Edge, list[int]]) -> npt.NDArray[np.bool_]:
    """True where a column of `links` int32[3, n] is one of `edges`."""
    starts = np.array([edge[0] for edge in edges], np.int32)
    found = np.isin(links[0], starts)
    rows = np.flatnonzero(found)
    found[rows] = [tuple(link) in edges for link in links[:, rows].T.tolist()]
    return found


def _ordered_types(kinds: Sequence[int], iris: Sequence[str]) -> list[int]:
    """Classes by their IRIs, those of RDF, RDFS and OWL themselves last, none twice."""
    own = (terms.RDF, terms.RDFS, terms.OWL)
    return sorted(set(kinds), key=lambda kind: (iris[kind].startswith(own), iris[kind]))
