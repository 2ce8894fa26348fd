"""The trained disease ranking: a patient's findings in, all diseases of a graph ranked, each with a probability.

    model = DiseaseModel.load("models/open-autoglm-v1/disease-ranker.safetensors")
    candidates = model.rank(hpo.graph, ["HP:0001083", "HP:0001519"])

The likelihood method and the graph encoder's neighbours score every disease (`screen`); the best `CANDIDATES` are then
scored by a log-linear model over all that is known about each match (`pooled`), trained on published patients to give the
true disease a high share among all candidates (conditional logit, McFadden 1974). Nothing is stored about the phenotypes of
any disease, only which diseases have which gene (`disease_genes`): the features come from the graph that is given, so it may
have been edited."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vglm.encoder.disease_candidates import (
    Candidates,
    DiseaseIndex,
    Screening,
    candidates_of,
    first_score,
    published,
    screen,
    selection,
    speaks_against,
)
from vglm.encoder.disease_index import disease_index
from vglm.encoder.disease_pooling import POOLED, pooled
from vglm.encoder.products import times_vector
from vglm.errors import ModelError
from vglm.graph.derived import once_per_graph
from vglm.graph.evidence import Candidate
from vglm.graph.graph import Graph
from vglm.graph.ranking import DiseaseRanker

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

FORMAT = "vglm disease ranker 2"
CANDIDATES = 400  # that are scored in full; the others keep the order of the screening, below them
CLIP = 5.0  # standard deviations: a feature that is far out of what was trained says no more
PRIOR = ("published",)  # a study of patients with the disease is cited


@dataclass(frozen=True)
class Weights:
    """`mean`, `scale`, `match` float32[len(POOLED)]; `screening` float32[1]; `prior` float32[len(PRIOR)];
    `calibration` float32[2]: the temperature of the scores, and how often the true disease is a candidate at all; `genes`
    int32[P, 2]: pairs of a disease's code and the number of its gene."""

    mean: Floats
    scale: Floats
    match: Floats
    screening: Floats
    prior: Floats
    calibration: Floats
    genes: Ints = field(default_factory=lambda: np.zeros((0, 2), np.int32))

    def save(self, path: str | Path) -> None:
        """Writes them as safetensors, with the names of the inputs."""
        metadata = {"format": FORMAT, "inputs": json.dumps(POOLED), "prior": json.dumps(PRIOR)}
        save_file({name: np.ascontiguousarray(v) for name, v in vars(self).items()}, str(path), metadata)


class DiseaseModel:
    """Ranks the diseases of any graph with `is a` and `has phenotype` edges; immutable, may be shared by threads."""

    def __init__(self, weights: Weights, cache_dir: Path | None = None) -> None:
        self.weights = weights
        self.cache_dir = cache_dir
        self._index = once_per_graph(self._with_genes)

    @classmethod
    def load(cls, path: str | Path, cache_dir: str | Path | None = None) -> DiseaseModel:
        """Reads trained weights; what is computed once per graph is kept in `cache_dir`, if given, and in memory.

        Raises ModelError for a file that is missing, damaged, or of another version.
        """
        try:
            with safe_open(str(path), framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: cannot be read as a disease ranker: {error}") from error
        if metadata.get("format") != FORMAT:
            raise ModelError(f"{path}: expected the format {FORMAT!r}, found {metadata.get('format')!r}")
        if (metadata.get("inputs"), metadata.get("prior")) != (json.dumps(POOLED), json.dumps(PRIOR)):
            raise ModelError(
                f"{path}: was trained on other inputs than this version of vGLM computes; update both"
            )
        sizes = {"screening": 1, "prior": len(PRIOR), "calibration": 2}
        pairs = tensors.get("genes")
        if pairs is None or pairs.dtype != np.int32 or pairs.ndim != 2 or pairs.shape[1] != 2:
            raise ModelError(f"{path}: damaged: expected a tensor 'genes' of int32 pairs")
        for name in set(Weights.__dataclass_fields__) - {"genes"}:
            shape = (sizes.get(name, len(POOLED)),)
            if name not in tensors or tensors[name].shape != shape or not np.isfinite(tensors[name]).all():
                raise ModelError(f"{path}: damaged: expected a finite tensor {name!r} of shape {shape}")
        return cls(Weights(**tensors), None if cache_dir is None else Path(cache_dir))

    def _with_genes(self, graph: Graph) -> DiseaseIndex:
        return disease_index(graph, self.cache_dir).with_genes(graph, self.weights.genes)

    def rank(
        self,
        graph: Graph,
        findings: Sequence[str],
        excluded: Sequence[str] = (),
        top: int = 10,
        prior: bool = True,
    ) -> list[Candidate]:
        """The `top` best diseases with their evidence, best first; equal scores are ordered by id.

        `prior=False` ignores how well a disease is documented. Probabilities are of the diseases that the graph has, for a
        patient like those of the training. Raises GraphError as `DiseaseRanker.rank` does. The first call on a graph
        computes its index: some seconds for the whole ontology, or half a second from `cache_dir`.
        """
        index = self._index(graph)
        ranker = DiseaseRanker(graph, index.ranking)
        present, absent = ranker.checked(findings, excluded)
        nodes = np.array(present, np.int32)
        screening = screen(index, nodes)
        against = speaks_against(index, np.array(absent, np.int32))
        total = first_score(screening.scores, screening.around) + against
        if prior:
            total = selection(total, index.properties.values)
        rows, rest = best_first(total, max(0, top))
        candidates = candidates_of(index, screening, rows)
        scores = self.score(index, screening, candidates, nodes, prior)
        scores += self.weights.screening * against[rows]
        order = np.lexsort((rows, -scores))
        chances = self.probabilities(scores)
        ranked = [(int(rows[i]), float(scores[i]), float(chances[i])) for i in order[: max(0, top)]]
        floor = float(scores.min())
        ranked += [(int(row), floor - place, 0.0) for place, row in enumerate(rest, 1)]
        return [
            replace(ranker.candidate(place, row, score, present, absent), probability=chance)
            for place, (row, score, chance) in enumerate(ranked, 1)
        ]

    def score(
        self,
        index: DiseaseIndex,
        screening: Screening,
        candidates: Candidates,
        findings: Ints,
        prior: bool = True,
    ) -> Floats:
        """The score of every candidate, float32[K], in nats before calibration."""
        w = self.weights
        scaled = (pooled(index, screening, candidates, findings) - w.mean) / w.scale
        scores: Floats = times_vector(np.clip(scaled, -CLIP, CLIP), w.match)
        scores += w.screening * first_score(candidates.scores, candidates.around)
        if prior:
            scores += self.prior(candidates.properties.values)
        return scores

    def prior(self, properties: Floats) -> Floats:
        """What a disease's documentation adds to its score, float32[K]."""
        added: Floats = times_vector(documentation(properties), self.weights.prior)
        return added

    def probabilities(self, scores: Floats) -> Floats:
        """The chance of each candidate, float32[K], from all their scores; they sum to less than 1, because the
        true disease may be none of them."""
        temperature, coverage = self.weights.calibration
        shifted = np.exp((scores - scores.max()) / temperature)
        shares: Floats = coverage * shifted / shifted.sum()
        return shares


def best_first(total: Floats, top: int) -> tuple[Ints, Ints]:
    """The rows of the `CANDIDATES` largest values, best first and equal ones in order, and enough others for `top`."""
    rows = np.arange(len(total))
    if top <= CANDIDATES < len(total):
        bound = np.partition(total, len(total) - CANDIDATES)[len(total) - CANDIDATES]
        rows = np.flatnonzero(total >= bound)
    ordered = rows[np.argsort(-total[rows], kind="stable")].astype(np.int32)
    return ordered[:CANDIDATES], ordered[CANDIDATES:top]


def documentation(properties: Floats) -> Floats:
    """The inputs of the prior, float32[K, len(PRIOR)], from properties float32[K, len(NAMES)]."""
    return published(properties)[:, None]
