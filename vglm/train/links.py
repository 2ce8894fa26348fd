"""Training of link prediction on one graph: structure (ComplEx), texts (a bi-encoder and evidence), and how they are mixed.

model = train_links(graph)                                   # from structure alone
model = train_links(graph, encoder=SentenceEncoder.load(pull("all-minilm-l6-v2")).encode)
model.save("links.safetensors")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from vglm.encoder.link_evidence import Evidence
from vglm.encoder.link_model import LinkModel
from vglm.encoder.link_parts import Float32, Part
from vglm.errors import ConfigError
from vglm.graph.graph import Graph
from vglm.train.links_complex import ComplexOptions, ComplexStage
from vglm.train.links_data import KnownAnswers, Longs, Triples, both_directions, filtered_ranks
from vglm.train.links_mix import fit_mix
from vglm.train.random_states import seed_everything
from vglm.train.run import TrainingRun, temporary_folder
from vglm.train.text_links import TextOptions, TextStage

TextVectors = Callable[[Sequence[str]], Float32]
_LARGE = 5000  # entities, from which on ComplEx compares with random negatives
_VALIDATED = 1000  # questions that choose the best epoch


@dataclass(frozen=True)
class LinkOptions:
    """How a link model is trained. `evidence` adds what can be read off graph and texts, when there are texts."""

    complex: ComplexOptions = field(default_factory=ComplexOptions)
    text: TextOptions = field(default_factory=TextOptions)
    evidence: bool = True
    validate_every: int = 5
    seed: int = 0

    @classmethod
    def suited_to(cls, num_entities: int, seed: int = 0) -> LinkOptions:
        """Sizes for a small graph (every entity is compared with every other) or a large one (random negatives)."""
        if num_entities < _LARGE:
            return cls(seed=seed)
        large = ComplexOptions(
            rank=128, epochs=12, batch=1000, regularisation=0.1, relation_weight=0.05, negatives=4000
        )
        return cls(complex=large, validate_every=2, seed=seed)


@dataclass(frozen=True)
class Progress:
    """Where a training is: the stage ("complex", "text"), epochs done of all, its loss, validation MRR (nan: none)."""

    stage: str
    epoch: int
    epochs: int
    loss: float
    mrr: float


class Stage(Protocol):
    """A part in training."""

    name: str

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    @property
    def module(self) -> nn.Module: ...

    def epoch(self, number: int) -> float: ...

    def part(self) -> Part: ...


def train_links(
    graph_or_triples: Graph | Triples,
    options: LinkOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    encoder: TextVectors | None = None,
    folder: Path | None = None,
) -> LinkModel:
    """Train a link model on a graph, or on triples with a validation part of their own.

    `encoder` gives unit vectors float32 [n, t] of texts; without one, texts are not used. `folder` keeps checkpoints, so
    that the same call resumes after a kill. The same seed gives the same model. Raises GraphError when there is nothing
    to learn from, ConfigError for options that do not fit or a folder of another training.
    """
    data = graph_or_triples
    if isinstance(data, Graph):
        data = Triples.from_graph(data)
    options = options or LinkOptions.suited_to(data.num_entities)
    if folder is None:
        with temporary_folder() as temporary:
            return _Training(data, options, on_progress, temporary).model(encoder)
    return _Training(data, options, on_progress, folder).model(encoder)


class _Training:
    """One training: data in both directions, the folder of each stage, the validation that stages share."""

    def __init__(
        self,
        data: Triples,
        options: LinkOptions,
        on_progress: Callable[[Progress], None] | None,
        folder: Path,
    ) -> None:
        self.data, self.options, self.on_progress, self.folder = data, options, on_progress, folder
        parts = [both_directions(part, data.num_relations) for part in (data.train, data.valid, data.true)]
        self.questions, self.validation, _ = parts
        self.known = KnownAnswers(np.concatenate(parts), data.num_relations)
        self.given = KnownAnswers(np.concatenate(parts[:2]), data.num_relations)  # what may be fitted on

    def model(self, encoder: TextVectors | None) -> LinkModel:
        data, options = self.data, self.options
        seed_everything(options.seed)
        structure = ComplexStage(self.questions, data.num_entities, data.num_relations, options.complex)
        parts: list[Part] = [self._train(structure, options.complex.epochs)]
        if encoder is not None and data.texts:
            vectors = self._text_vectors(encoder)
            seed_everything(options.seed)
            text = TextStage(vectors, self.questions, data.num_relations, options.text)
            parts.append(self._train(text, options.text.epochs))
            if options.evidence:
                parts.append(Evidence(vectors, data.texts, self.questions, data.num_relations))
        return LinkModel(data.entities, data.relations, parts, self._weights(parts))

    def _text_vectors(self, encoder: TextVectors) -> Float32:
        """The encoder's vectors; kept in the folder, as a large graph takes minutes."""
        digest = hashlib.sha256(json.dumps(self.data.texts).encode()).hexdigest()
        path = self.folder / f"texts-{digest[:16]}.safetensors"
        if path.exists():
            return load_file(path)["vectors"]
        vectors = np.ascontiguousarray(encoder(self.data.texts), np.float32)
        if vectors.ndim != 2 or len(vectors) != self.data.num_entities or not np.isfinite(vectors).all():
            raise ConfigError(
                f"the encoder gave {vectors.shape} for {self.data.num_entities} texts, or no numbers"
            )
        temporary = path.with_suffix(".tmp")
        save_file({"vectors": vectors}, temporary)
        temporary.replace(path)
        return vectors

    def _train(self, stage: Stage, epochs: int) -> Part:
        """Run a stage; its parameters of the best validated epoch, or of the last one without validation."""
        settings: dict[str, Any] = {
            "stage": stage.name,
            "triples": len(self.data.train),
            "data": self.data.digest,
            **asdict(self.options),
        }
        settings.pop("seed")
        run = TrainingRun(
            self.folder / stage.name, settings, self.options.seed, show=self.on_progress is None
        )
        run.track(module=stage.module, optimizer=stage.optimizer)
        try:
            for epoch in run.steps(epochs, stage.name):
                loss, mrr = stage.epoch(epoch), float("nan")
                if not np.isfinite(loss):
                    raise ConfigError(f"{stage.name}: the loss is {loss} in epoch {epoch}; lower the rate")
                last = epoch + 1 == epochs
                if len(self.validation) and (last or (epoch + 1) % self.options.validate_every == 0):
                    mrr = self._mrr(stage.part())
                    if mrr > run.values.get("mrr", -1.0):
                        best = {name: value.clone() for name, value in stage.module.state_dict().items()}
                        run.values.update(mrr=mrr, best=best)
                run.log(epoch, loss=loss, **({} if np.isnan(mrr) else {"mrr": mrr}))
                if self.on_progress:
                    self.on_progress(Progress(stage.name, epoch + 1, epochs, loss, mrr))
            if "best" in run.values:
                stage.module.load_state_dict(run.values["best"])
        finally:
            run.close()
        return stage.part()

    def _mrr(self, part: Part) -> float:
        chosen = np.random.default_rng(self.options.seed).permutation(len(self.validation))[:_VALIDATED]
        ranks = filtered_ranks(
            lambda given, relations: part.scores(given, relations)[0], self.validation[chosen], self.known
        )
        return float((1 / ranks).mean())

    def _weights(self, parts: list[Part]) -> Float32:
        """Fitted on validation triples where there are several channels and triples enough; otherwise equal."""
        channels = sum(part.num_channels for part in parts)
        if channels == 1 or not len(self.validation):
            weights = np.zeros((2 * self.data.num_relations, channels), np.float32)
            weights[:, : 2 if len(parts) > 1 else 1] = 1  # what is trained; evidence counts when fitted only
            return weights

        def score(given: Longs, relations: Longs) -> Float32:
            return np.concatenate([part.scores(given, relations) for part in parts])

        return fit_mix(score, self.validation, self.given, self.data.num_relations, seed=self.options.seed)
