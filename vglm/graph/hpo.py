"""The Human Phenotype Ontology as one graph: phenotypes, diseases, and what is published about both.

`hp.obo` gives phenotype nodes and `is a` edges; `phenotype.hpoa` gives disease nodes and edges such as
`has phenotype`, which carry the frequency, the references and the evidence code of the annotation.
"""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from vglm.errors import GraphError
from vglm.graph import cache
from vglm.graph.graph import Graph
from vglm.graph.hpoa import read_annotations
from vglm.graph.limits import shown
from vglm.graph.obo import read_obo
from vglm.graph.ranking import DiseaseRanker
from vglm.graph.ranking_index import RankingIndex


@dataclass(frozen=True)
class HPO:
    """The graph, its release, the ranking over it, and the ids that the release has retired."""

    graph: Graph
    ranker: DiseaseRanker
    version: str
    replacements: dict[str, str] = field(repr=False)  # retired id -> current id
    obsolete: dict[str, list[str]] = field(repr=False)  # retired without one replacement -> ids to consider
    load_seconds: float = 0.0
    from_cache: bool = False

    def resolve(self, finding: str) -> str:
        """The current id for a phenotype given by id, retired id, name or synonym (any case).

        Raises GraphError for what is unknown, ambiguous or no phenotype, with the nearest names.
        """
        text = finding.strip()
        node_id = self.replacements.get(text, text)
        if node_id not in self.graph:
            node_id = self._by_name(text)
        if self.graph.node(node_id).type != "phenotype":
            raise GraphError(f"{shown(finding)} ({self.graph.name_of(node_id)}) is not a phenotype")
        return node_id

    def knows(self, name: str) -> bool:
        """True if this is the name or a synonym of a phenotype (any case)."""
        return name.strip().casefold() in self._names

    def _by_name(self, text: str) -> str:
        if text in self.obsolete:
            instead = ", ".join(self.obsolete[text]) or "nothing"
            raise GraphError(f"{text} is obsolete and has no single replacement; consider {instead}")
        found = self._names.get(text.casefold(), [])
        if len(found) == 1:
            return found[0]
        if found:
            raise GraphError(f"{shown(text)} is a name of several terms; give one of {', '.join(found)}")
        near = difflib.get_close_matches(text.casefold()[:200], self._names, n=3, cutoff=0.75)
        hint = "; did you mean " + " or ".join(repr(name) for name in near) + "?" if near else ""
        raise GraphError(f"no phenotype has the id or name {shown(text)} in release {self.version}{hint}")

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Names and synonyms of phenotypes, case-folded; a primary name hides synonyms that are equal
        to it."""
        primary: dict[str, list[str]] = {}
        synonyms: dict[str, list[str]] = {}
        for index in self.graph.nodes_of_type("phenotype"):
            node = self.graph.node_at(int(index))
            primary.setdefault(node.name.casefold(), []).append(node.id)
            for alias in {alias.casefold() for alias in node.aliases}:
                synonyms.setdefault(alias, []).append(node.id)
        return {**synonyms, **primary}


def load_hpo(directory: str | Path, cache_dir: str | Path | None = None) -> HPO:
    """Loads `hp.obo` and `phenotype.hpoa` from a directory: about 3 s the first time, then from the cache.

    The cache file is keyed by the two files' paths, sizes and times; a damaged or older one is written
    anew. With `cache_dir=None` nothing is cached. Raises GraphError for files that are missing or
    malformed.
    """
    started = time.perf_counter()
    paths = [Path(directory) / name for name in ("hp.obo", "phenotype.hpoa")]
    for path in paths:
        if not path.is_file():
            raise GraphError(f"{path}: no such file; `vglm pull hpo` fetches the Human Phenotype Ontology")
    key = cache.source_key(paths)
    cached = None if cache_dir is None else Path(cache_dir) / f"hpo-{key[:16]}.npz"
    hpo = None if cached is None else _from_cache(cached, key)
    if hpo is None:
        ontology = read_obo(paths[0])
        graph = read_annotations(paths[1], ontology)
        obsolete = {t.id: t.replaced_by + t.consider for t in ontology.terms.values() if t.obsolete}
        hpo = HPO(graph, DiseaseRanker(graph), ontology.version, ontology.replacements(), obsolete)
        if cached is not None:
            _to_cache(cached, key, hpo)
    return replace(hpo, load_seconds=time.perf_counter() - started)


def _from_cache(path: Path, key: str) -> HPO | None:
    kept = cache.read(path, key)
    if kept is None:
        return None
    meta, arrays = kept
    graph = cache.graph_from_arrays(meta["graph"], arrays)
    ranker = DiseaseRanker(graph, RankingIndex.from_arrays(arrays))
    return HPO(graph, ranker, meta["version"], meta["replacements"], meta["obsolete"], from_cache=True)


def _to_cache(path: Path, key: str, hpo: HPO) -> None:
    graph_meta, arrays = cache.graph_to_arrays(hpo.graph)
    meta = {
        "graph": graph_meta,
        "version": hpo.version,
        "replacements": hpo.replacements,
        "obsolete": hpo.obsolete,
    }
    cache.write(path, key, meta, {**arrays, **hpo.ranker.index.to_arrays()})
