"""Numbers of a whole graph: size, degrees, relations, distances, spectrum, numeric node attributes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from vglm.encoder.graph_structure import Structure

_DEGREES = 8
_SPECTRUM_BINS = 16
_HEAT = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # times of the heat trace


def whole(structure: Structure, ring_systems: Iterable[str]) -> dict[str, float]:
    """Numbers of the whole graph, by name; `ring_systems` are the names of its fused rings, as in "3 fused rings"."""
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
        "most rings in a system": max((float(name.split()[0]) for name in ring_systems), default=0),
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
