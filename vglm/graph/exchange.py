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

    @staticmethod
    def load_set(
        folder: str | Path,
        *,
        node_labels: Mapping[str, str] | None = None,
        edge_labels: Mapping[str, str] | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> tuple[list[Graph], list[str]]:
        """Reads a set of graphs in the TU format: the graphs, and the class of each.

        Node labels become types and edge labels relations, under the names that `node_labels` and `edge_labels`
        give them (`{"0": "C"}`). Edges that lead both ways are read as one.
        """
        from vglm.graph.formats.tu import read_set

        return read_set(Path(folder), limits, node_labels or {}, edge_labels or {})

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

    # ---- text formats

    @staticmethod
    def from_rdf(
        text: str | bytes, format: str = "turtle", limits: Limits = DEFAULT_LIMITS, **options: Any
    ) -> Graph:
        """Reads RDF as "turtle", "ntriples" or "jsonld" (needs pyoxigraph). `options` are `language`, in which
        names are wanted ("en"), and `base`, against which relative IRIs are resolved."""
        from vglm.graph.formats.rdf import rdf_format

        rdf_format(format)
        return _read(format, text, limits, options)

    def to_rdf(self, format: str = "turtle") -> str:
        """The text of "turtle", "ntriples" or "jsonld" (needs pyoxigraph); `from_rdf` gives an equal graph back."""
        from vglm.graph.formats.rdf_writer import write_rdf

        return write_rdf(_graph(self), format).decode()

    @staticmethod
    def from_graphml(text: str | bytes, limits: Limits = DEFAULT_LIMITS) -> Graph:
        """Reads GraphML, as networkx, igraph, Gephi, yEd and Neo4j write it."""
        return _read("graphml", text, limits, {})

    def to_graphml(self) -> str:
        """The text of GraphML; `from_graphml` gives an equal graph back. Raises GraphError for control characters
        in ids, names and texts, which XML cannot hold."""
        from vglm.graph.formats.graphml_writer import write_graphml

        return write_graphml(_graph(self)).decode()

    @staticmethod
    def from_obo(text: str | bytes, limits: Limits = DEFAULT_LIMITS, **options: Any) -> Graph:
        """Reads an OBO ontology: its current terms, `is a` and other relationships. `options` is `node_type`, the
        type of terms without a namespace."""
        return _read("obo", text, limits, options)

    @staticmethod
    def from_smiles(smiles: str, id: str = "", limits: Limits = DEFAULT_LIMITS) -> Graph:
        """A molecule: atoms are nodes ("C1", "O2"), bonds edges ("single bond"); needs rdkit.

        Every SMILES of a molecule gives the same graph. With an `id` the atoms' ids begin with it ("ethanol:C1"),
        so that several molecules fit into one graph.
        """
        from vglm.graph.formats.smiles import graph_from_smiles

        return graph_from_smiles(smiles, limits, id)

    # ---- objects of other libraries

    @staticmethod
    def from_networkx(graph: Any, relation: str = "relation", limits: Limits = DEFAULT_LIMITS) -> Graph:
        """Reads a graph of networkx, directed or not; the fields of nodes and edges as in `from_dict`.

        `relation` is the field of an edge that names its relation; without one a key that is a string does. An
        edge of an undirected graph leads from the lesser id to the greater.
        """
        from vglm.graph.formats.networkx_graph import graph_from_networkx

        return graph_from_networkx(graph, limits, relation)

    def to_networkx(self) -> Any:
        """A `networkx.MultiDiGraph` (needs networkx), of which `from_networkx` gives an equal graph back."""
        from vglm.graph.formats.networkx_graph import graph_to_networkx

        return graph_to_networkx(_graph(self))

    @staticmethod
    def from_pyg(
        data: Any,
        *,
        ids: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        types: Sequence[str] | None = None,
        relations: Sequence[str] | None = None,
        attributes: Iterable[str] = (),
        limits: Limits = DEFAULT_LIMITS,
    ) -> Graph:
        """Reads `Data` or `HeteroData` of PyTorch Geometric, with tensors or numpy arrays; imports neither.

        `ids` and `names` are those of the nodes (for HeteroData by node type); ids default to "0", "1", ... or
        "author:0", ... `types` and `relations` name the codes in `node_type` and `edge_type`. `attributes` are
        the tensors to keep, with a row per node or, if called edge_..., per edge: `("y", "edge_attr")`.
        """
        from vglm.graph.formats.pyg import graph_from_pyg

        return graph_from_pyg(data, limits, ids, names, types, relations, attributes)

    @staticmethod
    def from_neo4j(
        result: Any,
        *,
        id_property: str | None = None,
        names: Iterable[str] = ("name", "title", "label"),
        limits: Limits = DEFAULT_LIMITS,
    ) -> Graph:
        """Reads what Neo4j's driver returns: a result, records, or a `neo4j.graph.Graph`.

        Nodes, relationships and paths are taken wherever they stand in a record, each once. Ids are element ids,
        or the values of `id_property`; a name is the first of the properties `names` that a node has; the type is
        the first label.
        """
        from vglm.graph.formats.neo4j_records import graph_from_neo4j

        return graph_from_neo4j(result, limits, id_property, names)


def _read(format: str, text: str | bytes, limits: Limits, options: Mapping[str, Any]) -> Graph:
    from vglm.graph.formats.files import read
    from vglm.graph.formats.source import Source

    return read(Source.of(text, format, limits.bytes), format, limits, options)


def _graph(self: Exchange) -> Graph:
    """Only `Graph` inherits from `Exchange`."""
    return cast("Graph", self)
