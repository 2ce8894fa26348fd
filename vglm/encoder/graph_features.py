"""What a graph is made of, counted: the features of graph classification.

Families of substructures, each a count by name, names that people can read where they are short:

- `types`, `around`, `far`: Weisfeiler-Leman colours after 0, 1 and 2 rounds: a node's type, its type with those of its
  neighbours and the relations to them, and so on (Shervashidze et al., JMLR 2011)
- `ring types`, `ring around`: the same, where a node's first colour also says which rings it is in, which
  Weisfeiler-Leman cannot see
- `walks`: chains of three nodes with their types and relations
- `distances`: pairs of types with the length of the shortest path between them (Borgwardt and Kriegel, ICDM 2005)
- `rings`, `ring systems`: rings by their types, and how they are fused
- `whole`: numbers of the whole graph: size, degrees, relations, distances, spectrum, numeric node attributes
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xxhash

from vglm.encoder.graph_rings import fused_systems, rings
from vglm.errors import GraphError
from vglm.graph.graph import Graph

FAMILIES = (
    "types",
    "around",
    "far",
    "ring types",
    "ring around",
    "walks",
    "distances",
    "rings",
    "ring systems",
    "whole",
)
MAX_NODES = 2_000  # distances and the spectrum cost the square and the cube of it
MAX_EDGES = 20_000  # chains at a node cost the square of its edges
_FAR = 12  # longer distances count as this one
_LONG = 80  # characters: longer names are cut and end in a hash
_DEGREES = 8
_SPECTRUM_BINS = 16
_HEAT = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # times of the heat trace
Counts = dict[str, dict[str, float]]
Item = tuple[str, str, tuple[int, ...]]  # family, name, nodes


@dataclass(frozen=True)
class Structure:
    """A graph as features see it: node types, and who is next to whom by which relation.

    Relations count in both directions alike unless `directed`, when ">" or "<" is a part of their name.
    """

    types: list[str]
    links: list[list[tuple[int, str]]]  # per node: (neighbour, relation), a self-loop once
    relations: list[str]  # of the edges
    attributes: dict[str, npt.NDArray[np.float64]]  # numeric node attributes, NaN where a node has none

    @classmethod
    def of(cls, graph: Graph, *, directed: bool = False) -> Structure:
        """Edges that differ in nothing but attributes are one link; `relations` has all of them.

        Raises GraphError for an empty graph and for one of more than `MAX_NODES` nodes or `MAX_EDGES` edges.
        """
        if not 0 < graph.num_nodes <= MAX_NODES:
            raise GraphError(
                f"a graph to classify has 1 to {MAX_NODES:,} nodes, this one has {graph.num_nodes:,}: "
                "take a part of it (Graph.subgraph)"
            )
        if graph.num_edges > MAX_EDGES:
            raise GraphError(
                f"a graph to classify has at most {MAX_EDGES:,} edges, this one has {graph.num_edges:,}: "
                "take a part of it (Graph.subgraph)"
            )
        columns = graph.columns
        types = [columns.type_names[code] for code in columns.node_types.tolist()]
        relations = [columns.relation_names[code] for code in columns.relations.tolist()]
        links: list[list[tuple[int, str]]] = [[] for _ in types]
        out, back = (">", "<") if directed else ("", "")
        edges = zip(columns.sources.tolist(), relations, columns.targets.tolist(), strict=True)
        for source, relation, target in dict.fromkeys(edges):
            links[source].append((target, relation + out))
            if source != target:
                links[target].append((source, relation + back))
        return cls(types, links, relations, _numeric_attributes(graph))

    @cached_property
    def neighbours(self) -> list[set[int]]:
        """Per node the other nodes next to it."""
        return [{other for other, _ in links if other != node} for node, links in enumerate(self.links)]

    @cached_property
    def rings(self) -> list[list[int]]:
        return rings(self.neighbours)

    @cached_property
    def distances(self) -> npt.NDArray[np.int16]:
        """Edges of the shortest path between any two nodes, int16[N, N]; -1 where there is none."""
        count = len(self.types)
        found = np.full((count, count), -1, np.int16)
        for start in range(count):
            row = found[start]
            row[start], wave, steps = 0, [start], 0
            while wave:
                steps += 1
                wave = list({other for node in wave for other in self.neighbours[node] if row[other] < 0})
                row[wave] = steps
        return found


def count(graph: Graph, *, directed: bool = False) -> Counts:
    """Every feature of a graph: family -> name -> value (float, at least 0 but for `whole`). Raises GraphError."""
    structure = Structure.of(graph, directed=directed)
    found: dict[str, Counter[str]] = {family: Counter() for family in FAMILIES}
    for family, name, _ in substructures(structure):
        found[family][name] += 1
    counts: Counts = {family: dict(names) for family, names in found.items()}
    counts["whole"] = whole(structure, counts)
    return counts


def substructures(structure: Structure) -> Iterator[Item]:
    """Every occurrence of a substructure: family, name, and the nodes (indices) that it consists of."""
    yield from _colours(structure, structure.types, ("types", "around", "far"))
    yield from _colours(structure, _ring_colours(structure), ("ring types", "ring around"))
    yield from _walks(structure)
    yield from _distances(structure)
    yield from _rings(structure)


def _ring_colours(structure: Structure) -> list[str]:
    """Each node's type and the sizes of its rings, the same size at most three times: more happens in dense graphs only."""
    sizes: list[Counter[int]] = [Counter() for _ in structure.types]
    for ring in structure.rings:
        for node in ring:
            sizes[node][len(ring)] += 1
    return [
        f"{kind} in rings of {','.join(str(size) for size in sorted(own) for _ in range(min(own[size], 3)))}"
        if own
        else kind
        for kind, own in zip(structure.types, sizes, strict=True)
    ]


def _colours(structure: Structure, colours: list[str], families: tuple[str, ...]) -> Iterator[Item]:
    """Weisfeiler-Leman refinement; the nodes of a colour of round r are those at most r edges away."""
    reach = [{node} for node in range(len(colours))]
    for depth, family in enumerate(families):
        if depth:
            colours = [
                _short(f"{own} with {', '.join(sorted(f'{how} {colours[other]}' for other, how in links))}")
                if links
                else own
                for own, links in zip(colours, structure.links, strict=True)
            ]
            reach = [
                near.union(*(reach[other] for other in structure.neighbours[node]))
                for node, near in enumerate(reach)
            ]
        for node, colour in enumerate(colours):
            yield family, colour, tuple(sorted(reach[node]))


def _walks(structure: Structure) -> Iterator[Item]:
    """Chains a - b - c of three nodes, a < c, with types and relations, read in the direction that sorts first."""
    types = structure.types
    for middle, links in enumerate(structure.links):
        for a, first in links:
            for c, second in links:
                if a < c and middle not in (a, c):
                    there = (types[a], first, types[middle], second, types[c])
                    yield "walks", _short(" ".join(min(there, there[::-1]))), (a, middle, c)


def _distances(structure: Structure) -> Iterator[Item]:
    types, distances = structure.types, structure.distances
    for a, b in np.argwhere(np.triu(distances > 0, 1)).tolist():
        one, other = sorted((types[a], types[b]))
        yield "distances", _short(f"{one} and {other} {min(int(distances[a, b]), _FAR)} apart"), (a, b)


def _rings(structure: Structure) -> Iterator[Item]:
    types, found = structure.types, structure.rings
    for ring in found:
        around = [types[node] for node in ring]
        turns = [(around[i:] + around[:i])[::step] for i in range(len(around)) for step in (1, -1)]
        yield "rings", _short(f"ring {' '.join(min(turns))}"), tuple(ring)
    for system in fused_systems(found):
        nodes = tuple(sorted({node for ring in system for node in found[ring]}))
        yield "ring systems", f"{min(len(system), 5)} fused rings", nodes


def whole(structure: Structure, counts: Counts) -> dict[str, float]:
    """Numbers of the whole graph, by name."""
    nodes = len(structure.types)
    degrees = np.array([len(near) for near in structure.neighbours])
    links = float(degrees.sum()) / 2
    values: dict[str, float] = {
        "nodes": nodes,
        "links": links,
        "independent rings": links - nodes,
        "mean degree": 2 * links / nodes,
        "density": 2 * links / max(1, nodes * (nodes - 1)),
        "greatest degree": float(degrees.max()),
        "spread of degrees": float(degrees.std()),
        "most rings in a system": max((float(name.split()[0]) for name in counts["ring systems"]), default=0),
    }
    for degree, number in enumerate(np.bincount(np.minimum(degrees, _DEGREES), minlength=_DEGREES + 1)):
        values[f"nodes of degree {degree}"] = float(number)
        values[f"share of degree {degree}"] = float(number) / nodes
    for kind, number in Counter(structure.types).items():
        values[f"number of {kind}"] = number
        values[f"share of {kind}"] = number / nodes
    for relation, number in Counter(structure.relations).items():
        values[f"relation {relation}"] = number
    for size, number in Counter(len(ring) for ring in structure.rings).items():
        values[f"rings of {size}"] = number
    values.update(_pairs(structure, links))
    values.update(_reach(structure))
    values.update(_spectrum(structure, degrees))
    values.update(_attribute_values(structure))
    return values


def _pairs(structure: Structure, links: float) -> dict[str, float]:
    """Links by the types of their ends, and their shares."""
    pairs: Counter[tuple[str, str]] = Counter()
    for node, near in enumerate(structure.neighbours):
        for other in near:
            if node < other:
                one, two = sorted((structure.types[node], structure.types[other]))
                pairs[one, two] += 1
    values = {f"links {one} to {two}": float(number) for (one, two), number in pairs.items()}
    return values | {f"share of {name}": number / links for name, number in values.items()}


def _reach(structure: Structure) -> dict[str, float]:
    distances = structure.distances
    nodes, found = len(distances), distances[distances > 0]
    values = {
        "mean distance": float(found.mean()) if len(found) else 0.0,
        "greatest distance": float(found.max(initial=0)),
        "connected": float((distances >= 0).all()),
    }
    for length in range(1, 11):
        values[f"nodes at distance {length}"] = float((found == length).sum()) / nodes
    return values


def _spectrum(structure: Structure, degrees: npt.NDArray[np.int64]) -> dict[str, float]:
    """Eigenvalues of the normalised Laplacian (a histogram), its heat trace, and triangles."""
    nodes = len(degrees)
    adjacency = np.zeros((nodes, nodes))
    for node, near in enumerate(structure.neighbours):
        adjacency[node, list(near)] = 1
    scale = 1 / np.sqrt(np.maximum(degrees, 1))
    eigenvalues = np.linalg.eigvalsh(np.eye(nodes) - scale[:, None] * adjacency * scale)
    closed = ((adjacency @ adjacency) * adjacency).sum(1)  # twice the triangles at each node
    bins = np.linspace(0, 2, _SPECTRUM_BINS + 1)
    rounded = np.clip(np.round(eigenvalues, 9), 0, 2)  # an eigenvalue at an edge of a bin stays on one side
    shares = np.histogram(rounded, bins)[0] / nodes
    values = {f"spectrum {place}": share for place, share in enumerate(shares.tolist())}
    for time in _HEAT:
        values[f"heat {time:g}"] = float(np.exp(-time * eigenvalues).mean())
    values["triangles"] = float(closed.sum()) / 6
    values["triangles per node"] = values["triangles"] / nodes
    values["clustering"] = float((closed / np.maximum(degrees * (degrees - 1), 1)).mean())
    return values


def _attribute_values(structure: Structure) -> dict[str, float]:
    """Sum, mean, greatest and spread of each numeric attribute, of all nodes and of each type's."""
    values: dict[str, float] = {}
    kinds = np.array(structure.types)
    for name, column in structure.attributes.items():
        groups = [("", column)] + [
            (f" of {kind}", column[kinds == kind]) for kind in sorted(set(structure.types))
        ]
        for suffix, group in groups:
            known = group[~np.isnan(group)]
            if len(known):
                values[f"sum of {name}{suffix}"] = float(known.sum())
                values[f"mean of {name}{suffix}"] = float(known.mean())
                values[f"greatest {name}{suffix}"] = float(known.max())
                values[f"spread of {name}{suffix}"] = float(known.std())
    return values


def _numeric_attributes(graph: Graph) -> dict[str, npt.NDArray[np.float64]]:
    if not graph.columns.attributes.nbytes:
        return {}
    found: dict[str, npt.NDArray[np.float64]] = {}
    for index, node in enumerate(graph.nodes()):
        for name, value in node.attributes.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                column = found.setdefault(name, np.full(graph.num_nodes, np.nan))
                column[index] = value
    return found


def _short(name: str) -> str:
    """The name itself, or its beginning and a hash of it: refinement would double its length in every round."""
    return name if len(name) <= _LONG else f"{name[: _LONG - 21]}... #{xxhash.xxh64_hexdigest(name.encode())}"
