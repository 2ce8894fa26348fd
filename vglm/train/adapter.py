"""Training of the language model's adapter, and its distillation, both on the engine's own prompts and masks.

`train_adapter` learns the answers (cross-entropy), in `spans` and in `sequential` mode; on general text the model is held to
its base (Kullback-Leibler divergence from the base's predictions). `distill_adapter` then teaches the span mode what a
teacher predicts that sees the whole graph in sequential mode: half its loss is the divergence from the teacher (Hinton et
al., "Distilling the Knowledge in a Neural Network", 2015).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vglm.train.language_model import LanguageModel
from vglm.train.lessons import Batch, Lesson, Mixture
from vglm.train.run import TrainingRun
from vglm.train.samples import IGNORED


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """`sequential` is the share of the batches in sequential mode; `teacher_weight` that of the teacher in the loss."""

    steps: int = 1_500
    learning_rate: float = 6e-4
    warmup: int = 40
    sequential: float = 0.25
    teacher_weight: float = 0.0
    rank: int = 16
    alpha: float = 32.0
    compiled: bool = True


def train_adapter(
    model: LanguageModel,
    mixture: Mixture,
    run: TrainingRun,
    options: AdapterOptions,
    teacher: dict[str, Tensor] | None = None,
) -> None:
    """Train `model`'s adapter for `options.steps` steps, from where `run` stopped. `teacher`: another adapter of the model,
    which predicts in sequential mode what the model is to predict in span mode.
    """
    if options.compiled:
        # a variant for each length of rows, with gradients and without: the default of 8 would leave some uncompiled
        torch._dynamo.config.recompile_limit = 64
        for layer in model.layers:
            layer.compile(dynamic=False)
    weights = [weight for _, matrix in model.low_rank() for weight in (matrix.lora_a, matrix.lora_b)]
    optimizer = torch.optim.AdamW(weights, lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    run.track(adapter=_Adapter(model), optimizer=optimizer)
    for step in run.steps(options.steps, "adapter" if teacher is None else "distillation"):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * schedule(step, options.steps, options.warmup)
        mode = "sequential" if _share(step, options.sequential) else "spans"
        modes = (mode,) if teacher is None or mode == "sequential" else ("spans", "sequential")
        lesson, batches = mixture.batch(step, modes)
        loss, right = _loss(model, lesson, batches, mode, teacher, options.teacher_weight)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        run.log(
            step,
            loss=loss.item(),
            **{f"loss {lesson.name}": loss.item(), f"right {lesson.name}": right, "norm": float(norm)},
        )


def schedule(step: int, steps: int, warmup: int) -> float:
    """The factor of the learning rate: up in a line, down in half a cosine to a twentieth."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.05 + 0.475 * (1 + math.cos(math.pi * done))


def _share(step: int, share: float) -> bool:
    """Whether a step is one of a share of the steps that is spread evenly."""
    return math.floor((step + 1) * share) > math.floor(step * share)


def _loss(
    model: LanguageModel,
    lesson: Lesson,
    batches: dict[str, Batch],
    mode: str,
    teacher: dict[str, Tensor] | None,
    teacher_weight: float,
) -> tuple[Tensor, float]:
    """The loss, and the share of the tokens that the model would have chosen itself."""
    batch = batches[mode]
    logits, targets = predictions(model, batch)
    right = float((logits.argmax(-1) == targets).float().mean())
    if lesson.name == "general":
        with torch.no_grad(), _WithoutAdapter(model):
            base, _ = predictions(model, batch)
        return _divergence(logits, base), right
    loss = F.cross_entropy(logits, targets)
    if teacher is None or mode == "sequential":
        return loss, right
    with torch.no_grad(), _WithAdapter(model, teacher):
        taught, same = predictions(model, batches["sequential"])
    assert torch.equal(same, targets), "both modes have the same answers"
    return (1 - teacher_weight) * loss + teacher_weight * _divergence(logits, taught), right


def predictions(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits float32 [n, vocab] and targets int64 [n] where there is something to predict."""
    hidden = model.hidden(batch.tokens, batch.positions, batch.visible)
    wanted = batch.targets != IGNORED
    return model.logits(hidden[wanted]), batch.targets[wanted]


def _divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergence of predictions from the wanted ones, nats a token."""
    return F.kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)


class _WithoutAdapter:
    """The model is its base meanwhile."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._model.use_adapter(False)

    def __exit__(self, *error: object) -> None:
        self._model.use_adapter(True)


class _WithAdapter:
    """The model has another adapter meanwhile."""

    def __init__(self, model: LanguageModel, adapter: dict[str, Tensor]) -> None:
        self._model, self._adapter = model, adapter

    def __enter__(self) -> None:
        self._own = {name: value.clone() for name, value in self._model.adapter().items()}
        self._model.load_adapter(self._adapter)

    def __exit__(self, *error: object) -> None:
        self._model.load_adapter(self._own)


class _Adapter:
    """The adapter as a checkpoint keeps it."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def state_dict(self) -> dict[str, Tensor]:
        return self._model.adapter()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._model.load_adapter(state)


def settings(options: AdapterOptions, mixture: Mixture, **data: object) -> dict[str, object]:
    """What makes a training the same one; `data` names what it learns from, by digests."""
    lessons = [[lesson.name, lesson.share] for lesson in mixture.lessons]
    return {**asdict(options), "lessons": lessons, **data}
