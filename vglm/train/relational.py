"""Trains the relational encoder on the triples of one or more graphs, without labels.

Each step asks both questions about some triples of a graph, hides these triples' edges, and wants the answer to score above
all other entities that are no right answers. Graphs are varied (`vglm.train.relational_graphs`), a few steps each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vglm.encoder.relational_weights import RelationalShape
from vglm.errors import ConfigError
from vglm.train.relational_graphs import TrainingGraph, varied
from vglm.train.relational_model import RelationalModel
from vglm.train.run import TrainingRun

_WARM_UP = 50
_LEAST_TRIPLES = 20  # of a variation
_MOST_TRIES = 1_000  # variations that are drawn for one, before the graph is said to have none


@dataclass(frozen=True)
class RelationalSettings:
    """What a training is made of; the defaults take about a minute of one core."""

    width: int = 32
    relation_layers: int = 3
    entity_layers: int = 5
    steps: int = 800
    rate: float = 3e-3
    queries: int = 16  # per step, fewer on large graphs
    work: int = 8_000  # queries times nodes of a step, at most
    vary: float = 0.8  # how often a variation stands for the graph
    smallest: int = 100  # nodes of a part of a graph
    largest: int = 2000
    steps_per_graph: int = 4
    graphs_at_once: int = 8

    @property
    def shape(self) -> RelationalShape:
        return RelationalShape(self.width, self.relation_layers, self.entity_layers)


def train_relational(
    graphs: Sequence[TrainingGraph],
    settings: RelationalSettings,
    seed: int,
    folder: Path,
    *,
    show: bool = True,
) -> RelationalModel:
    """Train from random weights, or go on where the run in `folder` was stopped.

    The graphs are equally frequent whatever their sizes. Raises ConfigError for a graph of too few triples, and
    for a folder that holds the training of other graphs.
    """
    for graph in graphs:
        if len(graph.triples) < _LEAST_TRIPLES:
            raise ConfigError(
                f"a graph to train on has {len(graph.triples)} triples; it takes {_LEAST_TRIPLES} or more"
            )
    identity = {"task": "relational encoder", "graphs": [graph.digest for graph in graphs]}
    run = TrainingRun(folder, {**identity, **asdict(settings)}, seed, show=show)
    try:
        model = RelationalModel(settings.shape)
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=1e-4)
        run.track(model=model, optimizer=optimizer)
        variations = _Variations(graphs, settings, seed)
        for step in run.steps(settings.steps, "relational encoder"):
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * _schedule(step, settings.steps)
            loss = _loss(model, variations, settings, step)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            run.log(step, loss=loss.item())
    finally:
        run.close()
    return model


def _loss(model: RelationalModel, variations: _Variations, settings: RelationalSettings, step: int) -> Tensor:
    """Cross-entropy of the answers among the entities that are no other right answers."""
    rng = np.random.default_rng([variations.seed, 1, step])
    graph = variations.at(step, rng)
    size = min(settings.queries, max(2, settings.work // graph.num_nodes))
    asked, structure, others = graph.batch(rng, size)
    head, relation, answer = torch.from_numpy(asked).T
    scores = model(structure, head, relation)
    return functional.cross_entropy(scores.masked_fill(torch.from_numpy(others), -1e9), answer)


def _schedule(step: int, steps: int) -> float:
    """A warm-up, then half a cosine down to 2 %."""
    return min(1.0, (step + 1) / _WARM_UP) * max(0.02, 0.5 * (1 + float(np.cos(np.pi * step / steps))))


class _Variations:
    """The graph of each step; a function of seed and step alone, so that a resumed run sees the same ones."""

    def __init__(self, graphs: Sequence[TrainingGraph], settings: RelationalSettings, seed: int) -> None:
        self.graphs = graphs
        self.settings = settings
        self.seed = seed
        self._made = lru_cache(maxsize=settings.graphs_at_once)(self._make)

    def at(self, step: int, rng: np.random.Generator) -> TrainingGraph:
        """One of the newest variations; a new one joins them every few steps."""
        newest = step // self.settings.steps_per_graph
        return self._made(max(0, newest - int(rng.integers(self.settings.graphs_at_once))))

    def _make(self, number: int) -> TrainingGraph:
        settings = self.settings
        rng = np.random.default_rng([self.seed, 0, number])
        graph = self.graphs[int(rng.integers(len(self.graphs)))]
        if graph.num_nodes <= settings.largest and rng.random() >= settings.vary:
            return graph
        for _ in range(_MOST_TRIES):
            found = varied(graph, rng, (settings.smallest, settings.largest))
            if len(found.triples) >= _LEAST_TRIPLES:
                return found
        raise ConfigError(
            f"a graph of {graph.num_nodes:,} nodes and {len(graph.triples):,} triples falls into parts too small to train "
            f"on: none of {_MOST_TRIES:,} variations of it had {_LEAST_TRIPLES} triples; give a graph that hangs together"
        )
