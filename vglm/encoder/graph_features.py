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

from collections import Counter
from collections.abc import Iterator

import numpy as np
import xxhash

from vglm.encoder.graph_numbers import whole
from vglm.encoder.graph_rings import fused_systems
from vglm.encoder.graph_structure import Structure
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
_FAR = 12  # longer distances count as this one
_LONG = 80  # characters: longer names are cut and end in a hash
Counts = dict[str, dict[str, float]]
Item = tuple[str, str, tuple[int, ...]]  # family, name, nodes


def count(graph: Graph, *, directed: bool = False) -> Counts:
    """Every feature of a graph: family -> name -> value (float, at least 0 but for `whole`). Raises GraphError."""
    structure = Structure.of(graph, directed=directed)
    found: dict[str, Counter[str]] = {family: Counter() for family in FAMILIES}
    for family, name, _ in substructures(structure):
        found[family][name] += 1
    counts: Counts = {family: dict(names) for family, names in found.items()}
    counts["whole"] = whole(structure, counts["ring systems"])
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


def _short(name: str) -> str:
    """The name itself, or its beginning and a hash of it: refinement would double its length in every round."""
    return name if len(name) <= _LONG else f"{name[: _LONG - 21]}... #{xxhash.xxh64_hexdigest(name.encode())}"
