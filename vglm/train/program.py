"""From graphs and data to a model directory: what `vglm train adapter` and `vglm distill` do.

Three steps lead from data to deployment: a teacher (`train_model`, which learns in both modes), a student (`distill_model`,
which reads graphs as spans and learns from the teacher, who sees everything), and an export with quantised weights.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from vglm.errors import ConfigError, ModelError
from vglm.graph.graph import Graph
from vglm.model.adapter import Adapter, save_adapter
from vglm.model.bundle import ADAPTER, card_file, read_card, sha256, write_card
from vglm.model.checkpoint import open_checkpoint
from vglm.model.graph_card import GraphCard
from vglm.model.pull import resolve_model
from vglm.train.adapter import AdapterOptions, settings, train_adapter
from vglm.train.data.general import read_replies, text_samples, write_replies
from vglm.train.language_model import LanguageModel
from vglm.train.lessons import (
    Lesson,
    Mixture,
    data_lessons,
    general_lesson,
    graph_lessons,
    with_shares,
    world_lesson,
)
from vglm.train.run import TrainingRun
from vglm.train.samples import RowWriter, Sample

CARD = GraphCard(spans=True, facts=True)
REPLIES = "replies.jsonl"
RUN = "training"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train and on what.

    `graphs` give reading lessons, and explanations where diseases have phenotypes; `data` is a folder with question sets, as
    docs/training.md lays it out. `shares` replaces the shares of lessons among the batches, by name. `begin` is a model's
    directory whose adapter the training begins with. `out` is the model's directory; the training itself is kept in its folder
    `training`.
    """

    out: Path
    graphs: Sequence[Graph] = ()
    data: Path | None = None
    base: str = "smollm2-135m-instruct"
    name: str = ""
    seed: int = 0
    threads: int | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    begin: Path | None = None
    options: AdapterOptions = field(default_factory=AdapterOptions)


def train_model(plan: Plan, teacher: Path | None = None) -> Path:
    """Train an adapter and write the model's directory; with a `teacher`, a directory that was written so, distil it.

    Raises ConfigError, ModelError and GraphError before the training begins.
    """
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    taught = None if teacher is None else _adapter_of(teacher, plan)
    first = taught if plan.begin is None else _adapter_of(plan.begin, plan)
    general: list[Sample] = []  # written below, once all else is known to be right
    lessons = with_shares([*_lessons(plan), world_lesson(), general_lesson(general)], plan.shares)
    checkpoint = open_checkpoint(resolve_model(plan.base))
    writer = RowWriter(checkpoint, CARD)
    Mixture(lessons[:-1], writer, plan.seed).check()
    folder = plan.out / RUN
    folder.mkdir(parents=True, exist_ok=True)
    general += _general(plan, folder)
    mixture = Mixture(lessons, writer, plan.seed)
    same = settings(
        plan.options,
        mixture,
        base=checkpoint.fingerprint,
        graphs=[graph.fingerprint for graph in plan.graphs],
        teacher="" if teacher is None else sha256(teacher / ADAPTER),
        begin="" if plan.begin is None else sha256(plan.begin / ADAPTER),
    )
    run = TrainingRun(folder, same, plan.seed)  # seeds what the adapter begins with
    model = LanguageModel(checkpoint, plan.options.rank, plan.options.alpha)
    if first is not None:
        model.load_adapter(first)
    train_adapter(model, mixture, run, plan.options, taught)
    run.close()
    tensors = {name: value.numpy() for name, value in model.adapter().items()}
    save_adapter(plan.out / ADAPTER, tensors, model.rank, model.alpha)
    name = plan.name or plan.out.name
    write_card(
        plan.out, name=name, version="1.0", base_model=_lasting(plan.base), graph=CARD, files=[ADAPTER]
    )
    return plan.out


def distill_model(plan: Plan, teacher: Path) -> Path:
    """The student of a `teacher`: its span mode learns what the teacher predicts in sequential mode."""
    options = replace(plan.options, teacher_weight=0.5, sequential=0.15)
    return train_model(replace(plan, options=options), teacher)


def _lessons(plan: Plan) -> list[Lesson]:
    for place, graph in enumerate(plan.graphs):
        if not graph.num_edges:
            raise ConfigError(f"graphs[{place}] has no edges, so there is nothing to learn from it")
    lessons = graph_lessons(plan.graphs) if plan.graphs else []
    if plan.data is not None:
        lessons += data_lessons(plan.data)
    if not lessons:
        raise ConfigError("nothing to train on: give graphs, or a data folder with question sets")
    return lessons


def _general(plan: Plan, folder: Path) -> list[Sample]:
    """What the model is held to its base on: the base's replies, written once, and texts of the graphs."""
    path = folder / REPLIES
    if not path.exists():
        from vglm import LLM

        print("the base writes the replies that it is to keep: once, minutes to an hour", file=sys.stderr)
        write_replies(LLM(plan.base), path, seed=plan.seed)
    texts = [_texts_of(graph) for graph in plan.graphs]
    return read_replies(path) + text_samples([text for text in texts if text], random.Random(plan.seed))


def _texts_of(graph: Graph, count: int = 2_000) -> str:
    """Some of a graph's texts as running text."""
    texts = [text for text in (graph.columns.texts[i] for i in range(graph.num_nodes)) if text]
    chosen = random.Random(0).sample(texts, min(count, len(texts)))
    return " ".join(chosen)


def _lasting(base: str) -> str:
    """A base as a card names it, wherever the card lies: a known name as it is, a path as an absolute one."""
    path = Path(base).expanduser()
    return os.path.abspath(path) if os.path.exists(path) else base


def _adapter_of(folder: Path, plan: Plan) -> dict[str, torch.Tensor]:
    """The adapter of a model's directory, float32. Raises ModelError when it is damaged, or is not one that `plan` can begin
    with."""
    card = read_card(folder)
    if card.base_model != _lasting(plan.base):
        raise ModelError(
            f"{folder}: its base is {card.base_model!r}; that of the training is {_lasting(plan.base)!r}"
        )
    path = card_file(folder, ADAPTER)
    if path is None:
        raise ModelError(f"{folder}: its card lists no {ADAPTER}; give what `vglm train adapter` wrote")
    adapter = Adapter(path, open_checkpoint(resolve_model(plan.base)))
    rank, alpha = plan.options.rank, plan.options.alpha
    if (adapter.rank, adapter.alpha) != (rank, alpha):
        raise ModelError(
            f"{path}: its rank is {adapter.rank} and its alpha {adapter.alpha:g}; what begins with it is to have rank "
            f"{rank} and alpha {alpha:g}: give both the same"
        )
    return {name: value.float() for name, value in load_file(path).items()}
