"""The index of a graph's diseases, computed once per graph and kept in memory and on disk."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np

from vglm.encoder.disease_candidates import DiseaseIndex, no_twins
from vglm.encoder.disease_properties import Properties
from vglm.encoder.disease_vectors import DiseaseVectors
from vglm.graph import cache
from vglm.graph.derived import once_per_graph
from vglm.graph.graph import Graph
from vglm.graph.ranking_index import RankingIndex

_log = logging.getLogger(__name__)
VERSION = 2  # raise it when the index is computed in another way
KEPT_FILES = 4  # every edit of a graph is another graph; an index of the ontology takes 25 MB


class _Kept:
    """The index of one graph, once it is there."""

    def __init__(self, graph: Graph) -> None:
        self.index: DiseaseIndex | None = None
        self.lock = threading.Lock()


_kept = once_per_graph(_Kept)


def disease_index(graph: Graph, cache_dir: Path | None = None) -> DiseaseIndex:
    """The index of a graph: from memory, else from a file in `cache_dir` (named by the graph's content), else built.
    The newest `KEPT_FILES` files are kept.

    Raises GraphError for a graph without `has phenotype` edges. Threads that ask at once wait for the first of them.
    """
    kept = _kept(graph)
    with kept.lock:
        if kept.index is None:
            kept.index = _load(graph, cache_dir)
        return kept.index


def _load(graph: Graph, cache_dir: Path | None) -> DiseaseIndex:
    if cache_dir is None:
        return DiseaseIndex.build(graph, RankingIndex.build(graph))
    key = f"{graph.fingerprint}-{VERSION}"
    path = cache_dir / f"diseases-{graph.fingerprint[:16]}.npz"
    found = cache.read(path, key)
    if found is not None:
        return from_arrays(found[1])
    index = DiseaseIndex.build(graph, RankingIndex.build(graph))
    if cache.write(path, key, {}, to_arrays(index)):
        _forget_oldest(cache_dir)
    return index


def _forget_oldest(cache_dir: Path) -> None:
    """Deletes all indexes but the newest; other processes may do the same."""
    try:
        files = sorted(cache_dir.glob("diseases-*.npz"), key=lambda file: file.stat().st_mtime_ns)
        for file in files[:-KEPT_FILES]:
            file.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("old disease indexes are not deleted: %s: %s", cache_dir, error.strerror or error)


def to_arrays(index: DiseaseIndex) -> cache.Arrays:
    """Named arrays, for the cache."""
    parts = {"properties": index.properties, "vectors": index.vectors}
    arrays = {f"{part}.{name}": np.asarray(a) for part, of in parts.items() for name, a in vars(of).items()}
    return {**arrays, **index.ranking.to_arrays()}


def from_arrays(arrays: cache.Arrays) -> DiseaseIndex:
    """What `to_arrays` gave."""

    def part(name: str) -> cache.Arrays:
        return {key.split(".")[1]: array for key, array in arrays.items() if key.startswith(f"{name}.")}

    ranking = RankingIndex.from_arrays(arrays)
    twins = no_twins(len(ranking.diseases))  # a model knows them, a graph does not
    return DiseaseIndex(ranking, Properties(**part("properties")), DiseaseVectors(**part("vectors")), twins)
